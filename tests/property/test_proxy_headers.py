"""PROXY headers and X-Forwarded-For: what is right is read, in any pieces; what is not is refused, never a crash."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.policy.address_set import AddressSet
from actors.policy.forwarded import Hop, client_of, parse_hop
from actors.policy.proxy_protocol import (
    LONGEST_V1,
    LONGEST_V2,
    Proxied,
    ProxyHeaderReader,
    ProxyProtocolError,
    crc32c,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)
PORT = st.integers(0, 65535)


def read(data: bytes, cuts: list[int]) -> tuple[Proxied | None, bytes]:
    """As a kernel's buffer shows it: ever more is to be seen, and what is taken is gone. Returns what is left."""
    reader, buffer, sent = ProxyHeaderReader(), b"", 0
    for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        buffer += data[sent:end]
        sent = max(sent, end)
        if reader.header is None and buffer:
            buffer = buffer[reader.receive(buffer[:LONGEST_V2]) :]
    return reader.header, buffer


def v2(rest: bytes, *, command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def addresses(source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bytes:
    return source.packed + bytes(len(source.packed)) + struct.pack("!HH", port, 443)


@given(V4 | V6, PORT, st.binary(max_size=64), st.lists(st.integers(0, 200), max_size=8))
def test_version_1_in_any_pieces(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, behind: bytes, cuts: list[int]
) -> None:
    """The client's address, and not a byte of what follows is taken."""
    other = "::1" if source.version == 6 else "127.0.0.1"
    line = f"PROXY TCP{source.version} {source} {other} {port} 443\r\n".encode()
    assert read(line + behind, cuts) == (Proxied(str(source), port), behind)


@given(V4 | V6, PORT, st.binary(max_size=64), st.lists(st.integers(0, 200), max_size=8), st.binary(max_size=100))
def test_version_2_in_any_pieces(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
    behind: bytes,
    cuts: list[int],
    value: bytes,
) -> None:
    """With fields that nobody knows here, they are passed over."""
    rest = addresses(source, port) + struct.pack("!BH", 0xE0, len(value)) + value
    header = v2(rest, family=0x11 if source.version == 4 else 0x21)
    assert read(header + behind, cuts) == (Proxied(str(source), port), behind)


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=5))
def test_a_proxys_own_connection_names_nobody(rest: bytes, cuts: list[int]) -> None:
    """LOCAL, UNSPEC and UNKNOWN, whatever they carry."""
    assert read(v2(rest, command=0x20) + b"x", cuts) == (Proxied(), b"x")
    assert read(v2(rest, family=0) + b"x", cuts) == (Proxied(), b"x")
    assert read(b"PROXY UNKNOWN\r\nx", cuts) == (Proxied(), b"x")
    assert read(b"PROXY UNKNOWN ffff::1 what ever\r\nx", cuts) == (Proxied(), b"x")


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", b"PROXY TCP4 1.2.3.4\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n", b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", b"PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3 1 2\r\n",
        b"PROXY UNKNOWN " + b"x" * LONGEST_V1, b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", b"PROXY UNKNOWNx\r\n",
        v2(b"\x01\x02\x03\x04"), v2(bytes(12), family=0x12), v2(bytes(216), family=0x31), v2(bytes(12), command=0x22),
        v2(bytes(12), command=0x11), v2(bytes(12) + b"\x04\x00\x09x"), v2(bytes(12) + b"\x04\x00"),
        v2(bytes(LONGEST_V2)), SIGNATURE + b"\x21\x11\xff\xff", v2(bytes(12) + b"\x03\x00\x04abcd"),
        v2(bytes(12) + b"\x03\x00\x01a"), SIGNATURE[:-1] + b"X",
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused(header: bytes) -> None:
    """At once: nothing of it is waited for."""
    with pytest.raises(ProxyProtocolError):
        read(header, [])


def test_the_checksum_is_checked() -> None:
    """RFC 3720's own test vector, and a header that carries its checksum."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    rest = addresses(ipaddress.IPv4Address("192.0.2.1"), 7) + b"\x03\x00\x04"
    right = crc32c(v2(rest + bytes(4))).to_bytes(4, "big")
    assert read(v2(rest + right), []) == (Proxied("192.0.2.1", 7), b"")


@given(st.binary(max_size=700), st.lists(st.integers(0, 700), max_size=4), st.sampled_from([b"", SIGNATURE, b"PROXY "]))
@example(SIGNATURE, [], b"")
def test_any_bytes_end_in_a_header_or_in_a_refusal(data: bytes, cuts: list[int], start: bytes) -> None:
    """Or in waiting for more, with at most a header's length taken."""
    try:
        header, left = read(start + data, cuts)
    except ProxyProtocolError:
        return
    if header is None:
        assert left == b""
        assert len(start + data) < LONGEST_V2
    else:
        assert not header.ip or ipaddress.ip_address(header.ip)


TRUSTED = AddressSet.of(["10.0.0.0/8", "fd00::/8"])
PEER = Hop("10.0.0.1", 999)


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ([], "10.0.0.1"),
        ([b""], "10.0.0.1"),
        ([b"203.0.113.5"], "203.0.113.5"),
        ([b"1.1.1.1, 203.0.113.5"], "203.0.113.5"),
        ([b"1.1.1.1, 203.0.113.5, 10.9.9.9 ,fd00::1"], "203.0.113.5"),
        ([b"1.1.1.1", b"203.0.113.5", b"10.2.2.2"], "203.0.113.5"),
        ([b"10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        ([b"203.0.113.5, unknown"], "10.0.0.1"),
        ([b"203.0.113.5, unknown, 10.2.2.2"], "10.2.2.2"),
        ([b"203.0.113.5:4711"], "203.0.113.5"),
        ([b"[2001:db8::1]:4711"], "2001:db8::1"),
        ([b"[2001:db8::1]"], "2001:db8::1"),
        ([b"2001:db8::1"], "2001:db8::1"),
        ([b"::ffff:203.0.113.5"], "203.0.113.5"),
        ([b"203.0.113.5,,, "], "203.0.113.5"),
        ([b"1.1.1.1," + b"10.2.2.2," * 40], "10.2.2.2"),
    ],
)
def test_forwarded_for_is_read_from_the_right(lines: list[bytes], client: str) -> None:
    """Through trusted proxies, to the first address that is none; garbage ends the walk, and so does its length."""
    assert client_of(PEER, lines, TRUSTED).ip == client


@pytest.mark.parametrize(
    "text",
    [
        b"", b"1.2.3", b"1.2.3.4:", b"1.2.3.4:99999", b"1.2.3.4:x", b"[::1", b"[::1]x", b"[::1]:", b"[1.2.3.4]",
        b"fe80::1%eth0", b"\xff", b"1.2.3.4 5", b"_hidden", b"0x7f.1", b"x" * 1000, b"01.2.3.4", "１.2.3.4".encode(),
    ],
)  # fmt: skip
def test_what_is_no_address_is_none(text: bytes) -> None:
    """And is never taken for one."""
    assert parse_hop(text) is None


@given(st.lists(st.binary(max_size=80) | V4.map(lambda ip: str(ip).encode()), max_size=8))
def test_any_header_names_an_address(lines: list[bytes]) -> None:
    """Whatever stands there, what comes out can be counted and blocked."""
    assert ipaddress.ip_address(client_of(PEER, lines, TRUSTED).ip)


@given(V4 | V6, st.lists(st.binary(max_size=30), max_size=4))
def test_what_a_client_writes_itself_changes_nothing(
    client: ipaddress.IPv4Address | ipaddress.IPv6Address, spoofed: list[bytes]
) -> None:
    """The proxy appends what it saw; whatever is left of an address that isn't trusted is never looked at."""
    truth = Hop(str(client), 0)
    line = [*spoofed, str(client).encode()]
    if client not in TRUSTED and parse_hop(line[-1]) == truth:
        assert client_of(PEER, line, TRUSTED) == truth


def test_inet_aton_leniency_is_not_ours() -> None:
    """What the C library would take for 127.0.0.1 is garbage here."""
    assert socket.inet_aton("127.1") == socket.inet_aton("127.0.0.1")
    assert parse_hop(b"127.1") is None
