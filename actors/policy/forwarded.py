"""Whose request a trusted proxy forwards: ``X-Forwarded-For``, read from the right.

Each proxy appends the address that it saw. What the nearest one appended is true, because that one is trusted; what
stands left of it is as true as the hop that it names. So the list is followed leftwards through trusted proxies, and
the first address that is none of them is the client's. Whatever a client wrote itself stands further left and is
never reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from .address_set import AddressSet, canonical

MOST_HOPS: Final = 32
"""No chain of proxies is longer; what is left of that many entries is not looked at."""
_LONGEST_ENTRY: Final = 64  # an IPv6 address with brackets and port has 47


@attrs.frozen
class Hop:
    ip: str
    port: int  # 0: not told


def client_of(peer: Hop, values: Sequence[bytes], trusted: AddressSet) -> Hop:
    """Args:
    peer: the connection's own address, which is a trusted proxy's.
    values: the header's lines, in their order.

    An entry that is no address ends the walk: then the hop that told it is all that is known. So does the left end
    of the list, when all of it are trusted proxies.
    """
    hop = peer
    # Of a list of any length only its end is taken apart.
    for entry in reversed(b",".join(values).rsplit(b",", MOST_HOPS)[-MOST_HOPS:]):
        text = entry.strip(b" \t")
        if not text:
            continue  # RFC 9110 §5.6.1.2: empty elements don't count
        found = parse_hop(text)
        if found is None:
            return hop
        hop = found
        if canonical(hop.ip) not in trusted:
            return hop
    return hop


def parse_hop(text: bytes) -> Hop | None:
    """``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1``, ``[2001:db8::1]`` or ``[2001:db8::1]:80``; None for others."""
    if len(text) > _LONGEST_ENTRY or not text.isascii():
        return None
    host, port = text.decode("ascii"), ""
    if host.startswith("["):
        host, bracket, port = host[1:].partition("]")
        if not bracket or ":" not in host or (port and not port.startswith(":")):
            return None
        if port == ":":
            return None
        port = port[1:]
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
        if not port:
            return None
    if port and not (port.isdigit() and len(port) <= 5 and int(port) <= 65_535):
        return None
    if "%" in host:  # a zone means nothing beyond the machine that wrote it (RFC 4007 §11)
        return None
    try:
        return Hop(str(canonical(host)), int(port or 0))
    except ValueError:
        return None
