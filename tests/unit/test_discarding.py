"""A message that is given up in the middle: its rest is read away, and its ends are kept."""

from __future__ import annotations

import pytest

from actors.acceptor.lines import KEPT_HEAD, KEPT_TAIL, LineReader, LineTooLong, Oversize
from actors.acceptor.ws import Ping, WsProtocolError, WsReceiver


def frame(payload: bytes, first: int = 0x81) -> bytes:
    return bytes((first, 0xFF)) + len(payload).to_bytes(8, "big") + bytes(4) + payload


@pytest.mark.parametrize("step", [1000, 65_536])
@pytest.mark.parametrize("size", [70_000, 300_000])
def test_a_frame(step: int, size: int) -> None:
    """Nothing of it is held but its ends; what comes after it is read as before."""
    payload = bytes(ord("a") + n % 26 for n in range(size))
    data = frame(payload)
    reader = WsReceiver(max_message=1 << 20)
    assert reader.receive(data[:50_000]) == []
    assert reader.declared == size
    assert reader.discard() == payload[: 50_000 - 14]
    assert reader.declared == 0
    items = []
    for at in range(50_000, size + 14, step):
        items += reader.receive(data[at : at + step])
        assert reader.pending <= KEPT_HEAD
    (ends,) = items
    assert isinstance(ends, Oversize)
    assert (ends.head, ends.length) == (payload[:KEPT_HEAD], size)
    assert ends.tail == payload[KEPT_HEAD:][-KEPT_TAIL:]
    assert reader.receive(frame(b"x" * 70_000)) == [b"x" * 70_000]


def test_fragments_with_a_ping_between() -> None:
    """The rules go on: pings are told, and the bound on the whole message holds."""
    reader = WsReceiver(max_message=200_000)
    reader.receive(frame(b"a" * 70_000, 0x01))
    reader.discard()
    assert reader.receive(b"\x89\x80\0\0\0\0") == [Ping(b"")]
    reader.receive(frame(b"b" * 100_000, 0x00))
    with pytest.raises(WsProtocolError) as refused:
        reader.receive(frame(b"c" * 100_000, 0x80))
    assert refused.value.code == 1009


def test_before_the_first_byte() -> None:
    """A frame of which only the header has come can be given up too."""
    data = frame(b"a" * 70_000)
    reader = WsReceiver(max_message=200_000)
    reader.receive(data[:14])
    assert (reader.discard(), reader.declared) == (b"", 0)
    (ends,) = reader.receive(data[14:])
    assert isinstance(ends, Oversize)
    assert ends.length == 70_000


def test_a_line() -> None:
    """The same of lines: the next one passes, and one without end is refused at the bound."""
    reader = LineReader(max_line=200_000)
    reader.receive(b"a" * 70_000)
    assert reader.declared == 70_000
    assert reader.discard() == b"a" * KEPT_HEAD
    assert reader.declared == 0
    ends, after = reader.receive(b"b" * 50_000 + b"\nnext\n")
    assert isinstance(ends, Oversize)
    assert (ends.length, ends.tail, after) == (120_000, b"b" * KEPT_TAIL, b"next")
    reader.receive(b"a" * 70_000)
    reader.discard()
    with pytest.raises(LineTooLong) as refused:
        reader.receive(b"b" * 130_003)
    assert refused.value.head == b"a" * KEPT_HEAD


def test_frames_past_the_most() -> None:
    """Ten thousand frames in one read are not all looked at."""
    reader = WsReceiver(max_message=1000)
    reader.most_frames = 500
    with pytest.raises(WsProtocolError) as refused:
        reader.receive(b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 10_000)
    assert (refused.value.code, reader.frames) == (1008, 501)
