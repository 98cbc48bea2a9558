"""What /proc says of the gateway's own processes. Every answer is a moment's: a process may end meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@attrs.frozen
class Process:
    """``open_fds`` is -1 where it may not be known."""

    cpu_s: float
    resident_bytes: int
    open_fds: int


def look(pid: int) -> Process | None:
    """None: no such process (any more)."""
    directory = Path("/proc") / str(pid)
    try:
        # The name stands in parentheses and may itself contain any character (proc_pid_stat(5)); utime and stime are
        # the fields 14 and 15, rss the 24th.
        fields = (directory / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        cpu_s, resident = (int(fields[11]) + int(fields[12])) / _TICK, int(fields[21]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None
    try:
        open_fds = len(os.listdir(directory / "fd"))  # noqa: PTH208 - iterdir would build thousands of Paths
    except OSError:
        open_fds = -1
    return Process(cpu_s, resident, open_fds)
