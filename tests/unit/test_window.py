"""The sliding window of one key, and the bounded table of them."""

from __future__ import annotations

import pytest

from actors.policy.window import KeyTable, KeyWindow, UsageLog, WindowRule

S = 1_000_000_000


def test_a_log_stays_sorted_when_reports_come_out_of_order() -> None:
    """Late reports are logged at their own time, not at the time of their arrival."""
    log = UsageLog()
    for at in (5, 9, 7, 7, 1):
        log.add(at)
    assert log.times() == [1, 5, 7, 7, 9]
    assert log.count_after(5) == 3
    assert log.first_after(5, 2) == [7, 7]


def test_a_log_gives_back_the_memory_of_what_it_forgot() -> None:
    """Forgotten entries leave the array; a busy key does not grow beyond its window."""
    log = UsageLog()
    for at in range(100_000):
        log.add(at)
        log.forget_until(at - 100)
    assert len(log) == 100
    assert len(log._times) <= 300


def test_the_window_is_half_open_and_exact_to_the_nanosecond() -> None:
    """A unit used at t is free again at t + length, and not a nanosecond before."""
    rules = (WindowRule(1, S),)
    window = KeyWindow()
    window.grant(1, 1, 100)
    window.log.add(100)
    window.settle(1, 1)
    assert window.left(rules, 100 + S - 1) == 0
    assert window.left(rules, 100 + S) == 1
    assert window.earliest(rules, 200) == 100 + S


def test_outstanding_units_count_as_much_as_used_ones() -> None:
    """What was granted and not yet reported is not granted again."""
    rules = (WindowRule(3, S),)
    window = KeyWindow()
    window.grant(1, 3, 0)
    assert window.left(rules, 10 * S) == 0
    window.settle(1, 2)  # two came back
    assert window.left(rules, 10 * S) == 2


def test_both_rules_bind_and_the_later_one_tells_when_to_retry() -> None:
    """The burst window may be free while the long one is not, and the other way round."""
    rules = (WindowRule(3, 60 * S), WindowRule(2, S))
    window = KeyWindow()
    for at in (0, 0):
        window.log.add(at)
    assert window.left(rules, 0) == 0
    assert window.earliest(rules, 0) == S
    window.log.add(S)
    assert window.left(rules, 3 * S) == 0
    assert window.earliest(rules, 3 * S) == 60 * S


def test_the_retry_time_takes_outstanding_units_as_used_when_granted() -> None:
    """With nothing in the log, the oldest grant is what has to leave the window first."""
    rules = (WindowRule(2, S),)
    window = KeyWindow()
    window.grant(1, 1, 50)
    window.grant(2, 1, 70)
    assert window.earliest(rules, 100) == 50 + S


@pytest.mark.parametrize("state", ["logged", "outstanding"])
def test_a_full_table_evicts_nobody_who_still_has_a_window(state: str) -> None:
    """An attacker with many addresses cannot wash out his own or anyone else's count."""
    table = KeyTable((WindowRule(5, S),), capacity=2)
    for key in ("a", "b"):
        window = table.touch(key, 0)
        if state == "logged":
            window.log.add(0)
        else:
            window.grant(1, 1, 0)
    assert not table.has_room(1, S - 1)
    assert table.has_room(1, S) is (state == "logged")


def test_idle_keys_are_swept_and_busy_ones_stay() -> None:
    """Sweeping frees exactly the keys whose window is empty."""
    table = KeyTable((WindowRule(5, S),), capacity=10)
    table.touch("idle", 0).log.add(0)
    table.touch("busy", 0).log.add(S)
    assert table.sweep(S, 10) == 1
    assert "busy" in table
    assert "idle" not in table
