"""Messages with file descriptors, over a connected AF_UNIX SOCK_SEQPACKET socket.

A descriptor travels beside bytes as SCM_RIGHTS. On a stream it would stick to whatever bytes the receiver happens to
read with it; a packet keeps the two together. What the kernel can't pass on (the buffer for control messages was too
small, or the receiver is at its RLIMIT_NOFILE) it drops, and says so only in MSG_CTRUNC. So each packet states how
many descriptors belong to it, and one that doesn't arrive whole is refused, with every descriptor that did arrive
closed. Descriptors are received close-on-exec from the start: Python 3.11's ``socket.recv_fds`` ignores the flag for
that, and a child spawned in between would keep them.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

import msgspec
import trio

from .errors import MalformedFrame

MAXIMUM_DESCRIPTORS = 253  # SCM_MAX_FD of the kernel

# A packet must fit in the socket's send buffer, by default 208 KiB less the kernel's own overhead.
MAXIMUM_PACKET = 128 * 1024

_ANCILLARY_SIZE = socket.CMSG_SPACE(MAXIMUM_DESCRIPTORS * array.array("i").itemsize)


class DescriptorLink:
    """One end of a SEQPACKET socket pair; owns it.

    Args:
        sock: connected; made non-blocking here.
        types: the tagged Structs that may come in: one type or a union.
        maximum: the longest packet in bytes, both ways.

    """

    def __init__(self, sock: socket.socket, types: object, *, maximum: int = MAXIMUM_PACKET) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._maximum = maximum
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[tuple[int, msgspec.Struct]] = msgspec.msgpack.Decoder(
            tuple[int, types]  # type: ignore[valid-type]  # known at run time only
        )

    def fileno(self) -> int:
        """For pollers; -1 when closed."""
        return self._sock.fileno()

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send now or not at all. The descriptors are duplicated; the caller keeps and closes its own.

        Raises BlockingIOError when the socket is full, ValueError for a packet that is too long or more than 253
        descriptors, ConnectionError when the peer has gone.
        """
        if len(fds) > MAXIMUM_DESCRIPTORS:
            raise ValueError(f"{len(fds)} descriptors; at most {MAXIMUM_DESCRIPTORS} go with a message")
        payload = self._encoder.encode((len(fds), message))
        if len(payload) > self._maximum:
            raise ValueError(f"a packet of {len(payload)} bytes; at most {self._maximum} are allowed")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([payload], rights)

    async def send_wait(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """``send``, but waits for room. When cancelled, nothing was sent."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                self.send(message, fds)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock.fileno())
            else:
                return

    def receive_nowait(self) -> tuple[msgspec.Struct, list[int]]:
        """The next message and its descriptors, which now belong to the caller.

        Raises BlockingIOError when there is none, EOFError at the end, MalformedFrame for a packet that breaks the
        rules; all its descriptors are closed then, and the peer is not to be trusted further.
        """
        try:
            payload, ancillary, flags, _ = self._packet()
        except ConnectionResetError:
            # The peer closed its end with packets of ours unread. The kernel says so once, before it gives out what
            # the peer had sent and then the end.
            payload, ancillary, flags, _ = self._packet()
        fds = _descriptors(ancillary)
        try:
            message = self._check(payload, flags, len(fds))
        except BaseException:
            _close_all(fds)
            raise
        return message, fds

    async def receive(self) -> tuple[msgspec.Struct, list[int]]:
        """``receive_nowait``, but waits for a message. When cancelled, none was taken."""
        while True:
            await trio.lowlevel.wait_readable(self._sock.fileno())
            try:
                return self.receive_nowait()
            except BlockingIOError:
                continue

    def close(self) -> None:
        """Tasks that wait on the link get trio.ClosedResourceError."""
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock.fileno())
            self._sock.close()

    def _packet(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        return self._sock.recvmsg(self._maximum, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)

    def _check(self, payload: bytes, flags: int, count: int) -> msgspec.Struct:
        if not payload and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) and count == 0:
            raise EOFError("the peer has closed the link")
        if flags & socket.MSG_TRUNC:
            raise MalformedFrame(f"a packet of more than {self._maximum} bytes")
        if flags & socket.MSG_CTRUNC:
            raise MalformedFrame("descriptors were lost on the way")
        try:
            manifest, message = self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise MalformedFrame(f"not a message: {error}") from error
        if manifest != count:
            raise MalformedFrame(f"{count} descriptors came with a message that has {manifest}")
        return message


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
