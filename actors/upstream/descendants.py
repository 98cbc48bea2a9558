"""The processes below a process, and how to end them, however they try to get away.

A server's own group is not all of it: a launcher's child may have called ``setsid``, and one that forked twice has
lost its parent too. The kernel gives such an orphan to the nearest *subreaper* above it (prctl(2),
PR_SET_CHILD_SUBREAPER), which the bridge makes of itself; so everything that a server ever started stays below the
bridge in the tree, and can be found there.

A process is named by its number *and* its start time, because numbers are used again; it is signalled through a pidfd
after both have been compared.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37

_ROUND_S = 0.01
_ROUNDS = 200


class Process(NamedTuple):
    """A process, for good: ``started`` is in clock ticks since the boot."""

    pid: int
    started: int


class Stat(NamedTuple):
    """What is needed of /proc/PID/stat (proc(5))."""

    process: Process
    state: str
    parent: int
    group: int
    session: int


def stat(pid: int) -> Stat | None:
    """Look at a process; None when there is none of that number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in brackets, may hold anything, brackets and blanks too: what counts follows the last bracket.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(
        Process(pid, int(fields[19])), fields[0].decode("ascii"), int(fields[1]), int(fields[2]), int(fields[3])
    )


def children(pid: int) -> list[int]:
    """The numbers of a process's children, zombies included. Empty when the process is gone.

    While processes come and go a child may be missing from one reading (proc(5)), so whoever must be sure reads again.
    """
    found: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return found
    for thread in threads:
        try:
            found += map(int, (thread / "children").read_bytes().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants(pid: int) -> list[Stat]:
    """Everything below ``pid``, parents before their children; not ``pid`` itself."""
    found: list[Stat] = []
    queue = children(pid)
    seen: set[int] = set()
    while queue:
        child = queue.pop(0)
        if child in seen:
            continue
        seen.add(child)
        status = stat(child)
        if status is not None:
            found.append(status)
            queue += children(child)
    return found


def send_signal(process: Process, number: signal.Signals) -> bool:
    """Signal exactly this process. False when it is gone (or was never ours to signal)."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        status = stat(process.pid)
        if status is None or status.process != process:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(descriptor)
    return True


def signal_group(group: int, number: signal.Signals) -> None:
    """Signal a group whose leader is a child of ours that we have not reaped (so the number is still its own)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def reap(pids: Iterable[int]) -> None:
    """Collect those of our children that have ended. Never any other: their exit codes belong to somebody else."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def kill_below(spare: Callable[[Stat], bool]) -> bool:
    """SIGKILL everything below this process, and wait for it: with no trio, from any thread.

    Round by round, because what is being killed may be forking, and because the children of a killed process are
    ours only after its death. ``spare`` says which of our own children to leave alone, with all that is below them.

    Returns False when something was left after two seconds (a process in uninterruptible sleep).
    """
    quiet = 0
    for _ in range(_ROUNDS):
        own = [status for status in map(stat, children(os.getpid())) if status is not None and not spare(status)]
        if not own:
            quiet += 1
            if quiet == 2:
                return True
            continue
        quiet = 0
        for child in own:
            for status in (child, *descendants(child.process.pid)):
                if status.state != "Z":
                    send_signal(status.process, signal.SIGKILL)
        reap(child.process.pid for child in own)
        time.sleep(_ROUND_S)
    return False


def become_subreaper(wanted: bool = True) -> bool:
    """Have orphans from below given to this process (or no longer). Returns how it was before."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    if libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_GET_CHILD_SUBREAPER)")
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    return bool(before.value)
