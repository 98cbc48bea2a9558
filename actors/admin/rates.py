"""How much passes through the gateway a second: from the acceptors' totals, looked at about once a second. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

import attrs

from .survey import View

HISTORY: Final = 120
"""Looks that are remembered: two minutes."""

SPAN_NS: Final = 5_000_000_000
"""What a present rate is the mean of."""

CLOSEST_NS: Final = 500_000_000
"""Looks that come sooner after one another are left out: they would show noise."""

COUNTED: Final = ("messages_in", "messages_out", "bytes_in", "bytes_out", "refused", "opened")
_NS: Final = 1e9


@attrs.frozen
class Look:
    """What had passed at ``at_ns`` since the first look, by name."""

    at_ns: int
    passed: dict[str, int]


@attrs.define(eq=False)
class Rates:
    """An acceptor that starts anew counts from 0 again: what it shows then is what has passed since."""

    looks: deque[Look] = attrs.field(factory=lambda: deque(maxlen=HISTORY + 1))
    _last: dict[str, dict[str, int]] = attrs.field(factory=dict)  # by acceptor

    def observe(self, views: Iterable[View], now_ns: int) -> None:
        """``views`` are the acceptors'. One that did not answer has passed nothing for now; it catches up."""
        if self.looks and now_ns - self.looks[-1].at_ns < CLOSEST_NS:
            return
        passed = dict(self.looks[-1].passed) if self.looks else dict.fromkeys(COUNTED, 0)
        for view in views:
            totals = view.data.get("totals")
            if not isinstance(totals, dict):
                continue
            seen = {name: _number(totals.get(name)) for name in COUNTED}
            before = self._last.get(view.name)
            self._last[view.name] = seen
            if before is None and not self.looks:
                continue  # what passed before the first look belongs to no second that is known
            for name in COUNTED:
                had = before[name] if before is not None else 0
                passed[name] += seen[name] - had if seen[name] >= had else seen[name]
        self.looks.append(Look(now_ns, passed))

    def present(self) -> dict[str, float]:
        """A second, over the last few."""
        if len(self.looks) < 2:
            return dict.fromkeys(COUNTED, 0.0)
        last = self.looks[-1]
        first = next((look for look in self.looks if last.at_ns - look.at_ns <= SPAN_NS), last)
        if first is last:
            first = self.looks[-2]
        return _between(first, last)

    def history(self) -> list[dict[str, float]]:
        """A second, between one look and the next, oldest first; ``age_s`` before the last one."""
        looks = list(self.looks)
        end = looks[-1].at_ns if looks else 0
        return [
            {"age_s": round((end - after.at_ns) / _NS, 1), **_between(before, after)}
            for before, after in pairwise(looks)
        ]


def _between(first: Look, last: Look) -> dict[str, float]:
    seconds = max(last.at_ns - first.at_ns, 1) / _NS
    return {name: round((last.passed[name] - first.passed[name]) / seconds, 1) for name in COUNTED}


def _number(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
