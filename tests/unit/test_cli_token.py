"""``mcp-token`` and the rules that it checks."""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest

from ops.cli import token
from ops.cli.duration import duration
from ops.cli.jwt_rules import JwtPolicy, broken_rules

SECRET = "0123456789abcdef" * 4
NOW = 1_800_000_000.0
GOOD = {
    "iss": "portcullis",
    "aud": "portcullis",
    "sub": "alice",
    "jti": "1",
    "iat": NOW - 10,
    "exp": NOW + 600,
    "scope": "mcp:call",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no .env, and no STATE_DIR with a key in it
    for name in ("SECRET_FILE", "ALGORITHMS", "ISSUER", "AUDIENCE", "MAX_TTL_MS", "LEEWAY_MS", "ACCESS_TTL_MS"):
        monkeypatch.delenv(f"JWT_{name}", raising=False)
    monkeypatch.setenv("JWT_SECRET", SECRET)


def test_what_is_issued_verifies_and_breaks_no_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """The token holds every claim of the contract, is signed with JWT_SECRET, and inspect has nothing against it."""
    assert token.main(["issue", "--subject", "alice", "--scope", "mcp:read", "--ttl", "5m"]) == 0
    issued = capsys.readouterr().out.strip()
    claims = jwt.decode(issued, SECRET, algorithms=["HS256"], audience="portcullis", issuer="portcullis")
    assert set(claims) == {"iss", "aud", "sub", "jti", "iat", "exp", "scope"}
    assert (claims["sub"], claims["scope"], claims["exp"] - claims["iat"]) == ("alice", "mcp:read", 300)
    assert abs(claims["iat"] - time.time()) < 60
    assert token.main(["inspect", issued]) == 0
    assert "no rule is broken (the signature is right)" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_it_signs_with_the_first_algorithm(
    algorithm: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the gateway itself does; inspect knows whether the signature is right, and whether it could look."""
    monkeypatch.setenv("JWT_ALGORITHMS", f"{algorithm},HS256")
    assert token.main(["issue", "--subject", "alice"]) == 0
    issued = capsys.readouterr().out.strip()
    assert jwt.get_unverified_header(issued)["alg"] == algorithm
    assert token.main(["inspect", issued, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True
    monkeypatch.setenv("JWT_SECRET", SECRET[::-1])
    assert token.main(["inspect", issued]) == 1
    assert "token signature wrong" in capsys.readouterr().out
    monkeypatch.delenv("JWT_SECRET")
    assert token.main(["inspect", issued]) == 0
    assert "was not verified" in capsys.readouterr().out


def test_the_settings_are_the_gateways(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """A key, an issuer and a lifetime of ``.env`` count, and so does the key that a gateway in development has made; in
    production there is no such key."""
    monkeypatch.delenv("JWT_SECRET")
    (tmp_path / ".env").write_text(f"JWT_SECRET={SECRET[::-1]}\nJWT_ISSUER=me\nJWT_ACCESS_TTL_MS=60000\n")
    assert token.main(["issue", "--subject", "alice"]) == 0
    claims = jwt.decode(capsys.readouterr().out.strip(), SECRET[::-1], ["HS256"], audience="portcullis", issuer="me")
    assert claims["exp"] - claims["iat"] == 60
    (tmp_path / ".env").unlink()
    state = tmp_path / "elsewhere"
    state.mkdir()
    (state / "jwt.secret").touch(mode=0o600)
    (state / "jwt.secret").write_text("m" * 86 + "\n")
    assert token.main(["issue", "--subject", "alice"]) == 2
    assert "--state-dir" in capsys.readouterr().err
    assert token.main(["issue", "--subject", "alice", "--state-dir", str(state)]) == 0
    issued = capsys.readouterr().out.strip()
    assert jwt.decode(issued, "m" * 86, ["HS256"], audience="portcullis")["sub"] == "alice"
    assert token.main(["inspect", issued, "--state-dir", str(state)]) == 0
    assert "the signature is right" in capsys.readouterr().out
    monkeypatch.setenv("SECURITY_PROFILE", "production")
    assert token.main(["issue", "--subject", "alice", "--state-dir", str(state)]) == 2


def test_the_secret_of_before_verifies(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does at the gateway; new tokens are not signed with it."""
    assert token.main(["issue", "--subject", "alice"]) == 0
    issued = capsys.readouterr().out.strip()
    monkeypatch.setenv("JWT_SECRET_PREVIOUS", SECRET)
    monkeypatch.setenv("JWT_SECRET", SECRET[::-1])
    assert token.main(["inspect", issued]) == 0
    assert "the signature is right" in capsys.readouterr().out
    assert token.main(["issue", "--subject", "alice"]) == 0
    assert jwt.decode(capsys.readouterr().out.strip(), SECRET[::-1], ["HS256"], audience="portcullis")
    monkeypatch.setenv("JWT_SECRET_PREVIOUS", SECRET[:-1] + "x")
    assert token.main(["inspect", issued]) == 1


@pytest.mark.parametrize("subject", [" ", "static", "static-0123456789ab", "a|b", "a\nb", "x" * 300])
def test_a_subject_that_the_gateway_refuses_is_not_signed(subject: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the token is out."""
    assert token.main(["issue", "--subject", subject]) == 2
    assert "--subject" in capsys.readouterr().err


def test_two_tokens_have_two_ids(capsys: pytest.CaptureFixture[str]) -> None:
    """A token can be revoked alone only if its jti is its own."""
    ids = set()
    for _ in range(2):
        token.main(["issue", "--subject", "alice", "--json"])
        ids.add(json.loads(capsys.readouterr().out)["claims"]["jti"])
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exp": NOW - 6}, "expired"),
        ({"exp": NOW - 3}, None),  # within the leeway
        ({"iat": NOW + 60}, "iat lies in the future"),
        ({"nbf": NOW + 60}, "nbf lies in the future"),
        ({"iat": NOW - 86000, "exp": NOW + 86000}, "lives for"),
        ({"exp": NOW - 1, "iat": NOW}, "before it was issued"),
        ({"iss": "portcullis2"}, "iss is"),
        ({"iss": ["portcullis"]}, "iss is"),
        ({"aud": "portcullis2"}, "aud is"),
        ({"aud": ["other", "portcullis"]}, None),
        ({"aud": {"portcullis": 1}}, "aud is"),
        ({"exp": "soon"}, "exp is not a number"),
        ({"exp": True}, "exp is not a number"),
        ({"sub": ""}, "sub must be"),
        ({"jti": 7}, "jti must be"),
        ({"scope": ["mcp:call"]}, "scope must be"),
    ],
)
def test_each_rule_on_claims(change: dict[str, Any], said: str | None) -> None:
    """One changed claim breaks one rule, or none where the contract allows it."""
    broken = broken_rules(500, {"alg": "HS256"}, GOOD | change, JwtPolicy(), NOW)
    assert len(broken) == (said is not None)
    assert said is None or said in broken[0]


@pytest.mark.parametrize("name", ["exp", "iat", "sub", "jti", "iss", "aud"])
def test_required_claims(name: str) -> None:
    """Each of them is missed when it is missing."""
    claims = {key: value for key, value in GOOD.items() if key != name}
    [broken] = broken_rules(500, {"alg": "HS256"}, claims, JwtPolicy(), NOW)
    assert broken.startswith(name)


@pytest.mark.parametrize("header", [{"alg": "none"}, {"alg": "RS256"}, {}, {"alg": ["HS256"]}])
def test_the_algorithm_is_on_the_list(header: dict[str, Any]) -> None:
    """RFC 8725 §3.1: the token does not choose the algorithm."""
    [broken] = broken_rules(500, header, GOOD, JwtPolicy(), NOW)
    assert broken.startswith("alg is")


def test_size_and_critical_headers() -> None:
    """More than 8 KiB, and extensions that must be understood (RFC 7515 §4.1.11), are refused."""
    assert len(broken_rules(8193, {"alg": "HS256", "crit": ["x"]}, GOOD, JwtPolicy(), NOW)) == 2


def test_inspect_reads_stdin_and_is_safe_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile token is shown without driving the terminal, and its hints to keys are named as ignored."""
    hostile = jwt.encode({"sub": "a\u202eb\x1b[2J", "exp": 9e99}, SECRET, headers={"jku": "https://evil.example"})
    monkeypatch.setattr("sys.stdin", io.StringIO(hostile + "\n"))
    assert token.main(["inspect"]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "jku is ignored" in out
    assert "jti is missing" in out


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", "é", "." * 5, "eyJhbGciOiJIUzI1NiJ9." + "W" * 4000 + ".x"])
def test_what_is_no_token_exits_1(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Garbage is said to be no JWT."""
    assert token.main(["inspect", text or " "]) == 1
    assert "not a JWT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prepare", "arguments"),
    [
        (lambda patch: patch.delenv("JWT_SECRET"), []),
        (lambda patch: patch.setenv("JWT_SECRET", "short-secret-value"), []),
        (lambda patch: patch.setenv("JWT_SECRET_FILE", "/nonexistent"), []),
        (lambda patch: patch.setenv("JWT_ALGORITHMS", "RS256"), []),
        (lambda patch: patch.setenv("JWT_MAX_TTL_MS", "60000"), ["--ttl", "2m"]),
        (lambda patch: patch.setenv("JWT_MAX_TTL_MS", "a day"), []),
        (lambda patch: None, ["--subject", " "]),
    ],
)
def test_wrong_settings_exit_2_without_the_secret(
    prepare: Callable[[pytest.MonkeyPatch], None],
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is named, and the secret's value never is."""
    prepare(monkeypatch)
    assert token.main(["issue", "--subject", "alice", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err
    assert not printed.out
    assert "short-secret-value" not in printed.err
    assert SECRET not in printed.err


@pytest.mark.parametrize("arguments", [[], ["x", "--jti", "y"], ["--jti", "y", "--principal", "z"], [""]])
def test_exactly_one_thing_is_revoked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without a token, jti or principal, or with several of them, nothing is asked of any gateway."""
    assert token.main(["revoke", *arguments]) == 2
    assert "one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), ("7d", 604800), ("250ms", 0.25)]
)
def test_durations(text: str, seconds: float) -> None:
    """The units that people write."""
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "0", "0s", "-1h", "1y", "1h30m", "1e3", "١h", "h", "999999999w"])
def test_what_is_no_duration(text: str) -> None:
    """Everything else is refused, and never taken for something shorter."""
    with pytest.raises(argparse.ArgumentTypeError):
        duration(text)
