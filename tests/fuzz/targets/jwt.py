"""JSON Web Tokens: taking one apart, and believing one.

The invariant: nothing but ``TokenRefused`` (or ``KeyUnknown``: the keys may have to be read again) is raised; what is
taken apart has one form only, which encoding it again gives back; and what is believed was signed with our key, under
our algorithm, as an independent HMAC over exactly these bytes confirms. The input is a token, or, behind a 0 byte, a
header and a payload, separated by another one, that are signed rightly.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

from jwt_forge import SECRET, compact, hs

from actors.policy.jws import parse
from actors.policy.jwt_tokens import KeyUnknown, OutsideIssuer, OwnIssuer, TokenRefused, Verifier

NOW_MS = 1_800_000_000_000
NOW = NOW_MS // 1000
HEADER = {"alg": "HS256", "typ": "JWT"}
CLAIMS = {
    "iss": "portcullis", "aud": "portcullis", "sub": "alice", "jti": "j", "iat": NOW - 10, "exp": NOW + 600,
    "scope": "mcp:call",
}  # fmt: skip
SEEDS = [
    compact(HEADER, CLAIMS, hs(SECRET)).encode(),
    compact({"alg": "none"}, CLAIMS, lambda _data: b"x").encode(),
    compact({"alg": "RS256", "kid": "k"}, CLAIMS, lambda _data: bytes(256)).encode(),
    compact(HEADER | {"crit": ["b64"], "b64": False}, CLAIMS, hs(SECRET)).encode(),
    b"a.b.c",
    b"e30.e30.AA",
    *(
        b"\0" + json.dumps(HEADER | header).encode() + b"\0" + json.dumps(CLAIMS | claims).encode()
        for header, claims in (
            ({}, {}),
            ({"kid": "k"}, {"aud": ["portcullis", "x"], "nbf": NOW - 1}),
            ({"typ": "at+jwt"}, {"iat": NOW - 0.5, "exp": NOW + 1e2}),
            ({"cty": "JWT"}, {"sid": "s"}),
            ({"alg": "HS512"}, {"sub": "a|b"}),
            ({}, {"exp": 1e308}),
        )
    ),
]


def verifier() -> Verifier:
    own = OwnIssuer.of("portcullis", "portcullis", [SECRET], ("HS256",))
    outside = OutsideIssuer(issuer="https://i", audience="a", algorithms=frozenset({"RS256", "ES256"}))
    return Verifier(own=own, outside=outside)


def token_of(data: bytes) -> str:
    if data[:1] == b"\0":
        header, _, claims = data[1:].partition(b"\0")
        return compact(header, claims, hs(SECRET))
    return data.decode("utf-8", "surrogateescape")


def check(data: bytes) -> None:
    token = token_of(data)
    try:
        parts = parse(token)
    except TokenRefused as refused:
        assert refused.reason.startswith("token ")  # noqa: PT017 - one of the fixed texts
        parts = None
    else:
        again = [json_free(piece) for piece in (base(token, 0), base(token, 1), base(token, 2))]
        assert ".".join(again) == token
    try:
        identity = verifier().verify(token, NOW_MS)
    except (TokenRefused, KeyUnknown):
        return
    assert parts is not None
    assert parts.algorithm == "HS256"
    signed, _, signature = token.rpartition(".")
    assert hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256) == padded(signature)
    claims = json.loads(parts.payload)
    assert identity.principal == claims["sub"]
    assert claims["iss"] == "portcullis"
    assert claims["aud"] == "portcullis" or "portcullis" in claims["aud"]
    assert claims["iat"] * 1000 - 5_000 <= NOW_MS < claims["exp"] * 1000 + 5_000


def base(token: str, index: int) -> bytes:
    return padded(token.split(".")[index])


def padded(part: str) -> bytes:
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)


def json_free(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
