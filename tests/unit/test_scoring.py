"""The threat score: weights, decay, failures within their window, and memory however many offend."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policy.scoring import CAPACITY, Forgiven, Offence, Scored, Scoring, ScoringRule

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
KEY = "ip:192.0.2.1"


def offend(scoring: Scoring, kind: Offence, now: int, count: int = 1, key: str = KEY) -> None:
    scoring.apply(scoring.note(key, kind, count, now))


@pytest.mark.parametrize(
    ("kind", "weight"), [("auth", 34), ("handshake", 10), ("content", 10), ("malformed", 5), ("probe", 5), ("rate", 2)]
)
def test_each_offence_has_its_weight(kind: Offence, weight: int) -> None:
    """The contract's section 6."""
    scoring = Scoring(ScoringRule())
    offend(scoring, kind, 0)
    assert scoring.score(KEY, 0) == weight


@pytest.mark.parametrize(("kind", "needed"), [("handshake", 10), ("content", 10), ("malformed", 20), ("rate", 50)])
def test_at_the_threshold_and_not_before(kind: Offence, needed: int) -> None:
    """100 points make one due; a point less doesn't."""
    scoring = Scoring(ScoringRule())
    offend(scoring, kind, 0, needed - 1)
    assert not scoring.due(KEY)
    offend(scoring, kind, 0)
    assert scoring.due(KEY) == "threat score"


def test_a_moments_decay_saves_nobody() -> None:
    """Twenty malformed messages in two seconds are a hundred points."""
    scoring = Scoring(ScoringRule())
    for number in range(20):
        assert not scoring.due(KEY)
        offend(scoring, "malformed", number * SECOND // 10)
    assert scoring.due(KEY)


def test_the_score_halves_with_each_half_life() -> None:
    """80 points are 40 after one, 20 after two, and nothing to speak of after a day."""
    scoring = Scoring(ScoringRule())
    offend(scoring, "content", 0, 8)
    assert scoring.score(KEY, 10 * MINUTE) == pytest.approx(40)
    assert scoring.score(KEY, 20 * MINUTE) == pytest.approx(20)
    assert scoring.score(KEY, 24 * 60 * MINUTE) < 1e-9


@pytest.mark.parametrize(("third_s", "due"), [(599, True), (600, False)])
def test_three_failures_within_the_window_whatever_the_score(third_s: int, due: bool) -> None:
    """The score alone would not do it: by then the first ones have decayed."""
    scoring = Scoring(ScoringRule(half_life_ns=SECOND))
    for at_s in (0, 300, third_s):
        offend(scoring, "auth", at_s * SECOND)
    assert scoring.score(KEY, third_s * SECOND) < 100
    assert bool(scoring.due(KEY)) is due


def test_many_allowed_failures_are_counted_in_bounded_room() -> None:
    """The thousandth of a thousand is due, and the moments that are kept are few."""
    scoring = Scoring(ScoringRule(threshold=10**9, max_failed_attempts=1000))
    for number in range(999):
        offend(scoring, "auth", number)
    assert not scoring.due(KEY)
    offend(scoring, "auth", 999)
    assert scoring.due(KEY)
    (kept,) = scoring.snapshot()
    assert len(kept.failures) <= 64


def test_forgiveness_starts_anew() -> None:
    """After its block a subject has a clean slate."""
    scoring = Scoring(ScoringRule())
    offend(scoring, "auth", 0, 3)
    scoring.apply(Forgiven(KEY))
    assert not scoring.due(KEY)
    assert scoring.score(KEY, 0) == 0
    offend(scoring, "auth", 1, 2)
    assert not scoring.due(KEY)


@given(st.lists(st.tuples(st.sampled_from(["auth", "rate", "probe"]), st.integers(0, 200), st.integers(1, 3))))
def test_a_snapshot_is_the_state(rows: list[tuple[Offence, int, int]]) -> None:
    """Whoever is brought back from it is as due, and has as much against it, as before."""
    scoring, again = Scoring(ScoringRule()), Scoring(ScoringRule())
    now = 0
    for kind, wait_s, count in rows:
        now += wait_s * SECOND
        offend(scoring, kind, now, count, f"ip:{wait_s % 3}")
    for record in scoring.snapshot():
        assert isinstance(record, Scored)
        again.apply(record)
    for key in ("ip:0", "ip:1", "ip:2"):
        assert again.due(key) == scoring.due(key)
        assert again.score(key, now + MINUTE) == scoring.score(key, now + MINUTE)


def test_the_decayed_are_forgotten() -> None:
    """When a score is negligible and no failure is in its window any more; not before."""
    scoring = Scoring(ScoringRule())
    for number in range(100):
        offend(scoring, "rate", 0, key=f"ip:{number}")
    scoring.sweep(10 * MINUTE, 1000)
    assert len(scoring) == 100
    scoring.sweep(21 * MINUTE, 1000)
    assert len(scoring) == 0


def test_a_million_addresses_fit() -> None:
    """In virtual time: memory stays bounded, and none of them pushes out one that is about to be due."""
    scoring = Scoring(ScoringRule())
    bad = "ip:198.51.100.1"
    offend(scoring, "auth", 0, 2, bad)
    tracemalloc.start()
    for number in range(1_000_000):
        offend(scoring, "probe", number * 100_000, key=f"ip:{number}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(scoring) == CAPACITY
    assert peak < 64 * 1024 * 1024
    assert scoring.score(bad, 100 * SECOND) > 50
    offend(scoring, "auth", 100 * SECOND, key=bad)
    assert scoring.due(bad)


def test_the_forgiven_leave_no_trace() -> None:
    """A million that are blocked one after the other, and forgiven, don't pile up."""
    scoring = Scoring(ScoringRule(), capacity=1000)
    for number in range(50_000):
        offend(scoring, "auth", number, 3, f"ip:{number}")
        scoring.apply(Forgiven(f"ip:{number}"))
    assert len(scoring) == 0
    assert len(scoring._order) <= 2001
