r"""The PROXY protocol, versions 1 and 2: what a proxy says of its client before the client's first byte. Without I/O.

Version 1 is one line of at most 107 bytes: ``PROXY TCP4 SRC DST SPORT DPORT\r\n``, or ``PROXY UNKNOWN …\r\n``.
Version 2 is binary: 12 bytes of signature, version and command, family, the length of the rest; addresses; then
type-length-value fields. LOCAL (a proxy's own connection, as for a health check) and UNKNOWN or UNSPEC say nothing of
a client: then the connection's own address counts.

The header is read exactly: not one byte behind it is taken, because that may belong to a TLS handshake. So
``receive`` is given what can be *seen* and says how much of that is header; the caller takes only that much.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final

import attrs

LONGEST_V1: Final = 107
"""Bytes, the line end included: the longest line of the specification's section 2.1."""
LONGEST_V2: Final = 536
"""Bytes: what section 2.2 says fits in one segment of any connection (RFC 879). Its addresses take 52 at most."""

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V1: Final = b"PROXY "
_FIXED: Final = struct.Struct("!12sBBH")
_TLV: Final = struct.Struct("!BH")
_CRC32C: Final = 0x03
_V1_LINE: Final = re.compile(
    rb"PROXY (TCP[46]) ([0-9a-fA-F:.]{2,45}) ([0-9a-fA-F:.]{2,45}) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNSPEC: Final = 0x00
_STREAMS: Final = {_TCP4: ("!4s4sHH", 4), _TCP6: ("!16s16sHH", 6)}


class ProxyProtocolError(ValueError):
    """The peer's fault: what comes is no PROXY header."""


@attrs.frozen
class Proxied:
    """Where the client is. ``ip`` is empty when the header says nothing of a client."""

    ip: str = ""
    port: int = 0


class ProxyHeaderReader:
    """Reads one header. ``header`` is None until it is complete; after that, and after an error, it reads no more."""

    __slots__ = ("_held", "header")

    def __init__(self) -> None:
        self._held = bytearray()
        self.header: Proxied | None = None

    def receive(self, seen: bytes) -> int:
        """How many of these bytes, which follow those taken before, belong to the header.

        All of them do as long as the header isn't complete. Raises ProxyProtocolError.
        """
        held = self._held
        before = len(held)
        held += seen[: LONGEST_V2 - before]
        end = self._end_v2() if held[:1] == b"\r" else self._end_v1()
        if end is None:
            return len(held) - before
        del held[end:]
        self.header = _parse_v2(bytes(held)) if held[:1] == b"\r" else _parse_v1(bytes(held))
        return end - before

    def _end_v1(self) -> int | None:
        held = self._held
        if not held.startswith(_V1[: len(held)]):
            raise ProxyProtocolError("no PROXY header")
        end = held.find(b"\r\n", 0, LONGEST_V1)
        if end >= 0:
            return end + 2
        if len(held) >= LONGEST_V1:
            raise ProxyProtocolError("PROXY line too long")
        return None

    def _end_v2(self) -> int | None:
        held = self._held
        if not held.startswith(_SIGNATURE[: len(held)]):
            raise ProxyProtocolError("no PROXY header")
        if len(held) < _FIXED.size:
            return None
        _, command, _, length = _FIXED.unpack_from(held)
        if command not in (_LOCAL, _PROXY):
            raise ProxyProtocolError("unknown version or command")
        end = _FIXED.size + int(length)
        if end > LONGEST_V2:
            raise ProxyProtocolError("PROXY header too long")
        return end if len(held) >= end else None


def _parse_v1(line: bytes) -> Proxied:
    if line == b"PROXY UNKNOWN\r\n" or line.startswith(b"PROXY UNKNOWN "):
        return Proxied()
    match = _V1_LINE.fullmatch(line[:-2])
    if match is None:
        raise ProxyProtocolError("malformed PROXY line")
    family, source, destination, *ports = match.groups()
    version = 4 if family == b"TCP4" else 6
    _address(destination, version)
    if any(int(port) > 65_535 for port in ports):
        raise ProxyProtocolError("malformed port")
    return Proxied(_address(source, version), int(ports[0]))


def _address(text: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        raise ProxyProtocolError("malformed address") from None
    if address.version != version:
        raise ProxyProtocolError("an address of the other family")
    return str(address)


def _parse_v2(header: bytes) -> Proxied:
    _, command, family, _ = _FIXED.unpack_from(header)
    rest = header[_FIXED.size :]
    if command == _LOCAL:
        return Proxied()  # §2.2: whatever follows is to be skipped
    if family == _UNSPEC:
        return Proxied()
    if family not in _STREAMS:
        raise ProxyProtocolError("not a TCP connection")
    layout, version = _STREAMS[family]
    size = struct.calcsize(layout)
    if len(rest) < size:
        raise ProxyProtocolError("addresses cut short")
    source, _destination, port, _ = struct.unpack_from(layout, rest)
    _check_fields(header, _FIXED.size + size)
    address = ipaddress.IPv4Address(source) if version == 4 else ipaddress.IPv6Address(source)
    return Proxied(str(address), port)


def _check_fields(header: bytes, position: int) -> None:
    """§2.2: the type-length-value fields fill the rest exactly; a checksum that is there has to be right."""
    while position < len(header):
        if position + _TLV.size > len(header):
            raise ProxyProtocolError("a field is cut short")
        kind, length = _TLV.unpack_from(header, position)
        start = position + _TLV.size
        position = start + length
        if position > len(header):
            raise ProxyProtocolError("a field is cut short")
        if kind == _CRC32C:
            if length != 4:
                raise ProxyProtocolError("malformed checksum")
            zeroed = header[:start] + bytes(4) + header[position:]
            if crc32c(zeroed) != int.from_bytes(header[start:position], "big"):
                raise ProxyProtocolError("wrong checksum")


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720 §12.1: polynomial 0x1EDC6F41, reflected). Bit by bit: a header is short, and few carry it."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
    return crc ^ 0xFFFF_FFFF
