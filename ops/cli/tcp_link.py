"""The client's side of newline-delimited JSON-RPC over TCP."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from .failure import LinkClosed, Unreachable
from .link import MAX_MESSAGE
from .trust import alerted, secure


@attrs.define
class TcpLink:
    peer: str
    _stream: trio.abc.Stream
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _scanned: int = attrs.field(default=0, init=False)  # no newline in _buffer before this

    async def send(self, message: bytes) -> None:
        try:
            await self._stream.send_all(message + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed(0, f"the connection broke{alerted(error)}") from None

    async def receive(self) -> bytes:
        while True:
            end = self._buffer.find(b"\n", self._scanned)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._scanned = 0
                if line.strip():
                    return line
                continue
            self._scanned = len(self._buffer)
            if self._scanned > MAX_MESSAGE:
                raise LinkClosed(0, f"a line longer than {MAX_MESSAGE} bytes came")
            try:
                data = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise LinkClosed(0, f"the connection broke{alerted(error)}") from None
            if not data:
                raise LinkClosed(0, "end of stream")
            self._buffer += data


@asynccontextmanager
async def open_tcp(
    host: str, port: int, *, within: float = 10.0, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[TcpLink]:
    """Connect within ``within`` seconds, the TLS handshake included where there is one. Raises Unreachable."""
    peer = f"{'tcp' if ssl_context is None else 'tls'}://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        with trio.fail_after(within):
            stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
            if ssl_context is not None:
                stream = await secure(stream, ssl_context, host)
    except trio.TooSlowError:
        raise Unreachable(f"{peer}: no connection within {within:g} s") from None
    except OSError as error:
        raise Unreachable(f"{peer}: {error.strerror or error}") from None
    async with stream:
        yield TcpLink(peer, stream)
