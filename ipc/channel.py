"""One end of the stream between two workers: frames out in batches, frames in one by one.

``send`` only appends to a buffer; ``flush`` writes what the socket takes, and is called once a turn. All writing is
done by ``flush`` from that one buffer, so a frame can't be torn by a cancelled write: what the socket did not take
stays where it is, and a task flushes again when the socket is writable.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import trio

from .errors import MalformedFrame
from .frames import Frame
from .framing import DEFAULT_MAXIMUM, FrameDecoder, append_frame

# Unsent bytes from which on the data lane has to wait. One largest frame on top of it is the most that piles up.
CONGESTED = 4 * 1024 * 1024


@attrs.frozen
class ChannelStatistics:
    """Totals since the channel was made; ``backlog`` is what waits for the socket now, in bytes.

    ``frames_in / reads`` and ``frames_out / writes`` are the mean batch sizes. ``blocked`` counts how often the
    socket took less than there was.
    """

    peer: str
    open: bool
    frames_in: int
    frames_out: int
    bytes_in: int
    bytes_out: int
    reads: int
    writes: int
    blocked: int
    backlog: int
    largest_batch_in: int


class Channel:
    """One end of a connected stream socket; owns it.

    Args:
        peer: the worker at the other end.
        sock: made non-blocking here.
        on_frame: called with each frame and its payload's length in bytes. May raise MalformedFrame.
        on_batch: called after the frames of one read.
        on_closed: called once, with the reason and, if the peer broke the protocol, with what was wrong.
        on_dirty: called when the buffer stops being empty: ``flush`` has to be called soon.
        on_room: called when the channel stops being congested.
        maximum: the longest payload in bytes, both ways.

    """

    def __init__(
        self,
        peer: str,
        sock: socket.socket,
        *,
        on_frame: Callable[[Frame, int], None],
        on_batch: Callable[[], None],
        on_closed: Callable[[Channel, str, MalformedFrame | None], None],
        on_dirty: Callable[[Channel], None],
        on_room: Callable[[], None],
        maximum: int = DEFAULT_MAXIMUM,
        congested: int = CONGESTED,
    ) -> None:
        sock.setblocking(False)
        self.peer = peer
        self.closed = False
        self._sock = sock
        self._on_frame = on_frame
        self._on_batch = on_batch
        self._on_closed = on_closed
        self._on_dirty = on_dirty
        self._on_room = on_room
        self._maximum = maximum
        self._congested_at = congested
        self._congested = False  # set by ``congested``, reset by flush: on_room is then owed
        self._out = bytearray()  # whole frames; only the first may have lost bytes at its start: they are sent
        self._broken = False  # the peer reads no more: what is sent is dropped until the reader has seen the end
        self._blocked = False  # the socket was full: the writer task waits for it, flush leaves it alone
        self._writer_wanted = trio.Event()
        self._encode_into: Callable[[Any, bytearray, int], None] = msgspec.msgpack.Encoder().encode_into
        self._decode: Callable[[memoryview], Frame] = msgspec.msgpack.Decoder(Frame).decode
        self._frames_in = self._frames_out = self._bytes_in = self._bytes_out = 0
        self._reads = self._writes = self._times_blocked = self._largest_batch_in = 0

    @property
    def congested(self) -> bool:
        """Whether so much waits for the socket that data should not be added. ``on_room`` follows."""
        if len(self._out) >= self._congested_at:
            self._congested = True
        return self._congested

    def send(self, frame: Frame) -> int:
        """Put a frame in the buffer; returns its payload's length in bytes. On a closed channel it is dropped.

        Raises FrameTooLong, or TypeError for a message that can't be encoded; nothing is queued then.
        """
        if self.closed:
            return 0
        out = self._out
        clean = not out
        length = append_frame(out, self._encode_into, frame, self._maximum)
        self._frames_out += 1
        if clean:
            self._on_dirty(self)
        return length

    def flush(self) -> None:
        """Write what the socket takes without waiting; the rest follows by itself."""
        if not self._blocked:
            self._write()

    async def run(self) -> None:
        """Carry frames until the channel is closed, by either side. Raises only what the callbacks raise."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_when_blocked)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self._write()
            self.close("the worker stops")

    def close(self, reason: str, error: MalformedFrame | None = None) -> None:
        """End it now. What was not written is lost."""
        if self.closed:
            return
        self.closed = True
        trio.lowlevel.notify_closing(self._sock.fileno())
        self._sock.close()
        self._out = bytearray()
        self._on_closed(self, reason, error)

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            peer=self.peer,
            open=not self.closed,
            frames_in=self._frames_in,
            frames_out=self._frames_out,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            reads=self._reads,
            writes=self._writes,
            blocked=self._times_blocked,
            backlog=len(self._out),
            largest_batch_in=self._largest_batch_in,
        )

    def _write(self) -> None:
        out = self._out
        while out and not self.closed:
            try:
                count = 0 if self._broken else self._sock.send(out)
            except BlockingIOError:
                self._blocked = True
                self._times_blocked += 1
                self._writer_wanted.set()
                break
            except OSError:
                # The peer reads no more. What it said before is still to be read; after that the reader sees the end.
                self._broken = True
                self._sock.shutdown(socket.SHUT_RD)
                count = 0
            if self._broken:
                out.clear()
            else:
                self._writes += 1
                self._bytes_out += count
                del out[:count]
        if self._congested and len(out) <= self._congested_at // 2:
            self._congested = False
            self._on_room()

    async def _write_when_blocked(self) -> None:
        while True:
            await self._writer_wanted.wait()
            self._writer_wanted = trio.Event()
            if self.closed:
                return
            try:
                await trio.lowlevel.wait_writable(self._sock.fileno())
            except trio.ClosedResourceError:
                return
            self._blocked = False
            self._write()

    async def _read(self) -> None:
        sock = self._sock
        decoder = FrameDecoder(self._maximum)
        while not self.closed:
            try:
                await trio.lowlevel.wait_readable(sock.fileno())
                count = sock.recv_into(decoder.writable())
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                return
            except OSError as error:
                self.close(f"the peer has gone: {error.strerror}")
                return
            if count == 0:
                self.close("the peer has gone" + (" in the middle of a frame" if decoder.partial else ""))
                return
            self._reads += 1
            self._bytes_in += count
            decoder.received(count)
            self._take(decoder)

    def _take(self, decoder: FrameDecoder) -> None:
        first = self._frames_in
        try:
            for payload in decoder.frames():
                self._frames_in += 1
                self._on_frame(self._frame(payload), len(payload))
        except MalformedFrame as error:
            self.close(f"malformed frame: {error}", error)
        self._largest_batch_in = max(self._largest_batch_in, self._frames_in - first)
        self._on_batch()

    def _frame(self, payload: memoryview) -> Frame:
        try:
            return self._decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise MalformedFrame(f"{type(error).__name__}: {error}") from error
