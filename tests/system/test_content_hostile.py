"""Messages and servers that were made to hurt the gateway by what its content stage does with them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway import Gateway
from wire_clients import TcpClient, request, tcp_client

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
WITHIN = 30.0

Start = Callable[..., Any]


def audit(gateway: Gateway, *names: str) -> list[dict[str, Any]]:
    found = []
    for file in sorted(gateway.audit_dir.glob("security-*.log")):
        for line in file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last one may be half written
                record = json.loads(line.removeprefix("SECURITY "))
                if record["event"] in names:
                    found.append(record)
    return found


async def audited(gateway: Gateway, name: str, *, least: int = 1) -> list[dict[str, Any]]:
    """The records of one event, once they tell of ``least``."""
    with trio.fail_after(WITHIN):
        while True:
            found = audit(gateway, name)
            if sum(record.get("detail", {}).get("count", 1) for record in found) >= least:
                return found
            await trio.sleep(0.02)


@pytest.fixture
def start(start_gateway: Callable[..., Gateway], tmp_path: Path) -> Start:
    """A gateway of one edge worker before one server, which says ``tools`` to tools/list."""

    async def begin(
        program: str = "recorder.py",
        *,
        tools: Any = None,
        private: bool = False,
        more: Any = None,
        **environment: str,
    ) -> Gateway:
        arguments = [str(UPSTREAMS / program), "--record", str(tmp_path / "record")]
        if private:
            arguments += ["--private"]
        if tools is not None:
            (tmp_path / "tools.json").write_text(json.dumps(tools))
            arguments += ["--tools", str(tmp_path / "tools.json")]
        base = {"AUTO_BLOCK_ENABLED": "false", "RATE_LIMIT_ENABLED": "false", "WORKERS": "1"}
        server = {"command": sys.executable, "args": arguments} | (more or {})
        return await trio.to_thread.run_sync(
            lambda: start_gateway(servers={"s": server}, environment=base | environment)
        )

    return begin


@asynccontextmanager
async def crowd(gateway: Gateway, count: int) -> AsyncIterator[list[TcpClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(tcp_client(gateway)) for _ in range(count)]


async def test_a_burst_of_encoded_messages_ends_no_worker(start: Start) -> None:
    """Sixteen messages of 249 KB each, all of it percent-encoded, end in the same turn: nobody is killed for it."""
    gateway = await start()
    workers = set(gateway.workers())
    message = request("tools/call", {"name": "t", "arguments": {"a": "%41x" * 62_000}}, id=b"1")
    async with crowd(gateway, 16) as clients, tcp_client(gateway) as other:
        await clients[0].initialize()
        for client in clients:
            await client.stream.send_all(message)
        for client in clients:
            await client.stream.send_all(b"\n")
        assert "result" in await other.call("ping")
        for client in clients:
            assert "result" in await client.answer_to(b"1")
    assert set(gateway.workers()) == workers
    assert audit(gateway, "worker.killed", "actor.crashed") == []


async def test_a_schema_that_is_too_long_hurts_nobody(start: Start) -> None:
    """It counts as one that can't be used, also for a large message, whose check is another process's."""
    schema = {"type": "object", "description": "x" * 200_000}
    gateway = await start("tool_lister.py", tools=[{"name": "t", "inputSchema": schema}], SCHEMA_VALIDATION="block")
    async with tcp_client(gateway) as client, tcp_client(gateway) as other:
        await client.initialize()
        await client.call("tools/list")
        for number, text in enumerate(("x", "%41x" * 10_000, "x" * 300_000)):
            id_ = str(number).encode()
            answer = await client.call("tools/call", {"name": "t", "arguments": {"a": text}}, id=id_)
            assert answer["error"]["data"] == {"rule": "schema", "pointer": "/params/name"}
        assert "result" in await other.call("ping")
    assert audit(gateway, "worker.killed", "actor.crashed") == []


STRICT = {"type": "object", "properties": {"n": {"type": "integer"}}}


@pytest.mark.parametrize("kind", ["shared", "per-session", "private", "long"])
async def test_schemas_hold_whatever_the_list(start: Start, kind: str) -> None:
    """Of one session's server, of a list that is for nobody else or is long; and after the list has changed, until
    there is a new one."""
    tools = [{"name": "t", "inputSchema": STRICT}, {"name": "change", "inputSchema": {}}]
    if kind == "long":
        tools += [{"name": f"x{number}", "inputSchema": {"description": "x" * 60_000}} for number in range(20)]
    more = {"instance": "per-session"} if kind == "per-session" else {}
    gateway = await start(
        "tool_lister.py", tools=tools, private=kind == "private", more=more, SCHEMA_VALIDATION="block"
    )
    async with tcp_client(gateway) as client, tcp_client(gateway) as other:
        for each in (client, other):
            await each.initialize()
        wrong = {"name": "t", "arguments": {"n": "x"}}
        assert "result" in await client.call("tools/call", wrong)  # nobody has asked what it takes
        await client.call("tools/list")
        assert (await client.call("tools/call", wrong))["error"]["data"]["rule"] == "schema"
        assert "result" in await client.call("tools/call", {"name": "change", "arguments": {}})
        assert (await client.call("tools/call", wrong))["error"]["data"]["rule"] == "schema"
        held = await other.call("tools/call", wrong)
        assert ("error" in held) is (kind in ("shared", "long"))
    assert gateway.await_line(r"a tool is called whose schema isn't known")
