"""Scopes, rules and targets: what is asked of the rules, message by message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.policy.authorization import ALLOWED, Rights, scope_for
from actors.policy.jsonrpc import parse_client
from ipc.authorization import AuthorizationRule
from ipc.globs import parse

BOTH = ("mcp:call", "mcp:read")
NO_ETC = AuthorizationRule(name="no-etc", effect="deny", kind="resource", targets=(parse("file:///etc/*"),))
SRV_ONLY = AuthorizationRule(name="srv", effect="allow", kind="resource", targets=(parse("file:///srv/*"),))
NO_EXEC = AuthorizationRule(name="no-exec", effect="deny", kind="tool", targets=(parse("exec"),))


def rights(*rules: AuthorizationRule, default: Any = "allow", principal: str = "", scopes: Any = BOTH) -> Rights:
    return Rights(rules, default, principal, scopes, "server")


def verdict(who: Rights, method: str, params: Any = None, *, id: Any = 1) -> str:
    body = {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params})
    return who.refused_by(parse_client(json.dumps(body | ({} if id is None else {"id": id})).encode()))


@pytest.mark.parametrize(
    ("method", "scope"),
    [
        *((method, "") for method in (
            "initialize", "ping", "server/discover", "notifications/initialized", "notifications/cancelled",
            "notifications/progress")),
        *((method, "mcp:read") for method in (
            "tools/list", "prompts/list", "resources/list", "resources/templates/list", "prompts/get",
            "resources/read", "resources/subscribe", "resources/unsubscribe", "subscriptions/listen",
            "completion/complete", "logging/setLevel", "notifications/roots/list_changed")),
        *((method, "mcp:call") for method in (
            "tools/call", "tasks/get", "tasks/cancel", "Ping", "tools/List", "", "notifications/else", "anything")),
    ],
)  # fmt: skip
def test_each_method_needs_its_scope(method: str, scope: str) -> None:
    """The whole table; what isn't known needs the greater scope."""
    assert scope_for(method) == scope
    for held in ((), ("mcp:read",), ("mcp:call",), ("admin",), ("mcp:*",), ("mcp:call mcp:read",)):
        refused = verdict(rights(scopes=held), method)
        assert refused == (ALLOWED if not scope or scope in held else f"scope:{scope}")


def test_who_can_be_refused_nothing_is_known_at_once() -> None:
    """No rule, or none that denies this principal anything, and both scopes: there is nothing to ask."""
    assert rights().unrestricted
    assert rights(SRV_ONLY).unrestricted
    assert not rights(NO_EXEC).unrestricted
    assert not rights(default="deny").unrestricted
    assert not rights(scopes=("mcp:call",)).unrestricted
    others = AuthorizationRule(name="x", effect="deny", principals=(parse("bob"),))
    elsewhere = AuthorizationRule(name="y", effect="deny", upstreams=(parse("other"),))
    assert rights(others, elsewhere, principal="alice").unrestricted
    assert not rights(others, elsewhere, principal="bob").unrestricted


def test_a_response_needs_no_permission() -> None:
    """It answers what the server asked of this very client."""
    envelope = parse_client(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    assert rights(default="deny", scopes=()).refused_by(envelope) == ALLOWED


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"name": "exec"}, "no-exec"),
        ({"name": "Exec"}, ALLOWED),
        ({"name": "execute"}, ALLOWED),
        ({"name": ""}, "no-exec"),
        ({"name": ["exec"]}, "no-exec"),
        ({"name": None}, "no-exec"),
        ({}, "no-exec"),
        (["exec"], "no-exec"),
        (None, "no-exec"),
        ({"name": "e" * 8193}, "no-exec"),
        ({"name": "e" * 8192}, ALLOWED),
    ],
)
def test_a_tool_that_can_t_be_read_may_be_the_denied_one(params: Any, expected: str) -> None:
    """No name, two names' worth of one, or a name that is no string: refused like what it might be."""
    assert verdict(rights(NO_EXEC), "tools/call", params) == expected
    assert verdict(rights(NO_EXEC), "tools/call", params, id=None) == expected


@pytest.mark.parametrize("method", ["Tools/call", "tools/call ", "TOOLS/CALL", "Resources/Read"])
def test_another_spelling_of_a_ruled_method_is_refused(method: str) -> None:
    """A server that doesn't mind case would carry it out."""
    assert verdict(rights(NO_EXEC), method, {"name": "exec"}) == "spelling"
    assert verdict(rights(), method, {"name": "exec"}) == ALLOWED


DENIED_URIS = [
    "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "file://localhost/etc/passwd",
    "file://LOCALHOST/etc/passwd", "file:///%65tc/passwd", "file:///%2565tc/passwd", "file:///srv/../etc/passwd",
    "file:///srv/%2e%2e/etc/passwd", "file:///srv/..%2fetc/passwd", "file:///srv/%2E%2E%2Fetc%2Fpasswd",
    "file:///./etc/passwd", "file:///../../etc/passwd", "file:////etc/passwd", "file:///etc//passwd",
    "file:\\\\\\etc\\passwd", "file:///srv\\..\\etc\\passwd", "file:///a%2fb/../../etc/passwd",
    "file:///a%2Fb/../etc/passwd", "file:///srv/x%00", " file:///srv/x", "file:///srv/x\n", "file:///e\ttc/x", "",
    "file:///srv/" + "x" * 8192,
]  # fmt: skip


@pytest.mark.parametrize("uri", DENIED_URIS)
def test_a_denied_resource_is_denied_however_it_is_written(uri: str) -> None:
    """By a rule that denies it, and by rules that allow only another place; on every method that takes a URI."""
    for who, rule in ((rights(NO_ETC), "no-etc"), (rights(SRV_ONLY, default="deny"), "default")):
        for method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
            assert verdict(who, method, {"uri": uri}) == rule
        listen = {"notifications": {"resourceSubscriptions": ["file:///srv/a", uri, "file:///srv/b"]}}
        assert verdict(who, "subscriptions/listen", listen) == rule
        assert verdict(who, "completion/complete", {"ref": {"type": "ref/resource", "uri": uri}}) == rule


@pytest.mark.parametrize(
    "uri", ["file:///srv/a", "file:///srv/etc/a", "file:///srv/a%20b", "file:///srv/a.b/..c", "file:///srv/é", "FILE:///srv/a"]
)
def test_another_resource_is_not(uri: str) -> None:
    """The positive control: what the deny rule doesn't mean passes."""
    assert verdict(rights(NO_ETC), "resources/read", {"uri": uri}) == ALLOWED


def test_an_allowed_place_can_t_be_left() -> None:
    """Every form that a server may take a URI for has to be allowed; ways within the place are."""
    who = rights(SRV_ONLY, default="deny")
    assert verdict(who, "resources/read", {"uri": "file:///srv/a/../b"}) == ALLOWED
    assert verdict(who, "resources/read", {"uri": "file:///srv/a%20b"}) == ALLOWED
    assert verdict(who, "resources/read", {"uri": "file:///srv/../srv2/b"}) == "default"
    assert verdict(who, "resources/read", {"uri": "file:///srvx"}) == "default"
    escaped = AuthorizationRule(name="e", effect="allow", kind="resource", targets=(parse("file:///a%20b/*"),))
    assert verdict(rights(escaped, default="deny"), "resources/read", {"uri": "file:///a%20b/c"}) == ALLOWED


@pytest.mark.parametrize(
    ("notifications", "expected"),
    [
        ({"resourceSubscriptions": ["file:///srv/a"]}, ALLOWED),
        ({"resourceSubscriptions": []}, ALLOWED),
        ({"toolsListChanged": True}, ALLOWED),
        (None, ALLOWED),
        ({"resourceSubscriptions": "file:///etc/x"}, "no-etc"),
        ({"resourceSubscriptions": {"0": "file:///etc/x"}}, "no-etc"),
        ({"resourceSubscriptions": [1]}, "no-etc"),
        ({"resourceSubscriptions": ["file:///srv/a"] * 257}, "no-etc"),
        (["file:///etc/x"], "no-etc"),
        ("file:///etc/x", "no-etc"),
    ],
)
def test_what_listen_asks_for_has_to_be_readable(notifications: Any, expected: str) -> None:
    """One denied URI denies the whole request, and so does a shape that can't be looked through."""
    assert verdict(rights(NO_ETC), "subscriptions/listen", {"notifications": notifications}) == expected


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"type": "ref/prompt", "name": "p"}, ALLOWED),
        ({"type": "ref/resource", "uri": "file:///srv/{x}"}, ALLOWED),
        ({"type": "ref/resource", "uri": "file:///{x}"}, "no-etc"),
        ({"type": "ref/resource", "uri": "file:///{x}/passwd"}, "no-etc"),
        ({"type": "ref/resource", "uri": "{x}"}, "no-etc"),
        ({"type": "ref/resource", "uri": "file:///%65tc/{x}"}, "no-etc"),
        ({"type": "ref/resource"}, "no-etc"),
        ({"type": "ref/other", "uri": "file:///srv/a"}, "no-etc"),
        ({"uri": "file:///srv/a"}, "no-etc"),
        ("file:///etc/x", "no-etc"),
    ],
)
def test_a_template_is_completed_only_if_all_it_stands_for_is_allowed(reference: Any, expected: str) -> None:
    """A completion tells what there is, so one denied expansion is enough to refuse it."""
    assert verdict(rights(NO_ETC), "completion/complete", {"ref": reference}) == expected


def test_the_first_rule_that_speaks_decides() -> None:
    """Order is all that counts, for one principal as for all."""
    name = (parse("alice"),)
    echo = AuthorizationRule(name="echo", effect="allow", principals=name, kind="tool", targets=(("echo",),))
    alice = AuthorizationRule(name="alice", effect="deny", principals=name)
    assert verdict(rights(echo, alice, principal="alice"), "tools/call", {"name": "echo"}) == ALLOWED
    assert verdict(rights(alice, echo, principal="alice"), "tools/call", {"name": "echo"}) == "alice"
    assert verdict(rights(echo, alice, principal="alice"), "tools/call", {"name": "add"}) == "alice"
    assert verdict(rights(echo, alice, principal="alice"), "tools/list") == ALLOWED
    assert verdict(rights(echo, alice, principal="alice"), "prompts/list") == "alice"
    assert verdict(rights(echo, alice, principal="bob"), "tools/call", {"name": "add"}) == ALLOWED
    assert verdict(rights(alice, principal="alice"), "ping") == ALLOWED


def test_lists_show_what_could_be_used() -> None:
    """None where everything is shown; nothing at all without the scope to use it."""
    assert rights(NO_ETC).shown("tools/list") is None
    assert rights(NO_EXEC).shown("tools/call") is None
    hidden = rights(NO_EXEC).shown("tools/list")
    assert hidden is not None
    assert (hidden("exec"), hidden("echo"), hidden("")) == (False, True, False)
    reader = rights(scopes=("mcp:read",)).shown("tools/list")
    assert reader is not None
    assert not reader("echo")
    assert rights(scopes=("mcp:read",)).shown("prompts/list") is None
    templates = rights(NO_ETC).shown("resources/templates/list")
    assert templates is not None
    assert (templates("file:///{x}"), templates("file:///etc/{x}")) == (True, False)


def test_what_is_remembered_is_bounded() -> None:
    """However many different things a client asks for, its connection keeps few decisions, and they stay right."""
    who = rights(NO_EXEC)
    for number in range(2000):
        assert verdict(who, "tools/call", {"name": f"t{number}"}) == ALLOWED
        assert verdict(who, f"m{number}") == ALLOWED
        assert verdict(who, "tools/call", {"name": "exec"}) == "no-exec"
    verdict(who, "tools/call", {"name": "long" * 1000})
    verdict(who, "m" * 5000)
    assert len(who._decided) <= 256
    assert len(who._lines) <= 256
    assert max(len(text) for key in who._decided for text in key) <= 512
    assert max(len(text) for key in who._lines for text in key) <= 512
