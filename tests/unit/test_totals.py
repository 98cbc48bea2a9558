"""Counters that begin anew with each incarnation of whoever counts add up to ones that never go back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.admin.totals import MOST, Totals


def test_what_an_earlier_incarnation_counted_is_kept() -> None:
    """Its last word is added to what its successor says; the same said twice counts once."""
    totals = Totals()
    assert totals.heard("c", 1, 5) == 5
    assert totals.heard("c", 1, 7) == 7
    assert totals.heard("c", 2, 1) == 8
    assert totals.heard("c", 2, 1) == 8
    assert totals.heard("c", 2, 3) == 10


def test_a_counter_that_goes_back_without_a_new_incarnation_has_begun_anew() -> None:
    """Whoever forgets what it counted does not make the total smaller."""
    totals = Totals()
    totals.heard("c", 1, 5)
    assert totals.heard("c", 1, 2) == 7


def test_a_book_that_is_written_down_goes_on() -> None:
    """The next owner of the book goes on with it; one that can't be read is an empty one."""
    totals = Totals()
    totals.heard("c", 1, 5)
    totals.heard("c", 2, 1)
    again = Totals(totals.written())
    assert dict(again.everything()) == {"c": 6}
    assert again.heard("c", 2, 4) == 9
    assert dict(Totals(b"[").everything()) == {}


def test_the_book_is_bounded() -> None:
    """However many names somebody makes up."""
    totals = Totals()
    for number in range(MOST + 10):
        totals.heard(f"c{number}", 1, 1)
    assert len(dict(totals.everything())) == MOST


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5))))
def test_a_total_never_goes_back(steps: list[tuple[bool, bool, int]]) -> None:
    """Whoever dies in between, the counting actor or the book's owner, and it counts each thing at most once."""
    totals, incarnation, counted, shown, everything = Totals(), 1, 0, 0.0, 0
    for actor_dies, owner_dies, more in steps:
        if actor_dies:
            incarnation, counted = incarnation + 1, 0
        if owner_dies:
            totals = Totals(totals.written())
        counted += more
        everything += more
        total = totals.heard("c", incarnation, counted)
        assert shown <= total <= everything
        shown = total
