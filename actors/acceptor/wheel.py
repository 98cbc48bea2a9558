"""One timer wheel for every timeout of an acceptor."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class TimerWheel(Generic[T]):
    """Entries that become due, rounded up to a tick.

    Nothing is ever taken out early: whoever gets a due entry checks whether it still matters and adds it again if
    its time has moved. That makes ``add`` one append, which is what a message on the hot path can afford.

    Args:
        tick_ns: the wheel's resolution, in nanoseconds.
        now: CLOCK_MONOTONIC nanoseconds.
    """

    __slots__ = ("_buckets", "_done", "_size", "_tick_ns")

    def __init__(self, tick_ns: int, now: int) -> None:
        self._tick_ns = tick_ns
        self._done = now // tick_ns  # every bucket up to and including this one has been handed out
        self._buckets: dict[int, list[T]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, deadline_ns: int, entry: T) -> None:
        """``entry`` is due at the first tick that is not before ``deadline_ns``."""
        tick = max(-(-deadline_ns // self._tick_ns), self._done + 1)
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = [entry]
        else:
            bucket.append(entry)
        self._size += 1

    def due(self, now: int) -> list[T]:
        """Everything whose tick has come, oldest first."""
        last = now // self._tick_ns
        if last <= self._done or not self._buckets:
            self._done = max(self._done, last)
            return []
        if last - self._done > len(self._buckets):
            ticks = sorted(tick for tick in self._buckets if tick <= last)
        else:
            ticks = [tick for tick in range(self._done + 1, last + 1) if tick in self._buckets]
        entries: list[T] = []
        for tick in ticks:
            entries += self._buckets.pop(tick)
        self._done = last
        self._size -= len(entries)
        return entries
