"""The circuit breaker of one upstream.

States and what moves between them::

    closed    --failures in a row, or too high a rate of them-->  open
    open      --its time is over-->                               half-open
    half-open --enough successes-->                               closed
    half-open --one failure-->                                    open, for twice as long

A *failure* is the death of the upstream (one, however many calls were in flight, and however many workers had a
connection to it) or a call that timed out while the upstream was silent; an answer that is an error is a success here.
Outcomes that come in while it is open belong to calls from before and change nothing.

In the half-open state each subscriber is given *permits*: how many calls it may have in flight. All permits together
are as many as the rule says. A subscriber tells how many it uses, and whether it wants for one; those that nobody uses
are then dealt to whoever wants them, and now and then to the next one in turn, so that a subscriber without traffic
doesn't keep the circuit from closing. Answers that were slow are counted: when there are enough of them, too high a
share of slow ones opens it again.

Times are monotonic nanoseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import attrs
import msgspec

from ipc.messages import CircuitState

# The failure rate is that of the last minute, forgotten in steps of five seconds.
_BUCKETS = 12
_BUCKET_NS = 5_000_000_000
# The open time doubles at most to this multiple of the first, and never past this.
_MOST_DOUBLINGS = 5
_LONGEST_OPEN_NS = 600_000_000_000
# Of the open time, up to so much is added, so that several breakers do not probe in step.
_JITTER = 0.1
# How long unused permits stay with a subscriber.
PERMITS_DEALT_FOR_NS = 5_000_000_000
# Within so long of the first who noticed, a death that others notice too is the same one.
SAME_DEATH_NS = 2_000_000_000


@attrs.frozen
class CircuitRules:
    failure_threshold: int  # failures in a row
    reset_timeout_ns: int  # the first open time
    failure_rate: float  # of failures and slow calls among all
    minimum_calls: int  # before the rate means anything
    half_open_calls: int  # permits at a time, over all subscribers
    successes_to_close: int


class CircuitRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a circuit remembers over a restart."""

    upstream: str
    state: CircuitState
    retry_at_ns: int
    openings: int
    failures_in_row: int


@attrs.frozen
class Transition:
    """``why`` is ``deaths``, ``silent``, ``rate``, ``time``, ``probes``, ``reset`` or ``unknown``."""

    upstream: str
    state: CircuitState
    why: Literal["deaths", "silent", "rate", "time", "probes", "reset", "unknown"]
    open_for_ms: int = 0


@attrs.define
class _Bucket:
    starts_ns: int
    calls: int = 0
    bad: int = 0


class CircuitBreaker:
    """Args: ``jitter`` gives numbers in [0, 1)."""

    def __init__(self, upstream: str, rules: CircuitRules, jitter: Callable[[], float]) -> None:
        self.upstream = upstream
        self.state: CircuitState = "closed"
        self.retry_at_ns = 0  # open: when it becomes half-open
        self.openings = 0  # in a row, without having been closed in between
        self._rules = rules
        self._jitter = jitter
        self._failures_in_row = 0
        self._buckets: deque[_Bucket] = deque()
        self._successes = 0  # half-open: seen so far, slow ones included
        self._slow = 0  # those of them that were slow
        self._death_ns = 0  # of the last death: when the first source told of it
        self._death_seen_by: set[str] = set()
        self._dealt_at_ns = 0
        self._turn = 0  # which subscriber is dealt to first

    # --- what moves it

    def record(
        self, successes: int, deaths: int, silent: int, slow: int, now: int, source: str = ""
    ) -> list[Transition]:
        """Outcomes counted by one source since its last report. In which order they came is not known: the worst is
        assumed, that the failures were the last."""
        deaths = self._first_told(deaths, source, now)
        if self.state == "open":
            return []
        failures = deaths + silent
        good = successes + slow
        if self.state == "half_open":
            return self._probed(good, deaths, silent, slow, now)
        self._count(good + failures, failures + slow, now)
        self._failures_in_row = failures + (0 if good else self._failures_in_row)
        if failures and self._failures_in_row >= self._rules.failure_threshold:
            return [self._open("deaths" if deaths else "silent", now)]
        if failures + slow and self._is_rate_too_high(now):
            return [self._open("rate", now)]
        return []

    def tick(self, now: int) -> list[Transition]:
        if self.state == "open" and now >= self.retry_at_ns:
            return [self._half_open("time")]
        return []

    def reset(self) -> list[Transition]:
        """An operator's word: closed, whatever was."""
        return [] if self.state == "closed" else [self._close("reset")]

    def doubt(self) -> list[Transition]:
        """Nothing is known about it: find out carefully."""
        return [self._half_open("unknown")]

    # --- permits

    def deal(
        self, subscribers: Sequence[str], in_flight: Mapping[str, int], wanting: Sequence[str], now: int
    ) -> dict[str, int]:
        """How many permits each subscriber has from now on: those that it uses, and its share of the others.

        ``in_flight``: the probes of each, as it told. ``wanting``: who has refused a call for want of a permit; they
        share what is left, and without them all do.
        """
        permits = dict.fromkeys(subscribers, 0)
        if self.state != "half_open":
            return permits
        self._dealt_at_ns = now
        left = self._rules.half_open_calls
        for name in subscribers:
            permits[name] = min(in_flight.get(name, 0), left)
            left -= permits[name]
        takers = [name for name in subscribers if name in wanting] or subscribers
        if takers:
            for index in range(left):
                permits[takers[(self._turn + index) % len(takers)]] += 1
            self._turn = (self._turn + left) % len(takers)
        return permits

    def deal_due_ns(self) -> int | None:
        """When permits that nobody uses have to be dealt anew."""
        return self._dealt_at_ns + PERMITS_DEALT_FOR_NS if self.state == "half_open" else None

    # --- memory

    def remember(self) -> CircuitRecord:
        return CircuitRecord(self.upstream, self.state, self.retry_at_ns, self.openings, self._failures_in_row)

    def restore(self, record: CircuitRecord, now: int) -> None:
        """Take up what was remembered. A half-open circuit begins its probes anew."""
        self.state = record.state
        self.openings = record.openings
        self._failures_in_row = record.failures_in_row
        # Clocks differ at most by a boot, whose records are not restored; a bound costs nothing.
        self.retry_at_ns = min(record.retry_at_ns, now + 2 * _LONGEST_OPEN_NS)
        self._successes = 0
        self._slow = 0

    # --- inside

    def _first_told(self, deaths: int, source: str, now: int) -> int:
        """How many of these deaths are news. A source that has told of one tells of the next one."""
        if not deaths:
            return 0
        if source not in self._death_seen_by and self._death_seen_by and now - self._death_ns <= SAME_DEATH_NS:
            self._death_seen_by.add(source)
            deaths -= 1
            if not deaths:
                return 0
        self._death_ns = now
        self._death_seen_by = {source}
        return deaths

    def _probed(self, good: int, deaths: int, silent: int, slow: int, now: int) -> list[Transition]:
        if deaths or silent:
            return [self._open("deaths" if deaths else "silent", now)]
        self._successes += good
        self._slow += slow
        if self._successes < self._rules.successes_to_close:
            return []
        if self._slow and self._slow >= self._rules.failure_rate * self._successes:
            return [self._open("rate", now)]
        return [self._close("probes")]

    def _open(self, why: Literal["deaths", "silent", "rate"], now: int) -> Transition:
        doublings = min(self.openings, _MOST_DOUBLINGS)
        time_open = min(self._rules.reset_timeout_ns << doublings, max(_LONGEST_OPEN_NS, self._rules.reset_timeout_ns))
        time_open += int(time_open * _JITTER * self._jitter())
        self.openings += 1
        self.state = "open"
        self.retry_at_ns = now + time_open
        self._forget()
        return Transition(self.upstream, "open", why, time_open // 1_000_000)

    def _half_open(self, why: Literal["time", "unknown"]) -> Transition:
        self.state = "half_open"
        self.retry_at_ns = 0
        self._forget()
        return Transition(self.upstream, "half_open", why)

    def _close(self, why: Literal["probes", "reset"]) -> Transition:
        self.state = "closed"
        self.retry_at_ns = 0
        self.openings = 0
        self._forget()
        return Transition(self.upstream, "closed", why)

    def _forget(self) -> None:
        self._failures_in_row = 0
        self._successes = 0
        self._slow = 0
        self._buckets.clear()

    def _count(self, calls: int, bad: int, now: int) -> None:
        if not calls:
            return
        if not self._buckets or now >= self._buckets[-1].starts_ns + _BUCKET_NS:
            self._buckets.append(_Bucket(now))
            if len(self._buckets) > _BUCKETS:
                self._buckets.popleft()
        self._buckets[-1].calls += calls
        self._buckets[-1].bad += bad

    def _is_rate_too_high(self, now: int) -> bool:
        recent = [bucket for bucket in self._buckets if bucket.starts_ns > now - _BUCKETS * _BUCKET_NS]
        calls = sum(bucket.calls for bucket in recent)
        bad = sum(bucket.bad for bucket in recent)
        return calls >= self._rules.minimum_calls and bad >= self._rules.failure_rate * calls
