"""Which secrets are good enough: long, random, and not from an example. Pure.

Everything that ``openssl rand -hex 32``, ``openssl rand -base64 32`` or a UUID generator prints is good.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

MINIMUM_LENGTH = 32
"""Characters. A UUID without hyphens has 32; RFC 7518 §3.2 wants 32 bytes for HS256."""

_MINIMUM_BITS = 70.0
"""Length × entropy of its own letters. Of 500,000 UUIDs of versions 1, 4 and 5 the least had 91."""

_MINIMUM_TRIGRAMS = 0.6
"""Share of different ones among all substrings of three: repetition of any period lowers it. Random hex: above 0.9."""

_MAXIMUM_RUNS = 0.75
"""Share of neighbours that are equal or next to each other in the alphabet (``abcdefg``, ``76543``)."""

_EXAMPLE = re.compile(
    r"(?i:your[-_ ]|change[-_ ]?me|changeit|replace[-_ ]?(?:me|this|with)|placeholder|example|insert[-_]|<[^<>]*>|\$\{|"
    r"password|qwertyu|asdfghj)|secret|Secret|SECRET"
)
"""Nothing that hex or a UUID can hold, and what base64 holds in one of 10^8 random values at most."""

_EXAMPLES = frozenset(
    {
        "your-jwt-secret-minimum-32-chars",
        "your-session-secret-minimum-32-chars",
        "your-secure-ws-token",
        "your-secure-tcp-token",
        "your-secure-admin-token",
        "your-256-bit-secret",
        "a-string-secret-at-least-256-bits-long",
        "secret",
        "password",
        "changeme",
    }
)


def is_example(secret: str) -> bool:
    """Whether it is, or was plainly made from, an example value of some documentation."""
    return secret.lower() in _EXAMPLES or _EXAMPLE.search(secret) is not None


def weakness(secret: str) -> str | None:
    """What is wrong with it for production, or None. The answer tells nothing of the secret but its length."""
    if is_example(secret):
        return "is an example value; make your own with: openssl rand -hex 32"
    if len(secret) < MINIMUM_LENGTH:
        return f"has {len(secret)} characters, at least {MINIMUM_LENGTH} are needed: openssl rand -hex 32"
    if not _looks_random(secret):
        return "is too regular to be random; make one with: openssl rand -hex 32"
    return None


def _looks_random(secret: str) -> bool:
    length = len(secret)
    entropy = -sum(count / length * math.log2(count / length) for count in Counter(secret).values())
    trigrams = [secret[i : i + 3] for i in range(length - 2)]
    runs = sum(abs(ord(left) - ord(right)) <= 1 for left, right in pairwise(secret))
    return (
        length * entropy >= _MINIMUM_BITS
        and len(set(trigrams)) >= _MINIMUM_TRIGRAMS * len(trigrams)
        and runs <= _MAXIMUM_RUNS * (length - 1)
    )
