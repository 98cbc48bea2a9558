"""Newline-delimited messages: raw TCP clients, and upstreams that speak in lines.

A line ends with LF; one CR before it belongs to the line end. Empty lines are skipped, but counted, since sending
them costs a client little and us something.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar, overload

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
    """A line passed the limit. ``items`` are the lines that were complete before it, in order; ``head`` is its own
    beginning."""

    def __init__(self, limit: int, items: list[bytes], head: bytes = b"") -> None:
        super().__init__(f"line longer than {limit} bytes")
        self.limit = limit
        self.items = items
        self.head = head


Line = TypeVar("Line", bound=bytes | Oversize)


class LineReader(Generic[Line]):
    """Splits one peer's bytes into lines, in linear time however the bytes arrive.

    Args:
        max_line: the most bytes of a line, its end not counted. May be changed between calls.
        on_overflow: ``raise`` for clients: LineTooLong at the first byte too many, and all further data is ignored.
            ``discard`` for upstreams: an ``Oversize`` takes the line's place and reading goes on behind it.
    """

    __slots__ = ("_discarded", "_discards", "_ended", "_held", "_tail", "empty", "max_line")

    @overload
    def __init__(self: LineReader[bytes], *, max_line: int, on_overflow: Literal["raise"] = "raise") -> None: ...
    @overload
    def __init__(self: LineReader[bytes | Oversize], *, max_line: int, on_overflow: Literal["discard"]) -> None: ...
    def __init__(self, *, max_line: int, on_overflow: Literal["raise", "discard"] = "raise") -> None:
        self.max_line = max_line
        self.empty = 0
        """Empty lines seen."""
        self._discards = on_overflow == "discard"
        self._held = bytearray()  # the unfinished line; of one that is being discarded, the head
        self._tail = bytearray()  # of the line being discarded, what follows the head: at least its last bytes
        self._discarded = 0  # bytes so far of the line being discarded; 0: none is
        self._ended = False

    @property
    def pending(self) -> int:
        """Bytes held of an unfinished line."""
        return len(self._held) + len(self._tail)

    @property
    def declared(self) -> int:
        """Bytes that the unfinished line holds, as far as it is kept."""
        return 0 if self._discarded else len(self._held)

    @property
    def head(self) -> bytes:
        """The beginning of the unfinished line."""
        return bytes(self._held[:KEPT_HEAD])

    def discard(self) -> bytes:
        """Keep no more of the unfinished line than its ends: an ``Oversize`` takes its place. Returns what is held."""
        held = self.head
        if self._held and not self._discarded:
            self._discarded = len(self._held)
            self._keep_tail(bytes(self._held[KEPT_HEAD:]))
            self._held = bytearray(held)
        return held

    def receive(self, data: bytes) -> list[Line]:
        """The lines that ``data`` completes, without their ends.

        Raises:
            LineTooLong: only where ``on_overflow`` is ``raise``; carries the lines before.
        """
        items: list[Any] = []  # of Line: which of its types occur depends on on_overflow
        if self._ended:
            return items
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self._held:
            self._hold(lines.pop(0), items)
            self._finish(items)
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if len(line) > self.max_line:
                self._overflow(items, line)
                items.append(Oversize(line[:KEPT_HEAD], line[KEPT_HEAD:][-KEPT_TAIL:], len(line)))
            elif line:
                items.append(line)
            else:
                self.empty += 1
        if rest:
            self._hold(rest, items)
        return items

    def _hold(self, chunk: bytes, items: list[Any]) -> None:
        """A piece of a line whose end has not come, or is the next thing to come."""
        held = self._held
        if self._discarded:
            self._discarded += len(chunk)
            room = KEPT_HEAD - len(held)
            held += chunk[:room]
            self._keep_tail(chunk[room:])
            if self._discarded > self.max_line + 1:
                self._overflow(items, held)
            return
        held += chunk
        # One byte more may be the CR of the line's end.
        if len(held) <= self.max_line or (len(held) == self.max_line + 1 and held.endswith(b"\r")):
            return
        self._overflow(items, held)
        self._discarded = len(held)
        self._keep_tail(bytes(held[KEPT_HEAD:]))
        del held[KEPT_HEAD:]

    def _keep_tail(self, chunk: bytes) -> None:
        # One byte more than is wanted, since the last one may turn out to be the CR of the line's end; and trimmed
        # only when it has doubled, so that a line of single bytes stays linear.
        wanted = KEPT_TAIL + 1
        self._tail += chunk[-wanted:]
        if len(self._tail) > 2 * wanted:
            del self._tail[:-wanted]

    def _finish(self, items: list[Any]) -> None:
        """The end of the line that is held."""
        held, tail, length = bytes(self._held), bytes(self._tail), self._discarded
        self._held.clear()
        self._tail.clear()
        self._discarded = 0
        if length:
            if tail.endswith(b"\r"):
                tail, length = tail[:-1], length - 1
            elif not tail and held.endswith(b"\r"):
                held, length = held[:-1], length - 1
            items.append(Oversize(held, tail[-KEPT_TAIL:], length))
            return
        if held.endswith(b"\r"):
            held = held[:-1]
        if held:
            items.append(held)
        else:
            self.empty += 1

    def _overflow(self, items: list[Any], line: bytes | bytearray) -> None:
        if not self._discards:
            self._ended = True
            head = bytes(line[:KEPT_HEAD])
            self._held.clear()
            self._tail.clear()
            raise LineTooLong(self.max_line, items, head)
