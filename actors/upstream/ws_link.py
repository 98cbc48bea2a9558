"""A link to a WebSocket server (subprotocol ``mcp``, one JSON-RPC message a text message), for one slot.

trio-websocket is the client. Two things it does otherwise than a link needs. A message that is too large closes its
connection, and with it the calls of everybody else: here it is skipped, and only its own call fails. And a server that
hangs up during the handshake is waited for in vain: here the end of the stream ends the wait.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, cast

import attrs
import h11
import trio
import trio_websocket
import wsproto
from wsproto.utilities import ProtocolError

from actors.acceptor.lines import KEPT_HEAD, KEPT_TAIL, Oversize
from ipc.messages import Envelope
from ipc.settings import Upstream

from .dial import Endpoint, Unreachable, dial, endpoint
from .link import Link, LinkOwner, LinkSettings
from .pace import Pace
from .slot import Instance

SUBPROTOCOL: Final = "mcp"
UPGRADE_S: Final = 10.0
CLOSE_S: Final = 1.0
PONG_S: Final = 20.0
_CHUNK: Final = 65_536


class _EarlyEnd(ConnectionError):
    """The server hung up before the handshake was done."""


@attrs.define(eq=False)
class _Handshaking(trio.abc.Stream):
    """The stream below a WebSocket, which says so when it ends during the handshake. Each read begins a turn."""

    _stream: trio.abc.Stream
    pace: Pace = attrs.field(factory=Pace)
    done: bool = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            if self.done:
                raise
            raise _EarlyEnd from None
        if not data and not self.done:
            raise _EarlyEnd
        self.pace.begin(time.monotonic_ns())
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            if self.done:
                raise
            raise _EarlyEnd from None

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


class _Connection(trio_websocket.WebSocketConnection):
    """Hands each message on as it ends, and reads no further meanwhile; what is too large is skipped, not kept."""

    def __init__(
        self,
        stream: _Handshaking,
        where: Endpoint,
        headers: list[tuple[bytes, bytes]],
        limit: int,
        take: Callable[[bytes | Oversize | None], Awaitable[None]],
    ) -> None:
        super().__init__(
            cast("trio.SocketStream", stream),  # all that it uses of one is trio.abc.Stream
            wsproto.WSConnection(wsproto.ConnectionType.CLIENT),
            host=where.authority,
            path=where.target,
            client_subprotocols=[SUBPROTOCOL],
            client_extra_headers=headers,
            receive_buffer_size=_CHUNK,
        )
        self._pace = stream.pace
        self._limit = limit
        self._take_message = take
        self._kept = bytearray()
        self._tail = b""
        self._length = 0
        self.over = trio.Event()  # nothing more will come, though the server may leave the connection open

    async def _handle_message_event(
        self, event: wsproto.events.BytesMessage | wsproto.events.TextMessage
    ) -> None:
        await self._spend()
        if not isinstance(event.data, str):
            await self._take_message(None)
            return
        data = event.data.encode()
        self._length += len(data)
        if self._length <= self._limit:
            self._kept += data
        else:
            if len(self._kept) > KEPT_HEAD:
                self._tail = bytes(self._kept[KEPT_HEAD:][-KEPT_TAIL:])
                del self._kept[KEPT_HEAD:]
            room = max(0, KEPT_HEAD - len(self._kept))
            self._kept += data[:room]
            self._tail = (self._tail + data[room:])[-KEPT_TAIL:]
        if event.message_finished:
            length, self._length = self._length, 0
            text, self._kept = bytes(self._kept), bytearray()
            tail, self._tail = self._tail, b""
            await self._take_message(text if length <= self._limit else Oversize(text, tail, length))

    async def _handle_ping_event(self, event: wsproto.events.Ping) -> None:
        await self._spend()
        await super()._handle_ping_event(event)

    async def _handle_pong_event(self, event: wsproto.events.Pong) -> None:
        await self._spend()
        await super()._handle_pong_event(event)

    async def _spend(self) -> None:
        """A frame is to be dealt with: now, or when the others have had their turn."""
        if self._pace.spend(1, time.monotonic_ns()):
            await self._pace.rest()

    async def _handle_close_connection_event(self, event: wsproto.events.CloseConnection) -> None:
        self.over.set()
        await super()._handle_close_connection_event(event)


class WsLink(Link):
    """See the module."""

    def __init__(self, upstream: Upstream, instance: Instance, owner: LinkOwner, settings: LinkSettings) -> None:
        super().__init__(upstream, instance, owner, settings)
        self._where = endpoint(upstream.url)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._refused = False
        self._written = trio.Event()  # replaced once set; there is something to write

    # --- the transport --------------------------------------------------------------------------------------------

    def send(self, raw: bytes, about: Envelope | None = None) -> bool:  # noqa: ARG002 - the interface is Transport's
        if self.ending.is_set():
            return False
        if self._queue and self._queued_bytes + len(raw) > self.settings.max_buffer:
            self._refused = True
            return False
        self._queue.append(raw)
        self._queued_bytes += len(raw)
        self._written.set()
        return True

    @property
    def unsent(self) -> int:
        return self._queued_bytes

    # --- its tasks ------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        try:
            tls = self.settings.tls() if self._where.is_secure else None
        except OSError:
            self.tell(self.instance.failed, "no TLS: UPSTREAM_CA_PATH can't be used")
            return
        try:
            stream = _Handshaking(await dial(self._where, tls))
        except Unreachable as error:
            self.tell(self.instance.failed, str(error))
            return
        try:
            reason = await self._serve(stream)
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()
        self.tell(self.instance.closed, reason)

    async def _serve(self, stream: _Handshaking) -> str:
        """Until it ends; why it did."""
        headers = [(name.encode(), value.strip().encode()) for name, value in self.upstream.headers.items()]
        connection = _Connection(stream, self._where, headers, self.settings.max_message, self._take)
        reason = "the connection was lost"
        try:
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    await connection._reader_task()  # noqa: SLF001 - what wrap_client_stream starts, for a subclass
                    connection.over.set()

                nursery.start_soon(read)
                with trio.move_on_after(UPGRADE_S):
                    await connection._open_handshake.wait()  # noqa: SLF001 - likewise
                    stream.done = True
                if not stream.done:
                    nursery.cancel_scope.cancel()
                    reason = f"no WebSocket handshake within {UPGRADE_S:g} s"
                elif connection.subprotocol not in (None, SUBPROTOCOL):
                    nursery.cancel_scope.cancel()
                    reason = "the server insists on another subprotocol"
                else:
                    reason = await self._talk(connection, nursery)
        except BaseExceptionGroup as group:
            # ValueError: a handshake that isn't ASCII makes the library raise UnicodeDecodeError.
            theirs, ours = group.split(
                (trio_websocket.HandshakeError, h11.ProtocolError, ProtocolError, ValueError, _EarlyEnd)
            )
            if theirs is None or ours is not None:
                raise
            reason = _whose_fault(theirs)
        return reason

    async def _talk(self, connection: _Connection, nursery: trio.Nursery) -> str:
        ended: list[str] = []

        async def end_with(task: Callable[[_Connection], Awaitable[str]]) -> None:
            try:
                ended.append(await task(connection))
            except trio_websocket.ConnectionClosed:
                pass  # the reader knows why
            else:
                finished.cancel()

        async def end_when_asked() -> None:
            await self.ending.wait()
            finished.cancel()

        if not self.ending.is_set():
            self.instance.opened(self, time.monotonic_ns())
            self.settle()
        with trio.CancelScope() as finished:
            nursery.start_soon(end_with, self._write)
            nursery.start_soon(end_with, self._keep_alive)
            nursery.start_soon(end_when_asked)
            await connection.over.wait()
        if not ended and not self.ending.is_set():
            ended.append(_closing(connection.closed))
        with trio.move_on_after(CLOSE_S):
            await connection.aclose(1001 if self.ending.is_set() else 1008)
        nursery.cancel_scope.cancel()
        return ended[0] if ended else "closed"

    async def _take(self, message: bytes | Oversize | None) -> None:
        """In the reader's task: what it does not return from is not followed by more."""
        if message is None:
            raise _BadMessage
        if isinstance(message, Oversize):
            self.oversize(message.head, message.tail, message.length)
        else:
            self.message(message)
        await self.flow()

    async def _write(self, connection: _Connection) -> str:
        while True:
            await self._written.wait()
            self._written = trio.Event()
            while self._queue:
                raw = self._queue.popleft()
                with trio.move_on_after(self.settings.write_timeout_s) as patience:
                    await connection.send_message(raw.decode())
                if patience.cancelled_caught:
                    return "the server does not read"
                self._queued_bytes -= len(raw)
                if self._refused and self._queued_bytes <= self.settings.max_buffer // 2:
                    self._refused = False
                    self.instance.room()
                    self.settle()

    async def _keep_alive(self, connection: _Connection) -> str:
        while True:
            await trio.sleep(self.settings.ping_s or math.inf)
            with trio.move_on_after(PONG_S) as patience:
                await connection.ping()
            if patience.cancelled_caught and not self.is_paused:
                return "the server does not answer pings"


class _BadMessage(ProtocolError):
    """A binary message, which no JSON-RPC server sends."""


def _whose_fault(group: BaseExceptionGroup[BaseException]) -> str:
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, trio_websocket.ConnectionRejected):
        return f"the server refuses the upgrade to WebSocket: HTTP {cause.status_code}"
    if isinstance(cause, _EarlyEnd):
        return "the connection ended during the WebSocket handshake"
    if isinstance(cause, _BadMessage):
        return "the server sent a binary message"
    return "the server does not speak WebSocket"


def _closing(reason: trio_websocket.CloseReason | None) -> str:
    if reason is None or reason.code == 1006:  # RFC 6455 §7.1.5: there was no close frame
        return "the connection was lost"
    return f"closed by the server ({reason.code})"
