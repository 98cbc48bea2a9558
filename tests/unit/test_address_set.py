"""Whether a range and a set of them have an address in common."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from actors.policy.address_set import AddressSet

NUMBERS = st.integers(0, 15)
V4 = st.builds("10.0.0.{}/{}".format, NUMBERS, st.integers(24, 32))
V6 = st.builds("::{:x}/{}".format, NUMBERS, st.integers(120, 128))


@given(st.lists(V4 | V6, max_size=4), V4 | V6)
def test_ranges_meet_as_networks_overlap(held: list[str], wanted: str) -> None:
    """As the standard library says it, one by one."""
    network = ipaddress.ip_network(wanted, strict=False)
    others = [ipaddress.ip_network(cidr, strict=False) for cidr in held]
    expected = any(other.version == network.version and other.overlaps(network) for other in others)
    assert AddressSet.of(held).meets(wanted) == expected


def test_a_mapped_address_is_its_ipv4_address() -> None:
    """Which is how a dual-stack listener shows an IPv4 client."""
    assert AddressSet.of(["::ffff:10.0.0.0/104"]).meets("10.1.2.3")
    assert not AddressSet.of(["::1"]).meets("10.1.2.3")
    assert AddressSet.of(["::1"]).meets("::/64")
