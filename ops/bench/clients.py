"""Clients for measurements: they cost little themselves, and send exactly the bytes that they are given."""

from __future__ import annotations

import base64
import os

import trio

from .gateway import Gateway

_KEY = bytes(4)  # masking with zeros changes nothing, and costs the measuring side nothing


class Client:
    """One authenticated connection."""

    def __init__(self, stream: trio.SocketStream, *, ws: bool) -> None:
        self.stream = stream
        self.ws = ws
        self._data = bytearray()
        self._at = 0

    def framed(self, raw: bytes) -> bytes:
        """One whole message."""
        return frame_head(len(raw)) + raw if self.ws else raw + b"\n"

    async def next(self) -> bytes:
        """The next message. Raises EOFError at the end of the connection, a close frame included."""
        while True:
            raw = self._take()
            if raw is not None:
                return raw
            data = await self.stream.receive_some(1 << 18)
            if not data:
                raise EOFError
            del self._data[: self._at]
            self._at = 0
            self._data += data

    def _take(self) -> bytes | None:
        data, at = self._data, self._at
        if not self.ws:
            end = data.find(b"\n", at)
            if end < 0:
                return None
            self._at = end + 1
            return bytes(data[at:end])
        while len(data) >= at + 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if len(data) < start + size:
                return None
            opcode = data[at] & 15
            at = self._at = start + size
            if opcode == 8:
                raise EOFError
            if opcode == 1:
                return bytes(data[start : start + size])
        return None


def frame_head(size: int, *, first: int = 0x81) -> bytes:
    """The header of a masked frame with ``size`` bytes; ``first`` is its flags and opcode (RFC 6455 §5.2)."""
    if size < 126:
        return bytes((first, 0x80 | size)) + _KEY
    if size < 1 << 16:
        return bytes((first, 0x80 | 126)) + size.to_bytes(2, "big") + _KEY
    return bytes((first, 0x80 | 127)) + size.to_bytes(8, "big") + _KEY


async def connect(gateway: Gateway, *, ws: bool, server: str = "") -> Client:
    """An authenticated connection. ``server``: other than the default one, for WebSocket."""
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.ws_port if ws else gateway.tcp_port)
    client = Client(stream, ws=ws)
    if not ws:
        login = b'{"jsonrpc":"2.0","id":"a","method":"authenticate","params":{"token":"%s"}}\n'
        await stream.send_all(login % gateway.token.encode())
        await client.next()
        return client
    path = f"/ws/{server}" if server else "/"
    await stream.send_all(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Authorization: Bearer {gateway.token}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n".encode()
    )
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):  # nothing follows until something is asked
        data = await stream.receive_some(4096)
        if not data:
            raise EOFError(head.decode(errors="replace"))
        head += data
    if not head.startswith(b"HTTP/1.1 101"):
        raise EOFError(head.decode(errors="replace"))
    return client
