"""Framing: what goes in comes out, however the stream is cut; an over-long length is refused unread."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import MalformedFrame
from ipc.framing import PREFIX_SIZE, FrameDecoder, FrameTooLong, append_frame

ENCODE = msgspec.msgpack.Encoder().encode_into


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def feed(decoder: FrameDecoder, data: bytes) -> list[bytes]:
    """Put bytes in as a socket would, at most what the decoder has room for at once."""
    found = []
    while data:
        room = decoder.writable()
        assert len(room) > 0
        count = min(len(room), len(data))
        room[:count] = data[:count]
        decoder.received(count)
        data = data[count:]
        found += [bytes(payload) for payload in decoder.frames()]
    return found


payloads = st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 300).map(lambda n: bytes([n % 251]) * n)))


@given(payloads, st.data(), st.integers(1, 64))
def test_any_split_of_a_stream_gives_the_same_frames(payloads: list[bytes], data: st.DataObject, size: int) -> None:
    """However a stream is cut into reads, and however small the read buffer is, the payloads come out unchanged."""
    stream = b"".join(map(frame, payloads))
    decoder = FrameDecoder(1000, size=size)
    found = []
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        found += feed(decoder, stream[:count])
        stream = stream[count:]
    assert found == payloads
    assert not decoder.partial


@given(payloads, st.binary(min_size=1, max_size=3), st.integers(1, 64))
def test_a_stream_that_ends_in_a_frame_is_partial(payloads: list[bytes], rest: bytes, size: int) -> None:
    """A decoder knows that it stands in the middle of a frame, in its length or in its payload."""
    decoder = FrameDecoder(1000, size=size)
    assert feed(decoder, b"".join(map(frame, payloads)) + b"\0\0\0"[: len(rest)]) == payloads
    assert decoder.partial
    decoder = FrameDecoder(1000, size=size)
    assert feed(decoder, frame(bytes(500))[:-1]) == []
    assert decoder.partial


@given(st.binary(), st.integers(1, 64), st.integers(0, 300))
def test_arbitrary_bytes_give_frames_or_malformed(stream: bytes, size: int, maximum: int) -> None:
    """Whatever comes in, the decoder gives payloads that are in the stream, none above the maximum, or refuses."""
    decoder = FrameDecoder(maximum, size=size)
    found: list[bytes] = []
    try:
        for byte in stream:
            found += feed(decoder, bytes([byte]))
    except MalformedFrame:
        refused = True
    else:
        refused = False
    assert stream.startswith(b"".join(map(frame, found)))
    assert all(len(payload) <= maximum for payload in found)
    rest = stream[sum(PREFIX_SIZE + len(payload) for payload in found) :]
    assert refused == (len(rest) >= PREFIX_SIZE and struct.unpack_from(">I", rest)[0] > maximum)


def test_an_over_long_length_is_refused_by_its_four_bytes() -> None:
    """No byte of the payload has to come, and no memory is taken for it."""
    decoder = FrameDecoder(1000, size=64)
    assert feed(decoder, frame(bytes(1000))) == [bytes(1000)]
    with pytest.raises(MalformedFrame):
        feed(decoder, struct.pack(">I", 1001))
    assert len(decoder.writable()) <= 64


def test_a_long_payload_is_not_copied() -> None:
    """The payload of a frame that is longer than the read buffer is received where it is handed out."""
    decoder = FrameDecoder(1000, size=64)
    feed(decoder, frame(bytes(500))[:64])
    room = decoder.writable()
    assert len(room) == 500 - (64 - PREFIX_SIZE)
    room[:] = b"x" * len(room)
    decoder.received(len(room))
    [payload] = decoder.frames()
    assert payload.obj is room.obj


@given(st.lists(st.one_of(st.text(), st.integers(-5, 5), st.binary(max_size=300))), st.integers(0, 310))
def test_append_frame_is_all_or_nothing(values: list[object], maximum: int) -> None:
    """Values come out as they went in, and one that does not fit leaves no trace in the buffer."""
    out = bytearray()
    kept = []
    for value in values:
        before = bytes(out)
        if len(msgspec.msgpack.encode(value)) > maximum:
            with pytest.raises(FrameTooLong):
                append_frame(out, ENCODE, value, maximum)
            assert out == before
        else:
            kept.append(value)
            length = append_frame(out, ENCODE, value, maximum)
            assert length == len(out) - len(before) - PREFIX_SIZE
    assert [msgspec.msgpack.decode(payload) for payload in feed(FrameDecoder(maximum), bytes(out))] == kept


def test_a_partial_frame_that_fits_stays_where_it_is() -> None:
    """The beginning of a frame is moved only if its end would not fit behind it."""
    decoder = FrameDecoder(1000, size=64)
    feed(decoder, frame(bytes(10)) + frame(bytes(40))[:20])
    assert len(decoder.writable()) == 64 - 14 - 20
    feed(decoder, frame(bytes(40))[20:])
    feed(decoder, frame(bytes(20))[:1])
    assert len(decoder.writable()) == 63


def test_append_frame_after_bytes_were_sent() -> None:
    """A buffer that has lost bytes at its front, as after a partial write, takes frames all the same."""
    out = bytearray()
    append_frame(out, ENCODE, b"a" * 1000, 2000)
    del out[:700]
    rest = bytes(out)
    append_frame(out, ENCODE, b"b" * 100, 2000)
    with pytest.raises(TypeError):
        append_frame(out, ENCODE, ["c" * 5000, object()], 2000)
    assert out == rest + frame(msgspec.msgpack.encode(b"b" * 100))
