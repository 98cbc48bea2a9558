"""How long to wait before a child is started again."""

from __future__ import annotations

import attrs

MILLISECOND = 1_000_000
SECOND = 1_000_000_000


@attrs.frozen
class Backoff:
    """At once after the first failure, then doubling from ``base_ns`` up to ``cap_ns``, with jitter.

    A child that was up for ``settle_ns`` or longer has recovered: its next failure counts as a first one.
    """

    base_ns: int = 50 * MILLISECOND
    cap_ns: int = 5 * SECOND
    settle_ns: int = 5 * SECOND

    def delay(self, streak: int, jitter: float) -> int:
        """Nanoseconds to wait after ``streak`` earlier failures in a row. ``jitter`` is in [0, 1).

        The jitter takes away up to half, so that children that fail together don't return together.
        """
        if streak == 0:
            return 0
        # 2 ** 40 doublings are far past any cap; the bound keeps the integer small however long a child fails.
        full = min(self.cap_ns, self.base_ns << min(streak - 1, 40))
        return int(full * (1.0 - 0.5 * jitter))
