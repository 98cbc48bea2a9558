"""A link to a Streamable HTTP server, of both eras of MCP (2025-11-25 and before, 2026-07-28), for one slot.

Each message is a POST of its own; a few tasks, each with one connection, take them from one queue. What makes them a
*link* is here:

- A call is answered by what its own POST brings, or told that it is lost the moment that POST has ended without an
  answer. It is never sent again: not after a reset, not to a server that has forgotten the session, and not where a
  redirect leads or with the headers that a server missed; what these teach serves the next call.
- Legacy: the session id of the answer to ``initialize`` goes with everything after it; nothing overtakes
  ``initialize`` or ``notifications/initialized``; a stream that breaks off after an event with an id is resumed by GET;
  one more GET listens for what the server says by itself; 404 means that the session is over, and the slot begins a new
  one; DELETE ends it.
- A cancellation goes as the era has it: as a notification, or (2026-07-28) by closing the call's connection.
- No redirect leads to another origin, since the configured headers, often a credential, would go there.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Literal
from urllib.parse import urljoin

import attrs
import trio

from actors.policy import own_messages
from actors.policy.eras import GATEWAY_INFO
from actors.policy.jsonrpc import Refusal, id_key, parse_client
from actors.policy.server_message import negotiated_version
from ipc.messages import Envelope
from ipc.settings import Upstream

from .dial import Unreachable, dial, endpoint
from .held import Held
from .http_messages import (
    ACCEPT,
    EVENTS,
    JSON,
    MAX_ERROR_BODY,
    code_of,
    error_answer,
    error_in,
    modern_headers,
    session_id,
    verdict,
)
from .http_wire import BrokenExchange, HttpConnection, Response
from .link import Link, LinkOwner, LinkSettings, log
from .pace import CHEAP, Pace
from .slot import CANCELLED, Instance
from .sse import Event, EventReader, EventTooLong
from .tool_headers import HEADER_MISMATCH, ToolHeaders

IDLE_S: Final = 3.0  # for a connection between two messages: servers hang up after 5 s (uvicorn, node)
NOTIFY_S: Final = 30.0  # for a server to accept what needs no answer
LEARN_S: Final = 5.0  # for the list of tools, which a refused call waits for
DELETE_S: Final = 2.0
TRAILER_S: Final = 1.0  # for a stream to end after its answer, so that its connection can be used again
STREAMS: Final = 1024  # connections beside those for ordinary calls: requests that stay open
RESUME_S: Final = 0.02  # before a stream is resumed, whatever the server says
RESUMPTIONS: Final = 3  # of one stream, without an event in between
LISTEN_RETRY_S: Final = 1.0  # doubling up to the next
LISTEN_AGAIN_S: Final = 0.1  # the same, where the last connection has brought something
LISTEN_RETRY_MOST_S: Final = 60.0
REDIRECTS: Final = 2

_PIECE: Final = 2048  # bytes of a stream that are taken apart at once: of empty lines that takes about a millisecond
# Nothing but these is sent again where a redirect leads: they change nothing, or nothing without the answer.
_FOLLOWS: Final = frozenset(
    {
        "initialize",
        "notifications/initialized",
        "ping",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "server/discover",
        "tools/list",
    }
)
_PROBES: Final = ("ping", "server/discover")
_INITIALIZE: Final = "initialize"
_INITIALIZED: Final = "notifications/initialized"
_USER_AGENT: Final = f"{GATEWAY_INFO['name']}/{GATEWAY_INFO['version']}".encode()


@attrs.define(eq=False)
class Post:
    """One message on its way. ``id`` is the raw id of a request, b"" for anything else."""

    raw: bytes
    envelope: Envelope
    id: bytes
    ends: Post | None = None  # a cancellation: what it ends
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    started: bool = False
    redirected: bool = False  # to where the next message goes at once

    @property
    def is_barrier(self) -> bool:
        return self.envelope.method in (_INITIALIZE, _INITIALIZED)


class HttpLink(Link):
    """See the module."""

    def __init__(self, upstream: Upstream, instance: Instance, owner: LinkOwner, settings: LinkSettings) -> None:
        super().__init__(upstream, instance, owner, settings)
        self._where = endpoint(upstream.url)
        self._own_headers = [(name.encode(), value.strip().encode()) for name, value in upstream.headers.items()]
        self._nursery: trio.Nursery | None = None
        self._queue: deque[Post] = deque()
        self._queued_bytes = 0
        self._started_bytes = 0  # of posts under way: until they are done they are held
        self._refused = False
        self._requests: dict[str | int | bytes, Post] = {}  # queued and under way
        self._under_way = 0  # posts, those that stay open left out
        self._barrier: Post | None = None
        self._tasks = 0
        self._idle: list[trio.Event] = []
        self._first: HttpConnection | None = None  # the one that showed that the server is there
        self._held = Held(4 * settings.max_message + MAX_ERROR_BODY)
        self._session = b""
        self._version = b""  # negotiated, legacy
        self._listening = False
        self._unreachable = ""
        self._looking = False
        self._tools = ToolHeaders()
        self._pace = Pace()

    # --- the transport --------------------------------------------------------------------------------------------

    def send(self, raw: bytes, about: Envelope | None = None) -> bool:
        if self.ending.is_set():
            return False
        if self._queue and self._queued_bytes + len(raw) > self.settings.max_buffer:
            self._refused = True
            return False
        try:
            envelope = about or parse_client(raw, max_depth=max(self.settings.max_depth, 64) + 8)
        except Refusal:
            self.count("unsendable")
            return True
        if envelope.method in _PROBES:
            self._drop_unawaited()
        post = Post(raw, envelope, envelope.id if envelope.kind == "request" else b"")
        if envelope.method == CANCELLED and not self._cancel(post):
            return True
        if post.id:
            self._requests[id_key(post.id)] = post
        self._queue.append(post)
        self._queued_bytes += len(raw)
        self._wake()
        return True

    @property
    def unsent(self) -> int:
        return self._queued_bytes + self._started_bytes

    def _drop_unawaited(self) -> None:
        """Probes whose time is over: a server that hangs must not collect a connection with each."""
        for post in tuple(self._requests.values()):
            if post.started and post.envelope.method in _PROBES and not self.instance.awaits(post.id):
                post.scope.cancel()

    def _cancel(self, post: Post) -> bool:
        """Whether the cancellation has to be sent."""
        target = self._requests.get(id_key(post.envelope.target)) if post.envelope.target else None
        if target is None:
            return False  # answered in the meantime
        if not target.started:
            self._queue.remove(target)
            self._queued_bytes -= len(target.raw)
            self._done(target)
            return False
        if target.envelope.era:
            target.scope.cancel()
            return False
        post.ends = target
        return True

    # --- its tasks ------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        try:
            self._first = await self._connect()
        except Unreachable as error:
            self.tell(self.instance.failed, str(error))
            return
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if not self.ending.is_set():
                    self.instance.opened(self, time.monotonic_ns())
                    self.settle()
                await self.ending.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            if self._first is not None:
                with trio.CancelScope(shield=True):
                    await self._first.aclose()
        await self._end_session()

    def _wake(self) -> None:
        if not self._queue or self._nursery is None or self._barrier is not None:
            return
        if self._idle:
            self._idle.pop().set()
        elif self._tasks < self.settings.max_calls + STREAMS:
            self._tasks += 1
            self._nursery.start_soon(self._work, name=f"{self.upstream.name} (http)")

    def _next(self) -> Post | None:
        if not self._queue or self._barrier is not None:
            return None
        post = self._queue[0]
        self._queue.popleft()
        self._queued_bytes -= len(post.raw)
        self._started_bytes += len(post.raw)
        post.started = True
        if post.is_barrier:
            self._barrier = post
        return post

    async def _work(self) -> None:
        """One connection at a time; posts as they come."""
        connection: HttpConnection | None = None
        try:
            while True:
                post = self._next()
                if post is None:
                    woken = trio.Event()
                    self._idle.append(woken)
                    with trio.move_on_after(IDLE_S):
                        await woken.wait()
                    if not woken.is_set():
                        self._idle.remove(woken)
                        return
                    continue
                self._wake()  # for what stands behind it
                connection = await self._carry(post, connection)
        finally:
            self._tasks -= 1
            if connection is not None:
                with trio.CancelScope(shield=True):
                    await connection.aclose()

    async def _carry(self, post: Post, connection: HttpConnection | None) -> HttpConnection | None:
        """One message and what it brings; the connection if it can be used again."""
        counted = post.envelope.method != "subscriptions/listen"
        self._under_way += counted
        reusable = False
        try:
            with post.scope:
                if connection is None or not connection.is_fresh():
                    if connection is not None:
                        await connection.aclose()
                        connection = None
                    connection = await self._connected()
                self._unreachable = ""
                if post.id:
                    await self._call(post, connection)
                else:
                    await self._notify(post, connection)
                reusable = connection.next_cycle()
        except Unreachable as error:
            self._unreachable = self._unreachable or str(error)
            self._lose(post, 503, str(error), sent=False)
        except BrokenExchange as error:
            self._lose(post, 502 if error.sent else 503, str(error), sent=error.sent)
            self._look(str(error))
        finally:
            self._under_way -= counted
            self._done(post)
            if connection is not None and not reusable:
                with trio.CancelScope(shield=True):
                    await connection.aclose()
                connection = None
        if self._unreachable and not self._under_way:
            self.tell(self.instance.closed, self._unreachable)
        return connection

    def _done(self, post: Post) -> None:
        if post.ends is not None:
            post.ends.scope.cancel()
        if post.started:
            self._started_bytes -= len(post.raw)
        if post.id and self._requests.get(id_key(post.id)) is post:
            del self._requests[id_key(post.id)]
        if self._barrier is post:
            self._barrier = None
        self._wake()
        if self._refused and self._queued_bytes <= self.settings.max_buffer // 2:
            self._refused = False
            self.instance.room()

    async def _connected(self) -> HttpConnection:
        first, self._first = self._first, None
        if first is not None:
            if first.is_fresh():
                return first
            await first.aclose()
        return await self._connect()

    async def _connect(self) -> HttpConnection:
        try:
            tls = self.settings.tls() if self._where.is_secure else None
        except OSError:
            raise Unreachable("no TLS: UPSTREAM_CA_PATH can't be used") from None
        return HttpConnection(await dial(self._where, tls), self._pace)

    # --- one message ------------------------------------------------------------------------------------------------

    def _headers(self, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        return [
            (b"Host", self._where.authority.encode()),
            (b"User-Agent", _USER_AGENT),
            (b"Accept-Encoding", b"identity"),
            *self._own_headers,
            *more,
        ]

    def _session_headers(self) -> list[tuple[bytes, bytes]]:
        headers = []
        if self._version:
            headers.append((b"MCP-Protocol-Version", self._version))
        if self._session:
            headers.append((b"Mcp-Session-Id", self._session))
        return headers

    async def _post(self, post: Post, connection: HttpConnection) -> Response:
        metadata = modern_headers(post.envelope)
        if metadata and post.envelope.method == "tools/call":
            metadata += self._tools.of_call(post.envelope.name, post.raw)
        if not metadata and post.envelope.method != _INITIALIZE:
            metadata = self._session_headers()
        for _ in range(REDIRECTS + 1):
            response = await connection.exchange(
                b"POST",
                self._where.target.encode(),
                self._headers(
                    (b"Accept", ACCEPT),
                    (b"Content-Type", JSON),
                    (b"Content-Length", b"%d" % len(post.raw)),
                    *metadata,
                ),
                post.raw,
            )
            if response.status not in (307, 308) or not self._follow(response):
                break
            if post.envelope.method not in _FOLLOWS:
                post.redirected = True
                break
            # The server itself has said that it did not look at the message.
            await self._read(response, MAX_ERROR_BODY)
            if not connection.next_cycle():
                raise BrokenExchange("the server hung up after a redirect", sent=False)
        return response

    def _follow(self, response: Response) -> bool:
        """Go where a redirect leads, if that is the same origin: from now on, for everything."""
        location = response.headers.get(b"location", b"")
        here = self._where
        try:
            there = endpoint(urljoin(f"{here.scheme}://{here.authority}{here.target}", location.decode("ascii")))
        except ValueError:
            return False
        if there.origin != here.origin:
            log.warning("%s: redirects to another origin, where the gateway does not go", self.upstream.name)
            return False
        self._where = there
        return True

    async def _notify(self, post: Post, connection: HttpConnection) -> None:
        with trio.move_on_after(NOTIFY_S) as patience:
            response = await self._post(post, connection)
            if response.status == 404 and self._session:
                self.tell(self.instance.expired, "the server has ended the session")
                return
            await self._read(response, MAX_ERROR_BODY)
            if response.status >= 300:
                self.count("refused notification")
                log.info("%s: %s is refused: HTTP %d", self.upstream.name, _shown(post), response.status)
            elif post.envelope.method == _INITIALIZED and self._version:
                self._start_listening()
        if patience.cancelled_caught:
            log.info("%s: %s is not accepted within %g s", self.upstream.name, _shown(post), NOTIFY_S)

    async def _call(self, post: Post, connection: HttpConnection) -> None:
        response = await self._post(post, connection)
        if response.headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            self._lose(post, 502, "the answer is compressed, which was not asked for", sent=True)
            return
        legacy = not post.envelope.era
        if response.status == 404 and legacy and self._session and post.envelope.method != _INITIALIZE:
            self._lose(post, 503, "the server has ended the session", sent=False)
            self.tell(self.instance.expired, "the server has ended the session")
            return
        kind = response.media_type
        if 200 <= response.status < 300 and post.envelope.method == _INITIALIZE:
            self._session = session_id(response.headers.get(b"mcp-session-id"))
        if response.status == 200 and kind == EVENTS:
            await self._stream(post, response)
        elif response.status == 200 and kind == JSON:
            body = await self._read(response, self.settings.max_message)
            if body is None:
                self._lose(post, 502, "response_too_large", sent=True)
            else:
                self._answer(post, body)
                self._lose(post, 502, "the server's answer is not the call's", sent=True)
        else:
            body = await self._read(response, MAX_ERROR_BODY) if kind == JSON else None
            error = error_in(body) if body is not None and response.status >= 400 else None
            if error is not None:
                if post.envelope.era and post.envelope.method == "tools/call" and code_of(error) == HEADER_MISMATCH:
                    await self._learn_headers(connection)
                self.message(error_answer(post.id, error))
            if post.redirected:
                self._lose(post, 503, "the server has moved", sent=False, outcome="success", retry_after_ms=1)
                return
            if 200 <= response.status < 300 and kind not in (b"", JSON):
                self._lose(post, 502, "the server's answer is neither JSON nor an event stream", sent=True)
                return
            told = verdict(response.status, response.headers.get(b"retry-after", b""))
            self._lose(
                post, told.code, told.reason, sent=told.sent, outcome=told.outcome, retry_after_ms=told.retry_after_ms
            )

    async def _learn_headers(self, connection: HttpConnection) -> None:
        """A call was refused for the lack of headers: ask which ones the server wants, for the next calls, which may
        come as soon as this one has been answered."""
        if not connection.next_cycle():
            return
        raw = own_messages.list_tools(b'"tools"')
        with trio.move_on_after(LEARN_S), contextlib.suppress(BrokenExchange, EventTooLong):
            response = await self._post(Post(raw, parse_client(raw), b""), connection)
            if response.status != 200:
                return
            if response.media_type == JSON:
                self._tools.learn(await self._read(response, self.settings.max_message) or b"")
            elif response.media_type == EVENTS:
                async for event in self._events(response, EventReader(self.settings.max_message)):
                    self._tools.learn(event.data)

    def _answer(self, post: Post, raw: bytes) -> None:
        if post.envelope.method == _INITIALIZE and self.instance.awaits(post.id):
            # Learnt before anything is sent on the strength of it.
            self._version = _negotiated(raw)
        elif post.envelope.era and post.envelope.method == "tools/list":
            self._tools.learn(raw)
        self.message(raw)

    def _lose(
        self,
        post: Post,
        code: int,
        reason: str,
        *,
        sent: bool,
        outcome: Literal["", "success", "death"] = "",
        retry_after_ms: int = 0,
    ) -> None:
        """Tell who waits for it, if anybody still does."""
        if post.id and not self.ending.is_set() and self.instance.awaits(post.id):
            self.instance.lost(
                post.id, code, reason, time.monotonic_ns(), sent=sent, outcome=outcome, retry_after_ms=retry_after_ms
            )
            self.settle()

    async def _read(self, response: Response, limit: int) -> bytes | None:
        """The whole body; None when it is larger than it may be."""
        parts: list[bytes] = []
        size = 0
        holding = self._held.begin()
        try:
            async for chunk in response.body:
                size += len(chunk)
                if size > limit:
                    return None
                parts.append(chunk)
                await holding.hold(size)
                await self.flow()
        finally:
            holding.end()
        return b"".join(parts)

    # --- streams ------------------------------------------------------------------------------------------------------

    async def _stream(self, post: Post, response: Response) -> None:
        """The events of one call, over as many connections as it takes, until its answer has come."""
        reader = EventReader(self.settings.max_message)
        attempts = 0
        spare: HttpConnection | None = None
        try:
            while True:
                reason = "the server ended its answer without answering"
                try:
                    async for event in self._events(response, reader):
                        attempts = 0
                        self._answer(post, event.data)
                        if not self.instance.awaits(post.id):
                            with trio.move_on_after(TRAILER_S):
                                await self._read(response, MAX_ERROR_BODY)
                            return
                except BrokenExchange as error:
                    if post.envelope.era or not reader.last_id:
                        raise
                    reason = str(error)
                except EventTooLong:
                    self._lose(post, 502, "response_too_large", sent=True)
                    return
                if post.envelope.era or not reader.last_id or attempts >= RESUMPTIONS:
                    self._lose(post, 502, reason, sent=True)
                    return
                attempts += 1
                await trio.sleep(max(RESUME_S, (reader.retry_ms or 0) / 1000))
                if spare is not None:
                    await spare.aclose()
                try:
                    spare = await self._connect()
                except Unreachable as error:
                    raise BrokenExchange(str(error), sent=True) from None
                last_id = reader.last_id
                reader = EventReader(self.settings.max_message)
                reader.last_id = last_id
                response = await self._get(spare, last_id)
                if response.status != 200 or response.media_type != EVENTS:
                    self._lose(post, 502, reason, sent=True)
                    return
        finally:
            if spare is not None:
                with trio.CancelScope(shield=True):
                    await spare.aclose()

    async def _events(self, response: Response, reader: EventReader) -> AsyncIterator[Event]:
        holding = self._held.begin()
        try:
            async for chunk in response.body:
                for at in range(0, len(chunk), _PIECE):
                    piece = chunk[at : at + _PIECE]
                    lines = piece.count(b"\n") + piece.count(b"\r")
                    for event in reader.feed(piece):
                        if event.type == b"message" and event.data:
                            yield event
                            await self.flow()
                        if self._pace.spend(1, time.monotonic_ns()):
                            await self._pace.rest()
                    if self._pace.spend(lines // CHEAP, time.monotonic_ns()):
                        await self._pace.rest()
                await holding.hold(reader.held)
        finally:
            holding.end()

    async def _get(self, connection: HttpConnection, last_id: bytes) -> Response:
        more = [(b"Last-Event-ID", last_id)] if last_id else []
        return await connection.exchange(
            b"GET",
            self._where.target.encode(),
            self._headers((b"Accept", EVENTS), *self._session_headers(), *more),
            b"",
        )

    def _start_listening(self) -> None:
        if not self._listening and self._nursery is not None:
            self._listening = True
            self._nursery.start_soon(self._listen, name=f"{self.upstream.name} (listening)")

    async def _listen(self) -> None:
        """What a legacy server says by itself, as long as it offers to; lost connections are resumed."""
        last_id, wait_s = b"", LISTEN_RETRY_S
        while True:
            reader = EventReader(self.settings.max_message)
            reader.last_id = last_id
            connection: HttpConnection | None = None
            try:
                connection = await self._connect()
                response = await self._get(connection, last_id)
                if 300 <= response.status < 500 and response.status not in (408, 429):
                    # 405: it does not offer this (2025-11-25, "Listening for Messages"). 404 is what frameworks say of
                    # that; if the session is over, the next call is told so.
                    return
                if response.status == 200 and response.media_type == EVENTS:
                    async for event in self._events(response, reader):
                        wait_s = LISTEN_AGAIN_S
                        self.message(event.data)
            except (Unreachable, BrokenExchange):
                pass  # as when the server ends the stream: whoever calls finds out whether it lives
            except EventTooLong:
                self.count("oversize")
                log.warning("%s: a message that answers nothing was too large and is dropped", self.upstream.name)
            finally:
                if connection is not None:
                    with trio.CancelScope(shield=True):
                        await connection.aclose()
            last_id = reader.last_id
            await trio.sleep(max(wait_s, (reader.retry_ms or 0) / 1000))
            wait_s = min(max(2 * wait_s, LISTEN_RETRY_S), LISTEN_RETRY_MOST_S)

    # --- trouble, and the end ---------------------------------------------------------------------------------------

    def _look(self, reason: str) -> None:
        """A connection broke: was it the server's end? One look, and one failure, for all that broke with it."""
        if not self._looking and self._nursery is not None and not self.ending.is_set():
            self._looking = True
            self._nursery.start_soon(self._look_now, reason)

    async def _look_now(self, reason: str) -> None:
        try:
            connection = await self._connect()
        except Unreachable as error:
            self.tell(self.instance.closed, str(error))
        else:
            await connection.aclose()
            self.instance.struck(reason, time.monotonic_ns())
            self.settle()
        finally:
            self._looking = False

    async def _end_session(self) -> None:
        """Tell the server that nobody comes back (2025-11-25, sessions). Whether it cares is its own matter."""
        if not self._session:
            return
        with trio.move_on_after(DELETE_S):
            try:
                connection = await self._connect()
                try:
                    await connection.exchange(
                        b"DELETE", self._where.target.encode(), self._headers(*self._session_headers()), b""
                    )
                finally:
                    with trio.CancelScope(shield=True):
                        await connection.aclose()
            except (Unreachable, BrokenExchange) as error:
                log.debug("%s: its session could not be ended: %s", self.upstream.name, error)


def _negotiated(raw: bytes) -> bytes:
    """The version in an answer to ``initialize``, as a header's value; b"" when there is none that could be one."""
    try:
        version = negotiated_version(raw)
    except ValueError:
        return b""
    text = version or ""
    return text.encode() if text.isascii() and text.isprintable() and " " not in text and len(text) <= 32 else b""


def _shown(post: Post) -> str:
    return post.envelope.method[:64].encode("unicode_escape").decode("ascii") or "a response"
