"""Who presents a credential: static tokens and one-time tickets, and who it turned out to be.

Nothing here keeps a credential. Tokens and tickets are held and compared as SHA-256 digests: equal length whatever
was presented, so that a comparison in constant time tells nothing, and a memory dump holds nothing to present.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Literal

import attrs

# RFC 7235 sets no bound; the largest token of any use (a JWT with a certificate chain) is smaller, and each byte is
# hashed before anyone is authenticated.
LONGEST_CREDENTIAL = 8 * 1024
TICKET_LIFE_NS = 30_000_000_000
MOST_TICKETS = 4096


Issuer = Literal["static", "own", "outside", "session", "certificate"]


@attrs.frozen
class Identity:
    """Who a verified credential speaks for.

    ``principal`` is empty for a static token's holder without a name of its own. A name that another party chose is
    ``issuer|name``; the gateway's own names never hold a ``|``, so that the two can't be mistaken for each other.
    ``expires_at_ms`` is wall-clock milliseconds since the epoch, the leeway included; 0 never. ``issued_ms`` is such a
    time too; 0 when the credential says nothing of it. ``jti``, ``session`` (of an issued session, which an own token
    names in the claim ``sid``) and ``family`` are empty where the credential has none.
    """

    principal: str
    scopes: tuple[str, ...]
    expires_at_ms: int
    jti: str
    session: str
    family: str
    issuer: Issuer
    issued_ms: int = 0
    tokens: tuple[str, ...] = ()  # the names under which the credential itself can be revoked
    standing: str = ""  # what of the settings lets it in: a listener, and the digest of one of its static tokens


_STATIC_NAME = re.compile(r"static(?:-[0-9a-f]{12})?\Z")


def is_reserved(name: str) -> bool:
    """Whether only the gateway gives this name: to what it issues for a static token, and, in policy files, to its
    holder."""
    return _STATIC_NAME.match(name) is not None


STATIC = Identity("", ("mcp:call", "mcp:read"), 0, "", "", "", "static")
"""The holder of a static token, and whoever is let in without one."""


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
    _issued: dict[bytes, tuple[int, Identity]] = attrs.field(factory=dict, init=False)  # in the order of expiry

    def __len__(self) -> int:
        return len(self._issued)

    def issue(self, ticket: str, now: int, identity: Identity = STATIC) -> bool:
        """Take a fresh ticket in, and for whom it speaks. False: too many are unredeemed."""
        self.expire(now)
        key = digest(ticket)
        if key is None:
            raise ValueError("a ticket has to be a credential")
        if len(self._issued) >= self.capacity:
            return False
        self._issued[key] = now + self.life_ns, identity
        return True

    def redeem(self, presented: bytes, now: int) -> Identity | None:
        """Whose live ticket has this digest; it is used up with the answer, in time or not."""
        expires, identity = self._issued.pop(presented, (0, STATIC))
        return identity if now < expires else None

    def expire(self, now: int) -> None:
        while self._issued:
            first = next(iter(self._issued))
            if self._issued[first][0] > now:
                return
            del self._issued[first]
