"""One warm interpreter that waits to become whichever worker dies next.

Starting Python and importing what an edge needs takes longer than everything else in a replacement.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import attrs

from .backoff import SECOND, Backoff
from .spawn import Process

log = logging.getLogger("supervisor.standby")

_WARMING_NS = 10 * SECOND
"""One that has not said Hello by then never will."""


@attrs.define(eq=False)
class Standby:
    """``spawn`` starts a process; None: there is to be no standby. ``check`` has to be called again and again."""

    _spawn: Callable[[], Process] | None
    _backoff: Backoff = attrs.field(factory=Backoff)
    _process: Process | None = attrs.field(default=None, init=False)
    _since_ns: int = attrs.field(default=0, init=False)
    _due_ns: int = attrs.field(default=0, init=False)
    _failures: int = attrs.field(default=0, init=False)

    def take(self) -> Process | None:
        """Give it away, warm or warming: it is ahead of a new one in any case. Its successor comes a second later,
        or at the next ``refresh``, so that the two don't share the processor."""
        process = self._process
        if process is None or process.fencing:
            return None
        self._process = None
        self._due_ns = time.monotonic_ns() + SECOND
        return process

    def refresh(self) -> None:
        """Have one, now."""
        if self._process is not None or self._spawn is None:
            return
        self._since_ns = time.monotonic_ns()
        try:
            self._process = self._spawn()
        except OSError as error:
            self._failed(str(error))

    def check(self) -> None:
        """Replace one that is missing or stuck."""
        now = time.monotonic_ns()
        if self._process is None:
            if now >= self._due_ns:
                self.refresh()
        elif not self._process.hello and now - self._since_ns > _WARMING_NS:
            self._process.kill("did not warm up in time")

    def gone(self, process: Process) -> None:
        """A process has exited; no-op if it is not this one."""
        if process is self._process:
            self._process = None
            self._failed(process.ending())

    def _failed(self, how: str) -> None:
        now = time.monotonic_ns()
        if now - self._since_ns > self._backoff.settle_ns:
            self._failures = 0
        self._due_ns = now + self._backoff.delay(self._failures, 0.0)
        self._failures += 1
        log.warning("the standby is gone: %s", how)
