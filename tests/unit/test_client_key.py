"""Under which name an address is counted."""

from __future__ import annotations

import pytest

from actors.policy.client_key import client_key, limit_keys


@pytest.mark.parametrize(
    ("ip", "key"),
    [
        ("192.0.2.7", "ip:192.0.2.7"),
        ("::ffff:192.0.2.7", "ip:192.0.2.7"),
        ("::ffff:c000:207", "ip:192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "ip:2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "ip:2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "ip:2001:db8:1:3::/64"),
        ("::1", "ip:::/64"),
        ("fe80::1%eth0", "ip:fe80::%eth0/64"),
        ("fe80::2%eth1", "ip:fe80::%eth1/64"),
        ("2001:db8::1%eth0", "ip:2001:db8::/64"),
    ],
)
def test_an_address_counts_as_what_one_subscriber_has(ip: str, key: str) -> None:
    """IPv4 by itself, mapped IPv4 as IPv4, IPv6 by its /64, link-local with its zone."""
    assert client_key(ip) == key


@pytest.mark.parametrize("ip", ["", "host", "192.0.2", "192.0.2.7:80", "[::1]", "010.0.0.1"])
def test_what_is_no_address_has_no_key(ip: str) -> None:
    """Nothing but a literal address is counted under a name."""
    with pytest.raises(ValueError, match="address"):
        client_key(ip)


def test_the_scheme_says_who_is_charged() -> None:
    """Both counters where both are asked for; a client without a name of its own always counts by address."""
    assert limit_keys("principal+ip", "192.0.2.7", "ann") == ("principal:ann", "ip:192.0.2.7")
    assert limit_keys("principal", "192.0.2.7", "ann") == ("principal:ann",)
    assert limit_keys("ip", "192.0.2.7", "ann") == ("ip:192.0.2.7",)
    for scheme in ("ip", "principal", "principal+ip"):
        assert limit_keys(scheme, "192.0.2.7", "") == ("ip:192.0.2.7",)
