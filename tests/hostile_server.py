"""A server on loopback that does what no real one can be made to do. It runs in the test's own loop."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

INITIALIZED = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "serverInfo": {"name": "hostile", "version": "1"},
}


@attrs.define(eq=False)
class Exchange:
    """One HTTP request: its head in lower case, its body, and the stream to answer on."""

    stream: trio.SocketStream
    method: str
    head: str
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        return dict(json.loads(self.body)) if self.body else {}

    async def answer(self, status: str, body: bytes = b"", kind: str = "application/json", more: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        await self.stream.send_all(head.encode() + body)

    async def result(self, result: Any) -> None:
        await self.answer("200 OK", json.dumps({"jsonrpc": "2.0", "id": self.message["id"], "result": result}).encode())


Handler = Callable[[Exchange], Awaitable[None]]


@attrs.define(eq=False)
class HostileServer:
    """``requests`` are (method, JSON-RPC method) of all that came."""

    port: int
    handler: Handler
    requests: list[tuple[str, str]] = attrs.field(factory=list)
    heads: list[str] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def calls(self, method: str) -> int:
        return sum(1 for _, name in self.requests if name == method)

    async def serve(self, stream: trio.SocketStream) -> None:
        data = bytearray()
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some()
                    if not more:
                        return
                    data += more
                head, _, rest = bytes(data).partition(b"\r\n\r\n")
                shown = head.decode().lower()
                lengths = [line for line in shown.splitlines() if line.startswith("content-length:")]
                length = int(lengths[0].partition(":")[2]) if lengths else 0
                data = bytearray(rest)
                while len(data) < length:
                    data += await stream.receive_some()
                exchange = Exchange(stream, head.split(b" ", 1)[0].decode(), shown, bytes(data[:length]))
                del data[:length]
                self.requests.append((exchange.method, str(exchange.message.get("method", ""))))
                self.heads.append(shown)
                await self.answer(exchange)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def answer(self, exchange: Exchange) -> None:
        """One request; a subclass may do otherwise."""
        method = exchange.message.get("method")
        if exchange.method == "GET":
            await exchange.answer("405 Method Not Allowed")
        elif method == "initialize":
            await exchange.answer(
                "200 OK",
                json.dumps({"jsonrpc": "2.0", "id": exchange.message["id"], "result": INITIALIZED}).encode(),
                more="Mcp-Session-Id: s-1\r\n",
            )
        elif "id" not in exchange.message:
            await exchange.answer("202 Accepted")
        elif method == "ping":
            await exchange.result({})
        else:
            await self.handler(exchange)


@asynccontextmanager
async def hostile(handler: Handler) -> AsyncIterator[HostileServer]:
    """One that greets as it should and does ``handler`` for everything else."""
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = HostileServer(listener.socket.getsockname()[1], handler)
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        yield server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A port where each connection is in the hands of ``serve``, and closed after it."""

    async def one(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, one, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()
