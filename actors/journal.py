"""An append-only file that remembers an actor's state when its process is killed.

What has been written with ``write(2)`` is in the page cache and survives the death of the process, at whatever
instruction it comes; so a record is appended *before* anyone is told of what it records, and nothing is synced. Only
a crash of the machine loses the tail. For state that is void after a reboot anyway (monotonic times) the header
names the boot, and a file of another boot is dropped whole; other state is read as far as it is intact.

The file: a header line, then records, each a little-endian u32 length, a u32 CRC-32 and that many bytes. A record
that is cut short or damaged ends the journal: it and everything behind it is cut off. As appends are never
reordered, that is the one record that was being written.

When the file has grown well past what the state needs, it is replaced: a new file is written beside it and renamed
over it, so that at any moment one whole journal is there.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

_HEAD = struct.Struct("<II")
_MAGIC = b"portcullis-journal 1"
# Longer than any record that is written; a length beyond it is damage, not a record.
LONGEST_RECORD = 64 * 1024 * 1024
_SMALLEST_LIMIT = 4 * 1024 * 1024
_GROWTH = 4


def boot_id() -> str:
    """The kernel's id of this boot. Linux has had it since 2.4; without it every start counts as another boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown " + os.urandom(16).hex()


def state_file(state_dir: str, name: str) -> Path:
    """The path of a file of ours in ``STATE_DIR``, which is made if it isn't there."""
    directory = Path(state_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / name


@attrs.frozen
class Recovered:
    """What was in the file.

    ``found``: there was a journal of this kind and, where that matters, of this boot. ``damaged``: there was a file
    that is not a journal of this kind. ``cut``: bytes of torn records that were cut off its end.
    """

    records: Sequence[bytes] = ()
    found: bool = False
    damaged: bool = False
    cut: int = 0


class Journal:
    """One open journal, written by one process. Every method that writes raises OSError when the disk does.

    A failed append leaves the file as it was.
    """

    def __init__(self, path: Path, kind: str, boot: str) -> None:
        self.path = path
        self._header = b"%s %s %s\n" % (_MAGIC, kind.encode("ascii"), boot.encode("ascii"))
        self._fd = -1
        self._size = 0
        self._undo_to = 0  # where the last append began
        self._limit = _SMALLEST_LIMIT

    @classmethod
    def open(cls, path: Path, kind: str, *, boot: str = "any") -> tuple[Journal, Recovered]:
        """Open or create it, mode 0600.

        Args:
          kind: names what the records are; a file of another kind is not read.
          boot: ``boot_id()`` for state that a reboot voids, ``any`` for other state.
        """
        journal = cls(path, kind, boot)
        recovered = journal._recover()
        return journal, recovered

    @property
    def size(self) -> int:
        return self._size

    @property
    def is_grown(self) -> bool:
        """Whether it is time to ``rewrite``."""
        return self._size > self._limit

    def append(self, records: Iterable[bytes]) -> None:
        """Write the records, all in one go. Raises OSError; then none of them is in the file."""
        data = _framed(records)
        if not data:
            return
        try:
            _write_all(self._fd, data)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._undo_to = self._size
        self._size += len(data)

    def undo(self) -> None:
        """Take the last append back: what it announced has not happened. Needs no room on the disk."""
        os.ftruncate(self._fd, self._undo_to)
        self._size = self._undo_to

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Replace everything by these records, which have to give the same state.

        Raises OSError; then the old file stays.
        """
        data = self._header + _framed(records)
        beside = self.path.with_name(self.path.name + ".new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data)
            beside.rename(self.path)
        except OSError:
            os.close(fd)
            beside.unlink(missing_ok=True)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._size = self._undo_to = len(data)
        self._limit = max(_SMALLEST_LIMIT, _GROWTH * self._size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _recover(self) -> Recovered:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            self.rewrite(())
            return Recovered()
        if not data.startswith(self._header):
            # Another boot's journal is void; one that is empty was never begun. Anything else is damage.
            known = data.startswith(self._header.rsplit(b" ", 1)[0] + b" ") or self._header.startswith(data)
            self.rewrite(())
            return Recovered(damaged=not known)
        records, end = _read(data, len(self._header))
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        if end < len(data):
            os.ftruncate(self._fd, end)
        self._size = self._undo_to = end
        self._limit = max(_SMALLEST_LIMIT, end)
        return Recovered(records, found=True, cut=len(data) - end)


def _framed(records: Iterable[bytes]) -> bytes:
    return b"".join(_HEAD.pack(len(record), zlib.crc32(record)) + record for record in records)


def _read(data: bytes, position: int) -> tuple[list[bytes], int]:
    """All whole records from ``position`` on, and where they end."""
    records = []
    while position + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, position)
        start = position + _HEAD.size
        record = data[start : start + length]
        # A run of zeros, as a file system leaves it after a crash, would pass for empty records.
        if not 0 < length <= LONGEST_RECORD or len(record) < length or zlib.crc32(record) != checksum:
            break
        records.append(record)
        position = start + length
    return records, position


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
