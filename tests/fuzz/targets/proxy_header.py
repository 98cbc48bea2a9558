"""PROXY headers, versions 1 and 2, whole and in pieces.

The invariant: nothing but ProxyProtocolError is raised; however the bytes are divided the header, or that there is
none, is the same; not a byte behind the header is taken; no part of a header is one; and the address is a valid one,
of which another form of the same header tells the same.
"""

from __future__ import annotations

import ipaddress
import struct

from fuzz.fuzz_codecs import cut
from fuzz.targets import cuts_of, knobs

from actors.policy.proxy_protocol import LONGEST_V2, Proxied, ProxyHeaderReader, ProxyProtocolError

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


SEEDS = [
    bytes([4, 9, 2]) + header
    for header in (
        b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 443\r\nrest",
        b"PROXY TCP6 2001:db8::1 ::1 5000 443\r\nrest",
        b"PROXY UNKNOWN\r\nrest",
        b"PROXY UNKNOWN ffff::1 x\r\n",
        v2(0x21, 0x11, bytes(range(12))) + b"rest",
        v2(0x21, 0x21, bytes(range(36))) + b"rest",
        v2(0x20, 0x00, b"") + b"rest",
        v2(0x21, 0x00, b"abc"),
        v2(0x21, 0x11, bytes(12) + b"\x03\x00\x04abcd"),
        v2(0x21, 0x11, bytes(12) + b"\xe0\x00\x01a\x04\x00\x00"),
        v2(0x21, 0x31, bytes(216)),
        b"GET / HTTP/1.1\r\n",
    )
]


def parse(pieces: list[bytes]) -> tuple[Proxied | None, int, bool]:
    """The header, how many bytes it took, and whether it was refused: as from a kernel's buffer, which shows ever more
    and forgets what was taken."""
    reader, buffer, taken = ProxyHeaderReader(), b"", 0
    for piece in pieces:
        buffer += piece
        if reader.header is None:
            try:
                used = reader.receive(buffer[:LONGEST_V2])
            except ProxyProtocolError:
                return None, 0, True
            assert 0 <= used <= len(buffer)
            buffer = buffer[used:]
            taken += used
    return reader.header, taken, False


def check(data: bytes) -> None:
    knob, stream = knobs(data, 3)
    whole = parse([stream])
    assert parse(cut(stream, cuts_of(knob, len(stream)))) == whole
    header, taken, refused = whole
    if refused:
        assert header is None
        return
    if header is None:
        assert taken == len(stream) < LONGEST_V2
        return
    assert parse([stream[:taken]]) == whole
    assert parse([stream[: taken - 1]])[0] is None
    if not header.ip:
        assert header.port == 0
        return
    address = ipaddress.ip_address(header.ip)
    assert 0 <= header.port <= 65_535
    family = 0x11 if address.version == 4 else 0x21
    rest = address.packed + bytes(len(address.packed)) + struct.pack("!HH", header.port, 1)
    assert parse([v2(0x21, family, rest)])[0] == header
    line = f"PROXY TCP{address.version} {address} {address} {header.port} 1\r\n".encode()
    assert parse([line])[0] == header
