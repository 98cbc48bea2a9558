"""``X-Forwarded-For`` behind trusted proxies.

The invariant: nothing is raised; whose address comes out is what a plain walk from the right says; it is a valid one
in its one form (IPv4-mapped ones as IPv4); and who appends his address to the list can't be hidden by what stands left
of it.
"""

from __future__ import annotations

import ipaddress

from actors.policy.address_set import AddressSet, canonical
from actors.policy.forwarded import MOST_HOPS, Hop, client_of, parse_hop

TRUSTED = AddressSet.of(["10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"])
PEER = Hop("10.0.0.1", 4000)
SEEDS = [
    b"203.0.113.9, 10.1.1.1",
    b"203.0.113.9:80,10.1.1.1:90\n192.0.2.7",
    b"[2001:db8::1]:443, ::ffff:10.0.0.9",
    b"unknown, 10.0.0.2",
    b"_hidden, 10.0.0.2, , ,10.0.0.3",
    b"fe80::1%eth0",
    b"2001:db8::1, [::1], [::1]:, 1.2.3.4:",
    b"1" * 70,
    b",".join([b"10.0.0.2"] * 40),
]


def check(data: bytes) -> None:
    values = data.split(b"\n")
    hop = client_of(PEER, values, TRUSTED)
    assert hop == model(values)
    assert str(canonical(hop.ip)) == hop.ip
    assert 0 <= hop.port <= 65_535
    assert client_of(PEER, [*values, b"203.0.113.50"], TRUSTED) == Hop("203.0.113.50", 0)
    for value in values:
        found = parse_hop(value)
        if found is not None:
            ipaddress.ip_address(found.ip)


def model(values: list[bytes]) -> Hop:
    hop = PEER
    for entry in b",".join(values).split(b",")[::-1][:MOST_HOPS]:
        entry = entry.strip(b" \t")
        if not entry:
            continue
        found = parse_hop(entry)
        if found is None:
            return hop
        hop = found
        if ipaddress.ip_address(hop.ip) not in TRUSTED:
            return hop
    return hop
