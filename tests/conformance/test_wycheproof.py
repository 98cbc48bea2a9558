"""C2SP Wycheproof's vectors for signatures, key sets and both together, against PyJWT as the gateway uses it.

That is: a key bound to one algorithm, a token taken apart by ``actors.policy.jws``. The vectors' payloads are no
claims, so claims are not looked at here.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
from requirement import need

from actors.policy.jwks import ALGORITHMS, UnusableKeys, parse_jwks
from actors.policy.jws import BadKey, Key, TokenRefused, parse

DATA = Path(os.environ.get("CONFORMANCE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "wycheproof"
COUNTS = {"signature": 401, "key": 26, "crypto": 83}

NO_PAYLOAD = "the payload is empty, and no claims are none: refused before any key is looked for"
ONE_ALGORITHM = "the key says PS256 and the token PS384: a key has one algorithm (RFC 8725 §3.1)"
NO_ES521 = "the key's alg is ES521, which RFC 7518 doesn't know; the curve P-521 goes with ES512"
NOT_BASE64 = "a question mark in the middle of base64url: only the one form that an encoder writes is taken"
NO_JWE = "an encrypted token has five parts; the gateway has no key to decrypt with, and takes none"

# Where the gateway decides otherwise than the vectors say, and why.
STRICTER = {
    **{("signature", number): NO_PAYLOAD for number in (259, 264, 268, 272, 320, 325)},
    **{("signature", number): ONE_ALGORITHM for number in (346, 350)},
    **{("signature", number): NO_ES521 for number in (347, 351)},
    **{("signature", number): NOT_BASE64 for number in (372, 373)},
    **{("crypto", number): NO_JWE for number in (50, 67)},
}
SAME_AS_VALID = "byte for byte the token of case 357, which is valid: their wrong padding was lost when they were made"
NO_KEY_NAMES = "two secrets of one kid: a gateway has JWT_SECRET and JWT_SECRET_PREVIOUS, which have no kid at all"
LAXER = {
    ("signature", 367): SAME_AS_VALID,
    ("signature", 370): SAME_AS_VALID,
    ("key", 4): NO_KEY_NAMES,
}


@attrs.frozen
class Case:
    file: str
    number: int
    keys: list[dict[str, Any]]
    token: str
    valid: bool


def load(name: str) -> list[Case]:
    path = DATA / f"json_web_{name}_test.json"
    if not path.is_file():
        return []
    cases = []
    for group in json.loads(path.read_text())["testGroups"]:
        found = group.get("public") or group["private"]
        keys = found.get("keys", [found])
        for test in group["tests"]:
            token = test.get("jws", test.get("jwe"))
            if not isinstance(token, str):
                token = json.dumps(token)
            cases.append(Case(name, test["tcId"], keys, token, test["result"] == "valid"))
    return cases


CASES = [case for name in COUNTS for case in load(name)]


def accepts(case: Case) -> bool:
    """Whether the gateway would, with these keys as its own secrets or as an outside issuer's."""
    try:
        token = parse(case.token)
        if all(key.get("kty") == "oct" for key in case.keys):
            secrets = [base64.urlsafe_b64decode(key["k"] + "==") for key in case.keys]
            algorithms = [key["alg"] for key in case.keys]
            own = [Key.of_secret(secret, algorithm) for secret, algorithm in zip(secrets, algorithms, strict=True)]
            return any(key.algorithm == token.algorithm and key.verifies(token) for key in own)
        keys = parse_jwks(json.dumps({"keys": case.keys}).encode(), sorted(ALGORITHMS))
        return keys.key_of(token).verifies(token)
    except (TokenRefused, BadKey, UnusableKeys):
        return False


@pytest.fixture(autouse=True)
def _vectors() -> None:
    """Without them, no test of this file shows anything, and none passes."""
    need(DATA.is_dir(), f"no Wycheproof vectors in {DATA}: set CONFORMANCE_DATA to the folder that holds wycheproof/")


def test_the_vectors_are_there() -> None:
    """The vectors are found, all of them."""
    assert {name: len(load(name)) for name in COUNTS} == COUNTS
    assert sum(case.valid for case in CASES) > 50


@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: f"{case.file}-{case.number}" if case else "none")
def test_a_vector(case: Case | None) -> None:
    """The gateway accepts what the vector accepts and refuses what it refuses, but where a reason is given above."""
    assert case is not None, "there is a folder, and nothing in it"
    place = (case.file, case.number)
    if place in STRICTER:
        assert case.valid
        assert not accepts(case), STRICTER[place]
    elif place in LAXER:
        assert not case.valid
        assert accepts(case), LAXER[place]
    else:
        assert accepts(case) is case.valid


def test_the_contradictory_vectors_are_one_token() -> None:
    """Cases 367 and 370 of the signatures are refused as the very token that case 357 accepts."""
    tokens = {case.number: case.token for case in CASES if case.file == "signature"}
    assert tokens[357] == tokens[367] == tokens[370]


def test_key_sets_with_secrets_are_refused_whole() -> None:
    """Whatever the vectors say of the token: a set from outside that holds a secret is none to trust."""
    with_secrets = [case for case in CASES if case.file == "key" and any(key["kty"] == "oct" for key in case.keys)]
    assert with_secrets
    for case in with_secrets:
        with pytest.raises(UnusableKeys):
            parse_jwks(json.dumps({"keys": case.keys}).encode(), sorted(ALGORITHMS))
