"""Wakes an actor's second task: at a time, or because a callback has something for it."""

from __future__ import annotations

import math
import time

import trio


class Alarm:
    """For one waiting task. Times are monotonic nanoseconds."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._when: float = math.inf

    def at(self, when_ns: int | None) -> None:
        """Ring at that time, unless it rings earlier anyway. None: no wish."""
        if when_ns is not None and when_ns < self._when:
            self._when = when_ns
            self._event.set()  # the sleeper measures its sleep anew

    def ring(self) -> None:
        """Ring now."""
        self.at(0)

    async def wait(self) -> None:
        """Until it rings. Clears it."""
        while (left := self._when - time.monotonic_ns()) > 0:
            self._event = trio.Event()
            with trio.move_on_after(left / 1e9):
                await self._event.wait()
        self._when = math.inf
        await trio.lowlevel.checkpoint()
