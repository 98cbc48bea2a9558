"""The policy file holds on every path through the real gateway: calls, notifications, lists, subscriptions."""

from __future__ import annotations

import json
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from test_crashes import kill
from wire_clients import CLIENTS, WireClient, request

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
TWO_ERA = {"command": sys.executable, "args": [str(UPSTREAMS / "two_era.py")]}
LISTER = {"command": sys.executable, "args": [str(UPSTREAMS / "lister.py")]}
MODERN = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
NO_ECHO = {"rules": [{"name": "no-echo", "effect": "deny", "tool": ["echo", "s*"]}]}

transports = pytest.mark.parametrize("transport", CLIENTS)


def ruled(directory: Path, policy: Any, **environment: str) -> dict[str, str]:
    """The environment that makes a gateway hold to a policy."""
    file = directory / "policy.json"
    file.write_text(json.dumps(policy))
    return {"AUTHORIZATION_POLICY": str(file), **environment}


def refusals(gateway: Any) -> list[dict[str, Any]]:
    """The ``authz.denied`` records; the gateway has to have stopped."""
    lines = [line for file in gateway.audit_dir.glob("security-*.log") for line in file.read_text().splitlines()]
    records = [json.loads(line.removeprefix("SECURITY ")) for line in lines]
    return [record for record in records if record["event"] == "authz.denied"]


async def refused_by(client: WireClient, method: str, params: Any) -> str | None:
    """The rule that a request was refused by; None when it was answered otherwise."""
    answer = await client.call(method, params)
    error = answer.get("error", {})
    return error["data"]["rule"] if error.get("code") == 403 else None


@transports
async def test_a_denied_tool_is_refused_hidden_and_audited(start_gateway: Any, tmp_path: Path, transport: str) -> None:
    """403 with the rule's name and the request's own id; the list doesn't show it; others work; all is on record."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=ruled(tmp_path, NO_ECHO)))
    async with CLIENTS[transport](gateway) as client:
        await client.initialize()
        denied = await client.call("tools/call", {"name": "echo", "arguments": {"text": "hush"}}, id=b'"own"')
        assert denied == {
            "jsonrpc": "2.0",
            "id": "own",
            "error": {"code": 403, "message": "not allowed", "data": {"rule": "no-echo"}},
        }
        listed = (await client.call("tools/list"))["result"]
        assert [tool["name"] for tool in listed["tools"]] == ["time", "add", "log"]
        added = await client.call("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}})
        assert added["result"]["content"][0]["text"] == "3"
        # As a notification it is neither answered nor carried out, but recorded.
        await client.send(b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"sleep","arguments":{}}}')
        assert await client.nothing_more() == []
    gateway.stop()
    records = refusals(gateway)
    assert {record["rule"] for record in records} == {"no-echo"}
    assert sum(record.get("detail", {}).get("count", 1) for record in records) == 2
    assert all((record["method"], record["outcome"]) == ("tools/call", "refused") for record in records)
    assert not any("hush" in json.dumps(record) for record in records)


@transports
async def test_nothing_unruled_passes_where_the_default_is_deny(
    start_gateway: Any, tmp_path: Path, transport: str
) -> None:
    """Only what a rule allows reaches the server; a client can still connect, initialise and ping."""
    policy = {"rules": [{"name": "add-only", "effect": "allow", "principal": "static", "tool": "add"}]}
    environment = ruled(tmp_path, policy, AUTHORIZATION_DEFAULT="deny")
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    async with CLIENTS[transport](gateway) as client:
        assert "result" in await client.initialize()
        assert (await client.call("ping"))["result"] == {}
        assert [tool["name"] for tool in (await client.call("tools/list"))["result"]["tools"]] == ["add"]
        assert "result" in await client.call("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}})
        for method, params in (
            ("tools/call", {"name": "echo", "arguments": {"text": "x"}}),
            ("tools/call", {"name": ["add"]}),
            ("tools/call", [{"name": "add"}]),
            ("Tools/call", {"name": "add"}),
            ("prompts/list", None),
            ("prompts/get", {"name": "add"}),
            ("resources/list", None),
            ("resources/read", {"uri": "add"}),
            ("completion/complete", {"ref": {"type": "ref/prompt", "name": "add"}}),
            ("logging/setLevel", {"level": "debug"}),
            ("whatever", None),
        ):
            assert await refused_by(client, method, params) in ("default", "spelling"), method
        assert "result" in await client.call("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}})


async def test_a_resource_is_denied_in_every_spelling_and_on_every_way(start_gateway: Any, tmp_path: Path) -> None:
    """Reading, subscribing, listening and completing are all refused; what is next to it is not; nothing of what was
    refused has reached the server."""
    policy = {"rules": [{"name": "no-etc", "effect": "deny", "resource": "file:///etc/*"}]}
    environment = ruled(tmp_path, policy)
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(environment=environment, servers={"two": TWO_ERA})
    )
    async with CLIENTS["tcp"](gateway) as client:
        await client.initialize()
        for uri in (
            "file:///etc/passwd",
            "FILE:///etc/passwd",
            "file:/etc/passwd",
            "file://localhost/etc/passwd",
            "file:///%65tc/passwd",
            "file:///srv/../etc/passwd",
            "file:///srv/..%2fetc/passwd",
            "file:///srv\\..\\etc\\passwd",
            "file:////etc//passwd",
            "file:///%2565tc/passwd",
            "file:///e\ttc/passwd",
        ):
            assert await refused_by(client, "resources/read", {"uri": uri}) == "no-etc", uri
            assert await refused_by(client, "resources/subscribe", {"uri": uri}) == "no-etc", uri
            wanted = {"resourceSubscriptions": ["file:///srv/x", uri], "toolsListChanged": True}
            assert await refused_by(client, "subscriptions/listen", {"_meta": MODERN, "notifications": wanted})
            reference = {"type": "ref/resource", "uri": uri}
            assert await refused_by(client, "completion/complete", {"ref": reference}) == "no-etc", uri
        template = {"type": "ref/resource", "uri": "file:///{path}"}
        assert await refused_by(client, "completion/complete", {"ref": template}) == "no-etc"
        assert await refused_by(client, "resources/read", {}) == "no-etc"
        assert await refused_by(client, "resources/read", {"uri": "file:///srv/etc/x"}) is None
        assert await refused_by(client, "resources/subscribe", {"uri": "file:///srv/x"}) is None
        state = (await client.call("test/state"))["result"]
        assert state["subscriptions"] == ["file:///srv/x"]
        assert state["listeners"] == []


async def test_a_rule_can_be_about_one_server(start_gateway: Any, tmp_path: Path) -> None:
    """The same principal may do at one server what it may not at another, and rights follow the choice of server."""
    policy = {"rules": [{"name": "not-here", "effect": "deny", "upstream": "shut", "method": "test/*"}]}
    environment = ruled(tmp_path, policy)
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(environment=environment, servers={"open": TWO_ERA, "shut": TWO_ERA})
    )
    async with CLIENTS["ws"](gateway) as client:
        await client.initialize()
        assert await refused_by(client, "test/state", None) is None
    async with CLIENTS["ws"](gateway, server="shut") as client:
        await client.initialize()
        assert await refused_by(client, "test/state", None) == "not-here"
    async with CLIENTS["tcp"](gateway) as client:
        assert await refused_by(client, "test/state", {"_meta": MODERN}) is None
    async with CLIENTS["tcp"](gateway) as client:
        moved = await client.call("authenticate", {"token": gateway.tcp_token, "server": "shut"})
        assert moved["result"]["authenticated"] is True
        assert await refused_by(client, "test/state", {"_meta": MODERN}) == "not-here"


async def test_lists_keep_every_byte_but_the_hidden_entries(start_gateway: Any, tmp_path: Path) -> None:
    """What is shown arrives as the server wrote it, cursor included; a list that can't be read is kept back with 502,
    and only from a client who may not see everything."""
    policy = {"rules": [{"name": "no-b", "effect": "deny", "upstream": "ruled", "tool": "b"}]}
    environment = ruled(tmp_path, policy)
    servers = {"ruled": LISTER, "free": LISTER}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment, servers=servers))
    whole = '{ "tools" : [ {"name":"a", "x": 1.0e2}, {"name":"b"} , {"name":"\\u0063"}],"nextCursor":"b"}'
    shown = '{ "tools" : [ {"name":"a", "x": 1.0e2}, {"name":"\\u0063"}],"nextCursor":"b"}'
    broken = '{"tools":[{"name":"b"}],"Tools":[{"name":"b"}]}'
    for server, seen in (("free", whole), ("ruled", shown)):
        async with CLIENTS["ws"](gateway, server=server) as client:
            await client.send(request("tools/list", {"result": whole}, id=b"1"))
            assert await client.next() == b'{"jsonrpc":"2.0","id":1,"result":' + seen.encode() + b"}"
            answer = await client.call("tools/list", {"result": broken})
            if server == "free":
                assert answer["result"] == json.loads(broken)
            else:
                assert answer["error"]["code"] == 502
                assert "b" not in json.dumps(answer["error"]["data"]).replace("unreadable", "")
            assert "error" in await client.call("tools/list", {"error": True})
            assert (await client.call("ping"))["result"] == {}


async def test_a_policy_that_is_wrong_stops_the_start(start_gateway: Any, tmp_path: Path) -> None:
    """Exit code 2, and every mistake at once."""
    policy = {"rules": [{"effect": "deni", "tol": "x"}, {"name": "a", "effect": "deny", "tool": "\\x"}], "rule": 1}
    environment = ruled(tmp_path, policy)
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment, wait=False))
    assert await trio.to_thread.run_sync(lambda: gateway.process.wait(60)) == 2
    gateway._end_reading()
    problems = [line for line in gateway.log if "error: AUTHORIZATION_POLICY" in line]
    assert len(problems) == 4, gateway.tail()


SECRET = secrets.token_hex(32)


def jwt_for(principal: str, scope: str | None = "mcp:call mcp:read") -> str:
    """A token of the gateway's own."""
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": "portcullis", "aud": "portcullis", "sub": principal, "jti": secrets.token_hex(8), "iat": now,
        "exp": now + 600,
    }  # fmt: skip
    return jwt.encode(claims | ({} if scope is None else {"scope": scope}), SECRET, algorithm="HS256")


async def test_rules_and_scopes_follow_the_token(start_gateway: Any, tmp_path: Path) -> None:
    """Each principal has its own rules, each token its scopes; who authenticates anew on an open connection has the
    new one's rights from the next message on, and the old one's no longer."""
    policy = {
        "rules": [
            {"name": "bot-adds", "effect": "allow", "principal": "bot-*", "tool": "add"},
            {"name": "bot-only", "effect": "deny", "principal": "bot-*"},
            {"name": "nameless", "effect": "deny", "principal": "static", "tool": "add"},
        ]
    }
    environment = ruled(tmp_path, policy, JWT_SECRET=SECRET)
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    add = {"name": "add", "arguments": {"a": 1, "b": 2}}
    echo = {"name": "echo", "arguments": {"text": "x"}}
    async with CLIENTS["tcp"](gateway, token=jwt_for("bot-1")) as client:
        await client.initialize()
        assert "result" in await client.call("tools/call", add)
        assert await refused_by(client, "tools/call", echo) == "bot-only"
        assert await refused_by(client, "resources/list", None) == "bot-only"
        assert [tool["name"] for tool in (await client.call("tools/list"))["result"]["tools"]] == ["add"]
        # The two messages are sent at once: the second is decided by the first's outcome.
        for token, tool, expected in (
            (jwt_for("alice"), echo, None),
            (gateway.tcp_token, add, "nameless"),
            (jwt_for("alice", "mcp:read"), add, "scope:mcp:call"),
            (jwt_for("alice", "admin"), add, "scope:mcp:call"),
            (jwt_for("alice", None), add, "scope:mcp:call"),
            (jwt_for("bot-2"), echo, "bot-only"),
        ):
            login, call = request("authenticate", {"token": token}, id=b'"in"'), request("tools/call", tool, id=b'"do"')
            await client.stream.send_all(login + b"\n" + call + b"\n")
            assert (await client.answer_to(b'"in"'))["result"]["authenticated"] is True
            error = (await client.answer_to(b'"do"')).get("error", {})
            assert error.get("data", {}).get("rule") == expected, (tool, expected)
    async with CLIENTS["tcp"](gateway, token=jwt_for("alice", "mcp:read")) as client:
        await client.initialize()
        assert (await client.call("tools/list"))["result"]["tools"] == []
        assert (await client.call("resources/list"))["result"]["resources"] != []


async def test_no_right_is_lost_or_won_by_a_crash(start_gateway: Any, tmp_path: Path) -> None:
    """After kill -9 of the edge and of the policy worker the same things are refused, by the same rule."""
    environment = ruled(tmp_path, NO_ECHO)
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    for role in ("edge", "policy"):
        await kill(gateway, role)
        with trio.fail_after(60):
            while True:
                try:
                    async with CLIENTS["tcp"](gateway) as client:
                        await client.initialize()
                        assert await refused_by(client, "tools/call", {"name": "echo"}) == "no-echo"
                        assert await refused_by(client, "tools/call", {"name": "time"}) is None
                    break
                except (KeyError, EOFError, OSError, trio.BrokenResourceError):  # refused while it restarts
                    await trio.sleep(0.05)
