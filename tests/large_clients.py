"""Clients that send large messages in the pieces that a test wants: on TCP lines and as WebSocket frames."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from wire_clients import WITHIN

MIB = 1 << 20
_KEY = bytes(4)  # masking with zeros changes nothing, and costs the test nothing


class RawClient:
    """One connection. ``begin`` and ``go_on`` write the bytes of one message; ``answer`` reads the next message."""

    def __init__(self, stream: trio.SocketStream, *, ws: bool) -> None:
        self.stream = stream
        self.ws = ws
        self._data = bytearray()
        self.closed_with = 0

    async def begin(self, size: int, part: bytes) -> None:
        """Declare a message of ``size`` bytes (where the transport can) and write its first part."""
        await self.stream.send_all((frame_head(size) if self.ws else b"") + part)

    async def go_on(self, part: bytes, *, last: bool = False) -> None:
        await self.stream.send_all(part + (b"" if self.ws or not last else b"\n"))

    async def send(self, raw: bytes) -> None:
        await self.begin(len(raw), raw)
        await self.go_on(b"", last=True)

    async def answer(self) -> dict[str, Any]:
        """Raises EOFError at the end, or at a close frame, whose code is in ``closed_with`` then."""
        with trio.fail_after(WITHIN):
            while True:
                raw = self._take()
                if raw is not None:
                    message = json.loads(raw)
                    if "id" in message:
                        return message
                    continue
                data = await self.stream.receive_some(1 << 18)
                if not data:
                    raise EOFError
                self._data += data

    def _take(self) -> bytes | None:
        if not self.ws:
            line, found, rest = bytes(self._data).partition(b"\n") if b"\n" in self._data else (b"", b"", b"")
            if not found:
                return None
            self._data = bytearray(rest)
            return line
        while len(self._data) >= 2:
            size, header = self._data[1], 2
            if size == 126:
                size, header = int.from_bytes(self._data[2:4], "big"), 4
            elif size == 127:
                size, header = int.from_bytes(self._data[2:10], "big"), 10
            if len(self._data) < header + size:
                return None
            opcode, payload = self._data[0] & 15, bytes(self._data[header : header + size])
            del self._data[: header + size]
            if opcode == 8:
                self.closed_with = int.from_bytes(payload[:2], "big")
                raise EOFError
            if opcode == 1:
                return payload
        return None


def frame_head(size: int, *, first: int = 0x81) -> bytes:
    """The header of a masked frame."""
    if size < 126:
        return bytes((first, 0x80 | size)) + _KEY
    if size < 1 << 16:
        return bytes((first, 0x80 | 126)) + size.to_bytes(2, "big") + _KEY
    return bytes((first, 0x80 | 127)) + size.to_bytes(8, "big") + _KEY


def echo(size: int, raw_id: bytes = b"1", fill: bytes = b"x", name: str = "echo") -> bytes:
    """A call of exactly ``size`` bytes."""
    head = b'{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"%s","arguments":{"text":"' % (
        raw_id,
        name.encode(),
    )
    return head + fill * (size - len(head) - 4) + b'"}}}'


@asynccontextmanager
async def raw_client(gateway: Any, *, ws: bool, server: str = "", login: bool = True) -> AsyncIterator[RawClient]:
    """An authenticated connection, initialised."""
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.ws_port if ws else gateway.tcp_port)
    async with stream:
        client = RawClient(stream, ws=ws)
        if ws:
            path = f"/ws/{server}" if server else "/"
            bearer = f"Authorization: Bearer {gateway.ws_token}\r\n" if login else ""
            await stream.send_all(
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{bearer}"
                f"Sec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n".encode()
            )
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some(4096)
            assert head.startswith(b"HTTP/1.1 101"), head
            client._data += head.partition(b"\r\n\r\n")[2]
        elif login:
            params = {"token": gateway.tcp_token} | ({"server": server} if server else {})
            await client.send(
                json.dumps({"jsonrpc": "2.0", "id": "a", "method": "authenticate", "params": params}).encode()
            )
            assert (await client.answer())["result"]["authenticated"]
        if login:
            hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
            await client.send(
                json.dumps({"jsonrpc": "2.0", "id": "i", "method": "initialize", "params": hello}).encode()
            )
            assert "result" in await client.answer()
        yield client


def resident_mib(gateway: Any) -> float:
    """Of all worker processes together, in MiB: memory of their own, and shared memory (memfds that are mapped)."""
    total = 0
    for pid in gateway.workers():
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue  # it has ended meanwhile
    return total * 4096 / MIB
