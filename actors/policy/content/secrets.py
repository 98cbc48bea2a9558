"""Known shapes of credentials in what a server says to a client.

Only shapes that nothing else has: a prefix that its issuer chose for being found, and a length. All are ASCII. A text
in which ASCII is escaped is looked at as it is, and as it would be written plainly.
"""

from __future__ import annotations

from itertools import product
from typing import Final

from ipc.content import LIMIT

from .linear import PatternSet, pattern_set

SHAPES: Final[dict[str, str]] = {
    "secret-aws-key": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b",
    "secret-github-token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})\b",
    "secret-gitlab-token": r"\bgl(?:pat|ptt|dt|rt|cbt|agent|oas|soat|ffct|imt)-[A-Za-z0-9_-]{20,}",
    "secret-slack-token": (
        r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-[0-9]-[A-Z0-9]+-[0-9]+-[a-f0-9]{32,}"
        r"|hooks\.slack\.com\\?/services\\?/T[A-Z0-9]{8,}\\?/B[A-Z0-9]{8,}\\?/[A-Za-z0-9]{20,}"
    ),
    "secret-private-key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "secret-jwt": r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}",
    "secret-anthropic-key": r"\bsk-ant-[a-z0-9]+-[A-Za-z0-9_-]{32,}",
    "secret-openai-key": (
        r"\bsk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,}|\bsk-[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}\b"
    ),
    "secret-google-key": r"\bAIza[A-Za-z0-9_-]{35}|\bGOCSPX-[A-Za-z0-9_-]{28}",
    "secret-stripe-key": r"\b(?:sk|rk)_live_[A-Za-z0-9]{20,}|\bwhsec_[A-Za-z0-9+/]{32,}",
    "secret-npm-token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "secret-pypi-token": r"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}",
    "secret-huggingface-token": r"\bhf_[A-Za-z]{34}\b",
    "secret-sendgrid-key": r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}\b",
    "secret-digitalocean-token": r"\bdo[opr]_v1_[a-f0-9]{64}\b",
}
"""By rule."""

_NAMES: Final = tuple(SHAPES)


def _in_json(pattern: str) -> str:
    """In JSON text a letter may stand right behind the n of an escaped line break, where there is no ``\\b``."""
    return pattern.replace(r"\b", r"(?:\b|\\[nrtbf])", 1) if pattern.startswith(r"\b") else pattern


_SET: Final[PatternSet] = pattern_set([_in_json(pattern) for pattern in SHAPES.values()])


MOST_BYTES: Final = 4 << 20
MOST_ESCAPES: Final = 50_000
_LETTERS: Final = {
    f"{high}{low}".encode(): bytes((int(f"{high}{low}", 16),))
    for high, low in product("01234567", "0123456789abcdefABCDEF")
}


def find(raw: bytes) -> str:
    """The rule of the first known secret in a well-formed message; empty when there is none.

    LIMIT for a message that would take longer to look through than others should wait.
    """
    if len(raw) > MOST_BYTES:
        return LIMIT
    try:
        found = _SET.find(raw)
        if not found and (b"\\u00" in raw or b"\\/" in raw):
            if raw.count(b"\\u00") > MOST_ESCAPES:
                return LIMIT
            found = _SET.find(_plainly(raw))
    except MemoryError:
        return LIMIT
    return _NAMES[min(found)] if found else ""


def _plainly(raw: bytes) -> bytes:
    """With the letters that are escaped as themselves. Of the text, not of what it stands for: no member is lost."""
    first, *parts = raw.split(b"\\u00")
    found = [first]
    for part in parts:
        letter = _LETTERS.get(part[:2])
        if letter is None:
            found.append(b"\\u00")
            found.append(part)
        else:
            found.append(letter)
            found.append(part[2:])
    return b"".join(found).replace(b"\\/", b"/")
