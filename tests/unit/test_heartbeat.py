"""Who is overdue, and who is excused."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from supervisor.backoff import MILLISECOND, SECOND
from supervisor.heartbeat import Judge, Slot, Verdict

TIMEOUT = 3 * SECOND
INTERVAL = TIMEOUT // 12


class Watch:
    """A judge and the workers' words, on a virtual clock."""

    def __init__(self, *names: str) -> None:
        self.now = 100 * SECOND
        self.beats: dict[str, int] = {}
        self.judge = Judge(timeout_ns=TIMEOUT, interval_ns=INTERVAL, looked_ns=self.now)
        for name in names:
            self.judge = self.judge.watch(name, self.now)

    def passes(self, duration: int, *alive: str, fencing: tuple[str, ...] = ()) -> Verdict:
        """The supervisor looks on time; those in ``alive`` beat on time."""
        verdict = Verdict(frozenset(), None)
        for _ in range(duration // INTERVAL):
            self.now += INTERVAL
            self.beats |= dict.fromkeys(alive, self.now)
            verdict = self.look(fencing=fencing)
        return verdict

    def look(self, *, fencing: tuple[str, ...] = ()) -> Verdict:
        self.judge, verdict = self.judge.look(self.beats, self.now, fencing=fencing)
        return verdict


def test_whoever_beats_is_well() -> None:
    """For hours."""
    watch = Watch("a", "b")
    assert watch.passes(3600 * SECOND, "a", "b") == Verdict(frozenset(), None)


def test_silence_makes_suspect_then_overdue() -> None:
    """Suspect after half the timeout, overdue after all of it; the other one is neither."""
    watch = Watch("a", "b")
    assert watch.passes(TIMEOUT // 2, "b") == Verdict(frozenset(), None)
    assert watch.passes(INTERVAL, "b") == Verdict(frozenset({"a"}), None)
    assert watch.passes(TIMEOUT // 2, "b") == Verdict(frozenset({"a"}), "a", TIMEOUT + INTERVAL)


def test_a_beat_clears_the_suspicion() -> None:
    """However late it comes, if it comes in time."""
    watch = Watch("a")
    assert watch.passes(TIMEOUT - INTERVAL).suspect == {"a"}
    assert watch.passes(INTERVAL, "a") == Verdict(frozenset(), None)


def test_the_supervisors_own_lateness_is_added() -> None:
    """After a pause of everything nobody is suspect; each still gets its whole timeout from there on."""
    watch = Watch("a", "b")
    watch.passes(10 * SECOND, "a", "b")
    watch.now += 3600 * SECOND
    assert watch.look() == Verdict(frozenset(), None)
    assert watch.passes(TIMEOUT // 2 - INTERVAL, "b") == Verdict(frozenset(), None)
    assert watch.passes(TIMEOUT // 2 + 2 * INTERVAL, "b").overdue == "a"


def test_a_pause_does_not_excuse_what_was_silent_before_it() -> None:
    """The silence before the pause counts on after it."""
    watch = Watch("a")
    watch.passes(TIMEOUT - INTERVAL)
    watch.now += 3600 * SECOND
    assert watch.look().overdue is None
    assert watch.passes(INTERVAL).overdue == "a"


def test_one_is_fenced_at_a_time_the_most_silent_first() -> None:
    """While a fence is under way nobody else is condemned."""
    watch = Watch("a", "b", "c")
    watch.passes(SECOND, "b", "c")
    verdict = watch.passes(TIMEOUT + INTERVAL, "c")
    assert verdict.overdue == "a"
    assert watch.passes(10 * SECOND, "c", fencing=("a",)) == Verdict(frozenset({"a", "b"}), None)
    watch.judge = watch.judge.unwatch("a")
    assert watch.look().overdue == "b"


def test_a_new_incarnation_starts_afresh() -> None:
    """Neither the silence nor the word of the one before counts."""
    watch = Watch("a")
    watch.passes(TIMEOUT * 2)
    watch.judge = watch.judge.unwatch("a").watch("a", watch.now)
    assert watch.passes(TIMEOUT // 2) == Verdict(frozenset(), None)


def test_a_word_from_the_future_buys_no_time() -> None:
    """A worker that writes nonsense is believed only up to now."""
    watch = Watch("a")
    watch.beats["a"] = 2**62
    watch.passes(INTERVAL)
    watch.beats["a"] = -1
    assert watch.passes(TIMEOUT + INTERVAL).overdue == "a"


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=60))
def test_nobody_is_condemned_without_his_whole_time(steps: list[tuple[int, bool]]) -> None:
    """However late the looks are: what counts against a worker is never more than what the looks were due for."""
    watch = Watch("a")
    credited = 0
    for intervals, beats in steps:
        watch.now += intervals * INTERVAL
        credited += INTERVAL
        if beats:
            watch.beats["a"] = watch.now
            credited = 0
        verdict = watch.look()
        assert (verdict.overdue == "a") == (credited > TIMEOUT)


def test_both_sides_see_one_word() -> None:
    """What the worker writes through its own mapping the supervisor reads through the other."""
    slot, descriptor = Slot.create()
    worker = Slot(descriptor)
    os.close(descriptor)
    assert slot.read() == 0
    worker.beat(123 * MILLISECOND)
    assert slot.read() == 123 * MILLISECOND
    worker.close()
    slot.close()
