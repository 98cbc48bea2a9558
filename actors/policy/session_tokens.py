"""The secrets of a session, made from its public parts under a key, so that none of them has to be stored.

A session has a public *handle*, a random *salt* that is stored and never sent, and a *generation* that counts the
rotations of its refresh token. Its bearer value and each of its refresh tokens are the handle, the generation and a
tag: an HMAC-SHA-256 of all these under the gateway's session key. So

- the store holds nothing that could be presented, and the key alone makes nothing either (the salt is missing);
- the answer of a rotation can be made again after a crash, to the byte;
- a used refresh token is known as one of ours, however old it is, without a list of all that ever were.

The key is SESSION_SECRET, or is derived from JWT_SECRET by HKDF (RFC 5869), so that no two uses share a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import Final, Literal

import attrs

Kind = Literal["session", "refresh"]

HANDLE_BYTES: Final = 12
SALT_BYTES: Final = 16
MOST_GENERATIONS: Final = 0xFFFF_FFFF
_PREFIX: Final[dict[Kind, str]] = {"session": "pcs_", "refresh": "pcr_"}
_PUBLIC: Final = struct.Struct(f">{HANDLE_BYTES}sI")
_TAG_BYTES: Final = 32
_LENGTH: Final = (_PUBLIC.size + _TAG_BYTES) * 4 // 3  # 48 bytes: no padding


@attrs.frozen
class Presented:
    """A bearer value or refresh token, taken apart but not yet believed. ``handle`` is in hexadecimal."""

    kind: Kind
    handle: str
    generation: int
    tag: bytes = attrs.field(repr=False)


def session_key(session_secret: str, jwt_secret: str) -> bytes:
    """32 bytes, or none where there is no secret to make them of."""
    if session_secret:
        return hkdf(session_secret.encode(), b"portcullis session secret")
    return hkdf(jwt_secret.encode(), b"portcullis jwt secret: sessions") if jwt_secret else b""


def hkdf(secret: bytes, info: bytes) -> bytes:
    """One block of HKDF-SHA-256 (RFC 5869 §2), without a salt."""
    extracted = hmac.digest(bytes(hashlib.sha256().digest_size), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def make(kind: Kind, key: bytes, handle: str, salt: bytes, generation: int = 0) -> str:
    """The bearer value (its generation is 0), or the refresh token of that generation."""
    public = _PUBLIC.pack(bytes.fromhex(handle), generation)
    return _PREFIX[kind] + base64.urlsafe_b64encode(public + _tag(kind, key, public, salt)).decode("ascii")


def take_apart(value: str) -> Presented | None:
    """None: it is neither of the two."""
    for kind, prefix in _PREFIX.items():
        body = value.removeprefix(prefix)
        if len(body) == len(value) or len(body) != _LENGTH or not body.isascii():
            continue
        try:
            raw = base64.b64decode(body, altchars=b"-_", validate=True)
        except binascii.Error:
            return None
        handle, generation = _PUBLIC.unpack_from(raw)
        if kind == "session" and generation:
            return None
        return Presented(kind, handle.hex(), generation, raw[_PUBLIC.size :])
    return None


def is_ours(presented: Presented, keys: Sequence[bytes], salt: bytes) -> bool:
    """Whether the tag was made with one of the keys, in constant time for each."""
    public = _PUBLIC.pack(bytes.fromhex(presented.handle), presented.generation)
    found = False
    for key in keys:
        found |= hmac.compare_digest(presented.tag, _tag(presented.kind, key, public, salt))
    return found


def signed_id(token: str) -> str:
    """The name of a JWT by what of it is signed. Its signature is not part of the name: whoever has one valid ECDSA
    signature (r, s) has a second one, (r, n − s), and could make a revoked token look like another."""
    signed = token.rpartition(".")[0]
    return f"token:{hashlib.sha256(signed.encode('utf-8', 'surrogatepass')).hexdigest()}"


def jti_id(issuer: str, jti: str) -> str:
    """The name of a JWT by its ``jti``, which is unique for its issuer only (RFC 7519 §4.1.7)."""
    named = f"{issuer}\0{jti}".encode("utf-8", "surrogatepass")  # a jti that is accepted holds no control character
    return f"jti:{hashlib.sha256(named).hexdigest()}"


def token_ids(token: str, issuer: str, jti: str) -> tuple[str, ...]:
    """The names under which a JWT can be revoked, the one that says most at the end."""
    return (signed_id(token), *((jti_id(issuer, jti),) if jti else ()))


def static_name(key: bytes, token_digest: bytes) -> str:
    """The name that sessions of a static token's holder bear. It tells nothing of the token to whoever has no ``key``,
    which is kept with the sessions, so that it outlasts a rotation of the secrets."""
    return f"static-{hmac.digest(key, b'static name ' + token_digest, 'sha256').hex()[:12]}"


def client_mark(key: bytes, client: str) -> bytes:
    """Who rotated a token last, so that it can be recognised but not read from the store."""
    return hmac.digest(key, b"client " + client.encode("utf-8", "surrogatepass"), "sha256")[:16]


def _tag(kind: Kind, key: bytes, public: bytes, salt: bytes) -> bytes:
    return hmac.digest(key, kind.encode() + b"\x00" + public + salt, "sha256")
