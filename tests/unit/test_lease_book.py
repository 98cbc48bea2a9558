"""The acceptor's local half of the limiter."""

from __future__ import annotations

import pytest

from actors.lease_book import REPORT_EVERY_NS, LeaseBook
from ipc.messages import Exhausted, Lease, LeaseReport, LeaseRequest

KEYS = ("ip:192.0.2.7",)
MS = 1_000_000
END = 250 * MS


def _book(units: int = 4, until_ns: int = END) -> LeaseBook:
    book = LeaseBook("acceptor.0")
    assert book.want(KEYS, 0, 1) is not None
    book.granted(Lease(7, KEYS, units, until_ns), 0)
    return book


def test_each_unit_is_spent_once_and_reported_once() -> None:
    """Every take is in exactly one report at its own time; the rest comes back when the lease ends."""
    book = _book(units=5)
    for now in (1 * MS, 2 * MS):
        assert book.take(KEYS, now)
    assert book.due_reports(3 * MS) == []
    assert book.due_reports(1 * MS + REPORT_EVERY_NS) == [LeaseReport("acceptor.0", 7, [1 * MS, 2 * MS], 0, False)]
    assert book.take(KEYS, 100 * MS)
    assert book.due_reports(END) == [LeaseReport("acceptor.0", 7, [100 * MS], 2, True)]
    assert book.due_reports(10 * END) == []


def test_nothing_is_spent_at_or_after_the_end_of_a_lease() -> None:
    """The last nanosecond before the end counts, the end itself does not."""
    book = _book()
    assert book.take(KEYS, END - 1)
    assert not book.take(KEYS, END)
    assert book.due_reports(END) == [LeaseReport("acceptor.0", 7, [END - 1], 3, True)]


def test_a_lease_that_comes_after_its_end_goes_back_whole() -> None:
    """A late answer is not spent, and its units are not lost."""
    book = LeaseBook("acceptor.0")
    book.want(KEYS, 0, 1)
    book.granted(Lease(7, KEYS, 4, END), END)
    assert not book.take(KEYS, END)
    assert book.due_reports(END) == [LeaseReport("acceptor.0", 7, [], 4, True)]


def test_a_used_up_lease_is_closed_by_its_report() -> None:
    """Nothing waits for the end of a lease of which nothing is left."""
    book = _book(units=1)
    assert book.take(KEYS, 1)
    assert not book.take(KEYS, 2)
    assert book.due_reports(2) == [LeaseReport("acceptor.0", 7, [1], 0, True)]


def test_a_cost_is_taken_whole_or_not_at_all_also_from_two_leases() -> None:
    """Two leases of three units pay for a message of five, and not for two of them."""
    book = _book(units=3)
    book.want(KEYS, 0, 9)
    book.granted(Lease(8, KEYS, 3, END), 0)
    assert book.take(KEYS, 1, cost=5)
    assert not book.take(KEYS, 1, cost=2)
    assert book.take(KEYS, 1)
    assert sum(len(report.used_at_ns) for report in book.due_reports(END)) == 6


def test_one_question_at_a_time_and_reports_come_before_it() -> None:
    """While a question is under way no other is made; making one makes the reports of that client due."""
    book = _book(units=1)
    assert book.take(KEYS, 1)
    assert book.want(KEYS, 2, 3) == LeaseRequest("acceptor.0", KEYS, 3)
    assert len(book.due_reports(2)) == 1
    assert book.want(KEYS, 3, 3) is None
    book.unanswered(KEYS, 4)
    assert book.want(KEYS, 5, 3) is not None


def test_a_client_over_its_limit_is_refused_without_a_question() -> None:
    """After Exhausted the limiter isn't asked until the time it said, to the millisecond."""
    book = LeaseBook("acceptor.0")
    book.want(KEYS, 0, 1)
    book.exhausted(Exhausted(KEYS, 40), 0)
    assert book.retry_after_ms(KEYS, 0) == 40
    assert book.retry_after_ms(KEYS, 39 * MS + 1) == 1
    assert book.want(KEYS, 39 * MS, 1) is None
    assert book.retry_after_ms(KEYS, 40 * MS) == 0
    assert book.want(KEYS, 40 * MS, 1) is not None


def test_a_busy_client_gets_larger_leases_and_an_idle_one_smaller() -> None:
    """The size that is asked for doubles with each lease that is used up and halves with each that comes back."""
    book = LeaseBook("acceptor.0")
    wanted = []
    for lease in range(1, 12):
        request = book.want(KEYS, lease, 1)
        assert request is not None
        wanted.append(request.want)
        book.granted(Lease(lease, KEYS, request.want, END), lease)
        for _ in range(request.want):
            assert book.take(KEYS, lease)
        book.due_reports(lease)
        book.take(KEYS, lease)
    assert wanted[:5] == [1, 2, 4, 8, 16]
    assert wanted[-1] == 256
    request = book.want(KEYS, 20, 1)
    assert request is not None
    book.granted(Lease(99, KEYS, request.want, END), 20)
    book.due_reports(END)
    assert (following := book.want(KEYS, END, 1)) is not None
    assert following.want == request.want // 2


def test_what_could_not_be_sent_comes_again() -> None:
    """Reports that the limiter's death kept from being sent are made again, unchanged."""
    book = _book(units=1)
    book.take(KEYS, 1)
    reports = book.due_reports(END)
    book.unsent(reports)
    assert book.next_due_ns == 0
    assert book.due_reports(END + 1) == reports


@pytest.mark.parametrize("how", ["forget", "close"])
def test_a_client_that_leaves_gives_its_units_back(how: str) -> None:
    """When the last connection of a client goes, its lease goes back at once."""
    book = _book()
    assert book.take(KEYS, 1)
    if how == "forget":
        book.forget(KEYS, 2)
        reports = book.due_reports(2)
    else:
        reports = book.close(2)
    assert reports == [LeaseReport("acceptor.0", 7, [1], 3, True)]
    assert not book.take(KEYS, 3)


def test_an_answer_for_a_client_that_has_left_goes_back() -> None:
    """A lease that arrives after everything of its client was forgotten is returned whole."""
    book = LeaseBook("acceptor.0")
    book.want(KEYS, 0, 1)
    book.unanswered(KEYS, 0)
    book.due_reports(10_000 * MS)
    assert book.statistics().clients == 0
    book.granted(Lease(7, KEYS, 4, 20_000 * MS), 10_000 * MS)
    assert book.due_reports(10_000 * MS) == [LeaseReport("acceptor.0", 7, [], 4, True)]
    assert book.statistics().clients == 0


def test_the_book_forgets_idle_clients_and_is_bounded() -> None:
    """After their leases and waits have ended nothing is kept of clients; past the bound new ones have to wait."""
    book = LeaseBook("acceptor.0", capacity=10)
    for number in range(10):
        keys = (f"ip:{number}",)
        assert book.want(keys, 0, 1) is not None
        if number % 2:
            book.granted(Lease(number + 1, keys, 3, END), 0)
            book.take(keys, 1)
        else:
            book.exhausted(Exhausted(keys, 400), 0)
    assert book.want(KEYS, 1, 1) is None
    assert book.retry_after_ms(KEYS, 1) > 0
    now = 0
    while book.statistics().clients:
        now += 100 * MS
        book.due_reports(now)
        assert now < 3_000 * MS
    assert book.next_due_ns is None
    assert book.want(KEYS, now, 1) is not None


def test_switched_off_it_spends_without_asking() -> None:
    """enabled=False: no limit, no question, no report."""
    book = LeaseBook("acceptor.0")
    book.enabled = False
    assert all(book.take(KEYS, now) for now in range(1000))
    assert book.want(KEYS, 0, 1) is None
    assert book.due_reports(END) == []
