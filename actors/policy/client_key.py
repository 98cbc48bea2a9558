"""The name under which a client address is counted, whichever listener it comes through.

An IPv4 address counts by itself; an IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2), which is how a dual-stack listener
shows an IPv4 client, counts as that IPv4 address. Any other IPv6 address counts by its /64: that is the least that
one subscriber is given (RFC 6177 §2), and whoever has it may use a new address for every connection. A link-local
address keeps its zone (RFC 4007 §11), because the same prefix on two links is two neighbourhoods.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

_SUBSCRIBER_BITS = 64


@lru_cache(maxsize=4096)
def client_key(ip: str) -> str:
    """``ip:192.0.2.7``, ``ip:2001:db8:1:2::/64`` or ``ip:fe80::%eth0/64``.

    Raises ValueError when ``ip`` is no IP address.
    """
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv4Address):
        return f"ip:{address}"
    if address.ipv4_mapped is not None:
        return f"ip:{address.ipv4_mapped}"
    host_bits = 128 - _SUBSCRIBER_BITS
    network = ipaddress.IPv6Address(int(address) >> host_bits << host_bits)
    zone = f"%{address.scope_id}" if address.scope_id and address.is_link_local else ""
    return f"ip:{network}{zone}/{_SUBSCRIBER_BITS}"


def limit_keys(scheme: str, ip: str, principal: str) -> tuple[str, ...]:
    """The keys charged for each message of a client.

    Args:
      scheme: ``ip``, ``principal`` or ``principal+ip`` (both are charged).
      principal: empty for a holder without a name of its own, who counts by address whatever the scheme says.
    """
    address = client_key(ip)
    if not principal or scheme == "ip":
        return (address,)
    named = f"principal:{principal}"
    return (named,) if scheme == "principal" else (named, address)
