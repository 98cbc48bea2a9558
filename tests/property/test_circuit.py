"""The circuit breaker against a plain model of its rules."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policy.circuit import (
    PERMITS_DEALT_FOR_NS,
    SAME_DEATH_NS,
    CircuitBreaker,
    CircuitRules,
    Transition,
)
from ipc.messages import CircuitState

S = 1_000_000_000
RULES = CircuitRules(
    failure_threshold=5,
    reset_timeout_ns=60 * S,
    failure_rate=0.5,
    minimum_calls=20,
    half_open_calls=3,
    successes_to_close=3,
)


def _breaker(rules: CircuitRules = RULES) -> CircuitBreaker:
    return CircuitBreaker("time", rules, lambda: 0.5)


def _opened(now: int = 0) -> CircuitBreaker:
    breaker = _breaker()
    assert breaker.record(0, 5, 0, 0, now)[0].state == "open"
    return breaker


steps = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(1, 100)),
        st.tuples(st.just("outcomes"), st.tuples(*[st.integers(0, 4)] * 4)),
        st.tuples(st.just("tick"), st.none()),
        st.tuples(st.just("reset"), st.none()),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("deal"), st.integers(0, 5)),
    ),
    max_size=80,
)


@given(steps)
def test_it_moves_only_along_its_table(todo: list[tuple[str, object]]) -> None:
    """Whatever happens: only the four transitions of the table; closed forgives, open never ends early, permits are
    never more than the rule says, and a restart changes nothing of it."""
    allowed = {("closed", "open"), ("open", "half_open"), ("half_open", "closed"), ("half_open", "open")}
    breaker = _breaker()
    now = 0
    state: CircuitState = "closed"
    successes = slow_seen = 0
    for what, argument in todo:
        moves: list[Transition] = []
        if what == "wait":
            assert isinstance(argument, int)
            now += argument * S
        elif what == "outcomes":
            assert isinstance(argument, tuple)
            good, deaths, silent, slow = argument
            moves = breaker.record(good, deaths, silent, slow, now)
            if state == "open":
                assert moves == []
            if state == "half_open":
                successes += good + slow
                if deaths + silent:
                    assert breaker.state == "open"
                slow_seen += slow
                if not deaths + silent and successes >= RULES.successes_to_close:
                    too_slow = slow_seen and slow_seen >= RULES.failure_rate * successes
                    assert breaker.state == ("open" if too_slow else "closed")
                elif not deaths + silent:
                    assert breaker.state == "half_open"
            if state == "closed" and deaths + silent >= RULES.failure_threshold:
                assert breaker.state == "open"
            if state == "closed" and not deaths + silent + slow:
                assert breaker.state == "closed"
        elif what == "tick":
            due = state == "open" and now >= breaker.retry_at_ns
            moves = breaker.tick(now)
            assert bool(moves) is due
        elif what == "reset":
            moves = breaker.reset()
            assert breaker.state == "closed"
            state = state if moves else "closed"
            if moves:
                state = "half_open"  # an operator may also close an open one
        elif what == "restart":
            remembered = breaker.remember()
            breaker = _breaker()
            breaker.restore(remembered, now)
            assert breaker.remember() == remembered
            successes = slow_seen = 0
        else:
            assert isinstance(argument, int)
            names = [f"acceptor.{i}" for i in range(argument)]
            permits = breaker.deal(names, {}, [], now)
            expected = RULES.half_open_calls if breaker.state == "half_open" and names else 0
            assert sum(permits.values()) == expected
        for move in moves:
            assert (state, move.state) in allowed
            state = move.state
            successes = slow_seen = 0
        assert breaker.state == state
        if state == "open":
            assert breaker.retry_at_ns > 0


def test_a_success_between_failures_forgives_them() -> None:
    """Four failures, a success, four failures: never five in a row."""
    breaker = _breaker()
    assert breaker.record(0, 2, 2, 0, 0) == []
    assert breaker.record(1, 0, 0, 0, 0) == []
    assert breaker.record(0, 4, 0, 0, 0) == []
    assert [move.why for move in breaker.record(0, 0, 1, 0, 0)] == ["silent"]


def test_the_open_time_doubles_up_to_a_bound() -> None:
    """Each failed probe doubles the open time, jitter aside; closing starts it over."""
    breaker = _opened()
    now = 0
    times = []
    for _ in range(12):
        times.append((breaker.retry_at_ns - now) / S / 1.05)
        now = breaker.retry_at_ns
        breaker.tick(now)
        breaker.record(0, 1, 0, 0, now)
    assert [round(time) for time in times[:4]] == [60, 120, 240, 480]
    assert max(times) <= 600.1
    now = breaker.retry_at_ns
    breaker.tick(now)
    breaker.record(3, 0, 0, 0, now)
    breaker.record(0, 5, 0, 0, now)
    assert round((breaker.retry_at_ns - now) / S / 1.05) == 60


@pytest.mark.parametrize(("calls", "bad", "opens"), [(19, 19, False), (20, 10, True), (20, 9, False), (40, 20, True)])
def test_the_failure_rate_needs_enough_calls(calls: int, bad: int, opens: bool) -> None:
    """Half of at least twenty calls of the last minute, none of them five in a row."""
    breaker = _breaker(
        CircuitRules(
            failure_threshold=1000,
            reset_timeout_ns=S,
            failure_rate=0.5,
            minimum_calls=20,
            half_open_calls=1,
            successes_to_close=1,
        )
    )
    opened = False
    for number in range(calls):
        failed = (number + 1) * bad // calls > number * bad // calls
        opened |= bool(breaker.record(not failed, failed, 0, 0, number * S))
    assert opened is opens


def test_slow_calls_count_for_the_rate_and_not_as_failures_in_a_row() -> None:
    """Twenty slow calls open it by their rate; five do not."""
    breaker = _breaker()
    assert breaker.record(0, 0, 0, 5, 0) == []
    assert [move.why for move in breaker.record(0, 0, 0, 15, 0)] == ["rate"]


def test_old_failures_are_forgotten() -> None:
    """Failures of more than a minute ago are not part of the rate."""
    breaker = _breaker()
    breaker.record(11, 4, 0, 0, 0)
    breaker.record(0, 0, 0, 4, 0)
    assert breaker.record(1, 0, 0, 3, 120 * S) == []
    assert breaker.state == "closed"


def test_slow_probes_do_not_close_it() -> None:
    """A server that answers its probes, but slowly, is not back; a slow one among quick ones is."""
    for slow, state in ((3, "open"), (2, "open"), (1, "closed"), (0, "closed")):
        breaker = _opened()
        breaker.tick(breaker.retry_at_ns)
        breaker.record(3 - slow, 0, 0, slow, breaker.retry_at_ns)
        assert breaker.state == state


def test_permits_go_round() -> None:
    """With more subscribers than permits each gets its turn; those in use stay where they are."""
    breaker = _opened()
    breaker.tick(breaker.retry_at_ns)
    names = ["a", "b", "c", "d"]
    first = breaker.deal(names, {}, [], 0)
    assert sum(first.values()) == 3
    assert breaker.deal_due_ns() == PERMITS_DEALT_FOR_NS
    second = breaker.deal(names, {}, [], PERMITS_DEALT_FOR_NS)
    assert all(first[name] + second[name] for name in names)
    assert breaker.deal(names, {"b": 2}, ["d"], 0) == {"a": 0, "b": 2, "c": 0, "d": 1}
    assert breaker.deal(names, {"b": 2, "d": 1}, ["a"], 0) == {"a": 0, "b": 2, "c": 0, "d": 1}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5)),
    st.lists(st.sampled_from("abcdefg"), unique=True),
    st.lists(st.sampled_from("abcdefg"), unique=True),
    st.integers(1, 6),
)
def test_permits_are_never_more_than_the_rule(
    in_flight: dict[str, int], names: list[str], wanting: list[str], calls: int
) -> None:
    """Whatever is in flight where and whoever wants for some: together they are exactly the rule's number, and nobody
    loses one that it uses while there are enough."""
    breaker = _breaker(attrs.evolve(RULES, half_open_calls=calls))
    breaker.doubt()
    permits = breaker.deal(names, in_flight, wanting, 0)
    assert set(permits) == set(names)
    assert sum(permits.values()) == (calls if names else 0)
    if sum(in_flight.get(name, 0) for name in names) <= calls:
        assert all(permits[name] >= in_flight.get(name, 0) for name in names)
        if takers := set(names) & set(wanting):
            assert all(permits[name] == in_flight.get(name, 0) for name in set(names) - takers)


reports = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 3000)), max_size=40)


@given(reports)
def test_a_death_counts_once_whoever_tells_of_it(told: list[tuple[str, int, int]]) -> None:
    """Against a plain model: the first to tell of a death begins it; within two seconds every other source's first
    death is the same one; what a source tells beyond that is news."""
    breaker = _breaker(attrs.evolve(RULES, failure_threshold=10**9, minimum_calls=10**9))
    now = began = 0
    seen: set[str] = set()
    counted = 0
    for source, deaths, wait_ms in told:
        now += wait_ms * 1_000_000
        for _ in range(deaths):
            if seen and source not in seen and now - began <= SAME_DEATH_NS:
                seen.add(source)
                continue
            counted += 1
            began, seen = now, {source}
        breaker.record(0, deaths, 0, 0, now, source)
    assert breaker.remember().failures_in_row == counted


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=200))
def test_it_opens_when_a_plain_model_does(calls: list[tuple[bool, int]]) -> None:
    """One call at a time, seconds apart: five failures in a row, or half of at least twenty calls of the last minute
    (which is forgotten in steps of five seconds), and not before."""
    breaker = _breaker()
    now = in_row = 0
    history: list[tuple[int, bool]] = []
    for good, wait in calls:
        now += wait * S
        history.append((now, good))
        in_row = 0 if good else in_row + 1
        moves = breaker.record(good, 0, not good, 0, now)
        surely = [one for at, one in history if at > now - 55 * S]
        perhaps = [one for at, one in history if at > now - 60 * S]
        if in_row >= 5:
            assert moves
        elif moves:
            assert not good
            assert len(perhaps) >= 20
            assert any(
                part.count(False) >= 0.5 * len(part)
                for start in range(len(perhaps))
                if len(part := perhaps[start:]) >= 20
            )
        elif not good and len(surely) >= 20 and surely == perhaps:
            assert surely.count(False) < 0.5 * len(surely)
        if moves:
            return
