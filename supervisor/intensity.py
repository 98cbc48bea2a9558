"""Restart intensity: how many restarts are bearable, counted in a window that slides."""

from __future__ import annotations

import attrs

Moments = tuple[int, ...]


@attrs.frozen
class Intensity:
    """More than ``limit`` restarts within any ``window_ns`` are too many (as OTP's ``intensity`` and ``period``)."""

    limit: int
    window_ns: int

    def record(self, history: Moments, now: int) -> Moments:
        """With one more restart at ``now``. The last ``limit`` + 1 are all that ever matter."""
        return (*history, now)[-(self.limit + 1) :]

    def exceeded(self, history: Moments, now: int) -> bool:
        oldest = now - self.window_ns
        return sum(moment > oldest for moment in history) > self.limit
