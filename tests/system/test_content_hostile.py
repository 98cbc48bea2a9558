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
        program: str = "recorder.py", *, tools: Any = None, more: Any = None, **environment: str
    ) -> Gateway:
        arguments = [str(UPSTREAMS / program), "--record", str(tmp_path / "record")]
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
