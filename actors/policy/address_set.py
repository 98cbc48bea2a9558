"""Sets of addresses given as CIDR ranges, asked once for each connection."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import attrs

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_BITS = 96  # ::ffff:0:0/96 holds the IPv4-mapped addresses (RFC 4291 §2.5.5.2)


def canonical(ip: str) -> Address:
    """The address that ``ip`` stands for: an IPv4-mapped one is its IPv4 address.

    Raises ValueError when ``ip`` is no IP address.
    """
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _canonical_network(cidr: str) -> Network:
    network = ipaddress.ip_network(cidr, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((int(mapped), network.prefixlen - _MAPPED_BITS))
    return network


@attrs.frozen
class AddressSet:
    """Membership takes one look-up for each prefix length that occurs, however many ranges there are."""

    # version -> ((bits to shift away, the ranges' remaining bits), …)
    _ranges: dict[int, tuple[tuple[int, frozenset[int]], ...]]

    @classmethod
    def of(cls, cidrs: Iterable[str]) -> AddressSet:
        """Raises ValueError for what is no CIDR range."""
        found: dict[int, dict[int, set[int]]] = {}
        for cidr in cidrs:
            network = _canonical_network(cidr)
            shift = network.max_prefixlen - network.prefixlen
            found.setdefault(network.version, {}).setdefault(shift, set()).add(int(network.network_address) >> shift)
        return cls(
            {
                version: tuple((shift, frozenset(prefixes)) for shift, prefixes in sorted(by_shift.items()))
                for version, by_shift in found.items()
            }
        )

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        return any(number >> shift in prefixes for shift, prefixes in self._ranges.get(address.version, ()))

    def meets(self, cidr: str) -> bool:
        """Whether this range and one of the set's have an address in common. Raises ValueError for what is none."""
        network = _canonical_network(cidr)
        number, shift = int(network.network_address), network.max_prefixlen - network.prefixlen
        return any(
            number >> own in prefixes
            if own >= shift
            else any(prefix >> (shift - own) == number >> shift for prefix in prefixes)
            for own, prefixes in self._ranges.get(network.version, ())
        )

    def __bool__(self) -> bool:
        return bool(self._ranges)
