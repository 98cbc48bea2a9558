"""Leases: exactness over several acceptors, with delays, losses and crashes, in virtual time."""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.journal import Journal
from actors.lease_book import LeaseBook
from actors.policy.leases import Denied, Forfeited, Granted, LeasePolicy, LeaseRecord, Logged, Reported
from actors.policy.window import WindowRule
from ipc.messages import Exhausted, Lease, LeaseReport, LeaseRequest

MS = 1_000_000
S = 1_000 * MS
KEYS = ("principal:ann", "ip:192.0.2.1")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Granted | Reported | Forfeited | Logged).decode


class Simulation:
    """Acceptors with a book each, one limiter with a journal, and a network that delays and (on request) loses.

    Delays keep the order of what one side sends to another, as a channel does.
    """

    def __init__(self, rules: tuple[WindowRule, ...], books: int, seed: int, path: Path, *, slowest_ns: int) -> None:
        self.rules = rules
        self.random = random.Random(seed)
        self.path = path
        self.slowest_ns = slowest_ns
        self.now = S
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.order = 0
        self.admitted: list[int] = []
        self.incarnations = [1] * books
        self.books = [LeaseBook(f"acceptor.{i}") for i in range(books)]
        self.last_sent: dict[object, int] = {}
        self.loss = 0.0
        self.limiter_life = 0
        self.policy = LeasePolicy(rules)
        self.journal, recovered = Journal.open(path, "limiter")
        assert not recovered.records

    def at(self, when: int, what: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.events, (when, self.order, what))

    def send(self, link: object, what: Callable[[], None]) -> None:
        when = max(self.now + self.random.randrange(1, self.slowest_ns), self.last_sent.get(link, 0))
        self.last_sent[link] = when
        self.at(when, what)

    def run(self, until: int) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = until

    # --- an acceptor

    def message(self, i: int, *, parked: int = 1) -> None:
        book = self.books[i]
        if book.take(KEYS, self.now):
            self.admitted.append(self.now)
            self.ask(i, 0)
        elif not book.retry_after_ms(KEYS, self.now):
            self.ask(i, parked)

    def ask(self, i: int, parked: int) -> None:
        book, incarnation = self.books[i], self.incarnations[i]
        request = book.want(KEYS, self.now, parked)
        if request is None:
            return
        self.report(i)

        def answered(answer: Lease | Exhausted | None) -> None:
            if self.incarnations[i] != incarnation:
                return
            if isinstance(answer, Lease):
                book.granted(answer, self.now)
                for _ in range(parked):
                    if book.take(KEYS, self.now):
                        self.admitted.append(self.now)
            elif isinstance(answer, Exhausted):
                book.exhausted(answer, self.now)
            else:
                book.unanswered(KEYS, self.now)

        life = self.limiter_life
        lost = self.random.random() < self.loss

        def arrive() -> None:
            answer = None if self.limiter_life != life else self.lease(request, incarnation)
            self.send(("down", i), lambda: answered(None if lost else answer))

        self.send(("up", i), arrive)

    def report(self, i: int) -> None:
        for report in self.books[i].due_reports(self.now):
            if self.random.random() >= self.loss:
                self.send(("up", i), lambda report=report: self.reported(report))

    def crash_book(self, i: int) -> None:
        self.incarnations[i] += 1
        self.books[i] = LeaseBook(f"acceptor.{i}")
        incarnation = self.incarnations[i]
        self.send(("up", i), lambda: self.record(self.policy.gone(f"acceptor.{i}", incarnation, self.now)))

    # --- the limiter

    def record(self, record: LeaseRecord | None) -> None:
        if record is not None:
            self.journal.append([_encode(record)])
            self.policy.apply(record)

    def lease(self, request: LeaseRequest, incarnation: int) -> Lease | Exhausted:
        self.record(self.policy.overdue(self.now))
        granted = self.policy.request(request.acceptor, incarnation, request.keys, request.want, self.now)
        if isinstance(granted, Denied):
            return Exhausted(request.keys, max(1, -(-(granted.retry_at_ns - self.now) // MS)))
        self.record(granted)
        return Lease(granted.lease, request.keys, granted.units, granted.until_ns)

    def reported(self, report: LeaseReport) -> None:
        self.record(self.policy.report(report.lease, report.used_at_ns, report.returned, report.closed, self.now))

    def crash_limiter(self, *, compact: bool) -> None:
        if compact:
            self.journal.rewrite(map(_encode, self.policy.snapshot(self.now)))
        self.journal.close()
        self.limiter_life += 1
        self.policy = LeasePolicy(self.rules)
        self.journal, recovered = Journal.open(self.path, "limiter")
        for data in recovered.records:
            self.policy.apply(_decode(data))

    # --- claims

    def assert_exact(self) -> None:
        times = sorted(self.admitted)
        for rule in self.rules:
            for index, start in enumerate(times):
                inside = bisect_left(times, start + rule.length_ns) - index
                assert inside <= rule.limit, f"{inside} > {rule.limit} admitted from {start} on"


rules_of = st.tuples(
    st.builds(WindowRule, st.integers(1, 60), st.integers(400, 3_000).map(lambda ms: ms * MS)),
    st.builds(WindowRule, st.integers(1, 30), st.integers(50, 400).map(lambda ms: ms * MS)),
)


@given(
    rules=rules_of,
    books=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.05, 0.4]),
    crashes=st.lists(st.tuples(st.integers(0, 4_000), st.sampled_from(["book", "limiter", "compacted"])), max_size=6),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_window_is_ever_exceeded(
    tmp_path_factory: pytest.TempPathFactory,
    rules: tuple[WindowRule, ...],
    books: int,
    seed: int,
    loss: float,
    crashes: list[tuple[int, str]],
) -> None:
    """In no interval of a window's length is more than its limit admitted, whatever is delayed, lost or killed."""
    path = tmp_path_factory.mktemp("leases") / "limiter.journal"
    simulation = Simulation(rules, books, seed, path, slowest_ns=30 * MS)
    simulation.loss = loss
    for ms in range(0, 4_000, 4):
        i = simulation.random.randrange(books)
        burst = simulation.random.choice([1, 1, 1, 5])
        for _ in range(burst):
            simulation.at(S + ms * MS, lambda i=i, burst=burst: simulation.message(i, parked=burst))
    for ms in range(0, 4_000, 20):
        for i in range(books):
            simulation.at(S + ms * MS, lambda i=i: simulation.report(i))
    for ms, what in crashes:
        if what == "book":
            i = simulation.random.randrange(books)
            simulation.at(S + ms * MS, lambda i=i: simulation.crash_book(i))
        else:
            simulation.at(S + ms * MS, lambda what=what: simulation.crash_limiter(compact=what == "compacted"))
    simulation.run(6 * S)
    simulation.journal.close()
    simulation.assert_exact()
    assert simulation.admitted or loss or crashes  # the claim is not empty


@pytest.mark.parametrize("books", [1, 2, 4])
@pytest.mark.parametrize(("limit", "burst"), [(1000, 200), (100, 20), (10, 3)])
def test_the_limit_can_be_used_up(tmp_path: Path, books: int, limit: int, burst: int) -> None:
    """Under constant demand at least 95 % of what the windows allow is admitted, also when acceptors share a key."""
    rules = (WindowRule(limit, 10 * S), WindowRule(burst, S))
    simulation = Simulation(rules, books, 1, tmp_path / "limiter.journal", slowest_ns=2 * MS)
    span = 20 * S
    for ms in range(0, span // MS, 2):
        for i in range(books):
            simulation.at(S + ms * MS, lambda i=i: simulation.message(i))
            if ms % 20 == 0:
                simulation.at(S + ms * MS, lambda i=i: simulation.report(i))
    simulation.run(S + span)
    simulation.journal.close()
    simulation.assert_exact()
    allowed = min(limit * 2, burst * 20, 500 * books * 20)
    assert len(simulation.admitted) >= 0.95 * allowed


def test_a_small_client_elsewhere_does_not_starve_a_busy_one(tmp_path: Path) -> None:
    """An acceptor with one message a second holds no budget back from the one with a thousand."""
    rules = (WindowRule(1000, 10 * S), WindowRule(200, S))
    simulation = Simulation(rules, 2, 1, tmp_path / "limiter.journal", slowest_ns=2 * MS)
    for ms in range(20_000):
        simulation.at(S + ms * MS, lambda: simulation.message(0))
        if ms % 1000 == 0:
            simulation.at(S + ms * MS, lambda: simulation.message(1))
        if ms % 20 == 0:
            simulation.at(S + ms * MS, lambda: (simulation.report(0), simulation.report(1)))
    simulation.run(21 * S)
    simulation.journal.close()
    simulation.assert_exact()
    assert len(simulation.admitted) >= 0.95 * 2000


@given(seed=st.integers(0, 2**32), books=st.integers(1, 3))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_snapshot_is_the_state(tmp_path_factory: pytest.TempPathFactory, seed: int, books: int) -> None:
    """The journal's records and a snapshot of them lead to the same decisions."""
    path = tmp_path_factory.mktemp("leases") / "limiter.journal"
    rules = (WindowRule(40, 2 * S), WindowRule(15, 200 * MS))
    simulation = Simulation(rules, books, seed, path, slowest_ns=20 * MS)
    for ms in range(0, 1_500, 3):
        i = simulation.random.randrange(books)
        simulation.at(S + ms * MS, lambda i=i: (simulation.message(i), simulation.report(i)))
    simulation.run(S + 1_400 * MS)
    copy = LeasePolicy(rules)
    for record in simulation.policy.snapshot(simulation.now):
        copy.apply(_decode(_encode(record)))
    simulation.journal.close()
    assert copy.leases == simulation.policy.leases
    for ahead in range(0, 2_500, 10):
        now = simulation.now + ahead * MS
        for key in KEYS:
            assert copy.table.left(key, now) == simulation.policy.table.left(key, now)
            assert copy.table.earliest(key, now) == simulation.policy.table.earliest(key, now)
