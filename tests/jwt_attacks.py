"""Forged tokens by name: what jwt_tool and its like try, and what else a reader of JWTs has been caught with.

Every one of them has to be refused by a gateway that has a secret of its own and an outside issuer's keys.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt_forge as forge
from jwt_forge import SECRET, b64, compact, ec_key, ed_key, hs, outside_claims, own_claims, rs, rsa_key, unsigned

RSA_KID, EC_KID, ED_KID = "rsa-1", "ec-1", "ed-1"


def served_keys() -> bytes:
    """The outside issuer's set, to which the attacks are fitted."""
    return forge.key_set(
        forge.jwk(rsa_key("served"), RSA_KID, alg="RS256", use="sig"),
        forge.jwk(ec_key("served"), EC_KID, alg="ES256", use="sig"),
        forge.jwk(ed_key("served"), ED_KID, alg="EdDSA", use="sig"),
    )


def attacks() -> dict[str, str]:
    """Name → token."""
    return {
        **_none(),
        **_null_signature(),
        **_key_confusion(),
        **_key_injection(),
        **_key_id(),
        **_weak_secrets(),
        **_psychic(),
        **_times(),
        **_claim_types(),
        **_duplicates(),
        **_parties(),
        **_headers(),
        **_encodings(),
    }


def _none() -> dict[str, str]:
    """CVE-2015-2951 and its spellings."""
    found = {}
    for spelling in ("none", "None", "NONE", "nOnE", "noNe", "", "none ", " none", "null", "n\u006fne"):
        header = {"alg": spelling, "typ": "JWT"}
        found[f"alg {spelling!r} without a signature"] = compact(header, own_claims(), unsigned)
        found[f"alg {spelling!r} signed all the same"] = compact(header, own_claims(), hs(SECRET))
        parts = compact(header, own_claims(), unsigned).split(".")
        found[f"alg {spelling!r} in two parts"] = ".".join(parts[:2])
    for value in (None, True, 0, [], ["HS256"], ["none"], {"alg": "HS256"}, "hs256", "Hs256", "HS256 ", "HS1"):
        found[f"alg {value!r}"] = compact({"alg": value, "typ": "JWT"}, own_claims(), hs(SECRET))
    found["no alg"] = compact({"typ": "JWT"}, own_claims(), hs(SECRET))
    found["alg HS384 where HS256 is allowed"] = compact({"alg": "HS384"}, own_claims(), hs(SECRET, 384))
    found["alg HS512 where HS256 is allowed"] = compact({"alg": "HS512"}, own_claims(), hs(SECRET, 512))
    found["alg PS256 with the RS256 key"] = compact(
        {"alg": "PS256", "kid": RSA_KID}, outside_claims(), rs(rsa_key("served"), pss=True)
    )
    found["alg RS256 with a PSS signature"] = compact(
        {"alg": "RS256", "kid": RSA_KID}, outside_claims(), rs(rsa_key("served"), pss=True)
    )
    return found


def _null_signature() -> dict[str, str]:
    """CVE-2020-28042, and signatures that are nearly there."""
    good = forge.own()
    signed, _, signature = good.rpartition(".")
    flipped = bytearray(base64.urlsafe_b64decode(signature + "="))
    flipped[0] ^= 1
    return {
        "null signature": f"{signed}.",
        "null signature with alg RS256": compact({"alg": "RS256", "kid": RSA_KID}, outside_claims(), unsigned),
        "null signature with alg ES256": compact({"alg": "ES256", "kid": EC_KID}, outside_claims(), unsigned),
        "null signature with alg EdDSA": compact({"alg": "EdDSA", "kid": ED_KID}, outside_claims(), unsigned),
        "no signature part": signed,
        "signature cut": f"{signed}.{signature[:-2]}",
        "signature longer": f"{signed}.{signature}AA",
        "signature of zeros": f"{signed}.{b64(bytes(32))}",
        "signature with one bit changed": f"{signed}.{b64(bytes(flipped))}",
        "signature of another token": f"{signed}.{forge.own(sub='mallory').rpartition('.')[2]}",
        "payload exchanged": ".".join([good.split(".")[0], b64(forge.text(own_claims(sub="admin"))), signature]),
        "header exchanged": ".".join([b64(b'{"alg":"HS256"}'), good.split(".")[1], signature]),
    }


def _key_confusion() -> dict[str, str]:
    """CVE-2016-5431: the public key, which everybody has, as the secret of HMAC."""
    found = {}
    for name, kid, key in (
        ("RSA", RSA_KID, rsa_key("served")),
        ("EC", EC_KID, ec_key("served")),
        ("Ed25519", ED_KID, ed_key("served")),
    ):
        for number, public in enumerate(forge.public_forms(key)):
            for parties, claims in (("own", own_claims()), ("outside", outside_claims())):
                token = compact({"alg": "HS256", "typ": "JWT", "kid": kid}, claims, hs(public))
                found[f"{name} public key, form {number}, as a secret, {parties} claims"] = token
    found["RS256 token with the EC key's name"] = forge.outside(rsa_key("served"), EC_KID)
    found["ES256 token with the RSA key's name"] = forge.outside(ec_key("served"), RSA_KID)
    found["own claims by the outside issuer"] = compact(
        {"alg": "RS256", "kid": RSA_KID}, own_claims(), rs(rsa_key("served"))
    )
    found["outside claims by our secret"] = compact({"alg": "HS256"}, outside_claims(), hs(SECRET))
    return found


def _key_injection() -> dict[str, str]:
    """CVE-2018-0114 and the URLs: the token brings its own key."""
    mine = rsa_key("attacker")
    public = forge.jwk(mine, "attacker")
    url = "http://127.0.0.1:9/jwks.json"
    headers: dict[str, dict[str, Any]] = {
        "jwk": {"jwk": public},
        "jwk with a served kid": {"jwk": public, "kid": RSA_KID},
        "jku": {"jku": url, "kid": "attacker"},
        "jku with a served kid": {"jku": url, "kid": RSA_KID},
        "x5u": {"x5u": url, "kid": RSA_KID},
        "x5c": {"x5c": [base64.b64encode(b"no certificate").decode()], "kid": RSA_KID},
    }
    found = {
        f"{name} in the header": compact({"alg": "RS256", "typ": "JWT"} | header, outside_claims(), rs(mine))
        for name, header in headers.items()
    }
    symmetric = {"kty": "oct", "k": b64(b"k" * 32)}
    found["oct jwk in the header"] = compact({"alg": "HS256", "jwk": symmetric}, own_claims(), hs(b"k" * 32))
    return found


def _key_id(secrets: tuple[bytes, ...] = (b"", b"\0", b"key")) -> dict[str, str]:
    """A kid that is looked up in a file system, a database or a shell; and one of a wrong type."""
    found = {}
    for kid in (
        "../../../../../../dev/null",
        "/dev/null",
        "/proc/sys/kernel/randomize_va_space",
        "file:///dev/null",
        "|/bin/true",
        "key; touch /tmp/kid",
        "$(touch /tmp/kid)",
        "x' UNION SELECT 'key';--",
        "' OR '1'='1",
        "0",
        "\u0000",
    ):
        for secret in secrets:
            token = compact({"alg": "HS256", "typ": "JWT", "kid": kid}, own_claims(), hs(secret))
            found[f"kid {kid!r} and the secret {secret!r}"] = token
        found[f"kid {kid!r} with RS256"] = forge.outside(rsa_key("attacker"), kid)
    for kid in (None, 0, True, ["a"], {"a": 1}, "", "k" * 300):
        for name, token in (
            ("own", forge.own(header={"kid": kid})),
            ("outside", forge.outside(rsa_key("served"), header={"kid": kid})),
        ):
            found[f"kid {str(kid)[:12]!r} of an {name} token"] = token
    found["kid of no served key"] = forge.outside(rsa_key("served"), "rsa-2")
    found["served kid in other letters"] = forge.outside(rsa_key("served"), RSA_KID.upper())
    return found


def _weak_secrets() -> dict[str, str]:
    """CVE-2019-20933, CVE-2020-28637: the empty key, and those of every list."""
    guesses = [
        "",
        " ",
        "\0",
        "secret",
        "password",
        "your-256-bit-secret",
        "changeme",
        "portcullis",
        "null",
        "undefined",
    ]
    return {f"secret {guess!r}": forge.own(guess) for guess in guesses}


def _psychic() -> dict[str, str]:
    """CVE-2022-21449: r and s that no verification may take; and signatures in the wrong form."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    found = {}
    for r in (0, 1, order - 1, order, order + 1, 2**256 - 1):
        for s in (0, 1, order - 1, order):
            raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
            token = compact({"alg": "ES256", "kid": EC_KID}, outside_claims(), lambda _data, raw=raw: raw)
            found[f"psychic signature {r:x}, {s:x}"] = token
    der = bytes.fromhex("3006020100020100")
    found["psychic signature in DER"] = compact({"alg": "ES256", "kid": EC_KID}, outside_claims(), lambda _data: der)
    found["EdDSA signature of zeros"] = compact({"alg": "EdDSA", "kid": ED_KID}, outside_claims(), lambda _: bytes(64))
    good = forge.outside(ec_key("served"), EC_KID)
    signed, _, signature = good.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    found["ES256 signature with a zero before each half"] = f"{signed}.{b64(bytes(1) + raw[:32] + bytes(1) + raw[32:])}"
    return found


def _times() -> dict[str, str]:
    """Tampered dates (unsigned again), and signed ones that a careless reader takes for the future."""
    now = int(time.time())
    stale = forge.own(iat=now - 7200, exp=now - 3600)
    head, _, signature = stale.split(".")
    found = {
        "expired": stale,
        "expired, exp put forward": f"{head}.{b64(forge.text(own_claims(iat=now - 7200, exp=now + 3600)))}.{signature}",
        "expired, of the outside issuer": forge.outside(rsa_key("served"), RSA_KID, iat=now - 7200, exp=now - 3600),
        "not valid yet": forge.own(nbf=now + 3600),
        "issued in the future": forge.own(iat=now + 3600, exp=now + 7200),
        "lives too long": forge.own(exp=now + 10**7),
        "expires before it was issued": forge.own(iat=now + 1, exp=now),
        "exp in milliseconds": forge.own(exp=now * 1000),
        "exp of 10**400": compact({"alg": "HS256"}, _number("exp", "1" + "0" * 400), hs(SECRET)),
        "exp of 1e400": compact({"alg": "HS256"}, _number("exp", "1e400"), hs(SECRET)),
        "exp of 10**5000": compact({"alg": "HS256"}, _number("exp", "1" + "0" * 5000), hs(SECRET)),
        "iat of -10**400": compact({"alg": "HS256"}, _number("iat", "-1" + "0" * 400), hs(SECRET)),
        "exp of 2**63": forge.own(exp=2**63),
    }
    for literal in ("NaN", "Infinity", "-Infinity", "0x7fffffff", "1_000", "+1", "01", ".5", "١"):
        for name in ("exp", "iat", "nbf"):
            found[f"{name} of {literal}"] = compact({"alg": "HS256"}, _number(name, literal), hs(SECRET))
    return found


def _number(name: str, literal: str) -> bytes:
    claims = forge.text(own_claims(**{name: 424242}))
    return claims.replace(b"424242", literal.encode())


def _claim_types() -> dict[str, str]:
    now = int(time.time())
    found = {}
    for name in ("exp", "iat", "nbf"):
        for value in (True, False, -1, {"$gt": 0}, ""):
            found[f"{name} {value!r}"] = forge.own(**{name: value})
        for what, value in (("a string", str(now + 60)), ("negative", -now), ("an array", [now])):
            found[f"{name} {what}"] = forge.own(**{name: value})
    for name in ("sub", "jti"):
        for value in (0, 7, True, [], ["alice"], {"a": 1}, "", " ", "a\n", "a\x00b", "a\u202eb", "x" * 300):
            found[f"{name} {str(value)[:12]!r}"] = forge.own(**{name: value})
    found["sub with a lone surrogate"] = compact({"alg": "HS256"}, _sub(b'"\\ud800"'), hs(SECRET))
    found["sub in the outside issuer's name"] = forge.own(sub=f"{forge.ISSUER}|bob")
    found["sub null"] = compact({"alg": "HS256"}, _sub(b"null"), hs(SECRET))
    for name in ("exp", "iat", "sub", "jti", "iss", "aud"):
        found[f"no {name}"] = forge.own(**{name: None})
    for value in (1, ["mcp:call"], {"a": 1}, True, 'mcp:call "x"', "a\nb", "ü", " ".join(f"s{n}" for n in range(99))):
        found[f"scope {str(value)[:12]!r}"] = forge.own(scope=value)
    for scp in (1, [1], [["a"]], {"a": 1}, [""], ["a b"]):
        found[f"scp {scp!r}"] = forge.outside(rsa_key("served"), RSA_KID, scope=None, scp=scp)
    for payload in (b"[]", b'"x"', b"1", b"null", b"{}", b"{", b"\xff", b"\xef\xbb\xbf{}", b"[" * 3000, b'{"a":' * 900):
        found[f"payload {payload[:8]!r}"] = compact({"alg": "HS256"}, payload, hs(SECRET))
    found["payload in UTF-16"] = compact({"alg": "HS256"}, json.dumps(own_claims()).encode("utf-16"), hs(SECRET))
    return found


def _sub(literal: bytes) -> bytes:
    return forge.text(own_claims(sub="@@")).replace(b'"@@"', literal)


def _duplicates() -> dict[str, str]:
    """Two readers see two tokens: the first member, and the last."""
    claims = forge.text(own_claims())
    found = {}
    for name, extra in (("sub", b'"admin"'), ("exp", b"4102444800"), ("scope", b'"admin"'), ("iss", b'"portcullis"')):
        found[f"{name} twice"] = compact(
            {"alg": "HS256"}, claims[:-1] + b',"%s":%s}' % (name.encode(), extra), hs(SECRET)
        )
    found["sub twice, once escaped"] = compact({"alg": "HS256"}, claims[:-1] + b',"s\\u0075b":"admin"}', hs(SECRET))
    found["a name twice further down"] = compact({"alg": "HS256"}, claims[:-1] + b',"x":{"a":1,"a":2}}', hs(SECRET))
    for header in (
        b'{"alg":"none","alg":"HS256"}',
        b'{"alg":"HS256","alg":"none"}',
        b'{"alg":"HS256","kid":"a","kid":"b"}',
    ):
        found[f"header {header!r}"] = compact(header, own_claims(), hs(SECRET))
    return found


def _parties() -> dict[str, str]:
    found = {}
    for issuer in ("Portcullis", "portcullis ", "portcullis/", ["portcullis"], {"a": 1}, "", 1, forge.ISSUER):
        found[f"iss {issuer!r}"] = forge.own(iss=issuer)
    for audience in (
        "Portcullis",
        "portcullis.evil",
        [],
        ["other"],
        [["portcullis"]],
        ["portcullis", 1],
        {"portcullis": 1},
        1,
    ):
        found[f"aud {audience!r}"] = forge.own(aud=audience)
    for change in ({"iss": "https://issuer.example/"}, {"iss": "portcullis"}, {"aud": "portcullis"}, {"aud": "other"}):
        found[f"outside {change}"] = forge.outside(rsa_key("served"), RSA_KID, **change)
    for name in ("exp", "iat", "sub", "iss", "aud"):
        found[f"outside without {name}"] = forge.outside(rsa_key("served"), RSA_KID, **{name: None})
    found["outside by the attacker's key"] = forge.outside(rsa_key("attacker"), RSA_KID)
    return found


def _headers() -> dict[str, str]:
    found = {}
    for header in (
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": ["b64"], "b64": True},
        {"crit": None},
        {"b64": False},
        {"b64": False, "crit": ["b64"]},
        {"cty": "JWT"},
        {"cty": "application/jwt"},
        {"typ": "logout+jwt"},
        {"typ": "dpop+jwt"},
        {"typ": "secevent+jwt"},
        {"typ": ["JWT"]},
        {"typ": None},
    ):
        found[f"header {header}"] = forge.own(header=header)
    found["header is a list"] = compact([{"alg": "HS256"}], own_claims(), hs(SECRET))
    found["header is no JSON"] = compact(b"alg=HS256", own_claims(), hs(SECRET))
    head = b64(forge.text({"alg": "HS256", "b64": False, "crit": ["b64"]}))
    payload = forge.text(own_claims()).decode()
    found["payload not encoded (RFC 7797)"] = f"{head}.{payload}.{b64(hs(SECRET)(f'{head}.{payload}'.encode()))}"
    found["detached payload"] = f"{head}..{b64(hs(SECRET)(f'{head}.{payload}'.encode()))}"
    inner = forge.own()
    found["nested"] = compact({"alg": "HS256", "cty": "JWT"}, inner.encode(), hs(SECRET))
    return found


def _encodings() -> dict[str, str]:
    """One token, in what only a lenient reader takes for the same."""
    good = forge.own()
    head, payload, signature = good.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    loose = signature[:-1] + last[last.index(signature[-1]) ^ 1]  # another last letter of the same bytes
    return {
        "unused bits of the signature": f"{head}.{payload}.{loose}",
        "padding": f"{head}.{payload}.{signature}=",
        "space inside": f"{head}.{payload[:4]} {payload[4:]}.{signature}",
        "tab before": f"\t{good}",
        "newline after": f"{good}\n",
        "standard alphabet": f"{head}.{payload}.{signature[:-2]}+/",
        "five parts": f"{good}.{payload}.{signature}",
        "four parts": f"{good}.",
        "two dots alone": "..",
        "empty header": f".{payload}.{signature}",
        "empty payload": f"{head}..{signature}",
        "full-width letters": good.replace("e", "\uff45"),
        "JSON serialisation": json.dumps({"payload": payload, "protected": head, "signature": signature}),
        "9 KB": forge.own(x="x" * 9000),
        "just over 8 KiB": _sized(8193),
    }


def _sized(size: int) -> str:
    """A token of that length, give or take what base64 does."""
    room = 1
    while len(token := forge.own(x="x" * room)) < size:
        room += max(1, (size - len(token)) * 3 // 4)
    return token
