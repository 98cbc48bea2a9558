"""Which keys of an outside issuer are used, which are left out, and which sets are refused whole."""

from __future__ import annotations

import json
from typing import Any

import jwt_forge as forge
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt_forge import ec_key, ed_key, jwk, key_set, rsa_key

from actors.policy.jwks import MAX_KEYS, MAX_SET, UnusableKeys, has_roca_weakness, parse_jwks

ALL = ("RS256", "ES256", "EdDSA")
GOOD = jwk(ec_key("good"), "good")


def bound(data: bytes, algorithms: tuple[str, ...] = ALL) -> dict[str, str]:
    """kid → algorithm."""
    return {key.key_id: key.algorithm for key in parse_jwks(data, algorithms).keys}


def test_each_key_gets_one_algorithm() -> None:
    """Its own, or the one of its type; an RSA key that names none gets the first one that is allowed."""
    keys = key_set(jwk(rsa_key(), "r"), jwk(rsa_key(), "p", alg="PS256"), jwk(ec_key(), "e"), jwk(ed_key(), "d"))
    assert bound(keys, ("PS256", "RS256", "ES256", "EdDSA")) == {"r": "PS256", "p": "PS256", "e": "ES256", "d": "EdDSA"}
    assert bound(keys) == {"r": "RS256", "e": "ES256", "d": "EdDSA"}
    assert bound(keys, ("RS512",)) == {"r": "RS512"}


def private(algorithm: Any, key: Any) -> dict[str, Any]:
    return algorithm.to_jwk(key, as_dict=True)


@pytest.mark.parametrize(
    "bad",
    [
        private(RSAAlgorithm, rsa_key()),
        private(ECAlgorithm, ec_key()),
        private(OKPAlgorithm, ed_key()),
        {"kty": "oct", "k": "AAAA"},
        {"kty": "oct"},
        {"kty": "EC", "k": "AAAA"},
        {**jwk(rsa_key()), "p": "AAAA"},
        {**jwk(rsa_key()), "d": None},
    ],
    ids=lambda bad: "-".join(bad),
)
def test_a_set_with_a_secret_or_private_key_is_refused_whole(bad: dict[str, Any]) -> None:
    """Its keys are everybody's, or it isn't what it should be."""
    with pytest.raises(UnusableKeys, match="secret or a private key"):
        parse_jwks(key_set(GOOD, bad), ALL)


def short_rsa() -> dict[str, Any]:
    return jwk(rsa_key("short", 1024))


def number(value: int, size: int) -> str:
    return forge.b64(value.to_bytes(size, "big"))


POINT = forge.b64(b"\x01" * 32)
RSA = jwk(rsa_key())


@pytest.mark.parametrize(
    "useless",
    [
        {**GOOD, "kid": "x", "use": "enc"},
        {**GOOD, "kid": "x", "use": ""},
        {**GOOD, "kid": "x", "use": None},
        {**GOOD, "kid": "x", "key_ops": ["sign"]},
        {**GOOD, "kid": "x", "key_ops": []},
        {**GOOD, "kid": "x", "key_ops": "verify"},
        {**GOOD, "kid": 7},
        {**GOOD, "kid": "x" * 257},
        {**GOOD, "kid": "x", "alg": "RS256"},
        {**GOOD, "kid": "x", "alg": "HS256"},
        {**GOOD, "kid": "x", "alg": "none"},
        {**GOOD, "kid": "x", "alg": ["ES256"]},
        {**GOOD, "kid": "x", "crv": "P-384"},
        {**GOOD, "kid": "x", "crv": "secp256k1"},
        {**GOOD, "kid": "x", "crv": None},
        {**GOOD, "kid": "x", "kty": "RSA"},
        {**GOOD, "kid": "x", "kty": ["EC"]},
        {**GOOD, "kid": "x", "x": POINT, "y": POINT},
        {**GOOD, "kid": "x", "y": None},
        {**GOOD, "kid": "x", "x": GOOD["x"] + "="},
        {**GOOD, "kid": "x", "x": "é" * 43},
        {**GOOD, "kid": "x", "x": "A" * 3000},
        {"kid": "x"},
        {},
        {**RSA, "e": "AQ"},
        {**RSA, "e": "Ag"},
        {**RSA, "e": "AQABAAAB"},
        {**RSA, "n": number(2**2048 + 2, 257)},
        {**RSA, "n": number(2**1024 + 1, 129)},
        {**RSA, "n": number(2**8192 + 1, 1025)},
        {**RSA, "n": 7},
        short_rsa(),
        {"kty": "OKP", "crv": "Ed25519", "x": forge.b64(b"\x01" * 31)},
        {"kty": "OKP", "crv": "X25519", "x": forge.b64(b"\x09" * 32)},
        private(OKPAlgorithm, ed448.Ed448PrivateKey.generate().public_key()),
        jwk(ec_key("384", ec.SECP384R1)),
        jwk(rsa_key(), "x", alg="RS512"),
        jwk(rsa_key(), "x", alg="RSA-OAEP"),
    ],
    # Keys are made anew each time, and the processes that share the tests must agree on these names.
    ids=lambda useless: "-".join(
        f"{name}:{len(str(value))}" if name in ("x", "y", "n") else f"{name}={str(value)[:10]}"
        for name, value in useless.items()
        if name != "kid"
    ),
)
def test_a_key_of_no_use_is_left_out(useless: dict[str, Any]) -> None:
    """The others stay; alone it makes no set."""
    found = parse_jwks(key_set(useless, GOOD), ALL)
    assert [key.key_id for key in found.keys] == ["good"]
    assert sum(found.skipped.values()) == 1
    with pytest.raises(UnusableKeys, match="no usable key"):
        parse_jwks(key_set(useless), ALL)


@pytest.mark.parametrize(
    "members", [{"use": "sig"}, {"key_ops": ["verify"]}, {"key_ops": ["sign", "verify"]}, {"x5c": ["junk"], "foo": 1}]
)
def test_what_does_not_matter_is_ignored(members: dict[str, Any]) -> None:
    """RFC 7517 §4: a member that isn't understood is no reason."""
    assert bound(key_set({**GOOD, **members})) == {"good": "ES256"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"<html>",
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":[1]}',
        b'{"keys":[[]]}',
        b'{"keys":[],"keys":[]}',
        b"\xef\xbb\xbf" + key_set(GOOD),
        key_set(GOOD).decode().encode("utf-16"),
        b'{"keys":' + b"[" * 9000,
        key_set(GOOD) + b" " * MAX_SET,
        json.dumps({"keys": [jwk(ec_key(), str(n)) for n in range(MAX_KEYS + 1)]}).encode(),
        key_set(GOOD, {**jwk(ec_key("other")), "kid": "good"}),
        key_set({**GOOD, "kty": "EC"}).replace(b'"kty"', b'"kty":"RSA","kty"'),
    ],
    ids=lambda data: data[:20].decode(errors="replace"),
)
def test_what_is_no_set(data: bytes) -> None:
    """Garbage, too much, doubled names: nothing of it is used."""
    with pytest.raises(UnusableKeys):
        parse_jwks(data, ALL)


def test_the_most_that_is_taken() -> None:
    """A full set is used whole."""
    keys = [jwk(ec_key(), str(n)) for n in range(MAX_KEYS)]
    assert len(parse_jwks(key_set(*keys), ALL)) == MAX_KEYS


def test_roca() -> None:
    """The test tells keys of that generator's form (a product of powers of 65537 modulo the primorial) from others."""
    primorial = 1
    for prime in (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103,
                  107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167):  # fmt: skip
        primorial *= prime
    weak = (3 * primorial + pow(65537, 7, primorial)) * (5 * primorial + pow(65537, 11, primorial))
    assert has_roca_weakness(weak)
    assert not any(
        has_roca_weakness(rsa_key(name).public_key().public_numbers().n) for name in ("", "served", "a", "b")
    )


def test_the_order_and_extra_rules_do_not_change_the_reason_for_mixed_sets() -> None:
    """A private key in the last place refuses the set as one in the first does."""
    for keys in ((private(RSAAlgorithm, rsa_key()), GOOD), (GOOD, private(RSAAlgorithm, rsa_key()))):
        with pytest.raises(UnusableKeys):
            parse_jwks(key_set(*keys), ALL)
