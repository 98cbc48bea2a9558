"""Servers that send as much as they can of what costs most: everybody else goes on, and the gateway ends the worst."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import h11
import pytest
import trio
from bridge_rig import program, rig
from hostile_server import INITIALIZED, Exchange, hostile, raw
from test_hostile_links import _upgraded

from actors.upstream import slot, ws_link
from actors.upstream.pace import ITEMS_A_TURN
from actors.upstream.slot import Instance
from actors.upstream.sse import EventReader
from ipc.messages import CallFailed
from ipc.settings import Upstream

MOST = 40 * ITEMS_A_TURN  # handled without letting others run; unguarded, it is a read's worth: tens of thousands
ENOUGH = 4 * MOST


@attrs.define(eq=False)
class Batches(trio.abc.Instrument):
    """How often something happens between two looks at the system's events."""

    now: int = 0
    most: int = 0
    all: int = 0

    def before_io_wait(self, timeout: float) -> None:
        self.most = max(self.most, self.now)
        self.now = 0

    def count(self, monkeypatch: pytest.MonkeyPatch, of: type, name: str) -> None:
        plain = getattr(of, name)

        def counting(*arguments: Any) -> Any:
            self.now += 1
            self.all += 1
            return plain(*arguments)

        monkeypatch.setattr(of, name, counting)


@pytest.fixture
async def batches() -> Any:
    counting = Batches()
    trio.lowlevel.add_instrument(counting)
    yield counting
    trio.lowlevel.remove_instrument(counting)


def pours(what: bytes, head: bytes) -> Callable[[Exchange], Awaitable[None]]:
    async def handler(exchange: Exchange) -> None:
        await exchange.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + head + b"\r\n")
        while True:
            await exchange.stream.send_all(what * (65536 // len(what)))

    return handler


def frames(first: bytes, what: bytes) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A WebSocket server that greets, and then sends those frames for ever."""

    async def serve(stream: trio.SocketStream) -> None:
        await _upgraded(stream)
        data = b""
        while b'"initialize"' not in data:
            masked = await stream.receive_some()
            at = 8 if masked[1] & 127 == 126 else 6
            data = bytes(byte ^ masked[at - 4 + i % 4] for i, byte in enumerate(masked[at:]))
        answer = (
            b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},'
            b'"serverInfo":{"name":"floods","version":"1"}}}'
        )
        assert INITIALIZED["protocolVersion"].encode() in answer
        await stream.send_all(b"\x81\x7e" + struct.pack(">H", len(answer)) + answer + first)
        while True:
            await stream.send_all(what * (65536 // len(what)))

    return serve


async def _goes_on(loud: Upstream, batches: Batches) -> None:
    async with rig(program("quiet", "lister.py"), loud) as this:
        quiet, other = this.client("quiet", 1), this.client("loud", 2)
        await quiet.initialize()
        await other.initialize()
        batches.most = batches.all = 0
        other.request("flood")
        asked = 0
        while batches.all < ENOUGH or asked < 10:
            asked += 1
            assert await quiet.call("x", id=asked) == {}
        assert batches.most <= MOST
        await this.drain(1.5)


@pytest.mark.parametrize("line", ["x", '{"jsonrpc":"2.0","method":"notifications/x"}'])
async def test_a_stdio_server_that_floods(line: str, batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines are dealt with a few at a time, and another server's client is answered all the while."""
    batches.count(monkeypatch, Instance, "line")
    await _goes_on(program("loud", "floods.py", line), batches)


@pytest.mark.parametrize(
    ("first", "what"),
    [(b"", b"\x81\x01x"), (b"\x01\x01 ", b"\x00\x01 "), (b"", b"\x89\x00"), (b"", b"\x8a\x00")],
    ids=["messages", "fragments", "pings", "pongs"],
)
async def test_a_websocket_server_that_floods(
    first: bytes, what: bytes, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So are its frames, of any kind."""
    for kind in ("message", "ping", "pong"):
        batches.count(monkeypatch, ws_link._Connection, f"_handle_{kind}_event")
    async with raw(frames(first, what)) as port:
        await _goes_on(Upstream(name="loud", kind="ws", url=f"ws://127.0.0.1:{port}/"), batches)


@pytest.mark.parametrize(
    ("what", "head", "of", "name"),
    [
        (b"1\r\n:\r\n1\r\n\n\r\n", b"Transfer-Encoding: chunked\r\n", h11.Connection, "next_event"),
        (b"data:x\n\n", b"", EventReader, "_dispatch"),
        (b":\n", b"", EventReader, "_take"),
        (b"\n", b"", EventReader, "_take"),
    ],
    ids=["chunks", "events", "comments", "nothing"],
)
async def test_an_http_server_that_floods(
    what: bytes, head: bytes, of: type, name: str, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So are its chunks, events and comments."""
    batches.count(monkeypatch, of, name)
    async with hostile(pours(what, head)) as server:
        await _goes_on(Upstream(name="loud", kind="http", url=server.url), batches)


async def test_a_server_that_sends_nothing_but_garbage_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a high rate it is no server any more: it is ended, its callers are told, and it counts as a death. Little of
    it is logged, and it is said how much was left out."""
    monkeypatch.setattr(slot, "GARBAGE", 1000)
    async with rig(program("loud", "floods.py", "x")) as this:
        client = this.client("loud", 1)
        await client.initialize()
        failed = await client.outcome(client.request("flood"))
        assert isinstance(failed, CallFailed)
        assert (failed.code, failed.sent) == (502, True)
        assert "garbage" in failed.reason
        await this.drain()
        assert this.outcomes["loud"][1] == 1


async def test_garbage_between_messages_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that prints what is no message, but a message here and there too, is served."""
    monkeypatch.setattr(slot, "GARBAGE", 100)
    notification = '{"jsonrpc":"2.0","method":"notifications/x"}'
    async with rig(program("loud", "floods.py", "\n".join(["x"] * 20 + [notification]))) as this:
        client = this.client("loud", 1)
        await client.initialize()
        client.request("flood")
        await this.until(lambda: len(client.unsolicited) > 200)
        assert not client.failures
        await this.drain(1.5)


async def test_garbage_is_logged_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    """What a server makes the gateway log is bounded like its stderr, and it is said how much was left out."""
    async with rig(program("loud", "floods.py", "x")) as this:
        client = this.client("loud", 1)
        await client.initialize()
        client.request("flood")
        with caplog.at_level("INFO", "portcullis.upstream"):
            await this.until_described(lambda found: found["counted"].get("garbage", 0) > 3000)
        quoted = [record for record in caplog.records if "not a message" in record.getMessage()]
        assert 0 < len(quoted) < 1000
        await this.drain(1.5)
