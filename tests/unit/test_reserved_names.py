"""The name that a static token's holder gets: the rules for him hold for it, and nobody else bears it. And names that
can't be read: they count as any name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt_forge as forge
import pytest

from actors.policy import certificate
from actors.policy.authorization import ALLOWED, SPELLING, Rights
from actors.policy.identity import is_reserved
from actors.policy.jsonrpc import parse_client
from actors.policy.jwt_tokens import OutsideIssuer, OwnIssuer, TokenRefused, Verifier
from ipc.authorization import AuthorizationRule
from ipc.globs import parse
from supervisor.settings import load

BOTH = ("mcp:call", "mcp:read")
NAME = "static-0123456789ab"


def call(name: str, method: str = "tools/call") -> Any:
    return parse_client(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"name": name}}).encode())


def policy(tmp_path: Path, *rules: dict[str, Any]) -> tuple[AuthorizationRule, ...]:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"rules": rules}))
    return load([], {"AUTHORIZATION_POLICY": str(path)}, tmp_path).settings.authorization.rules


def test_a_rule_for_static_holds_for_what_was_issued_for_a_static_token(tmp_path: Path) -> None:
    """Exchanging the token for a session escapes no rule, denying or allowing; others are not meant."""
    rules = policy(tmp_path, {"name": "no-echo", "effect": "deny", "principal": "static", "tool": "echo"})
    for principal, refusal in (("", "no-echo"), (NAME, "no-echo"), ("static-x", ALLOWED), ("alice", ALLOWED)):
        assert Rights(rules, "allow", principal, BOTH, "server").refused_by(call("echo")) == refusal
    rules = policy(tmp_path, {"effect": "allow", "principal": "static", "tool": "echo"})
    assert Rights(rules, "deny", NAME, BOTH, "server").refused_by(call("echo")) == ALLOWED
    rules = policy(tmp_path, {"name": "one", "effect": "deny", "principal": NAME, "tool": "echo"})
    assert Rights(rules, "allow", NAME, BOTH, "server").refused_by(call("echo")) == "one"
    assert Rights(rules, "allow", "", BOTH, "server").refused_by(call("echo")) == ALLOWED


def test_nobody_else_bears_such_a_name() -> None:
    """Neither a certificate's common name or alternative names nor a subject of our own issuer; an outside subject has
    its issuer before it."""
    subject = {"subject": ((("commonName", NAME),),)}
    assert certificate.principal(subject, "sha256:ab") == "sha256:ab"
    assert certificate.principal(subject | {"subjectAltName": (("email", "a@b"),)}, "sha256:ab") == "a@b"
    assert certificate.principal({"subject": ((("commonName", "static-web"),),)}, "sha256:ab") == "static-web"
    own = Verifier(own=OwnIssuer.of("portcullis", "portcullis", [forge.SECRET], ["HS256"]))
    now = forge.own_claims()["iat"] * 1000
    assert own.verify(forge.own(sub="static-web"), now).principal == "static-web"
    with pytest.raises(TokenRefused):
        own.verify(forge.own(sub=NAME), now)
    assert OutsideIssuer(issuer="i", audience="a", algorithms=frozenset({"RS256"}))
    assert is_reserved("static")
    assert not is_reserved(f"i|{NAME}")


@pytest.mark.parametrize("name", ["echo\0", "echo\x7f", "ec\x1bho", "echo\u2028", "echo\u200b", "\x85echo"])
def test_a_name_that_cant_be_read_counts_as_any(name: str) -> None:
    """A server that ends a name at NUL, or leaves out what can't be seen, would take it for a denied one. Where nothing
    could be refused it passes as it is."""
    deny = AuthorizationRule(name="no-echo", effect="deny", kind="tool", targets=(parse("echo"),))
    some = AuthorizationRule(name="some", effect="allow", kind="tool", targets=(parse("ech*"),))
    every = AuthorizationRule(name="every", effect="allow", kind="tool", targets=(parse("*"),))
    assert Rights((deny,), "allow", "alice", BOTH, "s").refused_by(call(name)) == "no-echo"
    assert Rights((some,), "deny", "alice", BOTH, "s").refused_by(call(name)) == "default"
    assert Rights((every,), "deny", "alice", BOTH, "s").refused_by(call(name)) == ALLOWED
    assert Rights((), "allow", "alice", BOTH, "s").refused_by(call(name)) == ALLOWED
    shown = Rights((deny,), "allow", "alice", BOTH, "s").shown("tools/list")
    assert shown is not None
    assert not shown(name)


@pytest.mark.parametrize("method", ["tools/call\0", "tools/\x00call", "pages/delete\x1b", "tools/call\u200b"])
def test_a_method_that_cant_be_read_is_refused_to_whoever_could_be_refused_anything(method: str) -> None:
    """As one that is spelt differently is."""
    deny = AuthorizationRule(name="no-echo", effect="deny", kind="tool", targets=(parse("echo"),))
    assert Rights((deny,), "allow", "alice", BOTH, "s").refused_by(call("echo", method)) == SPELLING
    assert Rights((), "allow", "alice", BOTH, "s").refused_by(call("echo", method)) == ALLOWED
