"""One HTTP/1.1 connection to a server: h11 (which frames, and bounds the head) over a trio stream."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import attrs
import h11
import trio

from .pace import Pace

MAX_HEAD: Final = 65_536  # of a response, as of h11's own clients; session ids and cookies are far below
MAX_INTERIM: Final = 16  # 1xx responses before the real one
_CHUNK: Final = 65_536

Headers = Sequence[tuple[bytes, bytes]]


class BrokenExchange(ConnectionError):
    """The server hung up, or said what isn't HTTP. ``sent``: it may have seen the request."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


@attrs.frozen
class Response:
    """The head of an answer; field names in lower case."""

    status: int
    headers: dict[bytes, bytes]  # the last of each name
    body: AsyncIterator[bytes]

    @property
    def media_type(self) -> bytes:
        """RFC 9110 §8.3.1, without its parameters."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


class HttpConnection:
    """Not for two tasks at once. ``pace`` is that of the link, which may have many connections."""

    def __init__(self, stream: trio.abc.Stream, pace: Pace) -> None:
        self._stream = stream
        self._pace = pace
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._used = False

    async def exchange(self, method: bytes, target: bytes, headers: Headers, body: bytes) -> Response:
        """Send a request and read the answer's head. Raises BrokenExchange; the connection is of no use then."""
        self._used = True
        try:
            data = self._http.send(h11.Request(method=method, target=target, headers=list(headers)))
            assert data is not None  # noqa: S101 - only ConnectionClosed has no bytes
            if body:
                data += self._http.send(h11.Data(body)) or b""
            data += self._http.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError as error:
            raise BrokenExchange(f"the request can't be sent: {error}", sent=False) from None
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.send_all(data)  # it may have answered before it hung up
        for _ in range(MAX_INTERIM):
            event = await self._next()
            if isinstance(event, h11.Response):
                return Response(event.status_code, dict(event.headers), self._body())
            if not isinstance(event, h11.InformationalResponse):
                break
        raise BrokenExchange("the server does not speak HTTP", sent=True)

    async def _body(self) -> AsyncIterator[bytes]:
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise BrokenExchange("the server does not speak HTTP", sent=True)

    async def _next(self) -> object:
        try:
            while True:
                event = self._http.next_event()
                if event is not h11.NEED_DATA:
                    if self._pace.spend(1, time.monotonic_ns()):
                        await self._pace.rest()
                    return event
                try:
                    data = await self._stream.receive_some(_CHUNK)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise BrokenExchange("the connection was reset", sent=True) from None
                self._pace.begin(time.monotonic_ns())
                self._http.receive_data(bytes(data))
        except h11.RemoteProtocolError as error:
            reason = "the server hung up" if self._ended() else f"the server does not speak HTTP: {error}"
            raise BrokenExchange(reason, sent=True) from None

    def _ended(self) -> bool:
        return self._http.trailing_data[1]

    def next_cycle(self) -> bool:
        """Whether the exchange is over for both sides and the connection can take another one."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def is_fresh(self) -> bool:
        """Whether nothing has come since the last exchange: what comes between two is an end, or an error.

        (Before the first one it may be TLS's session tickets, which can't be told from an end.)
        """
        stream = self._stream
        if isinstance(stream, trio.SSLStream):
            if not self._used:
                return True
            stream = stream.transport_stream
        if not isinstance(stream, trio.SocketStream):
            return True
        if stream.socket.fileno() < 0:
            return False
        look = select.poll()
        look.register(stream.socket.fileno(), select.POLLIN)
        return not look.poll(0)

    async def aclose(self) -> None:
        """At once, whatever is under way."""
        await trio.aclose_forcefully(self._stream)
