"""Leases one by one: what becomes of units in each of the ways in which they can end."""

from __future__ import annotations

import pytest

from actors.policy.leases import LARGEST_LEASE, REPORT_GRACE_NS, Denied, Granted, LeasePolicy, Reported
from actors.policy.window import WindowRule

S = 1_000_000_000
KEYS = ("principal:ann", "ip:192.0.2.1")


def _policy(limit: int = 1, length_ns: int = 10 * S) -> LeasePolicy:
    return LeasePolicy((WindowRule(limit, length_ns),))


def _grant(policy: LeasePolicy, now: int = 0, want: int = 1, keys: tuple[str, ...] = KEYS) -> Granted:
    granted = policy.request("acceptor.0", 1, keys, want, now)
    assert isinstance(granted, Granted)
    policy.apply(granted)
    return granted


def _free_again_at(policy: LeasePolicy, now: int) -> int:
    denied = policy.request("acceptor.1", 1, KEYS, 1, now)
    assert isinstance(denied, Denied)
    assert isinstance(policy.request("acceptor.1", 1, KEYS, 1, denied.retry_at_ns - 1), Denied)
    assert isinstance(policy.request("acceptor.1", 1, KEYS, 1, denied.retry_at_ns), Granted)
    return denied.retry_at_ns


def test_a_used_unit_is_free_one_window_after_its_use() -> None:
    """Not after the grant, nor after the report."""
    policy = _policy()
    granted = _grant(policy, 0)
    record = policy.report(granted.lease, [S // 10], 0, True, S // 5)
    assert record is not None
    policy.apply(record)
    assert _free_again_at(policy, S) == S // 10 + 10 * S


@pytest.mark.parametrize("how", ["gone", "overdue"])
def test_a_forfeited_unit_counts_from_the_end_of_its_lease(how: str) -> None:
    """Until then its acceptor may have spent it, even if it was believed dead before."""
    policy = _policy()
    granted = _grant(policy, 0)
    if how == "gone":
        record = policy.gone("acceptor.0", 2, 1)
    else:
        assert policy.overdue(granted.until_ns + REPORT_GRACE_NS - 1) is None
        assert policy.next_overdue_ns == granted.until_ns + REPORT_GRACE_NS
        record = policy.overdue(granted.until_ns + REPORT_GRACE_NS)
    assert record is not None
    policy.apply(record)
    assert policy.leases == 0
    assert _free_again_at(policy, 3 * S) == granted.until_ns + 10 * S


def test_a_lease_closed_without_a_word_on_its_units_is_spent() -> None:
    """The report before may have been lost: what is not accounted for counts, from the closing on."""
    policy = _policy()
    granted = _grant(policy, 0)
    record = policy.report(granted.lease, [], 0, True, 1000)
    assert record is not None
    policy.apply(record)
    assert policy.leases == 0
    assert _free_again_at(policy, S) == 1000 + 10 * S


def test_leases_of_the_incarnation_that_runs_stay() -> None:
    """Only those of other incarnations of that acceptor, and of no other acceptor, are forfeited."""
    policy = _policy(limit=100)
    _grant(policy)
    assert policy.gone("acceptor.0", 1, 0) is None
    assert policy.gone("acceptor.1", 0, 0) is None
    assert policy.gone("acceptor.0", 0, 0) is not None


def test_a_report_is_believed_only_as_far_as_it_can_be_true() -> None:
    """Uses before the grant or in the future, and units that the lease never had, give no budget back."""
    policy = _policy(limit=2)
    granted = _grant(policy, 100)
    record = policy.report(granted.lease, [0, 10**18, 5], 7, False, 200)
    assert record == Reported(granted.lease, [100], 0, False, 200)
    assert policy.units_overspent == 2
    assert policy.report(granted.lease + 1, [], 1, True, 200) is None
    returned = policy.report(granted.lease, [], 5, True, 200)
    assert returned == Reported(granted.lease, [], 1, True, 200)


def test_a_lease_id_is_never_used_twice_even_without_a_memory() -> None:
    """A policy that lost its journal gives no lease an id that an old report could name."""
    old = _grant(_policy(limit=100), now=5 * S)
    new = _grant(_policy(limit=100), now=6 * S)
    assert new.lease > old.lease
    policy = _policy(limit=100)
    assert len({_grant(policy, now=7 * S).lease for _ in range(10)}) == 10


def test_lease_sizes_follow_what_is_left() -> None:
    """Never more than asked for, an eighth of what is left, or the maximum; single units of a small budget."""
    assert _grant(_policy(limit=100_000), want=10_000).units == LARGEST_LEASE
    assert _grant(_policy(limit=80), want=100).units == 10
    assert _grant(_policy(limit=80), want=3).units == 3
    assert _grant(_policy(limit=7), want=100).units == 1


def test_one_key_named_twice_is_charged_once() -> None:
    """Both counters of a client may be the same one."""
    policy = _policy(limit=2)
    _grant(policy, keys=("ip:a", "ip:a"))
    assert policy.table.left("ip:a", 0) == 1
    with pytest.raises(ValueError, match="without a key"):
        policy.request("acceptor.0", 1, (), 1, 0)


def test_a_full_table_denies_strangers_and_serves_the_known() -> None:
    """With every tracked key active, a new one gets nothing until one falls idle."""
    policy = LeasePolicy((WindowRule(5, 10 * S),), capacity=2)
    _grant(policy, 0, keys=("a",))
    _grant(policy, 0, keys=("b",))
    assert isinstance(policy.request("acceptor.0", 1, ("c",), 1, S), Denied)
    assert isinstance(policy.request("acceptor.0", 1, ("a",), 1, S), Granted)
    record = policy.overdue(60 * S)
    assert record is not None
    policy.apply(record)
    assert isinstance(policy.request("acceptor.0", 1, ("c",), 1, 60 * S), Granted)
