"""What one acceptor counts and measures: on its shelf, where it outlives the worker and is read without asking.

A message costs next to nothing here: what a connection has sent and received it counts itself, and that is added up
ten times a second; what is left for a call are a few steps into lists of whole numbers, and only with
PERFORMANCE_MONITORING. A worker that is killed takes at most the last tenth of a second with it, and nothing that was
shown before ever goes back.

The names are those of ``actors.admin.metrics``. No label holds anything that a client chose: what isn't in one of the
lists here is counted as ``other``.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from ipc.shelf import Shelf
from ipc.tally import (
    ACCEPTED,
    BATCH,
    BATCH_BOUNDS,
    CALL,
    CLOSED,
    COUNTED,
    DURATION,
    OPENED,
    OPERATION,
    REFUSED,
    REQUEST_SIZE,
    RESPONSE_SIZE,
    SESSION,
    SIZE_BOUNDS,
    TRAFFIC,
    Tally,
    key,
    observe,
)

from .connection import Call, Connection, Stage

log = logging.getLogger("portcullis.acceptor")

EVERY_NS: Final = 100_000_000
OTHER: Final = "other"

METHODS: Final = frozenset(
    {
        "completion/complete",
        "elicitation/create",
        "initialize",
        "logging/setLevel",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "roots/list",
        "sampling/createMessage",
        "server/discover",
        "subscriptions/listen",
        "tasks/cancel",
        "tasks/get",
        "tasks/list",
        "tasks/result",
        "tools/call",
        "tools/list",
    }
)
"""The requests of MCP. Everything else is ``other``."""

REASONS: Final = frozenset(
    {"auth", "block", "draining", "handshake", "host", "limit", "origin", "rate", "timeout", "tls", "unavailable"}
)
"""Why a connection may be refused."""

_TRAFFIC: Final = ("messages_in", "messages_out", "bytes_in", "bytes_out")


class Meter:
    """Args:
    shelf: the acceptor's own place.

    ``measuring`` says whether calls and turns are measured; connections and messages are counted whatever it is.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._tally = Tally.load(shelf)
        self._next_ns = 0
        self._policy: dict[str, list[int]] = {}  # by upstream
        self._calls: dict[tuple[str, str, str], tuple[list[int], list[int]]] = {}  # by upstream, method, error
        self._batches = self._tally.histogram(BATCH, BATCH_BOUNDS)
        self._requests = self._tally.histogram(REQUEST_SIZE, SIZE_BOUNDS)
        self._responses = self._tally.histogram(RESPONSE_SIZE, SIZE_BOUNDS)
        self.measuring = False
        self.arrived = 0  # messages, in this turn

    # --- counting ------------------------------------------------------------------------------------------------

    def count(self, what: str) -> None:
        """``what`` is a name of ours."""
        self._tally.count(key(COUNTED, what))

    def accepted(self, listener: str) -> None:
        self._tally.count(key(ACCEPTED, listener))

    def refused(self, connection: Connection, reason: str) -> None:
        self._tally.count(key(REFUSED, connection.listener, reason if reason in REASONS else OTHER))

    def opened(self, connection: Connection) -> None:
        self._tally.count(key(OPENED, connection.transport))

    def left(self, connection: Connection, now: int) -> None:
        """A connection that was open is no more."""
        self._tally.count(key(CLOSED, connection.transport))
        if self.measuring:
            histogram = self._tally.histogram(key(SESSION, connection.transport), DURATION)
            observe(histogram, DURATION, now - connection.opened_ns)

    def closed(self, connection: Connection) -> None:
        """Its socket is closed: what it has counted is final."""
        _add_traffic(self._tally.counters, connection)

    # --- measuring -----------------------------------------------------------------------------------------------

    def forwarded(self, call: Call, upstream: str, received_ns: int) -> None:
        """The call is on its way to its upstream."""
        forwarded_ns = call.forwarded_ns = time.monotonic_ns()
        took = forwarded_ns - received_ns
        histogram = self._policy.get(upstream)
        if histogram is None:
            histogram = self._policy[upstream] = self._tally.histogram(key(CALL, "policy", upstream), DURATION)
        histogram[bisect_left(DURATION, took)] += 1
        histogram[-1] += took
        call.received_ns = received_ns

    def ended(self, call: Call, upstream: str, error: str, size: int) -> None:
        """The call has its answer, or will have none. ``error`` is empty when it was answered by its server."""
        if not call.deadline_ns:
            return  # a subscription: its length says nothing of how fast anything is
        now = time.monotonic_ns()
        histograms = self._calls.get((upstream, call.method, error))
        if histograms is None:
            histograms = self._of(upstream, call.method, error)
        operation, waited = histograms
        took = now - (call.received_ns or call.started_ns)
        operation[bisect_left(DURATION, took)] += 1
        operation[-1] += took
        forwarded_ns = call.forwarded_ns
        if forwarded_ns:
            took = now - forwarded_ns
            waited[bisect_left(DURATION, took)] += 1
            waited[-1] += took
        sizes = self._requests
        sizes[bisect_left(SIZE_BOUNDS, call.size)] += 1
        sizes[-1] += call.size
        if not error:
            sizes = self._responses
            sizes[bisect_left(SIZE_BOUNDS, size)] += 1
            sizes[-1] += size

    def turned(self) -> None:
        """A turn in which messages arrived is over."""
        if self.measuring:
            observe(self._batches, BATCH_BOUNDS, self.arrived)
        self.arrived = 0

    def _of(self, upstream: str, method: str, error: str) -> tuple[list[int], list[int]]:
        """Remembered for the methods that are known; others are few, or somebody's invention."""
        known = method in METHODS
        tally = self._tally
        found = (
            tally.histogram(key(OPERATION, upstream, method if known else OTHER, error), DURATION),
            tally.histogram(key(CALL, "upstream", upstream), DURATION),
        )
        if known:
            self._calls[(upstream, method, error)] = found
        return found

    # --- the shelf -----------------------------------------------------------------------------------------------

    def tick(self, now: int, connections: Iterable[Connection]) -> None:
        """Ten times a second, whoever calls more often."""
        if now >= self._next_ns:
            self._next_ns = now + EVERY_NS
            self.publish(connections)

    def publish(self, connections: Iterable[Connection]) -> None:
        """Put down what is known now, with what the connections that live have counted so far."""
        counters = self._tally.counters
        shown = dict(counters)
        for connection in connections:
            if connection.stage is not Stage.CLOSED:
                _add_traffic(shown, connection)
        try:
            Tally(shown, self._tally.histograms).put(self._shelf)
        except ValueError as error:
            log.warning("what is counted is not shown any more: %s", error)


_TRAFFIC_KEYS: Final = {
    listener: tuple((key(TRAFFIC, listener, what), what) for what in _TRAFFIC) for listener in ("ws", "tcp")
}


def _add_traffic(counters: dict[str, int], connection: Connection) -> None:
    for name, what in _TRAFFIC_KEYS[connection.listener]:
        counters[name] = counters.get(name, 0) + getattr(connection, what)
