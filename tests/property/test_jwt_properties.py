"""Whatever is presented as a token is taken or refused, nothing else happens, and only what was signed is taken."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt_attacks
import jwt_forge as forge
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt_attacks import EC_KID, ED_KID, RSA_KID
from jwt_forge import AUDIENCE, ISSUER, SECRET, compact, ec_key, ed_key, hs, own_claims, rsa_key

from actors.policy.jwks import UnusableKeys, parse_jwks
from actors.policy.jwt_tokens import MAX_TOKEN, OutsideIssuer, OwnIssuer, TokenRefused, Verifier

ALGORITHMS = ("RS256", "ES256", "EdDSA")
KEYS = parse_jwks(jwt_attacks.served_keys(), ALGORITHMS)
NOW = int(time.time())
GOOD = [
    forge.own(),
    forge.outside(rsa_key("served"), RSA_KID),
    forge.outside(ec_key("served"), EC_KID),
    forge.outside(ed_key("served"), ED_KID),
]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
names = st.sampled_from(
    (
        "alg",
        "kid",
        "typ",
        "cty",
        "crit",
        "b64",
        "jwk",
        "iss",
        "aud",
        "sub",
        "jti",
        "sid",
        "exp",
        "iat",
        "nbf",
        "scope",
        "scp",
    )
)
members = st.dictionaries(names | st.text(max_size=5), values, max_size=6)


def verifier() -> Verifier:
    outside = OutsideIssuer(issuer=ISSUER, audience=AUDIENCE, algorithms=frozenset(ALGORITHMS))
    made = Verifier(own=OwnIssuer.of("portcullis", "portcullis", [SECRET], ("HS256",)), outside=outside)
    made.use_keys(KEYS)
    return made


def taken(token: str) -> bool:
    """Nothing but TokenRefused may come out."""
    try:
        identity = verifier().verify(token, NOW * 1000)
    except TokenRefused:
        return False
    assert identity.principal.isprintable()
    assert identity.expires_at_ms > NOW * 1000
    return True


@given(st.text(max_size=200) | st.builds(".".join, st.lists(st.text("Aeyo_-=. \n", max_size=30), max_size=6)))
def test_any_text_is_refused(text: str) -> None:
    """No text that was not signed is taken."""
    assert not taken(text)


@given(st.sampled_from(GOOD), st.data())
def test_a_changed_token_is_refused(token: str, data: st.DataObject) -> None:
    """Any one letter exchanged, added or left out: the token is another one, and nobody has signed it."""
    at = data.draw(st.integers(0, len(token)))
    letter = data.draw(st.sampled_from(["", "A", "_", "-", ".", "=", " ", "\n", "é", "\0", "1", "z"]))
    cut = data.draw(st.integers(0, 1))
    changed = token[:at] + letter + token[at + cut :]
    assert taken(token)
    assert taken(changed) is (changed == token)


@settings(max_examples=300)
@given(members, members)
def test_any_signed_members_are_taken_or_refused(header: dict[str, Any], claims: dict[str, Any]) -> None:
    """Even what was really signed, with header members and claims of any type, raises nothing, and what is taken has
    every claim in the one form that it may have."""
    text = json.dumps(own_claims(iat=NOW, exp=NOW + 60) | claims).encode("utf-8", "surrogatepass")
    protected = {"alg": "HS256"} | header
    if taken(compact(json.dumps(protected).encode("utf-8", "surrogatepass"), text, hs(SECRET))):
        said = own_claims(iat=NOW, exp=NOW + 60) | claims
        assert protected["alg"] == "HS256"
        assert not {"crit", "b64"} & protected.keys()
        assert said["iss"] == "portcullis"
        assert said["aud"] == "portcullis" or "portcullis" in said["aud"]
        assert all(isinstance(said[name], str) and said[name] for name in ("sub", "jti"))
        assert all(isinstance(said[name], int | float) for name in ("iat", "exp"))


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_signed_bytes_are_refused(header: bytes, payload: bytes) -> None:
    """Bytes that are no JSON objects with the claims are no token, whoever signed them."""
    assert not taken(compact(header, payload, hs(SECRET)))
    assert not taken(compact({"alg": "HS256"}, payload, hs(SECRET)))


@given(st.integers(MAX_TOKEN - 8, MAX_TOKEN + 8))
def test_the_size_is_exact(size: int) -> None:
    """8 KiB are looked at, one byte more isn't."""
    with pytest.raises(TokenRefused) as refused:
        verifier().verify(GOOD[0] + "x" * (size - len(GOOD[0])), NOW * 1000)
    assert (refused.value.reason == "token too long") is (size > MAX_TOKEN)


@given(
    st.binary(max_size=300) | st.builds(lambda keys: json.dumps({"keys": keys}).encode(), st.lists(members, max_size=3))
)
def test_any_key_set_is_taken_or_refused(data: bytes) -> None:
    """A hostile or broken issuer raises nothing else, and none of this is a key."""
    try:
        parse_jwks(data, ALGORITHMS)
    except UnusableKeys:
        return
    raise AssertionError("keys were made of nothing")


jwk_members = st.sampled_from(("kty", "crv", "alg", "use", "key_ops", "kid", "n", "e", "x", "y"))


@given(
    st.sampled_from(
        [forge.jwk(rsa_key("served"), "r"), forge.jwk(ec_key("served"), "e"), forge.jwk(ed_key("served"), "d")]
    ),
    st.dictionaries(jwk_members, values, max_size=2),
)
def test_any_change_of_a_good_key_raises_nothing_else(key: dict[str, Any], change: dict[str, Any]) -> None:
    """A member of the wrong type or value leaves the key out, or changes nothing but its name."""
    try:
        made = parse_jwks(json.dumps({"keys": [key | change]}).encode(), ALGORITHMS)
    except UnusableKeys:
        return
    assert [one.key_id for one in made.keys] == [(key | change).get("kid", "")]
    assert made.keys[0].algorithm in ALGORITHMS
