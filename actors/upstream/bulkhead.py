"""How many calls may be in flight to one upstream, over all workers together.

A stdio server belongs to one pool, which counts by itself. To a network server every acceptor has connections of its
own, and none may wait for another's word before it forwards a message: so each counts in a row of its own of a table
that all of them map into their memory, and adds up the others' rows. It counts its call first and looks then, and
takes it back when that was one too many; two that look at the same time may both be refused, but never are there more
calls than the limit. A row whose owner has died counts for nothing: its connections, and their calls, died with it.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

log = logging.getLogger("portcullis.upstream")

_CELL: Final = 8  # bytes: an aligned word, written in one go
_PID: Final = 0  # the cell of a row that says whose it is; the upstreams' follow


class Bulkhead(Protocol):
    def enter(self, upstream: str) -> bool:
        """Whether one more call may be in flight; it is counted then, until ``leave``."""

    def leave(self, upstream: str) -> None: ...


class OwnBulkhead:
    """Of upstreams that nobody else calls."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_flight: dict[str, int] = {}

    def enter(self, upstream: str) -> bool:
        in_flight = self._in_flight.get(upstream, 0)
        if in_flight >= self._limit:
            return False
        self._in_flight[upstream] = in_flight + 1
        return True

    def leave(self, upstream: str) -> None:
        self._in_flight[upstream] -= 1


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


class SharedBulkhead:
    """One row of the table at ``path``, which is made if there is none.

    Args:
        row: this owner's; whoever had it before has gone.
        rows: how many there are.
        upstreams: the columns; the same, in the same order, for all owners.

    Raises:
        OSError: no table can be had.
    """

    def __init__(
        self,
        path: str | Path,
        row: int,
        rows: int,
        upstreams: Sequence[str],
        limit: int,
        lives: Callable[[int], bool] = lives,
    ) -> None:
        self._limit = limit
        self._lives = lives
        self._width = 1 + len(upstreams)
        size = self._width * rows * _CELL
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Real blocks: to write into a hole of a full disk would end the process.
            os.posix_fallocate(descriptor, 0, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._cells = memoryview(self._map).cast("q")
        self._own = row * self._width
        others = [other * self._width for other in range(rows) if other != row]
        self._columns = {name: column for column, name in enumerate(upstreams, 1)}
        self._others = {name: tuple(start + column for start in others) for name, column in self._columns.items()}
        for cell in range(self._own, self._own + self._width):
            self._cells[cell] = 0
        self._cells[self._own + _PID] = os.getpid()

    def enter(self, upstream: str) -> bool:
        cells = self._cells
        own = self._own + self._columns[upstream]
        cells[own] += 1
        total = cells[own]
        for cell in self._others[upstream]:
            total += cells[cell]
        if total <= self._limit or cells[own] + self._living(upstream) <= self._limit:
            return True
        cells[own] -= 1
        return False

    def leave(self, upstream: str) -> None:
        self._cells[self._own + self._columns[upstream]] -= 1

    def _living(self, upstream: str) -> int:
        """The calls of the other owners that live. Looked up only where it makes the difference."""
        column = self._columns[upstream]
        total = 0
        for cell in self._others[upstream]:
            pid = self._cells[cell - column + _PID]
            if self._cells[cell] and pid > 0 and self._lives(pid):
                total += self._cells[cell]
        return total
