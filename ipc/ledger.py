"""A small table in memory that all workers share: each owns one row of numbers and reads everybody's.

The supervisor makes it (a memfd) and gives it to every worker; it reads nothing of it itself. A row has one writer, and
a word is 8 aligned bytes, so nobody ever waits for anybody: not for a lock, and not for a process that is stopped. Who
wants to take something first writes it into its own row and then looks at all of them, so of two that do it at the same
time at least one sees the other.

A row belongs to whoever holds the lock on its number (an open file description lock, fcntl(2)): the kernel gives it up
when the process ends, however it ends. So a row that can be locked by another is a dead one, and counts no more. Such
a lock belongs to the open file, and a descriptor that was sent shares its file with the sender; so each owner opens the
memfd anew.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import Final

ROWS: Final = 128  # owners at a time; there are at most 64 edge workers
WORDS: Final = 8  # of a row: one cache line
_SIZE: Final = ROWS * WORDS * 8


def create() -> int:
    """A new table, all zeros: the descriptor to hand on. Raises OSError."""
    descriptor = os.memfd_create("ledger", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, _SIZE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class Ledger:
    """One owner's view: its own row to write, all rows to read.

    Args:
        descriptor: of the table; it stays the caller's.

    Raises OSError, also when all rows are taken.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(self._file, _SIZE)
            self._words = memoryview(self._map).cast("q")
            self.row = self._free_row()
        except BaseException:
            os.close(self._file)
            raise
        self._clear(self.row)

    def write(self, word: int, value: int) -> None:
        """Set one word of the own row."""
        self._words[self.row * WORDS + word] = value

    def read(self, word: int) -> int:
        """One word of the own row."""
        return int(self._words[self.row * WORDS + word])

    def column(self, word: int) -> list[int]:
        """That word of every row."""
        return self._words[word::WORDS].tolist()

    def bury(self) -> bool:
        """Clear the rows that dead owners have left behind; whether there were any."""
        found = False
        for row in range(ROWS):
            if row != self.row and any(self._words[row * WORDS : (row + 1) * WORDS].tolist()) and self._lock(row):
                self._clear(row)
                self._unlock(row)
                found = True
        return found

    def close(self) -> None:
        """Give the row up."""
        self._clear(self.row)
        self._words.release()
        self._map.close()
        os.close(self._file)

    def _free_row(self) -> int:
        for row in range(ROWS):
            if self._lock(row):
                return row
        raise OSError("all rows of the ledger are taken")

    def _clear(self, row: int) -> None:
        for word in range(WORDS):
            self._words[row * WORDS + word] = 0

    def _lock(self, row: int) -> bool:
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, row))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, row: int) -> None:
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, row))


def _flock(kind: int, row: int) -> bytes:
    """``struct flock`` of 64-bit Linux: type, whence, start, length, pid (which must be 0 here)."""
    return struct.pack("hhqqi", kind, os.SEEK_SET, row, 1, 0)
