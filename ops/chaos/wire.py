"""Connections to the gateway, as bytes: TCP lines, WebSocket, single HTTP requests, each in the clear or over TLS.

Every client has a source address of its own in 127.0.0.0/8, so that to the gateway it is a client of its own.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
from typing import Any

import attrs
import trio

MASK = bytes(4)  # masking with zeros is masking, and costs the harness nothing
LONGEST = 8 << 20
WITHIN_S = 15.0
"""For a connection to be opened and authenticated. The gateway's own deadlines are shorter."""


class Ended(Exception):
    """The connection has ended; ``code`` is a WebSocket's close code, 0 without one."""

    def __init__(self, code: int = 0, reason: str = "") -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code


class Refused(Exception):
    """The gateway has said no, with an HTTP status or an error's code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


@attrs.frozen
class Door:
    """Where to knock. ``proxied`` leads through the harness's own network."""

    port: int
    ws: bool
    tls: ssl.SSLContext | None = None
    source: str = "127.0.0.1"


@attrs.define(eq=False)
class Wire:
    """One open connection that carries whole messages."""

    stream: trio.abc.Stream
    ws: bool
    _data: bytearray = attrs.field(factory=bytearray, init=False)

    def framed(self, raw: bytes) -> bytes:
        if not self.ws:
            return raw + b"\n"
        size = len(raw)
        if size < 126:
            return bytes((0x81, 0x80 | size)) + MASK + raw
        if size < 1 << 16:
            return bytes((0x81, 0x80 | 126)) + size.to_bytes(2, "big") + MASK + raw
        return bytes((0x81, 0x80 | 127)) + size.to_bytes(8, "big") + MASK + raw

    async def send(self, raw: bytes) -> None:
        """Raises Ended."""
        await self.write(self.framed(raw))

    async def write(self, data: bytes) -> None:
        """Bytes as they are. Raises Ended."""
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Ended(0, "broken while sending") from error

    async def next(self) -> bytes:
        """The next message. Raises Ended."""
        while True:
            raw = self._take()
            if raw is not None:
                return raw
            await self._more()

    async def head(self) -> bytes:
        """An HTTP head. Raises Ended."""
        while b"\r\n\r\n" not in self._data:
            await self._more()
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self._data = bytearray(rest)
        return head

    async def rest(self) -> bytes:
        """Everything until the end."""
        try:
            while True:
                await self._more()
        except Ended:
            return bytes(self._data)

    async def _more(self) -> None:
        try:
            data = await self.stream.receive_some(1 << 16)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Ended(0, "reset") from error
        if not data or len(self._data) > LONGEST:
            raise Ended(0, "end of stream")
        self._data += data

    def _take(self) -> bytes | None:
        data = self._data
        if not self.ws:
            end = data.find(b"\n")
            if end < 0:
                return None
            line = bytes(data[:end])
            del data[: end + 1]
            return line
        while len(data) >= 2:
            size, start = data[1], 2
            if size in (126, 127):
                start = 4 if size == 126 else 10
                size = int.from_bytes(data[2:start], "big")
            if len(data) < start + size:
                return None
            opcode, body = data[0] & 15, bytes(data[start : start + size])
            del data[: start + size]
            if opcode == 8:
                raise Ended(int.from_bytes(body[:2], "big"), body[2:].decode(errors="replace"))
            if opcode == 1:
                return body
        return None


async def connect(door: Door) -> Wire:
    """Raises OSError (ConnectionRefusedError above all) and Ended."""
    sock = trio.socket.socket()
    try:
        await sock.bind((door.source, 0))
        await sock.connect(("127.0.0.1", door.port))
    except BaseException:
        sock.close()
        raise
    stream: trio.abc.Stream = trio.SocketStream(sock)
    if door.tls is not None:
        secure = trio.SSLStream(stream, door.tls, server_hostname="localhost", https_compatible=True)
        try:
            await secure.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            await trio.aclose_forcefully(stream)
            raise Ended(0, "TLS handshake") from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        stream = secure
    return Wire(stream, door.ws)


async def close(wire: Wire) -> None:
    """At once, without a word."""
    await trio.aclose_forcefully(wire.stream)


def upgrade(path: str, token: str, port: int) -> bytes:
    """A WebSocket's opening handshake."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"{authorization}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mcp\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n"
    ).encode()


async def open_ws(wire: Wire, path: str, token: str, port: int) -> None:
    """Raises Refused and Ended."""
    await wire.write(upgrade(path, token, port))
    status = int((await wire.head()).split(b" ", 2)[1])
    if status != 101:
        raise Refused(status, "upgrade")


async def open_lines(wire: Wire, token: str, server: str) -> None:
    """``authenticate``; without a token the client certificate speaks. Raises Refused and Ended."""
    params = ({"token": token} if token else {}) | ({"server": server} if server else {})
    message = {"jsonrpc": "2.0", "id": "auth", "method": "authenticate", "params": params}
    await wire.send(json.dumps(message).encode())
    answer = json.loads(await wire.next())
    error = answer.get("error")
    if error is not None:
        raise Refused(error["code"], str((error.get("data") or {}).get("reason", error["message"])))


async def initialize(wire: Wire) -> None:
    """The handshake of MCP. Raises Refused and Ended."""
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "chaos", "version": "1"}}
    await wire.send(json.dumps({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params}).encode())
    while True:
        answer = json.loads(await wire.next())
        if answer.get("id") == "init":
            break
    error = answer.get("error")
    if error is not None:
        raise Refused(error["code"], str((error.get("data") or {}).get("reason", error["message"])))
    await wire.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')


async def exchange(door: Door, path: str, *, token: str = "", fields: dict[str, str] | None = None) -> dict[str, Any]:
    """One POST. Raises OSError, Ended, Refused, and trio.TooSlowError."""
    with trio.fail_after(WITHIN_S):
        wire = await connect(door)
        try:
            body = json.dumps(fields or {}).encode()
            authorization = f"Authorization: Bearer {token}\r\n" if token else ""
            head = (
                f"POST {path} HTTP/1.1\r\nHost: localhost:{door.port}\r\nContent-Type: application/json\r\n"
                f"{authorization}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            await wire.write(head.encode() + body)
            status = int((await wire.head()).split(b" ", 2)[1])
            answer = await wire.rest()
        finally:
            await close(wire)
    if status != 200:
        raise Refused(status, path)
    document: dict[str, Any] = json.loads(answer) if answer else {}
    return document
