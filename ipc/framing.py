"""Length-prefixed frames in a byte stream. Pure: bytes in, payloads out.

A frame is a 32-bit big-endian payload length and the payload. A length above the maximum is refused as soon as its
four bytes are there, so nothing is ever read or allocated for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from .errors import MalformedFrame

_PREFIX = struct.Struct(">I")
PREFIX_SIZE = _PREFIX.size

# Of a frame, beyond the message in it: the envelope and names around it, and what the gateway puts into it.
SLACK = 1024 * 1024 + 64 * 1024

# One message of the largest size that the default settings allow (MAX_RESPONSE_SIZE, 16 MiB).
DEFAULT_MAXIMUM = 16 * 1024 * 1024 + SLACK

# A Unix stream socket holds about 208 KiB by default, so one read empties it.
READ_SIZE = 256 * 1024


def maximum_for(*sizes: int) -> int:
    """The longest frame where messages may have those sizes, in bytes."""
    return max(DEFAULT_MAXIMUM, *(size + SLACK for size in sizes))


class FrameTooLong(ValueError):
    """Our own message does not fit in a frame. Nothing of it was queued."""

    def __init__(self, length: int, maximum: int) -> None:
        super().__init__(f"a frame of {length} bytes; at most {maximum} are allowed")
        self.length = length
        self.maximum = maximum


def append_frame(
    out: bytearray, encode_into: Callable[[Any, bytearray, int], None], value: object, maximum: int
) -> int:
    """Append ``value`` as one frame to ``out``; returns the payload's length in bytes.

    ``encode_into`` is a msgspec encoder's: it appends at offset -1. If it raises, or the payload is longer than
    ``maximum`` (FrameTooLong), ``out`` is as it was before.
    """
    start = len(out)
    out += b"\0\0\0\0"
    try:
        encode_into(value, out, -1)
    except BaseException:
        del out[start:]
        raise
    length = len(out) - start - PREFIX_SIZE
    if length > maximum:
        del out[start:]
        raise FrameTooLong(length, maximum)
    _PREFIX.pack_into(out, start, length)
    return length


class FrameDecoder:
    """Finds the frames in a stream that arrives in arbitrary pieces.

    Use: read into ``writable()``, say how much with ``received(count)``, then take ``frames()`` to the end. Bytes
    are copied only where a frame crosses the end of the read buffer: the part that is already there, once.

    Args:
        maximum: the longest payload in bytes.
        size: of the read buffer, in bytes. A longer frame gets memory of its own, exactly its length.

    """

    __slots__ = ("_buffer", "_end", "_filled", "_large", "_start", "maximum")

    def __init__(self, maximum: int, *, size: int = READ_SIZE) -> None:
        if maximum < 0 or maximum > 0xFFFFFFFF:
            raise ValueError("maximum must fit in 32 bits")
        self.maximum = maximum
        self._buffer = memoryview(bytearray(max(size, PREFIX_SIZE + 1)))
        self._start = 0  # _buffer[_start:_end] is received and not yet yielded
        self._end = 0
        self._large: memoryview | None = None  # the payload of a frame that _buffer can't hold; _buffer is empty then
        self._filled = 0

    @property
    def partial(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return self._large is not None or self._start != self._end

    def writable(self) -> memoryview:
        """Where the next bytes go; never empty. Payloads taken from ``frames()`` before are void from now on."""
        if self._large is not None:
            return self._large[self._filled :]
        have = self._end - self._start
        if have == 0:
            self._start = self._end = 0
        else:
            whole = PREFIX_SIZE
            if have >= PREFIX_SIZE:
                whole += _PREFIX.unpack_from(self._buffer, self._start)[0]
            if self._start + whole > len(self._buffer):
                self._buffer[:have] = self._buffer[self._start : self._end]
                self._start, self._end = 0, have
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        """``count`` bytes were written at the start of ``writable()``."""
        if self._large is not None:
            self._filled += count
        else:
            self._end += count

    def frames(self) -> Iterator[memoryview]:
        """Complete payloads, in order; each is valid until ``writable()`` is called.

        Raises MalformedFrame at a length above the maximum; the decoder is of no use after that.
        """
        if self._large is not None:
            if self._filled < len(self._large):
                return
            payload, self._large = self._large, None
            yield payload
            return
        buffer = self._buffer
        while self._end - self._start >= PREFIX_SIZE:
            length = _PREFIX.unpack_from(buffer, self._start)[0]
            if length > self.maximum:
                raise MalformedFrame(f"a frame of {length} bytes; at most {self.maximum} are allowed")
            first = self._start + PREFIX_SIZE
            if first + length > self._end:
                if PREFIX_SIZE + length > len(buffer):
                    self._large = memoryview(bytearray(length))
                    self._filled = self._end - first
                    self._large[: self._filled] = buffer[first : self._end]
                    self._start = self._end = 0
                return
            self._start = first + length
            yield buffer[first : first + length]
