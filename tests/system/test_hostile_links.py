"""Network servers that misbehave: each call is answered, and nothing but the link's own calls is touched."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from bridge_rig import MODERN, rig
from hostile_server import Exchange, HostileServer, hostile, raw

from ipc.messages import CallFailed
from ipc.settings import Upstream

LIMIT = 200_000
Handler = Callable[[Exchange], Awaitable[None]]


def http(url: str, **options: Any) -> Upstream:
    return Upstream(name="http", kind="http", url=url, **options)


def says(status: str, body: bytes = b"", kind: str = "application/json", more: str = "") -> Handler:
    async def handler(exchange: Exchange) -> None:
        await exchange.answer(status, body, kind, more)

    return handler


def writes(*parts: bytes, reset: bool = False) -> Handler:
    """Exactly these bytes, ``@`` being the id, then the end of the connection."""

    async def handler(exchange: Exchange) -> None:
        number = json.dumps(exchange.message["id"]).encode()
        for part in parts:
            await exchange.stream.send_all(part.replace(b"@", number))
        if reset:
            exchange.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(exchange.stream)

    return handler


async def endless_line(exchange: Exchange) -> None:
    await exchange.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: ")
    while True:
        await exchange.stream.send_all(b"x" * 65536)


async def endless_event(exchange: Exchange) -> None:
    await exchange.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    while True:
        await exchange.stream.send_all(b"data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n" * 1000)


async def endless_body(exchange: Exchange) -> None:
    await exchange.stream.send_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n"
    )
    while True:
        await exchange.stream.send_all(b"[" * 65536)


async def endless_head(exchange: Exchange) -> None:
    await exchange.stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.stream.send_all(b"X-A: " + b"a" * 1000 + b"\r\n")


SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"

CASES: dict[str, tuple[Handler, int, bool, str]] = {
    "500": (says("500 Internal Server Error"), 502, True, "HTTP 500"),
    "500 with a page": (says("500 Oh", b"<html>", "text/html"), 502, True, "HTTP 500"),
    "502": (says("502 Bad Gateway"), 502, True, "HTTP 502"),
    "503": (says("503 Unavailable", more="Retry-After: 7\r\n"), 503, False, "HTTP 503"),
    "504": (says("504 Gateway Timeout"), 504, True, "HTTP 504"),
    "401": (says("401 Unauthorized"), 503, False, "HTTP 401"),
    "403": (says("403 Forbidden", b"{}"), 503, False, "HTTP 403"),
    "429": (says("429 Too Many", more="Retry-After: 3\r\n"), 503, False, "HTTP 429"),
    "redirect": (
        says("307 Temporary Redirect", more="Location: http://127.0.0.2:1/mcp\r\n"), 503, False, "HTTP 307"),
    "redirect by name": (
        says("308 Permanent", more="Location: https://127.0.0.1/mcp\r\n"), 503, False, "HTTP 308"),
    "redirect without end": (says("307 Again", more="Location: /mcp\r\n"), 503, False, "moved"),
    "redirect to nowhere": (says("307 Again", more="Location: http://[\r\n"), 503, False, "HTTP 307"),
    "accepted": (says("202 Accepted"), 502, True, "HTTP 202"),
    "a page": (says("200 OK", b"<html>", "text/html"), 502, True, "neither JSON"),
    "not json": (says("200 OK", b"{"), 502, True, "not the call's"),
    "a batch": (says("200 OK", b"[]"), 502, True, "not the call's"),
    "another's answer": (says("200 OK", b'{"jsonrpc":"2.0","id":999,"result":{}}'), 502, True, "not the call's"),
    "compressed": (says("200 OK", b"\x1f\x8b", more="Content-Encoding: gzip\r\n"), 502, True, "compressed"),
    "garbage": (writes(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), 502, True, "does not speak HTTP"),
    "nothing": (writes(), 502, True, "hung up"),
    "reset": (writes(reset=True), 502, True, "the connection was reset"),
    "half a body": (
        writes(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"),
        502, True, "hung up"),
    "bad chunks": (
        writes(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        502, True, "does not speak HTTP"),
    "two lengths": (
        writes(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
        502, True, "does not speak HTTP"),
    "a stream without the answer": (writes(SSE, b": hello\n\n"), 502, True, "without answering"),
    "a stream that is reset": (
        writes(SSE, b'data: {"jsonrpc":"2.0","method":"notifications/x"}\n\n', reset=True), 502, True, ""),
    "an endless line": (endless_line, 502, True, "response_too_large"),
    "an endless event": (endless_event, 502, True, "response_too_large"),
    "an endless body": (endless_body, 502, True, "response_too_large"),
    "an endless head": (endless_head, 502, True, "does not speak HTTP"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
async def test_each_kind_of_trouble_is_an_answer(name: str) -> None:
    """The call fails as the contract says, the server is asked exactly once, and the next client's call works."""
    handler, code, sent, reason = CASES[name]

    async def trouble(exchange: Exchange) -> None:
        if exchange.message["method"] == "fine":
            await exchange.result({"fine": True})
        else:
            await handler(exchange)

    async with hostile(trouble) as server, rig(http(server.url), max_response_size=LIMIT) as this:
        clients = [this.client("http", number) for number in (1, 2)]
        for client in clients:
            await client.initialize()
        failed = await clients[0].call("tools/call", {"name": "x"})
        assert isinstance(failed, CallFailed), failed
        assert (failed.code, failed.sent) == (code, sent), failed
        assert reason in failed.reason, failed
        if name in ("503", "429"):
            assert failed.retry_after_ms in (7000, 3000)
        assert await clients[1].call("fine") == {"fine": True}
        assert server.calls("tools/call") == 1
        assert not clients[0].lost
        await this.drain()
        assert ("DELETE", "") in server.requests


async def test_a_server_that_has_forgotten_the_session() -> None:
    """404: the one call fails unsent, nothing counts against the server, the clients stay, and a new session is begun
    without the old one's id."""

    async def handler(exchange: Exchange) -> None:
        if exchange.message["method"] == "forget":
            await exchange.answer("404 Not Found", b'{"jsonrpc":"2.0","id":"x","error":{"code":-1,"message":"m"}}')
        else:
            await exchange.result({})

    async with hostile(handler) as server, rig(http(server.url)) as this:
        clients = [this.client("http", number) for number in (1, 2)]
        for client in clients:
            await client.initialize()
        failed = await clients[0].call("forget")
        assert isinstance(failed, CallFailed)
        assert (failed.code, failed.sent) == (503, False)
        await this.until_described(lambda found: found["upstreams"]["http"]["state"] == "up")
        for client in clients:
            assert await client.call("x", id=3) == {}
            assert not client.lost
        assert server.calls("forget") == 1
        greetings = [
            head for head, (_, method) in zip(server.heads, server.requests, strict=True) if method == "initialize"
        ]
        assert len(greetings) == 2
        assert not any("mcp-session-id" in head for head in greetings)
        await this.drain()
        assert this.outcomes["http"][1] == 0


async def test_the_servers_own_error_is_passed_on() -> None:
    """With any status, and under the call's own id whatever id the server has written."""
    error = b'{"code":-32602,"message":"no such tool","data":{"x":[1]}}'
    for status, id_ in (("400 Bad Request", b"null"), ("404 Not Found", b"@"), ("500 Oh", b'"server-error"')):
        async def handler(exchange: Exchange, status: str = status, id_: bytes = id_) -> None:
            number = json.dumps(exchange.message["id"]).encode()
            body = b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (id_.replace(b"@", number), error)
            await exchange.answer(status, body, "application/json; charset=utf-8")

        async with hostile(handler) as server, rig(http(server.url)) as this:
            client = this.client("http", 1)
            answer = await client.call("tools/call", {"name": "x", "_meta": MODERN}, id="my id")
            assert answer == json.loads(error)
            await this.drain()


async def test_an_answer_in_any_frame() -> None:
    """Chunks of single bytes, CRLF, comments, unknown fields, data over several lines, no end of the stream."""
    async def handler(exchange: Exchange) -> None:
        number = json.dumps(exchange.message["id"])
        events = (
            f'\ufeff: c\r\nid: 1\r\nfoo: bar\r\ndata\r\n\r\nevent: other\r\ndata: {{"id":1}}\r\n\r\nretry: 10\r\n'
            f'data: {{"jsonrpc":"2.0",\r\ndata: "id":{number},\r\ndata:"result":{{}}}}\r\n\r\n'
        ).encode()
        await exchange.stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"1\r\n" + events[at : at + 1] + b"\r\n" for at in range(len(events)))
        )
        await trio.sleep_forever()

    async with hostile(handler) as server, rig(http(server.url)) as this:
        client = this.client("http", 1)
        await client.initialize()
        assert await client.call("x") == {}
        assert await client.call("x", id=2) == {}
        await this.drain()


async def test_a_server_that_hangs_or_drips() -> None:
    """It costs its callers their own time only: others are served, a cancelled call's connection is closed, and the
    server is told."""
    dropped = []

    async def handler(exchange: Exchange) -> None:
        if exchange.message["method"] == "fine":
            await exchange.result({})
            return
        try:
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000:
                await exchange.stream.send_all(bytes((byte,)))
                await trio.sleep(0.01)
        except trio.BrokenResourceError:
            dropped.append(exchange.message["id"])
            raise

    async with hostile(handler) as server, rig(http(server.url)) as this:
        client = this.client("http", 1)
        await client.initialize()
        slow = client.request("drip", id="slow")
        await this.until_described(lambda found: found["upstreams"]["http"]["in_flight"] == 1)
        for number in range(3):
            assert await client.call("fine", id=number) == {}
        client.abandon(slow)
        with trio.fail_after(30):
            while not dropped:
                await trio.sleep(0.01)
        assert server.calls("notifications/cancelled") == 1
        await this.drain()


async def test_nothing_overtakes_the_handshake() -> None:
    """Requests wait until ``notifications/initialized`` has been accepted, over however many connections they go."""
    order = []
    accepted = trio.Event()

    async def handler(exchange: Exchange) -> None:
        assert accepted.is_set()
        await exchange.result({})

    class Slow(HostileServer):
        async def answer(self, exchange: Exchange) -> None:
            order.append(exchange.message.get("method", exchange.method))
            if exchange.message.get("method") == "notifications/initialized":
                with trio.move_on_after(0.3):
                    await trio.sleep_forever()
                order.append("accepted")
                accepted.set()
            await super().answer(exchange)

    async with raw(Slow(0, handler).serve) as port, rig(http(f"http://127.0.0.1:{port}/mcp")) as this:
        clients = [this.client("http", number) for number in range(4)]
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        calls = [client.request("initialize", hello) for client in clients]
        more = [client.request("x", id=2) for client in clients]
        for client, call in zip(clients * 2, calls + more, strict=True):
            assert isinstance(await client.outcome(call), dict)
        assert order[:3] == ["initialize", "notifications/initialized", "accepted"]
        await this.drain()


UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "


async def _upgraded(stream: trio.SocketStream) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
    digest = hashlib.sha1(  # RFC 6455 §4.2.2
        key.partition(b":")[2].strip() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    ).digest()
    await stream.send_all(UPGRADE + base64.b64encode(digest) + b"\r\n\r\n")


async def _hang_up(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await trio.aclose_forcefully(stream)


async def _not_ascii(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 101 \xff\xfe\r\nX: \xff\r\nUpgrade: \xffwebsocket\r\n\r\n")
    await trio.sleep_forever()


async def _refuse(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n")
    await trio.sleep_forever()


def _frames(*frames: bytes) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def serve(stream: trio.SocketStream) -> None:
        await _upgraded(stream)
        await stream.receive_some()
        for frame in frames:
            await stream.send_all(frame)
        await trio.sleep_forever()

    return serve


async def _reset(stream: trio.SocketStream) -> None:
    await _upgraded(stream)
    await stream.receive_some()
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


WS_CASES: dict[str, tuple[Callable[[trio.SocketStream], Awaitable[None]], int, str]] = {
    "hangs up": (_hang_up, 503, "during the WebSocket handshake"),
    "not ASCII": (_not_ascii, 503, "does not speak WebSocket"),
    "redirects": (_refuse, 503, "HTTP 302"),
    "binary": (_frames(b"\x82\x01a"), 502, "binary"),
    "not UTF-8": (_frames(b"\x81\x02\xff\xff"), 502, "closed"),
    "masked": (_frames(b"\x81\x81\x00\x00\x00\x00a"), 502, "closed"),
    "reserved bits": (_frames(b"\xf1\x01a"), 502, "closed"),
    "closes": (_frames(b"\x88\x02\x03\xe9"), 502, "closed by the server (1001)"),
    "reset": (_reset, 502, "the connection was lost"),
}


@pytest.mark.parametrize("name", list(WS_CASES))
async def test_each_kind_of_websocket_trouble_is_an_answer(name: str) -> None:
    """What waits or is in flight fails at once, and the bridge goes on."""
    serve, code, reason = WS_CASES[name]
    async with raw(serve) as port, rig(Upstream(name="ws", kind="ws", url=f"ws://127.0.0.1:{port}/")) as this:
        client = this.client("ws", 1)
        failed = await client.call("x")
        assert isinstance(failed, CallFailed)
        assert (failed.code, failed.sent) == (code, code == 502), failed
        assert reason in failed.reason or reason == "closed", failed
        await this.drain()


async def test_a_websocket_message_without_end() -> None:
    """It is read and thrown away: the limit's bytes and a few more are kept, and the call that it answers fails."""
    async def serve(stream: trio.SocketStream) -> None:
        await _upgraded(stream)
        await stream.receive_some()
        head = b'{"jsonrpc":"2.0","id":1,"result":"'
        size = 64 << 20
        await stream.send_all(b"\x81\x7f" + struct.pack("!Q", size) + head)
        left = size - len(head) - 2
        while left:
            chunk = b"x" * min(65536, left)
            await stream.send_all(chunk)
            left -= len(chunk)
        await stream.send_all(b'"}')
        await trio.sleep_forever()

    async with raw(serve) as port:
        upstream = Upstream(name="ws", kind="ws", url=f"ws://127.0.0.1:{port}/")
        async with rig(upstream, max_response_size=LIMIT) as this:
            client = this.client("ws", 1)
            failed = await client.call("x")
            assert failed["data"]["reason"] == "response_too_large"
            assert failed["data"]["length"] == 64 << 20
            await this.drain()


async def test_a_websocket_server_that_does_not_read() -> None:
    """Backpressure: past its buffer calls are refused as overloaded, and the link dies when nothing moves at all."""

    async def serve(stream: trio.SocketStream) -> None:
        await _upgraded(stream)
        await trio.sleep_forever()

    async with raw(serve) as port:
        upstream = Upstream(name="ws", kind="ws", url=f"ws://127.0.0.1:{port}/")
        async with rig(upstream, max_buffer_size=1_000_000, write_timeout_ms=1500) as this:
            client = this.client("ws", 1)
            await this.until_described(lambda found: found["sessions"] == 1)
            calls = [client.request("x", {"t": "y" * 900_000}, id=number) for number in range(20)]
            failures = [await client.outcome(call) for call in calls]
            assert all(isinstance(failure, CallFailed) for failure in failures)
            reasons = {failure.reason for failure in failures if isinstance(failure, CallFailed)}
            assert "overloaded" in reasons
            assert any("does not read" in reason for reason in reasons), reasons
            await this.drain()
