"""Newline-delimited messages: raw TCP clients, and upstreams that speak in lines.

A line ends with LF; one CR before it belongs to the line end. Empty lines are skipped, but counted, since sending
them costs a client little and us something.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar, overload

import attrs

KEPT_HEAD = 65_536
KEPT_TAIL = 4_096


@attrs.frozen
class Oversize:
    """A line that was too long to keep.

    Attributes:
        head: its first ``KEPT_HEAD`` bytes.
        tail: its last bytes, at most ``KEPT_TAIL``; never any that are in ``head``.
        length: of the whole line, in bytes.
    """

    head: bytes
    tail: bytes
    length: int


class LineTooLong(ValueError):
    """A line passed the limit. ``items`` are the lines that were complete before it, in order."""

    def __init__(self, limit: int, items: list[bytes]) -> None:
        super().__init__(f"line longer than {limit} bytes")
        self.limit = limit
        self.items = items


Item = TypeVar("Item", bytes, bytes | Oversize)


class LineReader(Generic[Item]):
    """Splits one peer's bytes into lines, in linear time however the bytes arrive.

    Args:
        max_line: the most bytes of a line, its end not counted. May be changed between calls.
        on_overflow: ``raise`` for clients: LineTooLong at the first byte too many, and all further data is ignored.
            ``discard`` for upstreams: an ``Oversize`` takes the line's place and reading goes on behind it.
    """

    __slots__ = ("_discards", "_discarded", "_ended", "_held", "_tail", "empty", "max_line")

    @overload
    def __init__(self: LineReader[bytes], *, max_line: int, on_overflow: Literal["raise"] = "raise") -> None: ...
    @overload
    def __init__(self: LineReader[bytes | Oversize], *, max_line: int, on_overflow: Literal["discard"]) -> None: ...
    def __init__(self, *, max_line: int, on_overflow: Literal["raise", "discard"] = "raise") -> None:
        self.max_line = max_line
        self.empty = 0
        """Empty lines seen."""
        self._discards = on_overflow == "discard"
        self._held = bytearray()  # the unfinished line; once it is too long, its head
        self._tail = bytearray()  # of a line being discarded: at least its last KEPT_TAIL + 1 bytes after the head
        self._discarded = 0  # bytes so far of the line being discarded; 0: none is
        self._ended = False

    @property
    def pending(self) -> int:
        """Bytes held of an unfinished line."""
        return len(self._held) + len(self._tail)

    def receive(self, data: bytes) -> list[Item]:
        """The lines that ``data`` completes, without their ends.

        Raises:
            LineTooLong: only where ``on_overflow`` is ``raise``; carries the lines before.
        """
        raise NotImplementedError
