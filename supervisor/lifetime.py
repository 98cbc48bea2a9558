"""A worker ends with its supervisor, whatever state either is in.

The supervisor holds the write end of a pipe and never writes. A plain thread in each worker waits for its end of
file: that comes when the supervisor exits, is killed, or is replaced, and it is acted on even while the loop hangs. A
worker that is stopped runs no thread; for it there is the parent-death signal, which the worker sets itself (set by
the parent before exec it would not survive every exec, and it is tied to the parent's *thread*).
"""

from __future__ import annotations

import os
import signal
import threading

from . import kernel, reaper


class Lifetime:
    """Watches from its making on. Args: the pipe's read end, and the pid that the parent had when it started this."""

    def __init__(self, descriptor: int, parent: int) -> None:
        self._descriptor = descriptor
        self._hosts_children = False
        kernel.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:  # it died before the signal was set
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=self._watch, name="lifetime", daemon=True).start()

    def host_children(self) -> None:
        """From now on this process has children, which have to end before it does.

        SIGKILL would leave them behind, so the parent's death only wakes this process if it is stopped (SIGCONT);
        the thread does the rest. As a subreaper this process keeps the orphans among its descendants below it, where
        they can be found even when the supervisor is gone. Whoever starts the children reaps those orphans too.
        """
        self._hosts_children = True
        kernel.become_subreaper()
        kernel.die_with_parent(signal.SIGCONT)

    def end_children(self) -> None:
        """Before any exit of this process: whatever its actors have left."""
        if self._hosts_children:
            reaper.kill_descendants(os.getpid())

    def _watch(self) -> None:
        while os.read(self._descriptor, 1):
            pass
        self.end_children()
        os.kill(os.getpid(), signal.SIGKILL)
