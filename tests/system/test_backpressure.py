"""Clients and servers that don't read, and the bounds on what a message, an answer and a connection may be."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from large_clients import MIB, RawClient, echo, frame_head, raw_client, resident_mib

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
ENVIRONMENT = {
    "RATE_LIMIT_ENABLED": "false",
    "AUTO_BLOCK_ENABLED": "false",
    "LOG_LEVEL": "warning",
    "WORKERS": "1",
}
EMBEDDED = {"command": sys.executable, "args": ["-P", "-m", "ops.embedded"]}


async def goes_on(client: RawClient) -> None:
    await client.send(b'{"jsonrpc":"2.0","id":"still","method":"ping"}')
    assert (await client.answer())["id"] == "still"


@asynccontextmanager
async def program(kind: str, tmp_path: Path, name: str, *arguments: str) -> AsyncIterator[dict[str, Any]]:
    """The configuration of one of the tests' upstreams, over stdio or TCP."""
    command = [str(UPSTREAMS / name), *arguments]
    if kind == "stdio":
        yield {"command": sys.executable, "args": command}
        return
    port_file = tmp_path / "port"
    process = await trio.lowlevel.open_process([sys.executable, *command, "--tcp", str(port_file)])
    try:
        with trio.fail_after(30):
            while not port_file.exists():
                await trio.sleep(0.01)
        yield {"url": f"tcp://127.0.0.1:{port_file.read_text().strip()}"}
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("kind", ["stdio", "tcp"])
async def test_a_server_that_does_not_read(start_gateway: Any, tmp_path: Path, kind: str) -> None:
    """A server stops reading, and its clients send it requests and notifications, 60 MB in all: what doesn't fit in
    MAX_BUFFER_SIZE is refused with 503 and its own id, memory stays bounded, another server's clients notice nothing,
    and when the server reads again its clients are served."""
    go = tmp_path / "go"
    small = ENVIRONMENT | {
        "MAX_BUFFER_SIZE": str(4 * MIB),
        "MAX_REQUEST_SIZE": str(MIB),
        "MAX_RESPONSE_SIZE": str(MIB),
    }
    async with program(kind, tmp_path, "reads_slowly.py", "--go", str(go)) as slow:
        servers = {"sound": EMBEDDED, "slow": slow}
        gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=servers, environment=small))
        async with (
            raw_client(gateway, ws=False, server="slow") as client,
            raw_client(gateway, ws=True, server="slow") as talker,
            raw_client(gateway, ws=True, server="sound") as other,
        ):
            await client.send(b'{"jsonrpc":"2.0","id":"stop","method":"test/stop"}')
            assert (await client.answer())["id"] == "stop"
            idle = resident_mib(gateway)
            params = b'"params":{"a":"%s"}}' % (b"x" * (MIB - 1000))
            refused = 0
            for number in range(30):
                await client.send(b'{"jsonrpc":"2.0","id":%d,"method":"test/x",' % number + params)
                await talker.send(b'{"jsonrpc":"2.0","method":"notifications/x",' + params)
                await goes_on(other)
            first_refused = -1
            with trio.move_on_after(20):
                while refused < 20:
                    answer = await client.answer()
                    assert (answer["error"]["code"], answer["error"]["data"]["reason"]) == (503, "overloaded"), answer
                    first_refused = answer["id"] if first_refused < 0 else first_refused
                    refused += 1
            assert refused >= 20
            assert first_refused > 0
            await goes_on(other)
            assert resident_mib(gateway) - idle < 50
            go.touch()
            with trio.fail_after(30):
                while True:  # what had been taken is answered first
                    await client.send(b'{"jsonrpc":"2.0","id":"again","method":"ping"}')
                    while (answer := await client.answer())["id"] != "again":
                        assert answer["id"] in range(30)
                    if "result" in answer:
                        break
                    await trio.sleep(0.05)


@pytest.mark.parametrize("ws", [True, False])
async def test_a_client_that_does_not_read(start_gateway: Any, ws: bool) -> None:
    """It asks for 60 MB of answers and reads none: the gateway stops reading it, keeps no more than MAX_BUFFER_SIZE and
    a little for it, closes it after WRITE_TIMEOUT_MS, and serves others meanwhile."""
    bounds = ENVIRONMENT | {
        "MAX_BUFFER_SIZE": str(4 * MIB),
        "MAX_REQUEST_SIZE": str(MIB),
        "MAX_RESPONSE_SIZE": str(MIB),
        "WRITE_TIMEOUT_MS": "2000",
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=bounds))
    async with (
        raw_client(gateway, ws=ws) as deaf,
        raw_client(gateway, ws=True) as other,
        trio.open_nursery() as nursery,
    ):
        idle = resident_mib(gateway)
        most = 0.0
        cut_off = trio.Event()

        async def ask() -> None:
            try:
                for number in range(60):
                    await deaf.send(echo(MIB - 1000, b"%d" % number))
            except trio.BrokenResourceError:
                cut_off.set()

        nursery.start_soon(ask)
        with trio.fail_after(60):
            while not cut_off.is_set():
                most = max(most, resident_mib(gateway))
                await goes_on(other)
        assert most - idle < 60, (most, idle)
        log = gateway.audit_dir / "security-audit.log"
        with trio.fail_after(30):
            while "write timeout" not in log.read_text():
                await trio.sleep(0.05)


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_max_request_size_is_exact(start_gateway: Any, over: int) -> None:
    """A byte below and exactly at MAX_REQUEST_SIZE passes; a byte above is refused: 413 with the message's own id on
    TCP, close 1009 on WebSocket, in one frame and in fragments."""
    size = 300_000
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(environment=ENVIRONMENT | {"MAX_REQUEST_SIZE": str(size)})
    )
    raw = echo(size + over, b'"e"')
    assert len(raw) == size + over
    third = size // 3
    for shape in ("line", "frame", "fragments"):
        async with raw_client(gateway, ws=shape != "line") as client:
            if shape == "fragments":
                await client.stream.send_all(frame_head(third, first=0x01) + raw[:third])
                await client.stream.send_all(frame_head(third, first=0x00) + raw[third : 2 * third])
                await client.stream.send_all(frame_head(len(raw) - 2 * third, first=0x80) + raw[2 * third :])
            else:
                await client.send(raw)
            if over <= 0:
                assert "result" in await client.answer()
                continue
            if shape == "line":
                answer = await client.answer()
                assert (answer["id"], answer["error"]["code"]) == ("e", 413)
            with pytest.raises(EOFError):
                await client.answer()
            assert client.closed_with == (0 if shape == "line" else 1009)


@pytest.mark.parametrize("ws", [True, False])
async def test_max_preauth_size(start_gateway: Any, ws: bool) -> None:
    """Before authentication no message is longer than MAX_PREAUTH_SIZE, exactly: 413, or close 1009."""
    bounds = ENVIRONMENT | {"MAX_PREAUTH_SIZE": "5000", "WS_FIRST_MESSAGE_AUTH": "true"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=bounds))
    for size in (5000, 5001):
        raw = b'{"jsonrpc":"2.0","id":3,"method":"ping","params":{"a":"'
        raw += b"x" * (size - len(raw) - 3) + b'"}}'
        async with raw_client(gateway, ws=ws, login=False) as client:
            await client.send(raw)
            if size == 5000:
                assert (await client.answer())["result"] == {}
                continue
            if not ws:
                answer = await client.answer()
                assert (answer["id"], answer["error"]["code"]) == (None, 413)
            with pytest.raises(EOFError):
                await client.answer()
            assert client.closed_with == (1009 if ws else 0)


@pytest.mark.parametrize("kind", ["stdio", "tcp"])
async def test_max_response_size(start_gateway: Any, tmp_path: Path, kind: str) -> None:
    """An answer of exactly MAX_RESPONSE_SIZE arrives; a byte more and the caller gets 502 response_too_large, wherever
    the id stands; the server goes on."""
    size = 300_000
    async with program(kind, tmp_path, "huge_line.py") as huge:
        bounds = ENVIRONMENT | {"MAX_RESPONSE_SIZE": str(size)}
        gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers={"huge": huge}, environment=bounds))
        async with raw_client(gateway, ws=True) as client:

            async def ask(count: int, **more: Any) -> dict[str, Any]:
                params = {"bytes": count} | more
                await client.send(
                    json.dumps({"jsonrpc": "2.0", "id": "h", "method": "test/huge", "params": params}).encode()
                )
                return await client.answer()

            # What stands around the text: the upstream sees an id of the gateway's own, of one digit or two here.
            for more in ({}, {"last": True}):
                passed = await ask(size - 100, **more)
                assert len(passed["result"]["text"]) == size - 100
                answer = await ask(size, **more)
                assert (answer["id"], answer["error"]["code"]) == ("h", 502)
                assert answer["error"]["data"]["reason"] == "response_too_large"
            await goes_on(client)


async def test_max_frame_rate(start_gateway: Any) -> None:
    """Empty fragments and pings past MAX_FRAME_RATE end the connection, and no other."""
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(environment=ENVIRONMENT | {"MAX_FRAME_RATE": "500"})
    )
    async with raw_client(gateway, ws=True) as other:
        for first, begins in ((0x00, frame_head(0, first=0x01)), (0x89, b""), (0x81, b"")):
            async with raw_client(gateway, ws=True) as flood:
                with pytest.raises((EOFError, trio.BrokenResourceError)):
                    await overrun(flood, begins + frame_head(0, first=first) * 20_000)
            await goes_on(other)


async def overrun(client: RawClient, data: bytes) -> None:
    """Write it, and read to the end."""
    await client.stream.send_all(data)
    while True:
        await client.answer()
