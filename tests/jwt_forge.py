"""Makes tokens, right and wrong ones, without a JWT library's help: what a library refuses to make, an attacker makes.

The keys are made once a run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "d41f6f2a8f0f4f0f9c1b7d6e5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b"
PREVIOUS = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
ISSUER = "https://issuer.example"
AUDIENCE = "https://gateway.example"

Signer = Callable[[bytes], bytes]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def text(document: Any) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document, separators=(",", ":")).encode()


def compact(header: Any, claims: Any, sign: Signer) -> str:
    """A token of exactly this header and payload; either may be given as bytes."""
    signed = f"{b64(text(header))}.{b64(text(claims))}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def hs(secret: str | bytes, bits: int = 256) -> Signer:
    key = secret.encode() if isinstance(secret, str) else secret
    return lambda data: hmac.digest(key, data, getattr(hashlib, f"sha{bits}"))


def unsigned(_data: bytes) -> bytes:
    return b""


def own_claims(**changes: Any) -> dict[str, Any]:
    """Valid claims of the gateway's own issuer; None takes one away."""
    now = int(time.time())
    claims = {"iss": "portcullis", "aud": "portcullis", "sub": "alice", "jti": "j-1", "iat": now, "exp": now + 600}
    return _changed({**claims, "scope": "mcp:call mcp:read"}, changes)


def outside_claims(**changes: Any) -> dict[str, Any]:
    """Valid claims of the outside issuer."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": [AUDIENCE, "other"], "sub": "bob", "iat": now, "exp": now + 600}
    return _changed({**claims, "scope": "mcp:call"}, changes)


def _changed(claims: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (claims | changes).items() if value is not None}


def own(secret: str = SECRET, bits: int = 256, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A token as the gateway's own issuer signs it."""
    return compact({"alg": f"HS{bits}", "typ": "JWT"} | (header or {}), own_claims(**changes), hs(secret, bits))


@functools.cache
def rsa_key(name: str = "", bits: int = 2048) -> rsa.RSAPrivateKey:
    """Another one for each name."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@functools.cache
def ec_key(name: str = "", curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


@functools.cache
def ed_key(name: str = "") -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def rs(key: rsa.RSAPrivateKey, *, pss: bool = False) -> Signer:
    pad = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if pss else padding.PKCS1v15()
    return lambda data: key.sign(data, pad, hashes.SHA256())


def es(key: ec.EllipticCurvePrivateKey) -> Signer:
    size = (key.curve.key_size + 7) // 8
    digest = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}[key.curve.key_size]

    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest())))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return sign


def ed(key: ed25519.Ed25519PrivateKey) -> Signer:
    return key.sign


def jwk(key: Any, kid: str = "", **members: Any) -> dict[str, Any]:
    """The public half, as a JWK."""
    public = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        made = RSAAlgorithm.to_jwk(public, as_dict=True)
        del made["key_ops"]
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(public, as_dict=True)
    return made | ({"kid": kid} if kid else {}) | members


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def outside(key: Any, kid: str | None = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A token as the outside issuer signs it with this key."""
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm, sign = "RS256", rs(key)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm, sign = {256: "ES256", 384: "ES384", 521: "ES512"}[key.curve.key_size], es(key)
    else:
        algorithm, sign = "EdDSA", ed(key)
    members = {"alg": algorithm, "typ": "JWT"} | ({"kid": kid} if kid is not None else {}) | (header or {})
    return compact(members, outside_claims(**changes), sign)


def public_forms(key: Any) -> list[bytes]:
    """Every form in which a public key is likely to have been copied into a place for secrets."""
    public = key.public_key()
    encoding, form = serialization.Encoding, serialization.PublicFormat
    pems = [public.public_bytes(encoding.PEM, form.SubjectPublicKeyInfo)]
    ders = [public.public_bytes(encoding.DER, form.SubjectPublicKeyInfo)]
    if isinstance(key, rsa.RSAPrivateKey):
        pems.append(public.public_bytes(encoding.PEM, form.PKCS1))
        ders.append(public.public_bytes(encoding.DER, form.PKCS1))
        ders.append(public.public_numbers().n.to_bytes(key.key_size // 8, "big"))
    else:
        ders.append(public.public_bytes(*_raw(key)))
    forms = [*pems, *ders, public.public_bytes(encoding.OpenSSH, form.OpenSSH), text(jwk(key))]
    for pem in pems:
        lines = pem.strip().split(b"\n")
        forms += [pem.strip(), pem.replace(b"\n", b"\r\n"), b"".join(lines), b"".join(lines[1:-1]), pem + b"\n"]
    forms += [base64.b64encode(der) for der in ders]
    return forms


def _raw(key: Any) -> tuple[Any, Any]:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
