"""Who presents a credential: static tokens and one-time tickets.

Nothing here keeps a credential. Tokens and tickets are held and compared as SHA-256 digests: equal length whatever
was presented, so that a comparison in constant time tells nothing, and a memory dump holds nothing to present.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

import attrs

# RFC 7235 sets no bound; the largest token of any use (a JWT with a certificate chain) is smaller, and each byte is
# hashed before anyone is authenticated.
LONGEST_CREDENTIAL = 8 * 1024
TICKET_LIFE_NS = 30_000_000_000
MOST_TICKETS = 4096


def digest(credential: str) -> bytes | None:
    """The SHA-256 digest, None for a credential that is empty or too long to be looked at."""
    if not 0 < len(credential) <= LONGEST_CREDENTIAL:
        return None
    encoded = credential.encode("utf-8", "surrogatepass")
    return hashlib.sha256(encoded).digest() if len(encoded) <= LONGEST_CREDENTIAL else None


class StaticTokens:
    """The tokens of one listener; any of them opens it."""

    def __init__(self, tokens: Iterable[str]) -> None:
        digests = (digest(token) for token in tokens)
        self._digests = tuple(token for token in digests if token is not None)

    def __len__(self) -> int:
        return len(self._digests)

    def matches(self, presented: bytes) -> bool:
        """Compare with all of them, whichever fits, so that the time tells nothing about which did."""
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, presented)
        return found


@attrs.define
class Tickets:
    """One-time tickets that haven't been redeemed. They live in memory only: a restart voids them all.

    Lookup by digest is not constant-time, and needs not be: who can't choose a digest's prefix learns nothing.
    """

    capacity: int = MOST_TICKETS
    life_ns: int = TICKET_LIFE_NS
    _expiries: dict[bytes, int] = attrs.field(factory=dict, init=False)  # in the order of expiry

    def __len__(self) -> int:
        return len(self._expiries)

    def issue(self, ticket: str, now: int) -> bool:
        """Take a fresh ticket in. False: too many are unredeemed."""
        self.expire(now)
        key = digest(ticket)
        if key is None:
            raise ValueError("a ticket has to be a credential")
        if len(self._expiries) >= self.capacity:
            return False
        self._expiries[key] = now + self.life_ns
        return True

    def redeem(self, presented: bytes, now: int) -> bool:
        """Whether this digest is that of a live ticket; it is used up with the answer, in time or not."""
        expires = self._expiries.pop(presented, None)
        return expires is not None and now < expires

    def expire(self, now: int) -> None:
        while self._expiries:
            first = next(iter(self._expiries))
            if self._expiries[first] > now:
                return
            del self._expiries[first]
