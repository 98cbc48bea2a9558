"""Who is blocked until when: by the client key of an address, or by principal.

An automatic block lasts ``duration_ms``, and twice as long at each repetition, up to a day; it counts as a repetition
while the last one ended less than a day ago. Whoever tries again while blocked prolongs nothing. An operator's block
lasts as long as the operator says, and an operator who lifts a block lifts what it would count for later as well.

Ends are wall-clock milliseconds: they hold through a restart of the machine. The number of blocks is bounded: whoever
is to be blocked when there are as many takes the place of the automatic block that ends first, never of an operator's.
What is remembered of past ones is bounded, too, and the oldest go first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Final

import attrs
import msgspec

LONGEST_MS: Final = 86_400_000
"""Of an automatic block, unless BLOCK_DURATION itself is longer."""
MEMORY_MS: Final = 86_400_000
"""For so long after its end a block counts as an earlier offence."""
CAPACITY: Final = 65_536

PRINCIPAL: Final = "principal:"


class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``strikes`` counts the automatic blocks of this key in a row, this one included."""

    key: str
    since_ms: int
    until_ms: int
    strikes: int
    automatic: bool
    reason: str


@attrs.define
class Blocks:
    """Args:
    duration_ms: of a first automatic block (BLOCK_DURATION).
    capacity: active blocks at most, and past ones remembered at most. Past it the automatic block that ends first
      makes room (``take_evicted``); with nothing but operators' blocks nobody is blocked anew.
    """

    duration_ms: int
    capacity: int = CAPACITY
    full: int = 0  # blocks that were due and had no room
    _active: dict[str, Block] = attrs.field(factory=dict, init=False)
    _past: dict[str, Block] = attrs.field(factory=dict, init=False)  # in the order of their ends, nearly
    _ends: list[tuple[int, str]] = attrs.field(factory=list, init=False)  # a heap; may hold ends that no longer are
    _automatic: list[tuple[int, str]] = attrs.field(factory=list, init=False)  # the same of automatic blocks
    _evicted: list[Block] = attrs.field(factory=list, init=False)

    def __len__(self) -> int:
        return len(self._active)

    def get(self, key: str, now_ms: int) -> Block | None:
        """The block in force."""
        block = self._active.get(key)
        return block if block is not None and block.until_ms > now_ms else None

    def active(self) -> Iterable[Block]:
        """Those in force, and those that ended since the last ``sweep``."""
        return self._active.values()

    def remembered(self) -> int:
        return len(self._past)

    def block(self, key: str, now_ms: int, reason: str) -> Block | None:
        """An automatic block; None if this key is blocked already, or there is no room."""
        if self.get(key, now_ms) is not None:
            return None
        if not self._has_room(key):
            self.full += 1
            return None
        earlier = self._past.get(key) or self._active.get(key)  # one that has ended and has not been swept yet
        strikes = 1
        if earlier is not None and now_ms < earlier.until_ms + MEMORY_MS:
            strikes = earlier.strikes + 1
        # The shift is bounded: 2**40 times a millisecond is far past the longest block.
        lasts = min(self.duration_ms << min(strikes - 1, 40), max(LONGEST_MS, self.duration_ms))
        return self._enforce(Block(key, now_ms, now_ms + lasts, strikes, True, reason))

    def block_by_operator(self, key: str, now_ms: int, lasts_ms: int) -> Block | None:
        """Takes the place of the block in force, if there is one. None: there is no room."""
        if not self._has_room(key):
            return None
        earlier = self._active.get(key) or self._past.get(key)
        strikes = earlier.strikes if earlier is not None else 0
        return self._enforce(Block(key, now_ms, now_ms + lasts_ms, strikes, False, "operator"))

    def unblock(self, key: str, now_ms: int) -> Block | None:
        """Lift the block in force and forget the earlier ones. The block that was lifted, None if there was none."""
        self._past.pop(key, None)
        block = self._active.pop(key, None)
        return block if block is not None and block.until_ms > now_ms else None

    def sweep(self, now_ms: int) -> tuple[list[Block], list[str]]:
        """The blocks that have ended since, and the keys of which nothing needs to be kept any more."""
        ended: list[Block] = []
        while self._ends and self._ends[0][0] <= now_ms:
            _, key = heapq.heappop(self._ends)
            block = self._active.get(key)
            if block is not None and block.until_ms <= now_ms:
                del self._active[key]
                self._past.pop(key, None)
                self._past[key] = block
                ended.append(block)
        return ended, list(self._forget(now_ms))

    @property
    def next_end_ms(self) -> int | None:
        return self._ends[0][0] if self._ends else None

    def restore(self, block: Block) -> None:
        """Take in what was kept on disk; ``sweep`` then sorts out what has ended."""
        self._active[block.key] = block
        heapq.heappush(self._ends, (block.until_ms, block.key))
        if block.automatic:
            heapq.heappush(self._automatic, (block.until_ms, block.key))

    def take_evicted(self) -> list[Block]:
        """The blocks that had to make room since this was asked; nothing of them is kept."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def _has_room(self, key: str) -> bool:
        """Make it, if need be."""
        if len(self._active) < self.capacity or key in self._active:
            return True
        while self._automatic:
            until_ms, first = heapq.heappop(self._automatic)
            block = self._active.get(first)
            if block is not None and block.automatic and block.until_ms == until_ms:
                del self._active[first]
                self._evicted.append(block)
                return True
        return False

    def _enforce(self, block: Block) -> Block:
        self._past.pop(block.key, None)
        self.restore(block)
        if len(self._ends) > 2 * len(self._active) + 64:  # ends of blocks that were lifted or replaced
            self._ends = [(known.until_ms, key) for key, known in self._active.items()]
            heapq.heapify(self._ends)
        if len(self._automatic) > 2 * len(self._active) + 64:
            self._automatic = [(known.until_ms, key) for key, known in self._active.items() if known.automatic]
            heapq.heapify(self._automatic)
        return block

    def _forget(self, now_ms: int) -> Iterator[str]:
        while self._past:
            key = next(iter(self._past))
            if len(self._past) <= self.capacity and self._past[key].until_ms + MEMORY_MS > now_ms:
                return
            del self._past[key]
            yield key
