"""Which ``Host`` and ``Origin`` values are served: the defence against DNS rebinding and cross-site WebSockets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from ipc.settings import ANY, LOOPBACK_ORIGINS, Settings

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""What a gateway that only this machine can reach is called."""

# RFC 3986 §3.2.2, as far as it occurs: a name (without percent-encoding and sub-delimiters, which DNS doesn't have; a
# comma is more likely to be two fields made one) or an address, and a port. Unambiguous at every byte, so linear.
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._~-]+))(?::([0-9]{0,5}))?")
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://")


def split_host(host: bytes) -> tuple[str, int | None] | None:
    """The name (lower case) or address (no brackets, shortest form) and the port of a ``Host`` value.

    Returns None for what is not ``uri-host [ ":" port ]`` (RFC 9110 §7.2); the empty value, too.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return None
    literal, name, port = match.groups()
    number = int(port) if port else None
    if number is not None and number > 65535:
        return None
    if literal is None:
        return name.decode("ascii").lower(), number
    try:
        return str(IPv6Address(literal.decode("ascii"))), number
    except AddressValueError:
        return None


def host_allowed(host: bytes | None, allowed: tuple[str, ...], bound: Iterable[str]) -> bool:
    """The ``ALLOWED_HOSTS`` rule. The port in ``host`` does not matter: it is the attacker's to choose.

    Args:
        host: the header's value, None if there is none.
        allowed: names and addresses in lower case, without port or brackets; ``*.example.com`` is every name below
            example.com, ``*`` everything. Empty (nothing configured): the names of the loopback interface if that is
            all the listener is bound to, else everything.
        bound: the addresses that the listener is bound to.
    """
    if not allowed:
        allowed = LOCAL_NAMES if all(is_loopback(address) for address in bound) else (ANY,)
    if ANY in allowed:
        return True
    split = None if host is None else split_host(host)
    if split is None:
        return False
    name = split[0]
    if name in allowed:
        return True
    return any(entry.startswith("*.") and name.endswith(entry[1:]) and name != entry[1:] for entry in allowed)


def origin_allowed(origin: bytes, settings: Settings) -> bool:
    """Whether ``CORS_ALLOWED_ORIGINS`` names this origin: exactly as it was sent, never ``null`` (RFC 6454 §7.3).

    ``loopback`` in the list stands for http and https on this machine, whatever the port; ``*`` for every origin.
    That ``CORS_ENABLED`` is off allows nothing more.
    """
    scheme = _SCHEME.match(origin)
    if scheme is None:
        return False
    host = split_host(origin[scheme.end() :])
    if host is None:
        return False
    allowed = settings.cors_allowed_origins
    if ANY in allowed or origin.decode("ascii") in allowed:
        return True
    return LOOPBACK_ORIGINS in allowed and scheme[1] in (b"http", b"https") and is_loopback(host[0])


def is_loopback(host: str) -> bool:
    """Whether a name or literal address, without brackets, is this machine itself and nothing else."""
    if host in LOCAL_NAMES:
        return True
    try:
        return IPv4Address(host).is_loopback
    except AddressValueError:
        return False
