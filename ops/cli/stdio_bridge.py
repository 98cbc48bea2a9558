"""``mcp-secure-client stdio``: an MCP server for the host that started it, and behind it the gateway.

Lines of stdin become messages to the gateway, and its messages become lines on stdout. Nothing else ever reaches
stdout, whoever prints: descriptor 1 is pointed at stderr, and a private copy of the old one is written to.

At the end of stdin the answers still in flight are waited for, within a bound. When the gateway goes away first,
every request still unanswered gets an error line, so that no host waits for ever; the exit code then isn't 0.
Nothing is sent again on another connection: whether a call was carried out is for its caller to find out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import attrs
import msgspec
import trio

from .failure import ClientFailure, LinkClosed
from .link import MAX_MESSAGE, Link

NAME: Final = "mcp-secure-client stdio"

# Requests that stay open for as long as their client wants; nobody waits for their answer.
OPEN_ENDED: Final = frozenset({"subscriptions/listen"})

# Lines read ahead of the connection, which may still be opening.
READ_AHEAD: Final = 64

PARSE_ERROR: Final = -32700
OUTCOME_UNKNOWN: Final = 502
UNAVAILABLE: Final = 503

_ABSENT: Final = msgspec.Raw(b"")


class _Head(msgspec.Struct):
    """As much of a message as is needed to match answers to requests; ``id`` stays as it was written."""

    id: msgspec.Raw = _ABSENT
    method: str = ""
    params: msgspec.Raw = _ABSENT


class _Cancelled(msgspec.Struct):
    request_id: msgspec.Raw = msgspec.field(default=_ABSENT, name="requestId")


class HostGone(ClientFailure, BrokenPipeError):
    """Nobody reads our stdout any more."""


@attrs.define
class _Call:
    method: str
    sent: bool = False


@attrs.define
class Calls:
    """The host's requests that have no answer yet, by their id as written (``1`` and ``"1"`` differ)."""

    _open: dict[bytes, _Call] = attrs.field(factory=dict, init=False)

    def asked(self, line: bytes) -> bytes:
        """The host wrote this line; returns the id under which it is now open, if it is a request."""
        head = _head(line)
        if head is None or not head.method:
            return b""
        if head.id != _ABSENT:
            self._open[bytes(head.id)] = _Call(head.method)
            return bytes(head.id)
        if head.method == "notifications/cancelled":
            try:
                cancelled = msgspec.json.decode(head.params, type=_Cancelled)
            except (msgspec.DecodeError, RecursionError):
                return b""
            self._open.pop(bytes(cancelled.request_id), None)
        return b""

    def sent(self, request_id: bytes) -> None:
        """The request may have reached the server from here on."""
        if request_id in self._open:
            self._open[request_id].sent = True

    def answered(self, message: bytes) -> None:
        head = _head(message)
        if head is not None and not head.method:
            self._open.pop(bytes(head.id), None)

    def waited_for(self) -> bool:
        return any(call.method not in OPEN_ENDED for call in self._open.values())

    def error_lines(self, reason: str) -> list[bytes]:
        """One error for each open request, because no answer will come."""
        text = msgspec.json.encode(reason)
        return [
            b'{"jsonrpc":"2.0","id":%b,"error":{"code":%d,"message":%b,"data":{"reason":"gateway_closed","sent":%b}}}'
            % (request_id, OUTCOME_UNKNOWN if call.sent else UNAVAILABLE, text, b"true" if call.sent else b"false")
            for request_id, call in self._open.items()
        ]


def _head(message: bytes) -> _Head | None:
    try:
        return msgspec.json.decode(message, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # not ours to judge: the gateway answers it


@attrs.define
class Host:
    """Whoever started us, at two descriptors.

    Both are used from threads, in blocking mode: they may be files, pipes or terminals, epoll takes only some of
    these, and O_NONBLOCK would be seen by everyone who shares them.
    """

    source: int
    sink: int
    _writing: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    async def read_into(self, lines: trio.MemorySendChannel[tuple[bytes, bytes]], calls: Calls) -> None:
        """Every line with the id of the request in it; ends with stdin, or raises ClientFailure."""
        buffer = bytearray()
        scanned = 0
        async with lines:
            while data := await trio.to_thread.run_sync(os.read, self.source, 65536, abandon_on_cancel=True):
                buffer += data
                while (end := buffer.find(b"\n", scanned)) >= 0:
                    line = bytes(buffer[:end]).strip(b" \t\r")
                    del buffer[: end + 1]
                    scanned = 0
                    await self._pass_on(line, lines, calls)
                scanned = len(buffer)
                if scanned > MAX_MESSAGE:
                    print(f"{NAME}: a line on stdin has over {MAX_MESSAGE} bytes; reading no more", file=sys.stderr)
                    return
            await self._pass_on(bytes(buffer).strip(b" \t\r"), lines, calls)

    async def _pass_on(
        self, line: bytes, lines: trio.MemorySendChannel[tuple[bytes, bytes]], calls: Calls
    ) -> None:
        if not line:
            return
        try:
            line.decode()
        except UnicodeDecodeError:
            # A WebSocket text message can't carry it (RFC 6455 §8.1).
            await self.write(b'{"jsonrpc":"2.0","id":null,"error":{"code":%d,"message":"not UTF-8"}}' % PARSE_ERROR)
            return
        await lines.send((line, calls.asked(line)))

    async def write(self, message: bytes) -> None:
        """Raises HostGone."""
        if b"\n" in message or b"\r" in message:  # only between tokens: inside a string they would be escaped
            message = message.replace(b"\n", b" ").replace(b"\r", b" ")
        async with self._writing:
            try:
                await trio.to_thread.run_sync(_write_all, self.sink, message + b"\n", abandon_on_cancel=True)
            except BrokenPipeError:
                raise HostGone("nobody reads stdout any more") from None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def bridge(opening: Callable[[], AbstractAsyncContextManager[Link]], within: float) -> int:
    """Run until stdin ends or the gateway goes; the process's exit code. ``within`` (s) bounds the last answers."""
    sink = os.dup(1)
    os.dup2(2, 1)
    host, calls = Host(0, sink), Calls()
    failure: ClientFailure | None = None
    async with trio.open_nursery() as nursery:
        sending, lines = trio.open_memory_channel[tuple[bytes, bytes]](READ_AHEAD)
        # From the start, so that what the host has asked by then is answered when no connection can be had.
        nursery.start_soon(host.read_into, sending, calls)
        try:
            async with opening() as link:
                failure = await _carry(link, host, calls, lines, within)
        except ClientFailure as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is None:
        return 0
    if isinstance(failure, LinkClosed):
        failure = failure.meaning()
    print(f"{NAME}: {failure}", file=sys.stderr, flush=True)
    if not isinstance(failure, HostGone):
        try:
            for line in calls.error_lines(str(failure)):
                await host.write(line)
        except HostGone as gone:
            failure = gone
    return failure.exit_code


async def _carry(
    link: Link, host: Host, calls: Calls, lines: trio.MemoryReceiveChannel[tuple[bytes, bytes]], within: float
) -> ClientFailure | None:
    """Both directions at once, until the first ends: None for the end of stdin."""
    failure: ClientFailure | None = None
    stdin_ended = False

    async with trio.open_nursery() as nursery:

        async def up() -> None:
            nonlocal stdin_ended
            async for line, request_id in lines:
                calls.sent(request_id)
                try:
                    await link.send(line)
                except LinkClosed:
                    return  # `down` reads the reason
            stdin_ended = True
            if calls.waited_for():
                await trio.sleep(within)
            nursery.cancel_scope.cancel()

        async def down() -> None:
            nonlocal failure
            try:
                while not (stdin_ended and not calls.waited_for()):
                    message = await link.receive()
                    await host.write(message)
                    calls.answered(message)
            except (LinkClosed, HostGone) as error:
                failure = error
            nursery.cancel_scope.cancel()

        nursery.start_soon(up)
        nursery.start_soon(down)
    return failure
