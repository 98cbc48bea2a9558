"""When there are more addresses than windows, neighbours share one: nobody gets more than the limit, everybody some."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policy.client_key import client_key
from actors.policy.connections import ConnectionRate
from actors.policy.leases import Denied, Granted, LeasePolicy
from actors.policy.window import WindowRule

S = 1_000_000_000
MINUTE = 60 * S
NEWCOMERS = ("192.0.2.1", "2a00:1450:4001:80b::1")
V6 = st.builds("2001:db8:{:x}:{:x}::1".format, st.integers(0, 2), st.sampled_from([0, 1, 2, 0x100, 0x200]))
V4 = st.builds("198.51.{}.{}".format, st.integers(0, 2), st.integers(1, 4))


@given(st.lists(st.tuples(V6 | V4, st.integers(0, 20)), max_size=120), st.integers(1, 12))
def test_no_address_ever_gets_more_than_the_limit(steps: list[tuple[str, int]], capacity: int) -> None:
    """Wherever its window begins, and whichever windows it was counted in as the table filled and emptied."""
    rate = ConnectionRate(WindowRule(2, 100), capacity=capacity)
    admitted: dict[str, list[int]] = defaultdict(list)
    now = 0
    for ip, pause in steps:
        now += pause
        key = client_key(ip)
        if rate.retry_at(key, now) <= now:
            rate.apply(rate.connected(key, now))
            admitted[key].append(now)
        if pause == 20:
            rate.table.sweep(now, 5)
    for times in admitted.values():
        for at in times:
            assert sum(at - 100 < other <= at for other in times) <= 2


@given(st.lists(V6 | V4, max_size=60), st.integers(1, 6))
def test_what_was_written_down_gives_the_same_windows(addresses: list[str], capacity: int) -> None:
    """A policy restored from its records judges every address as the one that made them."""
    rule = WindowRule(2, 100)
    rate, other = ConnectionRate(rule, capacity=capacity), ConnectionRate(rule, capacity=capacity)
    for now, ip in enumerate(addresses):
        key = client_key(ip)
        if rate.retry_at(key, now) <= now:
            rate.apply(rate.connected(key, now))
    for record in rate.snapshot(len(addresses)):
        other.apply(record)
    for ip in addresses:
        assert other.retry_at(client_key(ip), 60) == rate.retry_at(client_key(ip), 60)


def _prefixes(count: int, *, spread: bool) -> list[str]:
    """The keys of /64s: of one /48 (and then the next), or of /48s of their own."""
    if spread:
        return [f"ip:2001:{number >> 16:x}:{number & 0xFFFF:x}::/64" for number in range(count)]
    return [f"ip:2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64" for number in range(count)]


@pytest.mark.parametrize(("spread", "count"), [(False, 1_000_000), (True, 150_000)])
def test_a_million_addresses_keep_nobody_from_connecting(spread: bool, count: int) -> None:
    """All within a minute, from a few sites or each from its own: newcomers get in, and memory is bounded."""
    rate = ConnectionRate(WindowRule(60, MINUTE))
    keys = _prefixes(count, spread=spread)
    admitted = 0
    for number, key in enumerate(keys):
        now = number * (MINUTE // count)
        if rate.retry_at(key, now) <= now:
            rate.apply(rate.connected(key, now))
            admitted += 1
    assert len(rate.table) <= 65_536
    assert rate.retry_at(client_key(NEWCOMERS[0]), now) <= now
    if not spread:
        assert admitted < 300_000  # sixty for each of 16 × 256 ranges, and some before
        assert rate.retry_at(client_key(NEWCOMERS[1]), now) <= now


def test_a_million_addresses_leave_budget_for_newcomers() -> None:
    """The same of messages, whose windows principals have, too."""
    policy = LeasePolicy((WindowRule(100, MINUTE),))
    for number, key in enumerate(_prefixes(80_000, spread=False)):
        granted = policy.request("acceptor.0", 1, (key,), 1, number * 180_000)
        if isinstance(granted, Granted):
            policy.apply(granted)
    for keys in ((client_key(NEWCOMERS[0]),), (client_key(NEWCOMERS[1]),), ("principal:alice", client_key("10.0.0.1"))):
        granted = policy.request("acceptor.0", 1, keys, 1, 15 * S)
        assert not isinstance(granted, Denied), keys
        policy.apply(granted)
        assert policy.outlook(granted.keys, 15 * S)[0] >= 0
