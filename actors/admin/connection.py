"""One HTTP/1.1 connection of the health listener: h11 over a trio stream, bounded in size and time.

Nothing that a peer does leaves ``serve``: a fault of one connection ends that connection.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import h11
import trio

from .answers import Answer, Headers, Problem

log = logging.getLogger("portcullis.admin")

HEADER_LIMIT: Final = 16 * 1024
"""Of a request line and its headers. The longest token that is looked at has 8 KiB; browsers send a few more."""

BODY_LIMIT: Final = 64 * 1024
REQUESTS_LIMIT: Final = 1000
"""Requests of one connection, so that none lives for ever."""

REQUEST_S: Final = 10.0
"""From a request's first byte to its last."""

IDLE_S: Final = 120.0
"""Between two requests: longer than Prometheus' and load balancers' intervals."""

ANSWER_S: Final = 10.0
"""For making an answer, and for the client to take each part of it."""

_CHUNK: Final = 64 * 1024


@attrs.frozen
class Request:
    """``target`` is the path, ``query`` what follows its question mark. Header names are in lower case. ``body`` has
    BODY_LIMIT at most."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    peer: str
    body: bytes = b""
    principal: str = ""  # who asks, once that is known; the bearer of ADMIN_TOKEN has no name
    query: str = ""

    def header(self, name: str) -> str | None:
        """The value of a header that may stand there once only. Raises Problem (400) if it is doubled."""
        values = [value for key, value in self.headers if key == name]
        if len(values) > 1:
            raise Problem(400, f"the header {name} stands there more than once")
        return values[0] if values else None


Handler = Callable[[Request], Awaitable[Answer]]


@attrs.define(eq=False)
class Connection:
    """``busy`` while a complete request is being answered; otherwise the connection may be dropped for another.

    Setting ``last`` ends it after the answer under way.
    """

    stream: trio.SocketStream
    handler: Handler
    always: Headers
    peer: str = ""
    busy: bool = False
    last: bool = False
    faults: int = 0
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _protocol: h11.Connection = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)

    async def serve(self) -> None:
        """Until either side has had enough. Closes the stream. Raises nothing but Cancelled."""
        with self.scope:
            try:
                await self._serve()
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                log.debug("connection from %s broke off", self.peer)
            except Exception:
                self.faults += 1
                log.exception("connection from %s failed", self.peer)
        await trio.aclose_forcefully(self.stream)

    async def _serve(self) -> None:
        for _ in range(REQUESTS_LIMIT):
            try:
                request = await self._receive_request()
            except h11.RemoteProtocolError as error:
                await self._refuse(Problem(error.error_status_hint, str(error)))
                break
            except Problem as problem:
                await self._refuse(problem)
                break
            if request is None:
                break
            self.busy = True
            answer = await self._answer(request)
            await self._send(answer, head=request.method == "HEAD", close=self.last)
            self.busy = False
            if self.last or {self._protocol.our_state, self._protocol.their_state} != {h11.DONE}:
                break
            self._protocol.start_next_cycle()
        await self._hang_up()

    async def _receive_request(self) -> Request | None:
        """The next request with its body; None when the client has ended.

        Raises h11.RemoteProtocolError, Problem, and trio.TooSlowError for an idle or slow client.
        """
        if not self._protocol.trailing_data[0]:
            with trio.fail_after(IDLE_S):
                self._protocol.receive_data(await self._receive())
        # Once the first bytes of a request are there, the rest has to follow: all of it, not each part.
        with trio.fail_after(REQUEST_S):
            event = await self._next_event()
            if not isinstance(event, h11.Request):
                return None
            request = self._read_head(event)
            body = bytearray()
            while not isinstance(event, h11.EndOfMessage):
                if self._protocol.they_are_waiting_for_100_continue:
                    await self._transmit(h11.InformationalResponse(status_code=100, headers=[]))
                event = await self._next_event()
                if isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > BODY_LIMIT:
                        raise Problem(413, f"a body may have {BODY_LIMIT} bytes")
                elif isinstance(event, h11.ConnectionClosed):
                    return None
        return attrs.evolve(request, body=bytes(body))

    def _read_head(self, event: h11.Request) -> Request:
        # h11 lets bytes ≥ 0x80 through in a header's value (RFC 9110 §5.5, obs-text), but nothing here needs them.
        try:
            headers = tuple((name.decode("ascii"), value.decode("ascii")) for name, value in event.headers)
            target = event.target.decode("ascii")
        except UnicodeDecodeError:
            raise Problem(400, "headers are ASCII here") from None
        if not target.startswith("/"):
            raise Problem(400, "the target must be a path")
        path, _, query = target.partition("?")
        return Request(event.method.decode("ascii"), path, headers, self.peer, query=query)

    async def _next_event(self) -> h11.Event:
        while True:
            event = self._protocol.next_event()
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED:
                raise Problem(400, "the protocol was switched")
            self._protocol.receive_data(await self._receive())

    async def _receive(self) -> bytes:
        return bytes(await self.stream.receive_some(_CHUNK))

    async def _answer(self, request: Request) -> Answer:
        try:
            with trio.fail_after(ANSWER_S):
                return await self.handler(request)
        except Problem as problem:
            return problem.answer()
        except trio.TooSlowError:
            return Problem(503, "no answer in time", (("Retry-After", "1"),)).answer()
        except Exception:
            # One request's fault is that request's alone.
            self.faults += 1
            log.exception("%s %s failed", request.method, request.target)
            return Problem(500, "the gateway made a mistake; its log says which").answer()

    async def _refuse(self, problem: Problem) -> None:
        """Answer what is not a request, if an answer is still possible, and have the connection end."""
        if self._protocol.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._send(problem.answer(), head=False, close=True)

    async def _send(self, answer: Answer, *, head: bool, close: bool = False) -> None:
        own = {name for name, _ in answer.headers}
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            *(header for header in self.always if header[0] not in own),
            *answer.headers,
        ]
        if close:
            headers.append(("Connection", "close"))
        await self._transmit(h11.Response(status_code=answer.status, headers=headers))
        if not head:
            for start in range(0, len(answer.body), _CHUNK):
                await self._transmit(h11.Data(data=answer.body[start : start + _CHUNK]))
        await self._transmit(h11.EndOfMessage())

    async def _transmit(self, event: h11.Event) -> None:
        data = self._protocol.send(event)
        if data:
            with trio.fail_after(ANSWER_S):
                await self.stream.send_all(data)

    async def _hang_up(self) -> None:
        """Let the answer arrive: closing at once with unread bytes there would reset the connection under it."""
        with trio.move_on_after(0.5):
            await self.stream.send_eof()
            for _ in range(64):
                if not await self._receive():
                    break
