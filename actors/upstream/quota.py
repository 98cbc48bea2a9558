"""How much of what a server makes the gateway log is logged."""

from __future__ import annotations

from typing import Final

import attrs

BURST: Final = 200  # lines
PER_S: Final = 20


@attrs.define(eq=False)
class LogQuota:
    """A token bucket of lines, which remembers how many it has left out. Times are in nanoseconds."""

    _tokens: float = BURST
    _refilled_ns: int = 0
    _left_out: int = 0

    def admit(self, now: int) -> int:
        """-1: leave this line out. Otherwise how many were left out before it."""
        self._tokens = min(BURST, self._tokens + (now - self._refilled_ns) * PER_S / 1e9)
        self._refilled_ns = now
        if self._tokens < 1:
            self._left_out += 1
            return -1
        self._tokens -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out
