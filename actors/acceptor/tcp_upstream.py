"""One connection to a TCP upstream (newline-delimited JSON-RPC), in the hub's epoll."""

from __future__ import annotations

import functools
import logging
import select
import socket
import time
from typing import TYPE_CHECKING, Final

import trio

from actors.upstream.dial import why
from actors.upstream.pace import Pace, PacedLines
from actors.upstream.pool import Instance
from ipc.messages import Envelope
from ipc.settings import Upstream

from .lines import LineReader

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

CONNECT_SECONDS: Final = 5
RECEIVE_BYTES: Final = 1 << 18
IOV_MAX: Final = 64


class TcpUpstream:
    """The transport of one pool instance: connects, then moves lines without awaiting."""

    def __init__(self, hub: Hub, upstream: Upstream, instance: Instance) -> None:
        self._hub = hub
        self._upstream = upstream
        self._instance = instance
        self._pace = Pace()
        reader = LineReader(max_line=hub.settings.max_response_size, on_overflow="discard")
        self._lines = PacedLines(reader, self._pace, self._line, self._oversize)
        self._sock: socket.socket | None = None
        self._fd = -1
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._interest = 0
        self._given_up = False
        self._refused = False  # a message, since when the instance waits for room
        self._rests = False  # what waits is left alone for a while: see Pace

    async def open(self) -> None:
        """Connect (names are resolved off the loop), then serve from the hub's turns."""
        stream: trio.SocketStream | None = None
        reason = f"no connection within {CONNECT_SECONDS} s"
        with trio.move_on_after(CONNECT_SECONDS):
            try:
                stream = await trio.open_tcp_stream(self._upstream.host, self._upstream.port)
            except OSError as error:
                reason = f"cannot connect: {why(error)}"
        if stream is None:
            self._hub.post(functools.partial(self._hub.link_step, self, self._failed, reason))
            return
        sock = socket.socket(fileno=stream.socket.detach())
        sock.setblocking(False)
        self._hub.post(functools.partial(self._hub.link_step, self, self._opened, sock))

    def _failed(self, reason: str) -> None:
        self._instance.failed(reason, self._hub.now)

    def _opened(self, sock: socket.socket) -> None:
        if self._given_up:
            sock.close()
            return
        self._sock = sock
        self._fd = sock.fileno()
        self._interest = select.EPOLLIN
        self._hub.watch(self._fd, select.EPOLLIN, self._on_ready)
        self._instance.opened(self, self._hub.now)

    def _on_ready(self, events: int, now: int) -> None:
        if self._lines.waits:
            # Only an end is reported now, and again and again: so what waits doesn't wait for the rate any longer.
            if self._rests and events & (select.EPOLLHUP | select.EPOLLERR):
                self._hub.link_step(self, self._take, now)
        elif events & ~select.EPOLLOUT:
            self._hub.link_step(self, self._receive)
        if events & select.EPOLLOUT and self._sock is not None:
            self._hub.dirty_links[self._fd] = self

    def _receive(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            data = sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.broken(f"connection lost: {error.strerror}")
            return
        if not data:
            self.broken("closed by the server")
            return
        self._lines.feed(data)
        self._take(self._hub.now)

    def _take(self, now: int) -> None:
        """One turn of what has been read; what it leaves is for a later turn of the hub, and nothing is read before."""
        if self._sock is None:
            return
        self._rests = False
        self._pace.begin(now)
        done = self._lines.take()
        if self._sock is None:  # it ended on the way
            return
        if done is not bool(self._interest & select.EPOLLIN):
            self._hub.dirty_links[self._fd] = self  # for the mask
        if not done:
            rest = self._pace.rest_ns(time.monotonic_ns())
            self._rests = rest > 0
            if rest:
                self._hub.wheel.add(now + rest, self._on_rested)
            else:
                self._hub.post(self._on_turn)

    def _on_turn(self) -> None:
        self._hub.link_step(self, self._take, self._hub.now)

    def _on_rested(self, now: int) -> None:
        if self._rests:
            self._hub.link_step(self, self._take, now)

    def _line(self, raw: bytes) -> None:
        self._instance.line(raw, self._hub.now)

    def _oversize(self, head: bytes, tail: bytes, length: int) -> None:
        self._instance.oversize(head, tail, length, self._hub.now)

    def send(self, raw: bytes, about: Envelope | None = None) -> bool:  # noqa: ARG002 - the interface is Transport's
        """Queue one message; it leaves at the end of the turn. False when the upstream is too far behind.

        A single message is always taken when nothing waits: the gateway's id in place of the client's may have made
        it longer than the client's could be.
        """
        if self._sock is None:
            return False
        if self._out and self._out_bytes + len(raw) > self._hub.settings.max_buffer_size:
            self._refused = True
            return False
        self._out.append(raw + b"\n")
        self._out_bytes += len(raw) + 1
        self._hub.dirty_links[self._fd] = self
        return True

    @property
    def unsent(self) -> int:
        return self._out_bytes

    def flush(self) -> None:
        """Send what is queued, as far as the socket takes it."""
        sock, out = self._sock, self._out
        if sock is None:
            return
        if out:
            try:
                sent = sock.send(out[0]) if len(out) == 1 else sock.sendmsg(out[:IOV_MAX])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.broken(f"connection lost: {error.strerror}")
                return
            self._out_bytes -= sent
            index = 0
            while index < len(out) and sent >= len(out[index]):
                sent -= len(out[index])
                index += 1
            del out[:index]
            if sent:
                out[0] = memoryview(out[0])[sent:]
        if self._refused and self._out_bytes <= self._hub.settings.max_buffer_size // 2:
            self._refused = False
            self._instance.room()
        wanted = (0 if self._lines.waits else select.EPOLLIN) | (select.EPOLLOUT if out else 0)
        if wanted != self._interest:
            self._interest = wanted
            self._hub.epoll.modify(self._fd, wanted)

    def broken(self, reason: str) -> None:
        """The connection is over; the pool decides what becomes of its calls."""
        if self._release():
            self._instance.closed(reason, self._hub.now)

    def close(self) -> None:
        """The pool wants it no more."""
        self._given_up = True
        if self._release():
            self._hub.post(functools.partial(self._hub.link_step, self, self._closed))

    def _closed(self) -> None:
        self._instance.closed("closed", self._hub.now)

    def _release(self) -> bool:
        sock, self._sock = self._sock, None
        if sock is None:
            return False
        self._hub.forget(self._fd)
        self._hub.dirty_links.pop(self._fd, None)
        sock.close()
        self._lines.clear()
        self._out.clear()
        self._out_bytes = 0
        return True
