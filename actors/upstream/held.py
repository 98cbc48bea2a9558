"""What one link holds of answers that are not complete yet."""

from __future__ import annotations

from typing import Final

import attrs
import trio

SMALL: Final = 65_536  # an answer of which no more has come never waits: calls in flight bound how many there are


@attrs.define(eq=False)
class Held:
    """The bytes of all unfinished answers together.

    Beyond ``limit`` the large ones wait, but for the oldest of them, which can always finish: each alone is bounded
    elsewhere. So nobody's answer fails for the size of others', and a small one does not even wait.
    """

    limit: int
    total: int = 0
    large: dict[Holding, None] = attrs.field(factory=dict)  # oldest first
    freed: trio.Event = attrs.field(factory=trio.Event)  # replaced once set

    def begin(self) -> Holding:
        return Holding(self)


@attrs.define(eq=False)
class Holding:
    """One answer's part."""

    _all: Held
    _size: int = 0

    async def hold(self, size: int) -> None:
        """It has so many bytes now; returns when it may read on."""
        held = self._all
        self._set(size)
        while size > SMALL and held.total > held.limit and next(iter(held.large)) is not self:
            await held.freed.wait()

    def end(self) -> None:
        self._set(0)

    def _set(self, size: int) -> None:
        held = self._all
        held.total += size - self._size
        shrunk = size < self._size
        self._size = size
        if size > SMALL:
            held.large.setdefault(self)
        else:
            held.large.pop(self, None)
        if shrunk:
            held.freed.set()
            held.freed = trio.Event()
