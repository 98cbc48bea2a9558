"""Clients that say exactly the bytes that a test gives them, over TCP lines or WebSocket text messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio_websocket import open_websocket_url

WITHIN = 30.0  # seconds for one answer; far above what is promised: a loaded machine must not fail a test


class WireClient:
    """One authenticated connection. ``inbox`` keeps what came while something else was awaited."""

    def __init__(self) -> None:
        self.inbox: list[bytes] = []

    async def send(self, raw: bytes) -> None:
        raise NotImplementedError

    async def receive(self) -> bytes:
        raise NotImplementedError

    async def next(self) -> bytes:
        """The next message, from the inbox first. Raises trio.TooSlowError, or EOFError at the end."""
        if self.inbox:
            return self.inbox.pop(0)
        with trio.fail_after(WITHIN):
            return await self.receive()

    async def answer_to(self, raw_id: bytes) -> dict[str, Any]:
        """The answer with exactly this raw id; everything before it goes to the inbox."""
        for index, kept in enumerate(self.inbox):
            if _raw_id(kept) == raw_id:
                del self.inbox[index]
                return json.loads(kept)
        with trio.fail_after(WITHIN):
            while True:
                raw = await self.receive()
                if _raw_id(raw) == raw_id:
                    return json.loads(raw)
                self.inbox.append(raw)

    async def call(self, method: str, params: Any = None, *, id: bytes = b'"c"') -> dict[str, Any]:
        """One request and its answer."""
        await self.send(request(method, params, id=id))
        return await self.answer_to(id)

    async def initialize(self, version: str = "2025-11-25") -> dict[str, Any]:
        """The legacy handshake."""
        answer = await self.call(
            "initialize",
            {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "wire", "version": "1"}},
        )
        await self.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        return answer

    async def nothing_more(self) -> list[bytes]:
        """What is left, once the answer to a last ping has come: everything that was ever going to be before it."""
        await self.send(request("ping", None, id=b'"last"'))
        await self.answer_to(b'"last"')
        rest, self.inbox = self.inbox, []
        return rest


class TcpClient(WireClient):
    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__()
        self.stream = stream
        self._data = bytearray()

    async def send(self, raw: bytes) -> None:
        await self.stream.send_all(raw + b"\n")

    async def receive(self) -> bytes:
        while b"\n" not in self._data:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self._data += data
        line, _, rest = bytes(self._data).partition(b"\n")
        self._data = bytearray(rest)
        return line


class WsClient(WireClient):
    def __init__(self, connection: Any) -> None:
        super().__init__()
        self.connection = connection

    async def send(self, raw: bytes) -> None:
        await self.connection.send_message(raw.decode())

    async def receive(self) -> bytes:
        return (await self.connection.get_message()).encode()


def request(method: str, params: Any = None, *, id: bytes) -> bytes:
    """A request with this raw id."""
    tail = b"" if params is None else b',"params":' + json.dumps(params).encode()
    return b'{"jsonrpc":"2.0","id":' + id + b',"method":' + json.dumps(method).encode() + tail + b"}"


def _raw_id(raw: bytes) -> bytes:
    message = json.loads(raw)
    if "id" not in message or "method" in message:
        return b""
    return json.dumps(message["id"]).encode()


@asynccontextmanager
async def tcp_client(gateway: Any, *, server: str = "", token: str | None = None) -> AsyncIterator[TcpClient]:
    """An authenticated TCP connection."""
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
    async with stream:
        client = TcpClient(stream)
        params = {"token": gateway.tcp_token if token is None else token} | ({"server": server} if server else {})
        answer = await client.call("authenticate", params, id=b'"auth"')
        assert answer["result"]["authenticated"] is True
        yield client


@asynccontextmanager
async def ws_client(gateway: Any, *, server: str = "") -> AsyncIterator[WsClient]:
    """An authenticated WebSocket connection."""
    headers = [(b"Authorization", b"Bearer " + gateway.ws_token.encode())]
    async with open_websocket_url(
        gateway.ws_url(server), extra_headers=headers, subprotocols=["mcp"], max_message_size=32 << 20
    ) as connection:
        yield WsClient(connection)


CLIENTS = {"tcp": tcp_client, "ws": ws_client}
