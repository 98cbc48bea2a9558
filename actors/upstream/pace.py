"""How much of one server's output is dealt with before all others have their turn.

Bytes are bounded where they are read, but a server that sends one-byte messages, fragments, chunks or comments makes
each of its bytes cost as much as somebody else's message. So what it says is dealt with in *turns*, short enough that
nobody else notices them, and no faster over time than a server has ever reason to speak.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs
import trio

from actors.acceptor.lines import LineReader, Oversize

ITEMS_A_TURN: Final = 64
TURN_NS: Final = 2_000_000
ITEMS_PER_S: Final = 20_000  # above what one loop could deliver to clients
PIECE: Final = 16_384  # bytes that are split into lines at once: of one-byte lines that takes about a millisecond
CHEAP: Final = 16  # empty lines, comments and the like that weigh as much as a message

_SECOND: Final = 1_000_000_000


@attrs.define(eq=False)
class Pace:
    """The turns of one source. Times are CLOCK_MONOTONIC nanoseconds; the rate may be exceeded for one second."""

    _left: int = ITEMS_A_TURN
    _until_ns: int = 0
    _tokens: float = ITEMS_PER_S
    _refilled_ns: int = 0

    def begin(self, now: int) -> None:
        """The others had their turn."""
        self._refill(now)
        self._left = ITEMS_A_TURN
        self._until_ns = now + TURN_NS

    def spend(self, items: int, now: int) -> bool:
        """So many messages (or what weighs as much) have been dealt with. Whether the turn is over."""
        self._left -= items
        self._tokens -= items
        return self._left <= 0 or self._tokens < 0 or now >= self._until_ns

    def rest_ns(self, now: int) -> int:
        """How long to leave the source alone beyond the others' turn."""
        self._refill(now)
        return max(0, int(-self._tokens * _SECOND / ITEMS_PER_S))

    def _refill(self, now: int) -> None:
        self._tokens = min(ITEMS_PER_S, self._tokens + (now - self._refilled_ns) * ITEMS_PER_S / _SECOND)
        self._refilled_ns = now

    async def rest(self) -> None:
        """Let the others run, and then begin the next turn."""
        wait = self.rest_ns(time.monotonic_ns())
        if wait:
            await trio.sleep(wait / _SECOND)
        else:
            await trio.lowlevel.checkpoint()
        self.begin(time.monotonic_ns())


@attrs.define(eq=False)
class PacedLines:
    """A server's lines, handed on a turn at a time. What waits is no more than one ``feed``."""

    _reader: LineReader[bytes | Oversize]
    _pace: Pace
    _line: Callable[[bytes], None]
    _oversize: Callable[[bytes, bytes, int], None]
    _data: bytes = b""
    _at: int = 0
    _items: deque[bytes | Oversize] = attrs.field(factory=deque)

    def feed(self, data: bytes) -> None:
        """Only when nothing waits."""
        self._data, self._at = data, 0

    def clear(self) -> None:
        self._data = b""
        self._items.clear()

    @property
    def waits(self) -> bool:
        """Whether there is more to hand on."""
        return bool(self._items or self._data)

    def take(self) -> bool:
        """Hand on what the turn allows. Whether nothing waits any more."""
        reader, pace, items = self._reader, self._pace, self._items
        while True:
            while items:
                item = items.popleft()
                if isinstance(item, Oversize):
                    self._oversize(item.head, item.tail, item.length)
                else:
                    self._line(item)
                if pace.spend(1, time.monotonic_ns()):
                    return not self.waits
            if not self._data:
                return True
            piece = self._data[self._at : self._at + PIECE]
            self._at += PIECE
            if self._at >= len(self._data):
                self._data = b""
            empty = reader.empty
            items.extend(reader.receive(piece))
            if pace.spend((reader.empty - empty) // CHEAP, time.monotonic_ns()):
                return not self.waits
