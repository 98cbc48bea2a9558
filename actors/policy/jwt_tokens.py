"""JSON Web Tokens that the gateway believes: its own and those of one outside issuer (RFC 7519, RFC 8725). Pure.

The two kinds share no key. A token signed with HMAC is compared with the gateway's own secrets and with nothing else,
any other one with the outside issuer's public keys and with nothing else; so a public key can't be mistaken for a
secret (RFC 8725 §2.1). Each kind has its own ``iss`` and ``aud``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs

from .identity import Identity, digest, is_reserved
from .jwks import KeySet, KeyUnknown
from .jws import MAX_TOKEN, SYMMETRIC, Compact, Key, TokenRefused, looks_like_one, parse
from .session_tokens import token_ids
from .strict_json import strict_object

__all__ = ["MAX_TOKEN", "KeyUnknown", "OutsideIssuer", "OwnIssuer", "TokenRefused", "Verifier", "looks_like_one"]

# An address of mail has at most 254 characters, a UUID 36.
LONGEST_SUBJECT: Final = 256
LONGEST_ID: Final = 256
MOST_SCOPES: Final = 64
MOST_REMEMBERED: Final = 4096

SEPARATOR: Final = "|"
"""Between the outside issuer and its name for somebody. The gateway's own names never hold it."""

# RFC 8725 §3.11: what is another kind of JWT is no access token. RFC 7519 §5.1 and RFC 9068 §2.1 have these two.
_TYPES: Final = frozenset({"jwt", "at+jwt"})

# The last second of which the milliseconds are exact in every JSON reader (RFC 7493 §2.2).
_LATEST_SECOND: Final = 2**53 // 1000


IsRevoked = Callable[[Identity], bool]
"""Whether a token that is valid otherwise has been revoked."""


def never_revoked(_identity: Identity, /) -> bool:
    return False


@attrs.frozen
class Times:
    """What is asked of ``exp``, ``iat`` and ``nbf``; milliseconds."""

    leeway_ms: int = 5_000
    max_ttl_ms: int = 86_400_000


@attrs.frozen(kw_only=True)
class OwnIssuer:
    """The gateway's own tokens. ``keys``: each secret bound to each allowed algorithm, the newest first."""

    issuer: str
    audience: str
    keys: tuple[Key, ...]

    @classmethod
    def of(cls, issuer: str, audience: str, secrets: Sequence[str], algorithms: Sequence[str]) -> OwnIssuer:
        """Raises BadKey for a secret that is too short for one of the algorithms, or no secret."""
        keys = [Key.of_secret(secret.encode(), algorithm) for secret in secrets for algorithm in algorithms]
        return cls(issuer=issuer, audience=audience, keys=tuple(keys))


@attrs.define(kw_only=True)
class OutsideIssuer:
    """Somebody else's tokens. ``keys`` is replaced whenever the issuer changes them."""

    issuer: str
    audience: str
    algorithms: frozenset[str]
    keys: KeySet = attrs.Factory(KeySet)

    def __attrs_post_init__(self) -> None:
        if self.algorithms & SYMMETRIC:
            raise ValueError("an outside issuer signs with private keys")


@attrs.frozen
class Counters:
    verified: int
    remembered: int
    signatures_checked: int


@attrs.define
class Verifier:
    """Says whom a token speaks for.

    What was verified is remembered by digest until it expires, so that one token's many connections cost one signature;
    revocation is asked about every time.
    """

    own: OwnIssuer | None = None
    outside: OutsideIssuer | None = None
    times: Times = attrs.Factory(Times)
    is_revoked: IsRevoked = never_revoked
    capacity: int = MOST_REMEMBERED
    _remembered: dict[bytes, Identity] = attrs.field(factory=dict, init=False)
    _verified: int = attrs.field(default=0, init=False)
    _signatures: int = attrs.field(default=0, init=False)

    def verify(self, token: str, now_ms: int) -> Identity:
        """The identity that this token proves at that wall-clock time.

        Raises TokenRefused; KeyUnknown when the outside issuer's keys may have to be read again first.
        """
        if len(token) > MAX_TOKEN:
            raise TokenRefused("token too long")
        key = digest(token)
        if key is None:
            raise TokenRefused("token malformed")
        known = self._remembered.get(key)
        if known is None or now_ms >= known.expires_at_ms:
            self._remembered.pop(key, None)
            known = self._verify(token, now_ms)
            while len(self._remembered) >= self.capacity:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = known
        if self.is_revoked(known):
            raise TokenRefused("token revoked")
        self._verified += 1
        return known

    def use_keys(self, keys: KeySet) -> None:
        """The outside issuer has these keys from now on. What others have signed is no longer believed."""
        if self.outside is None:
            raise ValueError("there is no outside issuer")
        self.outside.keys = keys
        self._remembered = {key: known for key, known in self._remembered.items() if known.issuer != "outside"}

    def statistics(self) -> Counters:
        return Counters(self._verified, len(self._remembered), self._signatures)

    def _verify(self, token: str, now_ms: int) -> Identity:
        compact = parse(token)
        _check_type(compact.header)
        if compact.algorithm in SYMMETRIC:
            return self._verify_own(token, compact, now_ms)
        return self._verify_outside(token, compact, now_ms)

    def _verify_own(self, token: str, compact: Compact, now_ms: int) -> Identity:
        """``kid`` plays no part: there are two secrets at most."""
        if self.own is None:
            raise TokenRefused("token algorithm not allowed")
        keys = [key for key in self.own.keys if key.algorithm == compact.algorithm]
        if not keys:
            raise TokenRefused("token algorithm not allowed")
        if not any(self._signed(compact, key) for key in keys):
            raise TokenRefused("token signature wrong")
        claims = _claims(compact)
        _check_parties(claims, self.own.issuer, self.own.audience)
        issued_ms, expires_ms = check_times(claims, self.times, now_ms)
        principal = own_subject(claims)
        session = _text(claims, "sid", LONGEST_ID) if "sid" in claims else ""
        jti = _text(claims, "jti", LONGEST_ID)
        return Identity(
            principal=principal,
            scopes=scopes_of(claims, ("scope",)),
            expires_at_ms=expires_ms,
            jti=jti,
            session=session,
            family=session,
            issuer="own",
            issued_ms=issued_ms,
            tokens=token_ids(token, self.own.issuer, jti),
        )

    def _verify_outside(self, token: str, compact: Compact, now_ms: int) -> Identity:
        if self.outside is None or compact.algorithm not in self.outside.algorithms:
            raise TokenRefused("token algorithm not allowed")
        if not self._signed(compact, self.outside.keys.key_of(compact)):
            raise TokenRefused("token signature wrong")
        claims = _claims(compact)
        _check_parties(claims, self.outside.issuer, self.outside.audience)
        issued_ms, expires_ms = check_times(claims, self.times, now_ms)
        subject = _text(claims, "sub", LONGEST_SUBJECT)
        jti = _text(claims, "jti", LONGEST_ID) if "jti" in claims else ""
        return Identity(
            principal=f"{self.outside.issuer}{SEPARATOR}{subject}",
            scopes=scopes_of(claims, ("scope", "scp")),
            expires_at_ms=expires_ms,
            jti=jti,
            session="",
            family="",
            issuer="outside",
            issued_ms=issued_ms,
            tokens=token_ids(token, self.outside.issuer, jti),
        )

    def _signed(self, compact: Compact, key: Key) -> bool:
        self._signatures += 1
        return key.verifies(compact)


def _check_type(header: Mapping[str, Any]) -> None:
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES:
        raise TokenRefused("token of another type")
    content = header.get("cty", "")
    if not isinstance(content, str) or content.lower().removeprefix("application/") == "jwt":
        raise TokenRefused("token is nested")


def _claims(compact: Compact) -> dict[str, Any]:
    try:
        return strict_object(compact.payload)
    except ValueError:
        raise TokenRefused("token malformed") from None


def _check_parties(claims: Mapping[str, Any], issuer: str, audience: str) -> None:
    if claims.get("iss") != issuer:
        raise TokenRefused("token of another issuer")
    named = claims.get("aud")
    if isinstance(named, list) and all(isinstance(one, str) for one in named):
        if audience not in named:
            raise TokenRefused("token for another audience")
    elif named != audience:
        raise TokenRefused("token for another audience")


def check_times(claims: Mapping[str, Any], times: Times, now_ms: int) -> tuple[int, int]:
    """``iat``, and ``exp`` with the leeway, in milliseconds. Raises TokenRefused."""
    issued_ms, expires_ms = _instant(claims, "iat"), _instant(claims, "exp")
    latest_ms = now_ms + times.leeway_ms
    if now_ms >= expires_ms + times.leeway_ms:
        raise TokenRefused("token expired")
    if issued_ms > latest_ms or ("nbf" in claims and _instant(claims, "nbf") > latest_ms):
        raise TokenRefused("token not valid yet")
    if expires_ms <= issued_ms:
        raise TokenRefused("token expires before it was issued")
    if expires_ms - issued_ms > times.max_ttl_ms:
        raise TokenRefused("token lives too long")
    return issued_ms, expires_ms + times.leeway_ms


def _instant(claims: Mapping[str, Any], name: str) -> int:
    """A NumericDate (RFC 7519 §2: seconds since the epoch, fractions allowed) in whole milliseconds."""
    value = claims.get(name)
    if name not in claims:
        raise TokenRefused("token claim missing")
    # bool is an int to Python, and no number to JSON.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST_SECOND:
        raise TokenRefused("token time malformed")
    return value * 1000 if isinstance(value, int) else math.floor(value * 1000)


def own_subject(claims: Mapping[str, Any]) -> str:
    """The principal of one of our own tokens. Raises TokenRefused.

    A name that the gateway gives to holders of static tokens is right with the session alone that it was given to.
    """
    subject = _text(claims, "sub", LONGEST_SUBJECT)
    if SEPARATOR in subject or (is_reserved(subject) and "sid" not in claims):
        raise TokenRefused("token subject not allowed")
    return subject


def _text(claims: Mapping[str, Any], name: str, longest: int) -> str:
    """A claim that names something: printable, so that no two names look alike by what can't be seen."""
    value = claims.get(name)
    if name not in claims:
        raise TokenRefused("token claim missing")
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable() or value.isspace():
        raise TokenRefused("token claim malformed")
    return value


def scopes_of(claims: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """The scopes of the first of these claims that is there; none where none is.

    ``scope`` is one text, its scopes separated by spaces (RFC 8693 §4.2); ``scp`` may be a list as well. Raises
    TokenRefused.
    """
    name = next((name for name in names if name in claims), None)
    if name is None:
        return ()
    value = claims[name]
    if isinstance(value, str):
        found = [scope for scope in value.split(" ") if scope]
    elif name == "scp" and isinstance(value, list) and all(isinstance(scope, str) for scope in value):
        found = value
    else:
        raise TokenRefused("token scopes malformed")
    if len(found) > MOST_SCOPES or not all(_is_scope(scope) for scope in found):
        raise TokenRefused("token scopes malformed")
    return tuple(dict.fromkeys(found))


def _is_scope(scope: str) -> bool:
    """RFC 6749 §3.3: printable ASCII without the space, the quotation mark and the backslash."""
    return scope != "" and scope.isascii() and scope.isprintable() and not set(scope) & set(' "\\')
