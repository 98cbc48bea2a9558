"""Blocks: how long, how often, and who never; sets of addresses; a shared address."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policy.address_set import AddressSet, canonical
from actors.policy.blocks import LONGEST_MS, MEMORY_MS, Blocks
from actors.policy.shared_address import ENOUGH, SharedAddress

HOUR = 3_600_000
KEY = "ip:192.0.2.1"


def test_repeated_offences_double_up_to_a_day() -> None:
    """1 h, 2 h, 4 h, 8 h, 16 h, 24 h, 24 h."""
    blocks, now, hours = Blocks(HOUR), 0, []
    for _ in range(7):
        block = blocks.block(KEY, now, "threat score")
        assert block is not None
        hours.append((block.until_ms - now) // HOUR)
        now = block.until_ms + 1
        blocks.sweep(now)
    assert hours == [1, 2, 4, 8, 16, 24, 24]


def test_who_keeps_the_peace_for_a_day_starts_anew() -> None:
    """And nothing is kept of it any more."""
    blocks = Blocks(HOUR)
    first = blocks.block(KEY, 0, "x")
    assert first is not None
    assert blocks.sweep(HOUR) == ([first], [])
    assert blocks.sweep(HOUR + MEMORY_MS) == ([], [KEY])
    again = blocks.block(KEY, HOUR + MEMORY_MS, "x")
    assert again is not None
    assert again.strikes == 1


def test_nothing_prolongs_a_block() -> None:
    """What comes while it holds changes nothing; at its end it is over, swept or not."""
    blocks = Blocks(HOUR)
    blocks.block(KEY, 0, "x")
    assert blocks.block(KEY, HOUR - 1, "x") is None
    held = blocks.get(KEY, HOUR - 1)
    assert held is not None
    assert held.until_ms == HOUR
    assert blocks.get(KEY, HOUR) is None


def test_an_operators_word_goes() -> None:
    """It replaces what holds, lasts as long as it says, and lifting forgives the past."""
    blocks = Blocks(HOUR)
    blocks.block(KEY, 0, "x")
    block = blocks.block_by_operator(KEY, 1, 100 * LONGEST_MS)
    assert block is not None
    assert blocks.get(KEY, 50 * LONGEST_MS) == block
    assert blocks.unblock(KEY, 50 * LONGEST_MS) == block
    assert blocks.unblock(KEY, 50 * LONGEST_MS) is None
    anew = blocks.block(KEY, 50 * LONGEST_MS, "x")
    assert anew is not None
    assert anew.strikes == 1


def test_a_full_table_takes_the_place_of_what_ends_first() -> None:
    """Never of an operator's block; and its memory is bounded whoever comes."""
    blocks = Blocks(HOUR, capacity=1000)
    for number in range(10):
        blocks.block_by_operator(f"ip:operator{number}", 0, 1)
    evicted = 0
    tracemalloc.start()
    for number in range(100_000):
        assert blocks.block(f"ip:{number}", 0, "x") is not None
        evicted += len(blocks.take_evicted())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(blocks) == 1000
    assert evicted == 100_000 - 990
    assert all(blocks.get(f"ip:operator{number}", 0) is not None for number in range(10))
    assert peak < 4 * 1024 * 1024
    late = blocks.block("ip:late", 5, "x")
    assert late is not None
    for number in range(989):
        blocks.block(f"ip:new{number}", 9, "x")
    assert blocks.get("ip:late", 9) == late
    assert blocks.block("ip:last", 9, "x") is not None
    assert blocks.get("ip:late", 9) is None


def test_operators_blocks_fill_a_table_for_good() -> None:
    """Then nobody is blocked anew, and it is counted."""
    blocks = Blocks(HOUR, capacity=2)
    for number in range(2):
        assert blocks.block_by_operator(f"ip:{number}", 0, HOUR) is not None
    assert blocks.block("ip:new", 0, "x") is None
    assert blocks.block_by_operator("ip:new", 0, HOUR) is None
    assert blocks.full == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2 * HOUR), st.sampled_from("boul"))))
def test_what_is_kept_gives_the_same_blocks(steps: list[tuple[int, int, str]]) -> None:
    """At any moment a table restored from what there is blocks the same keys until the same time."""
    blocks, now = Blocks(HOUR), 0
    for who, wait, what in steps:
        now += wait
        key = f"ip:{who}"
        if what == "b":
            blocks.block(key, now, "x")
        elif what == "o":
            blocks.block_by_operator(key, now, HOUR // 2)
        elif what == "u":
            blocks.unblock(key, now)
        else:
            blocks.sweep(now)
        again = Blocks(HOUR)
        for block in blocks.active():
            again.restore(block)
        again.sweep(now)
        for other in range(4):
            assert again.get(f"ip:{other}", now) == blocks.get(f"ip:{other}", now)


@pytest.mark.parametrize(
    ("cidr", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
        ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
        ("10.0.0.0/8", "::ffff:10.1.2.3", "::a01:203"),
        ("0.0.0.0/0", "203.0.113.1", "::1"),
    ],
)
def test_ranges_hold_what_they_say(cidr: str, inside: str, outside: str) -> None:
    """An IPv4-mapped address is its IPv4 address, on either side."""
    addresses = AddressSet.of([cidr])
    assert canonical(inside) in addresses
    assert canonical(outside) not in addresses


def test_one_address_for_everybody_is_noticed_once() -> None:
    """Unless it is this machine's, there are others, or proxies are declared."""
    def noticed(expected: bool, *keys: str) -> int:
        shared = SharedAddress(expected=expected)
        return sum(shared.admitted(key) for key in keys)

    far, near = "ip:192.0.2.1", "ip:127.0.0.1"
    assert noticed(False, *[far] * (3 * ENOUGH)) == 1
    assert noticed(False, *[near] * (3 * ENOUGH)) == 0
    assert noticed(False, *["ip:::/64"] * (3 * ENOUGH)) == 1
    assert noticed(True, *[far] * (3 * ENOUGH)) == 0
    assert noticed(False, *[far] * (ENOUGH - 1), near, *[far] * ENOUGH) == 0
