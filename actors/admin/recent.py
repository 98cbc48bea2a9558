"""The end of the audit log, for the eyes of operators: the last records, as they are written.

Read from the file and not asked of the actor: what led to its death is to be seen just then. Nothing is checked here
(``mcp-security-audit verify`` does that), and a file that can't be read shows as such.

Only looked at while somebody asks. The open file is followed; one that was rotated is read to its end before the new
one is opened. Should several have been since the last look, the newest of them is looked at too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from ..audit_log import ACTIVE
from ..policy.chain import BadRecord, read_unverified

KEPT: Final = 512
"""Records that are remembered."""

CALL: Final = "call.completed"
CALLS_KEPT: Final = 200
"""Of calls, which are kept apart: in a busy gateway they would push out everything else."""

MOST_AT_ONCE: Final = 200
"""Records of one answer."""

_FIRST_BYTES: Final = 256 * 1024
"""Of a file that is opened: its end. A few hundred records."""

_BYTES: Final = 1024 * 1024
"""Of one look. What was written beyond that since the last one is skipped: the page shows what is new."""

_HASHES: Final = frozenset({"prev", "hash"})
_UNREADABLE: Final = "the audit log can't be read: "


@attrs.define(eq=False)
class Recent:
    """Follows ``directory``'s active file.

    ``last`` is the newest record's number. ``trouble`` says why there is nothing to see, empty if there is.
    """

    directory: Path
    records: deque[dict[str, Any]] = attrs.field(factory=lambda: deque(maxlen=KEPT))
    calls: deque[dict[str, Any]] = attrs.field(factory=lambda: deque(maxlen=CALLS_KEPT))
    last: int = 0
    trouble: str = ""
    _fd: int = -1
    _rest: bytes = b""
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def look(self) -> None:
        """Take in what was written since the last time. A disk that hangs holds up nobody but the one who asks."""
        async with self._lock:
            await trio.to_thread.run_sync(self._look)

    def after(self, seq: int, most: int, *, calls: bool = False) -> list[dict[str, Any]]:
        """The newest ``most`` records whose number is larger than ``seq``, oldest first; ``calls``: those too."""
        newer = [record for record in self.records if record["seq"] > seq]
        if calls:
            newer += [record for record in self.calls if record["seq"] > seq]
            newer.sort(key=lambda record: int(record["seq"]))
        return newer[-min(most, MOST_AT_ONCE) :]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _look(self) -> None:
        try:
            if self._fd >= 0:
                self._read()
                if self._is_followed():
                    return
                self.close()
            self._open()
        except OSError as error:
            self.close()
            self.trouble = f"{_UNREADABLE}{error.strerror}"
        else:
            self.trouble = ""

    def _open(self) -> None:
        active = _opened(self.directory / ACTIVE)
        rotated = max(self.directory.glob(f"{ACTIVE}.{'[0-9]' * 12}"), default=None)
        if rotated is not None:
            self._fd = _opened(rotated)
            self._begin()
            self.close()
        self._fd = active
        self._begin()

    def _begin(self) -> None:
        self._rest = b""
        self._skip_to_last(_FIRST_BYTES)
        self._read()

    def _read(self) -> None:
        self._skip_to_last(_BYTES)
        left = _BYTES
        while left > 0 and (data := os.read(self._fd, left)):
            left -= len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._take(line)

    def _skip_to_last(self, size: int) -> None:
        """Leave out what lies further back, and the line that is cut by that."""
        end = os.fstat(self._fd).st_size
        if end - os.lseek(self._fd, 0, os.SEEK_CUR) > size:
            os.lseek(self._fd, end - size, os.SEEK_SET)
            self._rest = b""

    def _is_followed(self) -> bool:
        """Whether this is still the active file, and not shorter than what was read of it."""
        ours = os.fstat(self._fd)
        there = (self.directory / ACTIVE).stat()
        same = (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
        return same and os.lseek(self._fd, 0, os.SEEK_CUR) <= ours.st_size

    def _take(self, line: bytes) -> None:
        try:
            members = read_unverified(line)[0].members
        except BadRecord:
            return  # half a line at the start, or a stranger's, which ``verify`` names
        seq = members["seq"]
        if isinstance(seq, int) and seq > self.last:
            self.last = seq
            kept = self.calls if members["event"] == CALL else self.records
            kept.append({name: value for name, value in members.items() if name not in _HASHES})


def _opened(path: Path) -> int:
    """Of a regular file; neither a link nor a pipe that somebody has put there leads elsewhere or is waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file")
    return fd
