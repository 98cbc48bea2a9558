"""The rules for JWTs: every forgery is refused, and every right token is taken, of each kind of key."""

from __future__ import annotations

import time
from typing import Any

import jwt_attacks
import jwt_forge as forge
import pytest
from jwt_attacks import EC_KID, ED_KID, RSA_KID
from jwt_forge import (
    AUDIENCE,
    ISSUER,
    PREVIOUS,
    SECRET,
    compact,
    ec_key,
    ed_key,
    hs,
    outside_claims,
    own_claims,
    rsa_key,
)

from actors.policy.identity import Identity
from actors.policy.jwks import ALGORITHMS, KeyUnknown, parse_jwks
from actors.policy.jws import BadKey, Key, parse
from actors.policy.jwt_tokens import OutsideIssuer, OwnIssuer, Times, TokenRefused, Verifier
from actors.policy.session_tokens import jti_id, signed_id
from actors.policy.strict_json import strict_object

DEFAULT = ("RS256", "ES256", "EdDSA")
ATTACKS = jwt_attacks.attacks()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def verifier(
    *secrets: str,
    own_algorithms: tuple[str, ...] = ("HS256",),
    algorithms: tuple[str, ...] = DEFAULT,
    keys: bytes | None = None,
    **options: Any,
) -> Verifier:
    made = Verifier(
        own=OwnIssuer.of("portcullis", "portcullis", secrets or (SECRET, PREVIOUS), own_algorithms),
        outside=OutsideIssuer(issuer=ISSUER, audience=AUDIENCE, algorithms=frozenset(algorithms)),
        **options,
    )
    made.use_keys(parse_jwks(keys or jwt_attacks.served_keys(), algorithms))
    return made


def refusal(check: Verifier, token: str, at_ms: int | None = None) -> str:
    """Why it is refused; empty when it isn't."""
    try:
        check.verify(token, now_ms() if at_ms is None else at_ms)
    except TokenRefused as refused:
        return refused.reason
    return ""


@pytest.mark.parametrize("name", ATTACKS)
def test_a_forgery_is_refused(name: str) -> None:
    """By a verifier with secrets and keys to confuse, and for a reason that holds nothing of the token."""
    reason = refusal(verifier(), ATTACKS[name])
    assert reason.startswith("token ")
    assert len(reason) < 48


def test_the_forgeries_are_fitted_to_this_verifier() -> None:
    """The tokens that they are made from are taken: none is refused for another reason than its own."""
    check = verifier()
    assert check.verify(forge.own(), now_ms()).principal == "alice"
    for key, kid in ((rsa_key("served"), RSA_KID), (ec_key("served"), EC_KID), (ed_key("served"), ED_KID)):
        assert check.verify(forge.outside(key, kid), now_ms()).principal == f"{ISSUER}|bob"
    assert len(ATTACKS) > 400


@pytest.mark.parametrize("bits", [256, 384, 512])
def test_own_algorithms(bits: int) -> None:
    """Each is taken where it is allowed, and only there."""
    token = forge.own(bits=bits)
    for allowed in ("HS256", "HS384", "HS512"):
        expected = "" if allowed == f"HS{bits}" else "token algorithm not allowed"
        assert refusal(verifier(own_algorithms=(allowed,)), token) == expected


OUTSIDE = {
    "RS256": (rsa_key("served"), lambda: forge.rs(rsa_key("served"))),
    "PS256": (rsa_key("served"), lambda: forge.rs(rsa_key("served"), pss=True)),
    "ES256": (ec_key("served"), lambda: forge.es(ec_key("served"))),
    "ES384": (ec_key("384", forge.ec.SECP384R1), lambda: forge.es(ec_key("384", forge.ec.SECP384R1))),
    "ES512": (ec_key("521", forge.ec.SECP521R1), lambda: forge.es(ec_key("521", forge.ec.SECP521R1))),
    "EdDSA": (ed_key("served"), lambda: forge.ed(ed_key("served"))),
}


@pytest.mark.parametrize("algorithm", OUTSIDE)
@pytest.mark.parametrize("names_it", [True, False])
def test_outside_algorithms(algorithm: str, names_it: bool) -> None:
    """Each is taken with a key of its type, whether or not the key names it, and only where it is allowed."""
    key, sign = OUTSIDE[algorithm]
    keys = forge.key_set(forge.jwk(key, "k", **({"alg": algorithm} if names_it else {})))
    token = compact({"alg": algorithm, "kid": "k"}, outside_claims(), sign())
    assert refusal(verifier(algorithms=(algorithm,), keys=keys), token) == ""
    others = tuple(sorted(ALGORITHMS - {algorithm}))
    extra = forge.key_set(forge.jwk(key, "k", **({"alg": algorithm} if names_it else {})), forge.jwk(ed_key("x"), "x"))
    extra_ec = forge.key_set(forge.jwk(ed_key("x"), "x"), forge.jwk(ec_key("x"), "y"))
    keys = extra if algorithm != "EdDSA" else extra_ec
    assert refusal(verifier(algorithms=others, keys=keys), token) == "token algorithm not allowed"


def test_a_key_verifies_with_its_own_algorithm_only() -> None:
    """RFC 8725 §3.1: both algorithms are allowed and fit the key, and its holder signed with the one it hasn't."""
    keys = forge.key_set(forge.jwk(rsa_key("served"), "k", alg="RS256"))
    check = verifier(algorithms=("RS256", "PS256"), keys=keys)
    token = compact({"alg": "PS256", "kid": "k"}, outside_claims(), forge.rs(rsa_key("served"), pss=True))
    assert refusal(check, token) == "token algorithm is not the key's"
    assert refusal(check, forge.outside(rsa_key("served"), "k")) == ""


def test_nothing_is_decoded_of_what_is_too_long() -> None:
    """Not even to find out that it is no token."""
    with pytest.raises(TokenRefused, match="too long"):
        parse("!" * 8193)
    with pytest.raises(TokenRefused, match="malformed"):
        parse("!" * 8192)


def test_the_previous_secret_verifies_only_while_it_is_there() -> None:
    """Rotation: both are taken, then only the new one."""
    old, new = forge.own(PREVIOUS), forge.own(SECRET)
    assert refusal(verifier(SECRET, PREVIOUS), old) == ""
    assert refusal(verifier(SECRET, PREVIOUS), new) == ""
    assert refusal(verifier(SECRET), old) == "token signature wrong"
    assert refusal(verifier(SECRET), new) == ""


def test_an_issuer_that_is_not_configured_signs_nothing() -> None:
    """Without a secret no own token is taken, without an outside issuer none of its."""
    assert refusal(Verifier(), forge.own()) == "token algorithm not allowed"
    assert refusal(Verifier(), forge.outside(rsa_key("served"), RSA_KID)) == "token algorithm not allowed"


@pytest.mark.parametrize("length", [0, 1, 31])
def test_short_secrets_are_no_keys(length: int) -> None:
    """RFC 7518 §3.2, for each of the hashes."""
    for algorithm, least in (("HS256", 32), ("HS384", 48), ("HS512", 64)):
        with pytest.raises(BadKey):
            Key.of_secret(b"k" * length, algorithm)
        with pytest.raises(BadKey):
            Key.of_secret(b"k" * (least - 1), algorithm)
        assert Key.of_secret(b"k" * least, algorithm)


def test_public_keys_are_no_secrets() -> None:
    """Even as a configured secret a public key is refused in the forms that name themselves."""
    for public in forge.public_forms(rsa_key("served")):
        if public.startswith((b"-----BEGIN PUBLIC KEY-----\n", b"ssh-", b"{", b"0\x82")) and b"\r" not in public:
            with pytest.raises(BadKey):
                Key.of_secret(public, "HS256")
    for algorithm in ("RS256", "none", "A256GCM"):
        with pytest.raises(BadKey):
            Key.of_secret(b"k" * 64, algorithm)
    with pytest.raises(ValueError):
        OutsideIssuer(issuer=ISSUER, audience=AUDIENCE, algorithms=frozenset({"HS256"}))


HINTS = ("jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256")


@pytest.mark.parametrize("hint", HINTS)
def test_hints_to_keys_are_ignored(hint: str) -> None:
    """RFC 8725 §3.10: they change nothing about a token that a configured key has signed."""
    for value in ("https://evil.example/keys", forge.jwk(rsa_key("attacker")), ["x"], None, 7):
        assert refusal(verifier(), forge.own(header={hint: value})) == ""
        assert refusal(verifier(), forge.outside(rsa_key("served"), RSA_KID, header={hint: value})) == ""


@pytest.mark.parametrize("kid", ["../../dev/null", "' OR 1=1 --", "k" * 256])
def test_a_kid_of_an_own_token_is_ignored(kid: str) -> None:
    """There is nothing to look up."""
    assert refusal(verifier(), forge.own(header={"kid": kid})) == ""


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"])
def test_types_of_access_tokens(typ: str) -> None:
    """RFC 7519 §5.1, RFC 9068 §2.1; none is right as well."""
    assert refusal(verifier(), forge.own(header={"typ": typ})) == ""
    assert refusal(verifier(), compact({"alg": "HS256"}, own_claims(), hs(SECRET))) == ""


def test_dates_hold_to_the_millisecond() -> None:
    """exp and nbf with the leeway, in whole seconds and fractions (RFC 7519 §2), and the longest lifetime."""
    at = 1_800_000_000
    for leeway in (0, 5_000):
        times = Times(leeway_ms=leeway, max_ttl_ms=600_000)

        def said(clock_ms: int, times: Times = times, **claims: Any) -> str:
            return refusal(verifier(times=times), forge.own(**({"iat": at, "exp": at + 600} | claims)), clock_ms)

        end = (at + 600) * 1000 + leeway
        assert said(end - 1) == ""
        assert said(end) == "token expired"
        assert said(end + 499, exp=at + 600.5, iat=at + 0.5) == ""
        assert said(end + 500, exp=at + 600.5, iat=at + 0.5) == "token expired"
        begin = at * 1000 - leeway
        assert said(begin) == ""
        assert said(begin - 1) == "token not valid yet"
        assert said(begin + 20_000 - 1, nbf=at + 20) == "token not valid yet"
        assert said(begin + 20_000, nbf=at + 20) == ""
        assert said(at * 1000, exp=at + 601) == "token lives too long"
        assert said(at * 1000, exp=at) in ("token expired", "token expires before it was issued")


def test_the_identity_expires_with_the_leeway() -> None:
    """What the connection is ended by."""
    claims = own_claims(sid="s-1", scope="admin mcp:call admin")
    identity = verifier().verify(compact({"alg": "HS256"}, claims, hs(SECRET)), now_ms())
    assert identity.expires_at_ms == claims["exp"] * 1000 + 5000
    assert identity.issued_ms == claims["iat"] * 1000
    assert (identity.jti, identity.session, identity.family, identity.issuer) == ("j-1", "s-1", "s-1", "own")
    assert identity.scopes == ("admin", "mcp:call")


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": "a b"}, ("a", "b")),
        ({"scope": "a  b "}, ("a", "b")),
        ({"scope": ""}, ()),
        ({}, ()),
        ({"scp": "a b"}, ("a", "b")),
        ({"scp": ["a", "b", "a"]}, ("a", "b")),
        ({"scp": []}, ()),
        ({"scope": "a", "scp": ["admin"]}, ("a",)),
        ({"scope": "", "scp": ["admin"]}, ()),
    ],
)
def test_scopes_of_the_outside_issuer(claims: dict[str, Any], scopes: tuple[str, ...]) -> None:
    """From scope, else from scp; a token with both has no more than scope says."""
    token = forge.outside(rsa_key("served"), RSA_KID, **({"scope": None} | claims))
    assert verifier().verify(token, now_ms()).scopes == scopes


def test_an_own_token_has_no_scp() -> None:
    """Only scope counts."""
    assert verifier().verify(forge.own(scope=None, scp=["admin"]), now_ms()).scopes == ()


def test_principals_do_not_collide() -> None:
    """The outside issuer's alice is another one than ours, and no own token can be of her name."""
    check = verifier()
    outside = check.verify(forge.outside(rsa_key("served"), RSA_KID, sub="alice"), now_ms())
    own = check.verify(forge.own(sub="alice"), now_ms())
    assert own.principal == "alice"
    assert outside.principal == f"{ISSUER}|alice"
    assert refusal(check, forge.own(sub=outside.principal)) == "token subject not allowed"
    assert check.verify(forge.outside(rsa_key("served"), RSA_KID, sub="auth0|7"), now_ms()).principal.endswith(
        "|auth0|7"
    )


# --- remembering -----------------------------------------------------------------------------------------------------


def test_a_token_costs_one_signature_until_it_expires() -> None:
    """However often it is presented; afterwards it is refused, and forgotten."""
    check = verifier()
    token = forge.outside(rsa_key("served"), RSA_KID)
    for _ in range(50):
        identity = check.verify(token, now_ms())
    assert check.statistics().signatures_checked == 1
    assert check.statistics().verified == 50
    assert refusal(check, token, identity.expires_at_ms - 1) == ""
    assert refusal(check, token, identity.expires_at_ms) == "token expired"
    assert check.statistics().remembered == 0


def test_what_is_remembered_is_bounded() -> None:
    """The oldest goes first."""
    check = verifier(capacity=3)
    tokens = [forge.own(sub=f"u{number}") for number in range(5)]
    for token in tokens:
        check.verify(token, now_ms())
    assert check.statistics().remembered == 3
    check.verify(tokens[4], now_ms())
    assert check.statistics().signatures_checked == 5
    check.verify(tokens[0], now_ms())
    assert check.statistics().signatures_checked == 6


def test_refusals_are_not_remembered() -> None:
    """So a flood of forged tokens throws nobody's out."""
    check = verifier(capacity=3)
    check.verify(forge.own(), now_ms())
    for name in list(ATTACKS)[:100]:
        assert refusal(check, ATTACKS[name])
    assert check.statistics().remembered == 1


def test_revocation_is_asked_every_time() -> None:
    """A remembered token is refused from its revocation on; of each, the hook hears what names it."""
    asked: list[Identity] = []
    revoked: set[str] = set()

    def is_revoked(identity: Identity, /) -> bool:
        asked.append(identity)
        return identity.principal in revoked

    check = verifier(is_revoked=is_revoked)
    own, outside = forge.own(iat=1_800_000_000, exp=1_800_000_600), forge.outside(rsa_key("served"), RSA_KID)
    at = 1_800_000_000_000
    assert refusal(check, own, at) == refusal(check, outside) == ""
    assert asked[0].tokens == (signed_id(own), jti_id("portcullis", "j-1"))
    assert (asked[0].principal, asked[0].issued_ms) == ("alice", 1_800_000_000_000)
    assert asked[1].tokens == (signed_id(outside),)
    assert asked[1].principal == f"{ISSUER}|bob"
    revoked.add("alice")
    assert refusal(check, own, at) == "token revoked"
    assert refusal(check, outside) == ""
    revoked.clear()
    assert refusal(check, own, at) == ""


def test_a_key_that_goes_takes_its_tokens_along() -> None:
    """What was remembered of the outside issuer doesn't outlive its keys; own tokens stay."""
    check = verifier()
    token = forge.outside(rsa_key("served"), RSA_KID)
    check.verify(token, now_ms())
    check.verify(forge.own(), now_ms())
    check.use_keys(parse_jwks(forge.key_set(forge.jwk(ec_key("served"), EC_KID)), DEFAULT))
    assert check.statistics().remembered == 1
    with pytest.raises(KeyUnknown):
        check.verify(token, now_ms())
    with pytest.raises(ValueError):
        Verifier().use_keys(parse_jwks(jwt_attacks.served_keys(), DEFAULT))


def test_a_token_without_a_kid_needs_exactly_one_key() -> None:
    """One key of its algorithm: taken. Two: refused, although one of them fits. None: perhaps there is a new one."""
    token = forge.outside(rsa_key("served"))
    one = forge.key_set(forge.jwk(rsa_key("served")), forge.jwk(ec_key("served")))
    two = forge.key_set(forge.jwk(rsa_key("served"), "a"), forge.jwk(rsa_key("attacker"), "b"))
    none = forge.key_set(forge.jwk(ec_key("served")))
    assert refusal(verifier(keys=one), token) == ""
    assert refusal(verifier(keys=two), token) == "token names no key"
    with pytest.raises(KeyUnknown):
        verifier(keys=none).verify(token, now_ms())
    assert refusal(verifier(keys=one), forge.outside(rsa_key("served"), "x")) == "token key unknown"


@pytest.mark.parametrize("text", [b'{"a":1}', b'{"a":{"b":[1.5e3,null,true,"\\u00e9"]}}', '{"é":0}'.encode()])
def test_strict_json_reads_json(text: bytes) -> None:
    """What is an object is one."""
    assert isinstance(strict_object(text), dict)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"1", b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}', b'{"a":[{"b":1,"b":2}]}', b'{"a":NaN}',
        b'{"a":-Infinity}', b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16-le"), b'{"a":"\xff"}', b'{"a":1}x', b"{'a':1}",
        b'{"a":' + b"9" * 65 + b"}", b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)  # fmt: skip
def test_strict_json_refuses(text: bytes) -> None:
    """What two readers could take for two things, or one of them for none."""
    with pytest.raises(ValueError):
        strict_object(text)
