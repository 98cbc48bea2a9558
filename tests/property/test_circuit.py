"""The circuit breaker against a plain model of its rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policy.circuit import PERMITS_DEALT_FOR_NS, CircuitBreaker, CircuitRules, Transition
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
    successes = 0
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
                assert (breaker.state == "open") is bool(deaths + silent)
                if not deaths + silent:
                    assert (breaker.state == "closed") is (successes >= RULES.successes_to_close)
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
            successes = 0
        else:
            assert isinstance(argument, int)
            names = [f"acceptor.{i}" for i in range(argument)]
            permits = breaker.deal(names, now)
            expected = RULES.half_open_calls if breaker.state == "half_open" and names else 0
            assert sum(permits.values()) == expected
        for move in moves:
            assert (state, move.state) in allowed
            state = move.state
            successes = 0
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


def test_permits_go_round() -> None:
    """With more subscribers than permits each gets its turn; freed permits go to whoever probed."""
    breaker = _opened()
    breaker.tick(breaker.retry_at_ns)
    names = ["a", "b", "c", "d"]
    first = breaker.deal(names, 0)
    assert sum(first.values()) == 3
    assert breaker.deal_due_ns() == PERMITS_DEALT_FOR_NS
    second = breaker.deal(names, PERMITS_DEALT_FOR_NS)
    assert all(first[name] + second[name] for name in names)
    assert breaker.deal_freed(2, "b", names, 0) == {"b": 2}
    assert sum(breaker.deal_freed(2, "bridge", names, 0).values()) == 2
    assert breaker.deal_freed(0, "b", names, 0) == {}
    assert sum(breaker.deal_freed(99, "b", names, 0).values()) == 3
