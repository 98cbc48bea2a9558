"""A signature in the compact form of RFC 7515 §3.1, verified with a key that has exactly one algorithm. Pure.

The header of a token chooses nothing but among keys that are configured: a key is bound to its algorithm when it is
made (RFC 8725 §3.1), and that algorithm's code alone ever sees it. Header members that name or carry a key (``jku``,
``jwk``, ``x5u``, ``x5c``) are never looked at (RFC 8725 §3.10).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import attrs
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from .strict_json import strict_object

# A header field has to hold it (and RFC 8725 §3.4 wants inputs bounded before they are decoded).
MAX_TOKEN: Final = 8192
LONGEST_KEY_ID: Final = 256

SYMMETRIC: Final = frozenset({"HS256", "HS384", "HS512"})

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class TokenRefused(ValueError):
    """``reason`` is one of a fixed set of texts, fit for the audit log: it holds nothing of the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadKey(ValueError):
    """A key that must not be used. The message holds nothing of the key."""


@attrs.frozen(repr=False, eq=False)
class Key:
    """Verifies with one algorithm; ``key_id`` is empty for a key without a name."""

    algorithm: str
    key_id: str
    _jwk: PyJWK

    @classmethod
    def of_jwk(cls, jwk: dict[str, Any], algorithm: str, key_id: str = "") -> Key:
        """Raises BadKey when the key is none, or too short, for this algorithm."""
        try:
            made = PyJWK(jwk, algorithm)
            made.Algorithm.prepare_key(made.key)
            short = made.Algorithm.check_key_length(made.key)
        except (PyJWTError, ValueError, TypeError, AttributeError):  # binascii.Error is a ValueError
            raise BadKey(f"no key for {algorithm}") from None
        if short:
            raise BadKey(f"too short for {algorithm}")
        return cls(algorithm, key_id, made)

    @classmethod
    def of_secret(cls, secret: bytes, algorithm: str) -> Key:
        """An HMAC key. Raises BadKey when it is shorter than the hash (RFC 7518 §3.2), or another kind of key."""
        if algorithm not in SYMMETRIC:
            raise BadKey(f"{algorithm} takes no secret")
        return cls.of_jwk({"kty": "oct", "k": base64.urlsafe_b64encode(secret).rstrip(b"=").decode()}, algorithm)

    def verifies(self, token: Compact) -> bool:
        """Whether the signature is this key's. The token's header plays no part in it."""
        try:
            return bool(self._jwk.Algorithm.verify(token.signed, self._jwk.key, token.signature))
        except (PyJWTError, ValueError, TypeError, OverflowError):
            # What the libraries say of a signature that isn't even shaped like one is a no.
            return False


@attrs.frozen(repr=False)
class Compact:
    """A token taken apart, not verified. ``key_id`` is None where the header has none."""

    algorithm: str
    key_id: str | None
    header: dict[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes


def looks_like_one(credential: str) -> bool:
    """Three parts joined by dots. Five parts would be an encrypted token (RFC 7516), which is none of ours."""
    return credential.count(".") == 2


def parse(token: str) -> Compact:
    """Take a token apart, strictly: what only some readers would accept is refused.

    Raises TokenRefused. Nothing is decoded of a token that is longer than ``MAX_TOKEN``.
    """
    if len(token) > MAX_TOKEN:
        raise TokenRefused("token too long")
    if not token.isascii() or not looks_like_one(token):
        raise TokenRefused("token malformed")
    raw = token.encode("ascii")
    signed, _, signature = raw.rpartition(b".")
    header, _, payload = signed.partition(b".")
    members = _object(unbase64(header))
    algorithm = members.get("alg")
    if not isinstance(algorithm, str):
        raise TokenRefused("token algorithm not allowed")
    if "crit" in members:  # RFC 7515 §4.1.11: no extension is understood here
        raise TokenRefused("token extension not understood")
    if "b64" in members:  # RFC 7797: the payload would not be what it seems
        raise TokenRefused("token extension not understood")
    key_id = members.get("kid")
    if "kid" in members and not (isinstance(key_id, str) and 0 < len(key_id) <= LONGEST_KEY_ID):
        raise TokenRefused("token key id malformed")
    return Compact(algorithm, key_id, members, unbase64(payload), signed, unbase64(signature))


def _object(data: bytes) -> dict[str, Any]:
    try:
        return strict_object(data)
    except ValueError:
        raise TokenRefused("token malformed") from None


def unbase64(part: bytes) -> bytes:
    """RFC 7515 §2: base64url without padding, and in the one form that an encoder writes (RFC 4648 §3.5).

    Raises TokenRefused, also for an empty part.
    """
    if not part or part.translate(None, _ALPHABET) or len(part) % 4 == 1:
        raise TokenRefused("token malformed")
    try:
        data = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except binascii.Error:
        raise TokenRefused("token malformed") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part:
        raise TokenRefused("token malformed")
    return data
