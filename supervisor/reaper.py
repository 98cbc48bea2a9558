"""Processes that nobody else cares for any more: orphans are ended, the dead among them are reaped.

The supervisor is the init process of a container or a child subreaper, so whatever its workers leave behind becomes
its own child: the stdio servers of a bridge that died, and what those started, in whatever session they are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Container
from contextlib import suppress

import trio

from . import proc

_ROUNDS = 50
"""A process may fork while the list is read; after so many rounds of SIGKILL it is a fork bomb, not a server."""

_LOOK_S = 0.02
_TERM_GRACE_S = 0.5
_KILL_GRACE_S = 2.0


def reap_unknown(known: Container[int]) -> list[int]:
    """Reap the dead children that are not in ``known``; returns their pids.

    waitid with WNOWAIT shows the first dead child and leaves it. If that one is known, its exit code belongs to
    whoever waits for it, and the ones behind it have to wait for the next call.
    """
    reaped: list[int] = []
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return reaped
        if found is None or found.si_pid in known:
            return reaped
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
        reaped.append(found.si_pid)


def orphans(known: Container[int]) -> list[proc.Stat]:
    """The living children of this process that are not in ``known``, and everything below them."""
    adopted = [child for child in proc.children(os.getpid()) if child.pid not in known]
    below = proc.descendants({child.pid for child in adopted})
    return [found for found in (*adopted, *below) if found.state not in "ZX"]


def send(number: signal.Signals, processes: list[proc.Stat]) -> None:
    """To each, if it is still the same process; a stopped one is continued, so that it can act on it."""
    for process in processes:
        now = proc.stat(process.pid)
        if now is None or now.started != process.started:
            continue
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)
            if now.state in "Tt":
                os.kill(process.pid, signal.SIGCONT)


def kill_descendants(pid: int) -> None:
    """SIGKILL everything below a process, until nothing is left. Blocks for a few milliseconds."""
    for _ in range(_ROUNDS):
        below = [found for found in proc.descendants({pid}) if found.state not in "ZX"]
        if not below:
            return
        send(signal.SIGKILL, below)


async def end_orphans(known: Callable[[], Container[int]]) -> int:
    """SIGTERM for all orphans, then SIGKILL for those that stay; returns how many there were. Reaps them.

    The supervisor must be a subreaper; an orphan's own orphans then come to it in turn.
    """
    found = orphans(known())
    send(signal.SIGTERM, found)
    count = len(found)
    waited = 0.0
    while found:
        await trio.sleep(_LOOK_S)
        waited += _LOOK_S
        reap_unknown(known())
        found = orphans(known())
        if waited >= _TERM_GRACE_S:
            send(signal.SIGKILL, found)
        if waited >= _TERM_GRACE_S + _KILL_GRACE_S:
            break  # in uninterruptible sleep; the kernel has the signal and will act on it
    return count
