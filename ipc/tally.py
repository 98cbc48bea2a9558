"""Counters and histograms of one owner, as they lie on his shelf.

A name is a word of ours, and behind it the labels' values: ``key("refusals", "429")``. A histogram is a list: one
count for each bound (of what is not above it and above the bound before it), one for what is above all bounds, and at
the end the sum of all that was observed. Lists of the same bounds are added up element by element, so histograms of
several owners merge exactly.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec

from .shelf import Shelf

_SEPARATOR: Final = "\x1f"

SECONDS: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05,
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
"""Bounds of durations. From 0.01 on they are those that OpenTelemetry's conventions for MCP advise."""

DURATION: Final = tuple(round(bound * 1e9) for bound in SECONDS)
"""The same in nanoseconds, which is what durations are counted in."""

SIZE_BOUNDS: Final = tuple(64 * 4**power for power in range(10))  # bytes: 64 … 16 MiB
BATCH_BOUNDS: Final = tuple(2**power for power in range(12))  # messages: 1 … 2,048


# What acceptors count, by the labels behind the name.
ACCEPTED: Final = "accepted"  # listener
REFUSED: Final = "refused"  # listener, reason
OPENED: Final = "opened"  # transport
CLOSED: Final = "closed"  # transport
TRAFFIC: Final = "traffic"  # listener, what
COUNTED: Final = "counted"  # what: a name of the acceptor's own

# What they measure: durations, unless it says otherwise.
CALL: Final = "call"  # stage (policy or upstream), upstream
OPERATION: Final = "operation"  # upstream, method, error: the whole call
SESSION: Final = "session"  # transport
REQUEST_SIZE: Final = "request_size"  # sizes
RESPONSE_SIZE: Final = "response_size"  # sizes
BATCH: Final = "batch"  # messages

# What workers measure of themselves.
LOOP_LAG: Final = "loop_lag"  # a duration
MAILBOX_MESSAGES: Final = "mailbox_messages"  # actor, lane
MAILBOX_DRAINS: Final = "mailbox_drains"  # actor
MAILBOX_REFUSED: Final = "mailbox_refused"  # actor
MAILBOX_DEPTH: Final = "mailbox_depth"  # actor, lane; a gauge


def key(name: str, *labels: str) -> str:
    return _SEPARATOR.join((name, *labels))


def split(counted: str) -> tuple[str, tuple[str, ...]]:
    """What ``key`` was given."""
    name, *labels = counted.split(_SEPARATOR)
    return name, tuple(labels)


def empty(bounds: tuple[int, ...]) -> list[int]:
    """A histogram of nothing."""
    return [0] * (len(bounds) + 2)


def observe(histogram: list[int], bounds: tuple[int, ...], value: int) -> None:
    histogram[bisect_left(bounds, value)] += 1
    histogram[-1] += value


class Tally(msgspec.Struct):
    """``gauges`` hold now; the rest only ever grows."""

    counters: dict[str, int] = {}
    histograms: dict[str, list[int]] = {}
    gauges: dict[str, float] = {}

    @classmethod
    def load(cls, shelf: Shelf) -> Tally:
        """What lies there; an empty one when nothing does, or nothing that can be read."""
        try:
            return _decoder.decode(shelf.read())
        except msgspec.MsgspecError:
            return cls()

    def histogram(self, name: str, bounds: tuple[int, ...]) -> list[int]:
        """The list to count in. One of other bounds that lay there is dropped."""
        found = self.histograms.get(name)
        if found is None or len(found) != len(bounds) + 2:
            found = self.histograms[name] = empty(bounds)
        return found

    def count(self, name: str, more: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + more

    def add(self, other: Tally) -> None:
        """Counters and histograms of another owner. His gauges are his own."""
        for name, value in other.counters.items():
            self.count(name, value)
        for name, values in other.histograms.items():
            mine = self.histograms.setdefault(name, [0] * len(values))
            if len(mine) == len(values):
                self.histograms[name] = [a + b for a, b in zip(mine, values, strict=True)]

    def put(self, shelf: Shelf) -> None:
        """Raises ValueError: too much for a place."""
        shelf.put(msgspec.json.encode(self))


_decoder = msgspec.json.Decoder(Tally)
