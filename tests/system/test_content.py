"""The content policy in front of a real server, which records what it saw."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway import Gateway
from wire_clients import CLIENTS, WireClient, request

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
UNBLOCKED = {"AUTO_BLOCK_ENABLED": "false", "RATE_LIMIT_ENABLED": "false"}
WITHIN = 30.0

SCRIPT = "<script>alert(1)</script>"
SQL = "' OR 1=1 --"
ATTACKS = {
    "script-tag": {"text": SCRIPT},
    "script-url": {"href": "javascript:alert(1)"},
    "event-handler": {"text": "<img src=x onerror=alert(1)>"},
    "sql-tautology": {"query": SQL},
    "sql-union": {"query": "1 UNION SELECT password FROM users"},
    "header-injection": {"value": "a\r\nSet-Cookie: b=c"},
    "terminal-escape": {"text": "\x1b]0;title\x07"},
    "path-traversal": {"path": "../../etc/passwd"},
}
LARGE = "x" * 300_000


class Bench:
    def __init__(self, gateway: Gateway, record: Path) -> None:
        self.gateway = gateway
        self.record = record

    def seen(self) -> list[dict[str, Any]]:
        """The ``arguments`` of every tools/call that the server got."""
        lines = self.record.read_bytes().splitlines() if self.record.exists() else []
        messages = [json.loads(line) for line in lines]
        return [message["params"]["arguments"] for message in messages if message["method"] == "tools/call"]

    async def events(self, *names: str, least: int) -> list[dict[str, Any]]:
        """Audit records of these names, once there are ``least`` of them."""
        with trio.fail_after(WITHIN):
            while True:
                found = [record for record in self._audit() if record["event"] in names]
                if sum(record.get("detail", {}).get("count", 1) for record in found) >= least:
                    return found
                await trio.sleep(0.02)

    def _audit(self) -> list[dict[str, Any]]:
        lines = [line for file in sorted(self.gateway.audit_dir.glob("security-*.log"))
                 for line in file.read_text().splitlines()]  # fmt: skip
        found = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # the last one may be half written
                found.append(json.loads(line.removeprefix("SECURITY ")))
        return found


@pytest.fixture
def bench(start_gateway: Callable[..., Gateway], tmp_path: Path) -> Callable[..., Any]:
    async def start(program: str = "recorder.py", rules: Any = None, **environment: str) -> Bench:
        record = tmp_path / "record"
        arguments = [str(UPSTREAMS / program), "--record", str(record)]
        if "TOOLS" in environment:
            arguments += ["--tools", environment.pop("TOOLS")]
        if rules is not None:
            (tmp_path / "rules.json").write_text(json.dumps(rules))
            environment["CONTENT_POLICY_RULES"] = str(tmp_path / "rules.json")
        gateway = await trio.to_thread.run_sync(
            lambda: start_gateway(
                servers={"recorder": {"command": sys.executable, "args": arguments}},
                environment=UNBLOCKED | environment,
            )
        )
        return Bench(gateway, record)

    return start


async def call(client: WireClient, arguments: Any, id_: str) -> dict[str, Any]:
    return await client.call("tools/call", {"name": "t", "arguments": arguments}, id=json.dumps(id_).encode())


async def test_flag_forwards_the_client_s_own_bytes(bench: Any) -> None:
    """The default: every attack reaches the server to the byte, and leaves a record that doesn't quote it."""
    there = await bench()
    sent = {}
    for transport in CLIENTS:
        async with CLIENTS[transport](there.gateway) as client:
            await client.initialize()
            for rule, arguments in ATTACKS.items():
                params = json.dumps({"arguments": arguments, "name": "t"}, indent=None).replace("<", "\\u003c")
                sent[rule] = params
                await client.send(b'{"jsonrpc":"2.0","id":"%b","method":"tools/call","params":%b}' % (
                    rule.encode(), params.encode()
                ))  # fmt: skip
                assert "result" in await client.answer_to(f'"{rule}"'.encode())
    lines = [line for line in there.record.read_text().splitlines() if "tools/call" in line]
    assert all(sum(params in line for line in lines) == 2 for params in sent.values())
    records = await there.events("content.flagged", least=2 * len(ATTACKS))
    assert {record["rule"] for record in records} == set(ATTACKS)
    assert all(record["detail"]["pointer"].startswith("/params/arguments/") for record in records)
    assert "alert" not in json.dumps(records)


async def test_block_refuses_and_the_server_never_sees_it(bench: Any) -> None:
    """422 with the rule and the pointer, for small messages and large ones; ordinary calls pass."""
    there = await bench(CONTENT_POLICY="block")
    for transport in CLIENTS:
        async with CLIENTS[transport](there.gateway) as client:
            await client.initialize()
            for rule, arguments in ATTACKS.items():
                for size, more in (("small", {}), ("large", {"z": LARGE})):
                    answer = await call(client, arguments | more, f"{rule} {size}")
                    assert answer["error"]["code"] == 422, (rule, size)
                    assert answer["error"]["data"]["rule"] == rule
                    assert answer["error"]["data"]["pointer"] == f"/params/arguments/{next(iter(arguments))}"
            # A refused notification is not answered.
            await client.send(
                b'{"jsonrpc":"2.0","method":"notifications/x","params":{"a":%b}}' % json.dumps(SCRIPT).encode()
            )
            assert "result" in await call(client, {"text": "an ordinary text; it's fine", "path": "src/../a.py"}, "ok")
            assert "result" in await call(client, {"text": LARGE}, "ok large")
            assert await client.nothing_more() == []
    assert there.seen() == 2 * [{"text": "an ordinary text; it's fine", "path": "src/../a.py"}, {"text": LARGE}]
    assert b"notifications/x" not in there.record.read_bytes()
    records = await there.events("content.refused", least=4 * len(ATTACKS) + 2)
    assert {record["rule"] for record in records} == set(ATTACKS)
    assert {record["outcome"] for record in records} == {"refused"}


async def test_off_looks_at_nothing(bench: Any) -> None:
    """Every attack passes, and there is no record of it."""
    there = await bench(CONTENT_POLICY="off")
    async with CLIENTS["tcp"](there.gateway) as client:
        await client.initialize()
        for rule, arguments in ATTACKS.items():
            assert "result" in await call(client, arguments, rule)
        assert (await client.call("tools/call", {"name": "t", "arguments": {"__proto__": 1}}, id=b"9"))["error"]
    assert len(there.seen()) == len(ATTACKS)
    refused = await there.events("content.flagged", "content.refused", least=1)
    assert Counter(record["rule"] for record in refused) == {"prototype-pollution": 1}


async def test_strip_replaces_in_the_chosen_field_only(bench: Any) -> None:
    """What the rules file opts in is cut out of the message, in small ones and large ones; other fields stay."""
    rules = {"rules": [{"mode": "strip", "pointer": "/params/arguments/comment", "detectors": ["script", "terminal"]}]}
    there = await bench(rules=rules, CONTENT_POLICY="strip")
    for transport in CLIENTS:
        async with CLIENTS[transport](there.gateway) as client:
            await client.initialize()
            for number, more in enumerate(({}, {"z": LARGE})):
                arguments = {"comment": "a <script>b\x1b[0m", "body": "<script>", **more}
                message = {"method": "tools/call", "params": {"name": "t", "arguments": arguments}, "jsonrpc": "2.0"}
                await client.send(json.dumps(message | {"id": number}).encode())
                answer = await client.answer_to(str(number).encode())
                assert answer["result"]["echo"]["arguments"] == {"comment": "a >b[0m", "body": "<script>", **more}
    stripped = await there.events("content.stripped", least=4)
    assert {record["detail"]["pointer"] for record in stripped} == {"/params/arguments/comment"}
    assert await there.events("content.flagged", least=4)


async def test_rules_decide_by_tool_and_field(bench: Any) -> None:
    """The first rule that speaks decides, roots bound absolute paths, and the rest is as the policy says."""
    rules = {
        "roots": ["/workspace"],
        "rules": [
            {"tool": "t", "pointer": "/params/arguments/code", "detectors": ["script", "sql"], "mode": "off"},
            {"detectors": "path", "mode": "block"},
        ],
    }
    there = await bench(rules=rules)
    async with CLIENTS["ws"](there.gateway) as client:
        await client.initialize()
        assert "result" in await call(client, {"code": SCRIPT + SQL}, "code")
        assert "result" in await call(client, {"path": "/workspace/a/../b"}, "inside")
        for path, rule in (("/etc/passwd", "path-outside-roots"), ("/workspace/../etc", "path-traversal")):
            answer = await call(client, {"path": path}, path)
            assert (answer["error"]["code"], answer["error"]["data"]["rule"]) == (422, rule)
        assert "result" in await call(client, {"text": SCRIPT}, "text")
    flagged = await there.events("content.flagged", least=1)
    assert [record["rule"] for record in flagged] == ["script-tag"]


async def test_refused_content_costs_budget_and_is_an_offence(bench: Any) -> None:
    """Past the limit it is 429 like anything else; enough of it blocks the principal or ends in the address's score."""
    there = await bench(
        CONTENT_POLICY="block",
        RATE_LIMIT_ENABLED="true",
        RATE_LIMIT_MAX_REQUESTS="6",
        RATE_LIMIT_BURST_REQUESTS="6",
        RATE_LIMIT_BURST_WINDOW_MS="60000",
    )
    async with CLIENTS["tcp"](there.gateway) as client:
        codes = [(await call(client, {"text": SCRIPT}, str(number)))["error"]["code"] for number in range(9)]
    assert codes == [422] * 6 + [429] * 3
    assert there.seen() == []


async def test_what_is_too_much_for_the_loop_is_looked_at_elsewhere(bench: Any) -> None:
    """A small message with thousands of suspicious strings is judged by the validator, to the same effect."""
    there = await bench(CONTENT_POLICY="block")
    async with CLIENTS["tcp"](there.gateway) as client:
        await client.initialize()
        many = [f"a &amp; b {number}" for number in range(2000)]
        assert "result" in await call(client, {"list": many}, "ok")
        answer = await call(client, {"list": [*many, SCRIPT]}, "bad")
        assert answer["error"]["data"] == {"rule": "script-tag", "pointer": "/params/arguments/list/2000"}
        assert "result" in await call(client, {}, "after")
    assert [len(arguments.get("list", ())) for arguments in there.seen()] == [2000, 0]


SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "maximum": 5}, "name": {"type": "string", "pattern": "^(a+)+$"}},
    "additionalProperties": False,
}
TREE = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "n": {"type": "integer"}}}},
    "$ref": "#/$defs/node",
}


@pytest.fixture
def tools(tmp_path: Path) -> str:
    """Schemas for the recorder's answer to tools/list."""
    file = tmp_path / "tools.json"
    file.write_text(
        json.dumps(
            [
                {"name": "light", "inputSchema": SCHEMA},
                {"name": "tree", "inputSchema": TREE},
                {"name": "broken", "inputSchema": {"type": "object", "properties": {"a": {"pattern": "("}}}},
                {"name": "outside", "inputSchema": {"$ref": "http://127.0.0.1:1/schema"}},
            ]
        )
    )
    return str(file)


async def test_arguments_are_validated_against_the_tool_s_schema(bench: Any, tools: str) -> None:
    """422 with rule ``schema`` and the place; a schema that can't be used refuses; an unknown tool is not validated."""
    there = await bench("tool_lister.py", SCHEMA_VALIDATION="block", WORKERS="1", TOOLS=tools)
    for transport in CLIENTS:
        async with CLIENTS[transport](there.gateway) as client:
            await client.initialize()
            listed = await client.call("tools/list")
            assert len(listed["result"]["tools"]) == 4
            cases = [
                ("light", {"count": 3, "name": "aaa"}, None),
                ("light", {"count": 6}, "/params/arguments/count"),
                ("light", {"other": 1}, "/params/arguments"),
                ("light", {"name": "a" * 50_000 + "!"}, "/params/arguments/name"),
                ("light", {"name": "a" * 300_000 + "!"}, "/params/arguments/name"),
                ("light", {"name": "a" * 300_000}, None),
                ("tree", {"next": {"next": {"n": 1}}}, None),
                ("tree", {"next": {"next": {"n": "x"}}}, "/params/arguments/next/next/n"),
                ("broken", {}, "/params/name"),
                ("outside", {}, "/params/name"),
                ("unknown", {"anything": 1}, None),
            ]
            for number, (tool, arguments, pointer) in enumerate(cases):
                params = {"name": tool, "arguments": arguments}
                answer = await client.call("tools/call", params, id=str(number).encode())
                if pointer is None:
                    assert "result" in answer, (tool, number)
                else:
                    assert answer["error"]["code"] == 422, (tool, number)
                    assert answer["error"]["data"] == {"rule": "schema", "pointer": pointer}
            twice = b'{"jsonrpc":"2.0","id":99,"method":"tools/call","params":{"name":"light","arguments":%b}}'
            await client.send(twice % b'{"count":9,"count":1}')
            assert (await client.answer_to(b"99"))["error"]["data"]["rule"] == "schema"
    assert len(there.seen()) == 2 * sum(pointer is None for _, _, pointer in cases)
    assert there.gateway.await_line(r"inputSchema of tool 'broken' can't be used")


async def test_a_schema_may_only_be_flagged(bench: Any, tools: str) -> None:
    """Then the call passes, with a record."""
    there = await bench("tool_lister.py", SCHEMA_VALIDATION="flag", WORKERS="1", TOOLS=tools)
    async with CLIENTS["tcp"](there.gateway) as client:
        await client.initialize()
        await client.call("tools/list")
        assert "result" in await client.call("tools/call", {"name": "light", "arguments": {"count": 6}}, id=b"1")
    (flagged,) = await there.events("content.flagged", least=1)
    assert (flagged["rule"], flagged["detail"]["pointer"]) == ("schema", "/params/arguments/count")


KEY = "AKIA" + "ABCDEFGHIJKLMNOP"


async def test_secrets_in_answers_are_kept_back(bench: Any) -> None:
    """With ``block`` the answer is an error in its place; with ``flag`` it passes with a record; default: unseen."""
    there = await bench(CONTENT_POLICY_OUTBOUND="block")
    for transport in CLIENTS:
        async with CLIENTS[transport](there.gateway) as client:
            await client.initialize()
            answer = await call(client, {"echo": f"line\n{KEY}"}, "1")
            assert answer["error"]["code"] == 422
            assert answer["error"]["data"]["rule"] == "secret-aws-key"
            assert KEY not in json.dumps(answer)
            assert "result" in await call(client, {"echo": "nothing"}, "2")
    refused = await there.events("content.refused", least=2)
    assert {record["rule"] for record in refused} == {"secret-aws-key"}
    assert KEY not in json.dumps(refused)


async def test_production_refuses_what_leaves_its_root_and_flags_the_rest(bench: Any) -> None:
    """The profile's default: code passes unhindered, a path that climbs out doesn't."""
    there = await bench(SECURITY_PROFILE="production", SSL_ENABLED="false", CONNECTION_RATE_LIMIT="1000")
    async with CLIENTS["ws"](there.gateway) as client:
        await client.initialize()
        assert "result" in await call(client, {"code": SCRIPT + SQL, "text": "../../x", "path": "a/../b"}, "code")
        answer = await call(client, {"path": "..%252f..%252fetc"}, "path")
        assert answer["error"]["data"] == {"rule": "path-traversal", "pointer": "/params/arguments/path"}


async def test_a_server_s_malformed_answer_never_reaches_a_client(start_gateway: Any) -> None:
    """What isn't JSON is dropped, and the call ends in an error of the gateway's own, or in time."""
    servers = {
        "garbage": {"command": sys.executable, "args": [str(UPSTREAMS / "garbled.py")], "timeoutMs": 1500},
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=servers, environment=UNBLOCKED))
    async with CLIENTS["tcp"](gateway) as client:
        await client.initialize()
        await client.send(request("tools/call", {"name": "t", "arguments": {}}, id=b"1"))
        answer = await client.answer_to(b"1")  # parses every line that comes
        assert answer["error"]["code"] in (502, 504)


async def test_a_schema_without_end_costs_two_tries(bench: Any, tmp_path: Path) -> None:
    """A check that takes forever is killed with its process; then the schema counts as unusable, and others go on."""
    definitions = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(60)} | {"a60": {}}
    schema = {"$defs": definitions, "$ref": "#/$defs/a0"}
    tools = tmp_path / "endless.json"
    tools.write_text(json.dumps([{"name": "endless", "inputSchema": schema}]))
    there = await bench(
        "tool_lister.py", SCHEMA_VALIDATION="block", WORKERS="1", TOOLS=str(tools), HEARTBEAT_TIMEOUT_MS="500"
    )
    async with CLIENTS["tcp"](there.gateway) as client, CLIENTS["ws"](there.gateway) as other:
        await client.initialize()
        await client.call("tools/list")
        await client.send(request("tools/call", {"name": "endless", "arguments": {}}, id=b"1"))
        assert "result" in await other.call("ping")
        answer = await client.answer_to(b"1")
        assert answer["error"]["code"] == 503
        answer = await client.call("tools/call", {"name": "endless", "arguments": {}}, id=b"2")
        assert answer["error"]["data"] == {"rule": "schema", "pointer": "/params/name"}
    assert there.seen() == []
