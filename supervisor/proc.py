"""What /proc says of other processes. Every answer is a moment's: a process may end while it is looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs

_PROC = Path("/proc")


@attrs.frozen
class Stat:
    """``started`` (clock ticks since boot) tells a process from a later one with the same pid."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int


def stat(pid: int) -> Stat | None:
    """None: no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself contain any character, parentheses too (proc_pid_stat(5)).
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(
        pid=pid,
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        started=int(fields[19]),
    )


def everything() -> Iterator[Stat]:
    for name in os.listdir(_PROC):  # noqa: PTH208 - iterdir would build thousands of Paths
        if name.isdigit():
            found = stat(int(name))
            if found is not None:
                yield found


def children(parent: int) -> list[Stat]:
    """The direct children of a process, zombies included."""
    return [found for found in everything() if found.parent == parent]


def descendants(roots: set[int]) -> list[Stat]:
    """All processes below ``roots``, whatever session or group they put themselves into; parents before children."""
    by_parent: dict[int, list[Stat]] = {}
    for found in everything():
        by_parent.setdefault(found.parent, []).append(found)
    below: list[Stat] = []
    pending = list(roots)
    while pending:
        born = by_parent.pop(pending.pop(0), [])
        below.extend(born)
        pending.extend(child.pid for child in born)
    return below


def command(pid: int) -> str:
    """The command line, shortened; empty when it can't be known."""
    with suppress(OSError):
        words = (_PROC / str(pid) / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        text = b" ".join(words).decode("utf-8", "backslashreplace")
        return "".join(character if character.isprintable() else "?" for character in text)[:200]
    return ""


def socket_inodes(pid: int) -> set[str]:
    """The inodes of a process's sockets, as /proc/net/tcp names them; empty without the permission to look."""
    found = set()
    directory = _PROC / str(pid) / "fd"
    with suppress(OSError):
        for name in os.listdir(directory):  # noqa: PTH208
            with suppress(OSError):
                target = os.readlink(directory / name)  # noqa: PTH115 - the target is no path
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def listening_inodes(port: int) -> set[str]:
    """Inodes of the sockets that listen on this TCP port, in this network namespace."""
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / table).read_text("ascii", "replace").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # TCP_LISTEN
                    found.add(fields[9])
    return found


def holders(port: int) -> list[int]:
    """Pids of the processes that listen on a TCP port, as far as this process may know."""
    inodes = listening_inodes(port)
    return [found.pid for found in everything() if inodes and inodes & socket_inodes(found.pid)]
