"""Places in memory that outlive the process that fills them: what somebody has counted is not lost when he is killed.

The supervisor makes the memory (a memfd) and gives it to every worker; it reads nothing of it. Each owner (an actor or
a worker, by name) has one place, which he alone writes: his next incarnation goes on from what it finds there, and
whoever shows figures reads all of them, the dead ones' too, without asking anybody.

A place holds one document in either of two halves. A writer fills the half that isn't current and then makes it so by
writing one aligned word, so that he may be killed between any two instructions and the document is the old one or the
new one. A reader who was overtaken twice while he copied sees that by the word, and copies again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from typing import Final

PLACES: Final = 160  # owners; there are at most 64 edge workers with one actor each
SIZE: Final = 1024 * 1024  # of a place. Memory that nobody has written to costs nothing.
_HALF: Final = SIZE // 2
_LONGEST: Final = _HALF - 8  # in front of the first half is the word; the second begins where the first may end
_TRIES: Final = 100


def create() -> int:
    """New places, all empty: the descriptor to hand on. Raises OSError."""
    descriptor = os.memfd_create("shelves", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, PLACES * SIZE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class Shelf:
    """One owner's place. Raises OSError."""

    def __init__(self, descriptor: int, place: int) -> None:
        self._map = mmap.mmap(descriptor, SIZE, offset=place * SIZE) if descriptor >= 0 else mmap.mmap(-1, SIZE)
        self._word = memoryview(self._map).cast("q")

    def put(self, data: bytes) -> None:
        """Take the place of what was there. Raises ValueError: too long for a place."""
        if len(data) > _LONGEST:
            raise ValueError(f"{len(data)} bytes do not fit into a place")
        word = int(self._word[0])
        number, half = (word >> 32) + 1 & 0x3FFFFFFF, 1 - (word & 1)
        start = 8 + half * _LONGEST
        self._map[start : start + len(data)] = data
        self._word[0] = number << 32 | len(data) << 1 | half

    def read(self) -> bytes:
        """What was put last; empty when nothing was, or when it changes too often to be read."""
        for _ in range(_TRIES):
            word = int(self._word[0])
            length, half = (word & 0xFFFFFFFF) >> 1, word & 1
            if not 0 <= length <= _LONGEST:  # written by somebody who has gone mad
                return b""
            start = 8 + half * _LONGEST
            data = self._map[start : start + length]
            if self._word[0] == word:
                return data
        return b""


class Shelves:
    """All places, by their owners' names.

    Args:
        descriptor: of the memory; it stays the caller's. -1: these places are this process's own.
        owners: everybody who has a place, the same for all processes. Who is too much gets one of his own.
    """

    def __init__(self, descriptor: int = -1, owners: Iterable[str] = ()) -> None:
        self._descriptor = descriptor
        self._places = {name: place for place, name in enumerate(sorted(owners)[:PLACES])}
        self._shelves: dict[str, Shelf] = {}

    def of(self, owner: str) -> Shelf:
        """Raises OSError."""
        shelf = self._shelves.get(owner)
        if shelf is None:
            place = self._places.get(owner, -1)
            shelf = Shelf(self._descriptor if place >= 0 else -1, max(place, 0))
            self._shelves[owner] = shelf
        return shelf


def worker_place(worker: str) -> str:
    """The name of a worker's own place: no actor's."""
    return f"worker {worker}"
