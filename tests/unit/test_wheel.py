"""The acceptor's timer wheel."""

from hypothesis import given
from hypothesis import strategies as st

from actors.acceptor.wheel import TimerWheel

TICK = 50


def test_an_entry_is_due_at_the_first_tick_not_before_its_deadline() -> None:
    """Never early, and late by less than a tick."""
    wheel: TimerWheel[str] = TimerWheel(TICK, 1000)
    wheel.add(1120, "a")
    assert wheel.due(1149) == []
    assert wheel.due(1150) == ["a"]
    assert len(wheel) == 0


def test_a_deadline_in_the_past_is_due_at_the_next_tick() -> None:
    """What comes too late to be on time is not lost behind the hand of the clock."""
    wheel: TimerWheel[str] = TimerWheel(TICK, 1000)
    wheel.add(3, "late")
    assert wheel.due(1049) == []
    assert wheel.due(1050) == ["late"]


@given(st.lists(st.integers(0, 100_000)), st.lists(st.integers(1, 7_000), min_size=1))
def test_every_entry_comes_out_once_in_order_and_never_early(deadlines: list[int], steps: list[int]) -> None:
    """Whatever the jumps of the clock."""
    wheel: TimerWheel[int] = TimerWheel(TICK, 0)
    for deadline in deadlines:
        wheel.add(deadline, deadline)
    now, out = 0, []
    for step in [*steps, 200_000]:
        now += step
        entries = wheel.due(now)
        assert all(entry <= now for entry in entries)
        ticks = [max(1, -(-entry // TICK)) for entry in entries]
        assert ticks == sorted(ticks)
        out += entries
    assert sorted(out) == sorted(deadlines)
    assert len(wheel) == 0
