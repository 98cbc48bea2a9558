"""WebSocket frames, server side. Section names in brackets are those of Autobahn's case table."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.acceptor import masking, ws
from actors.acceptor.ws import (
    Close,
    Ping,
    Pong,
    WsProtocolError,
    WsReceiver,
    encode_close,
    encode_ping,
    encode_pong,
    encode_text,
    text_head,
)

KEY = b"\x37\xfa\x21\x3d"
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x81, 0x82, 0x80, 0x88, 0x89, 0x8A
FIRST, MIDDLE = 0x01, 0x00  # of a fragmented text message; CONTINUATION ends it


def frame(first: int, payload: bytes = b"", key: bytes = KEY) -> bytes:
    """A client's frame with its length in the shortest form."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def receive(data: bytes, *, step: int = 0, limit: int = 1 << 20) -> tuple[list[ws.Item], int]:
    """The items and the close code of the error (0: none), when the data comes in pieces of ``step`` bytes."""
    receiver = WsReceiver(max_message=limit)
    items: list[ws.Item] = []
    try:
        for start in range(0, len(data), step or max(len(data), 1)):
            items += receiver.receive(data[start : start + step] if step else data)
    except WsProtocolError as error:
        return items + error.items, error.code
    return items, 0


# --- RFC 6455's own examples


def test_the_masked_example_of_section_5_7() -> None:
    """The single-frame masked text message of RFC 6455 §5.7 reads "Hello"."""
    assert receive(bytes.fromhex("818537fa213d7f9f4d5158")) == ([b"Hello"], 0)


def test_the_masked_pong_example_of_section_5_7() -> None:
    """The masked pong of RFC 6455 §5.7 carries "Hello"."""
    assert receive(bytes.fromhex("8a8537fa213d7f9f4d5158")) == ([Pong(b"Hello")], 0)


def test_the_server_examples_of_section_5_7() -> None:
    """What is sent is byte for byte what RFC 6455 §5.7 shows: unmasked text, unmasked ping, 64-bit length."""
    assert encode_text(b"Hello") == bytes.fromhex("810548656c6c6f")
    assert encode_ping(b"Hello") == bytes.fromhex("890548656c6c6f")
    assert text_head(65536) == bytes.fromhex("817f0000000000010000")


# --- [1, 9] messages of every length form


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 128, 4095, 4096, 4097, 65535, 65536, 65537, 300_000])
@pytest.mark.parametrize("step", [0, 997])
def test_a_text_message_of_any_size_arrives_whole(size: int, step: int) -> None:
    """Each form of the length and both ways of unmasking give back the payload, in one piece or in many."""
    payload = (b"0123456789abc" * (size // 13 + 1))[:size]
    assert receive(frame(TEXT, payload, os.urandom(4)), step=step) == ([payload], 0)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_what_is_encoded_has_the_shortest_length(size: int) -> None:
    """Server frames carry the length in its shortest form and are not masked."""
    encoded = encode_text(b"x" * size)
    head = encoded[: len(encoded) - size]
    assert encoded[len(head) :] == b"x" * size
    heads = {0: "8100", 125: "817d", 126: "817e007e", 65535: "817effff", 65536: "817f0000000000010000"}
    assert head.hex() == heads[size]


def test_many_messages_in_one_read_keep_their_order() -> None:
    """One read may hold several messages and the start of the next."""
    whole = frame(TEXT, b"one") + frame(PING, b"p") + frame(TEXT, b"x" * 200) + frame(TEXT, b"two")
    receiver = WsReceiver(max_message=1000)
    assert receiver.receive(whole + frame(TEXT, b"three")[:4]) == [b"one", Ping(b"p"), b"x" * 200, b"two"]
    assert receiver.pending == 4
    assert receiver.receive(frame(TEXT, b"three")[4:]) == [b"three"]
    assert receiver.pending == 0
    assert receiver.frames == 5


# --- [2] pings and pongs


@pytest.mark.parametrize("payload", [b"", b"Hello", bytes(range(256))[100:225], b"\xff\xfe\xfd"])
@pytest.mark.parametrize("step", [0, 1])
def test_control_payloads_are_any_bytes_up_to_125(payload: bytes, step: int) -> None:
    """Pings and pongs carry up to 125 arbitrary bytes."""
    assert receive(frame(PING, payload) + frame(PONG, payload), step=step) == ([Ping(payload), Pong(payload)], 0)


@pytest.mark.parametrize("first", [PING, PONG, CLOSE])
def test_a_control_frame_above_125_bytes_ends_the_connection(first: int) -> None:
    """RFC 6455 §5.5: 126 bytes are too many, whatever the control frame."""
    assert receive(frame(first, b"\x03\xe8" + b"x" * 124)) == ([], 1002)


def test_what_is_sent_obeys_the_limit_of_control_frames() -> None:
    """Our own control frames can't be too long either."""
    assert encode_pong(b"x" * 125)[:2] == b"\x8a\x7d"
    with pytest.raises(ValueError):
        encode_pong(b"x" * 126)
    with pytest.raises(ValueError):
        encode_ping(b"x" * 126)


# --- [3] reserved bits, [4] opcodes, masking, lengths


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("first", [TEXT, PING, CLOSE])
def test_reserved_bits_end_the_connection_after_what_came_before(bits: int, first: int) -> None:
    """[3] A reserved bit without an extension is an error, and earlier messages still count."""
    assert receive(frame(TEXT, b"before") + frame(first | bits << 4, b"")) == ([b"before"], 1002)


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("step", [0, 1])
def test_reserved_opcodes_end_the_connection(opcode: int, step: int) -> None:
    """[4] Opcodes that RFC 6455 reserves are errors, for data and for control frames."""
    for payload in (b"", b"\x03\xe8"):
        assert receive(frame(TEXT, b"before") + frame(0x80 | opcode, payload), step=step) == ([b"before"], 1002)


@pytest.mark.parametrize("data", ["8100", "810548656c6c6f", "8900", "8800", "817e00c8", "817f0000000000010000"])
def test_unmasked_client_frames_end_the_connection(data: str) -> None:
    """RFC 6455 §5.1: a server closes upon an unmasked frame; it doesn't wait for the payload."""
    assert receive(bytes.fromhex(data)) == ([], 1002)


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ("81fe007d", 1002),
        ("81fe007e", 0),
        ("81fe0000", 1002),
        ("81ff000000000000ffff", 1002),
        ("81ff0000000000010000", 0),
        ("81ff0000000000000001", 1002),
        ("81ff8000000000000000", 1002),
        ("81ffffffffffffffffff", 1002),
        ("81ff7fffffffffffffff", 1009),
    ],
)
@pytest.mark.parametrize("step", [0, 1])
def test_lengths_take_their_shortest_form(head: str, code: int, step: int) -> None:
    """RFC 6455 §5.2: "the minimal number of bytes MUST be used", and the highest bit of 64 is 0."""
    assert receive(bytes.fromhex(head) + KEY, step=step) == ([], code)
    if code == 1002:
        padded = receive(bytes.fromhex(head) + KEY + b"x" * 200, step=step)
        assert padded == ([], code)


def test_binary_messages_are_refused_by_their_own_code() -> None:
    """The gateway speaks JSON: 1003, also when the message is fragmented or empty."""
    assert receive(frame(BINARY, b"{}")) == ([], 1003)
    assert receive(frame(0x02, b"{}")) == ([], 1003)
    assert receive(frame(BINARY)) == ([], 1003)


# --- [5] fragmentation

FRAGMENTATION = {
    "5.1 fragmented ping": (frame(0x09, b"f") + frame(CONTINUATION, b"g"), [], 1002),
    "5.2 fragmented pong": (frame(0x0A, b"f") + frame(CONTINUATION, b"g"), [], 1002),
    "fragmented close": (frame(0x08) + frame(CONTINUATION), [], 1002),
    "5.3 two fragments": (frame(FIRST, b"f1") + frame(CONTINUATION, b"f2"), [b"f1f2"], 0),
    "5.6 ping between": (
        frame(FIRST, b"f1") + frame(PING, b"p") + frame(CONTINUATION, b"f2"),
        [Ping(b"p"), b"f1f2"],
        0,
    ),
    "5.9 continuation of nothing, final": (frame(CONTINUATION, b"x") + frame(TEXT, b"y"), [], 1002),
    "5.12 continuation of nothing, not final": (frame(MIDDLE, b"x") + frame(TEXT, b"y"), [], 1002),
    "5.15 continuation after a finished message": (
        frame(FIRST, b"a") + frame(CONTINUATION, b"b") + frame(MIDDLE, b"c") + frame(TEXT, b"d"),
        [b"ab"],
        1002,
    ),
    "5.18 new message inside a message": (frame(FIRST, b"a") + frame(TEXT, b"b"), [], 1002),
    "new fragmented message inside a message": (frame(FIRST, b"a") + frame(FIRST, b"b"), [], 1002),
    "binary inside a message": (frame(FIRST, b"a") + frame(BINARY, b"b"), [], 1002),
    "5.19 five fragments, two pings": (
        frame(FIRST, b"1")
        + frame(MIDDLE, b"2")
        + frame(PING, b"a")
        + frame(MIDDLE, b"3")
        + frame(MIDDLE, b"4")
        + frame(PING, b"b")
        + frame(CONTINUATION, b"5"),
        [Ping(b"a"), Ping(b"b"), b"12345"],
        0,
    ),
    "6.1.2 three empty fragments": (frame(FIRST) + frame(MIDDLE) + frame(CONTINUATION), [b""], 0),
    "6.1.3 content in the middle only": (frame(FIRST) + frame(MIDDLE, b"mid") + frame(CONTINUATION), [b"mid"], 0),
    "close inside a message": (frame(FIRST, b"a") + frame(CLOSE, b"\x03\xe8"), [Close(1000, "")], 0),
}


@pytest.mark.parametrize("name", FRAGMENTATION)
@pytest.mark.parametrize("step", [0, 1, 3])
def test_fragmentation(name: str, step: int) -> None:
    """[5] Fragments make one message, control frames may stand between them, messages never nest."""
    data, items, code = FRAGMENTATION[name]
    assert receive(data, step=step) == (items, code)


def test_fragments_may_be_large_and_keep_the_mask_of_their_own_frame() -> None:
    """Each fragment has its own key, and unmasking resumes at the right byte of it after any split."""
    payload = os.urandom(30_000).hex().encode()
    parts = [payload[:7], payload[7:40_001], payload[40_001:]]
    data = b"".join(
        frame(first, part, os.urandom(4)) for first, part in zip((FIRST, MIDDLE, CONTINUATION), parts, strict=True)
    )
    for step in (0, 1, 1023):
        assert receive(data, step=step) == ([payload], 0)


# --- [6] UTF-8

KOSME = "κόσμε".encode()
VALID_TEXT = {
    "6.2 several scripts": "Hello-µ@ßöäüàá-UTF-8!!".encode(),
    "6.5 greek": KOSME,
    "6.6 first 2-byte": b"\xc2\x80",
    "6.6 first 3-byte": b"\xe0\xa0\x80",
    "6.6 first 4-byte": b"\xf0\x90\x80\x80",
    "6.7 last 1-byte": b"\x7f",
    "6.7 last 2-byte": b"\xdf\xbf",
    "6.7 last 3-byte": b"\xef\xbf\xbf",
    "6.7 last 4-byte": b"\xf4\x8f\xbf\xbf",
    "6.9 before the surrogates": b"\xed\x9f\xbf",
    "6.9 after the surrogates": b"\xee\x80\x80",
    "6.9 replacement character": b"\xef\xbf\xbd",
    "6.22 noncharacter": b"\xef\xbf\xbe",
    "6.23 last plane": b"\xf4\x8f\xbf\xbe",
    "NUL": b"\x00",
}
INVALID_TEXT = {
    "6.3 surrogate after text": KOSME + b"\xed\xa0\x80" + b"edited",
    "6.8 5-byte form": b"\xf8\x88\x80\x80\x80",
    "6.8 6-byte form": b"\xfc\x84\x80\x80\x80\x80",
    "6.10 above U+10FFFF": b"\xf4\x90\x80\x80",
    "6.11 first continuation": b"\x80",
    "6.11 last continuation": b"\xbf",
    "6.11 six continuations": b"\x80\xbf\x80\xbf\x80\xbf",
    "6.12 lone lead of 2": b"\xc3 ",
    "6.13 lone lead of 3": b"\xe1 ",
    "6.14 truncated": b"\xe3\x81",
    "6.15 concatenated incomplete": b"\xc3\xe1\x80\xf1\x80\x80",
    "6.16 0xfe": b"\xfe",
    "6.16 0xff": b"\xff",
    "6.17 overlong slash 2": b"\xc0\xaf",
    "6.17 overlong slash 3": b"\xe0\x80\xaf",
    "6.17 overlong slash 4": b"\xf0\x80\x80\xaf",
    "6.18 overlong maximum": b"\xc1\xbf",
    "6.19 overlong NUL": b"\xc0\x80",
    "6.20 high surrogate": b"\xed\xa0\x80",
    "6.20 low surrogate": b"\xed\xbf\xbf",
    "6.21 surrogate pair": b"\xed\xa0\x80\xed\xb0\x80",
}


def ways_to_send(payload: bytes) -> list[tuple[bytes, int]]:
    """(bytes, step): whole; in 1-byte reads; fragmented at every byte; at every second one."""
    fragments = [payload[i : i + 1] for i in range(len(payload))]
    by_byte = frame(FIRST) + b"".join(frame(MIDDLE, part) for part in fragments) + frame(CONTINUATION)
    pairs = [payload[i : i + 2] for i in range(0, len(payload), 2)]
    by_two = frame(FIRST) + b"".join(frame(MIDDLE, part) for part in pairs) + frame(CONTINUATION)
    return [(frame(TEXT, payload), 0), (frame(TEXT, payload), 1), (by_byte, 0), (by_byte, 1), (by_two, 0)]


@pytest.mark.parametrize("name", VALID_TEXT)
def test_valid_utf8_arrives_however_it_is_cut(name: str) -> None:
    """[6] A character may be cut by fragments and reads anywhere."""
    for data, step in ways_to_send(VALID_TEXT[name]):
        assert receive(data, step=step) == ([VALID_TEXT[name]], 0)


@pytest.mark.parametrize("name", INVALID_TEXT)
def test_invalid_utf8_ends_the_connection_however_it_is_cut(name: str) -> None:
    """[6] What is not UTF-8 is 1007, the end of a message inside a character included."""
    for data, step in ways_to_send(INVALID_TEXT[name]):
        assert receive(frame(TEXT, b"ok") + data, step=step) == ([b"ok"], 1007)


@pytest.mark.parametrize(
    ("good", "bad"),
    [(KOSME, b"\xf4\x90"), (KOSME, b"\xed\xa0"), (KOSME, b"\xc0"), (KOSME, b"\xe0\x80"), (b"", b"\xff")],
)
@pytest.mark.parametrize("fragmented", [False, True])
def test_bad_utf8_is_told_at_the_byte_that_makes_it_bad(good: bytes, bad: bytes, fragmented: bool) -> None:
    """[6.4] Fail fast: not at the end of the message, nor of the frame, but at the first impossible byte."""
    payload = good + bad + b"\x80" * 20
    if fragmented:
        pieces = [frame(FIRST)] + [frame(MIDDLE, payload[i : i + 1]) for i in range(len(payload))]
        before, after = pieces[: len(good + bad)], pieces[len(good + bad)]
    else:
        data = frame(TEXT, payload)
        cut = 6 + len(good + bad) - 1
        before, after = [data[:cut]], data[cut : cut + 1]
    receiver = WsReceiver(max_message=1000)
    for piece in before:
        assert receiver.receive(piece) == []
    with pytest.raises(WsProtocolError) as caught:
        receiver.receive(after)
    assert caught.value.code == 1007


# --- [7] close

VALID_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3003, 3999, 4000, 4999]
INVALID_CODES = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


@pytest.mark.parametrize("step", [0, 1])
def test_close_may_be_empty_or_carry_a_reason(step: int) -> None:
    """[7.3] Nothing, a code, a code and up to 123 bytes of reason."""
    assert receive(frame(CLOSE), step=step) == ([Close(None, "")], 0)
    assert receive(frame(CLOSE, b"\x03\xe8"), step=step) == ([Close(1000, "")], 0)
    assert receive(frame(CLOSE, b"\x03\xe8" + KOSME), step=step) == ([Close(1000, "κόσμε")], 0)
    assert receive(frame(CLOSE, b"\x03\xe8" + b"x" * 123), step=step) == ([Close(1000, "x" * 123)], 0)


def test_a_close_payload_of_one_byte_is_an_error() -> None:
    """[7.3.2] Half a code is none."""
    assert receive(frame(CLOSE, b"\x03")) == ([], 1002)


def test_a_close_reason_is_utf8() -> None:
    """[7.5.1] RFC 6455 §5.5.1: the reason is UTF-8."""
    assert receive(frame(CLOSE, b"\x03\xe8" + b"\xce\xba\xff")) == ([], 1007)


@pytest.mark.parametrize("code", VALID_CODES)
def test_valid_close_codes(code: int) -> None:
    """[7.7] Codes that RFC 6455 and IANA define, and both private ranges, in both directions."""
    assert receive(frame(CLOSE, code.to_bytes(2, "big"))) == ([Close(code, "")], 0)
    assert encode_close(code) == b"\x88\x02" + code.to_bytes(2, "big")


@pytest.mark.parametrize("code", INVALID_CODES)
def test_invalid_close_codes(code: int) -> None:
    """[7.9] Undefined codes and those that never go over the wire, in both directions."""
    assert receive(frame(CLOSE, code.to_bytes(2, "big"))) == ([], 1002)
    with pytest.raises(ValueError):
        encode_close(code)


@pytest.mark.parametrize("late", [frame(TEXT, b"late"), frame(PING), frame(CLOSE, b"\x03\xe8"), b"\xff" * 50])
def test_data_after_close_is_ignored(late: bytes) -> None:
    """[7.1] After a close frame nothing counts, right or wrong, in the same read or a later one."""
    receiver = WsReceiver(max_message=100)
    assert receiver.receive(frame(TEXT, b"a") + frame(CLOSE, b"\x03\xe8bye") + late) == [b"a", Close(1000, "bye")]
    assert receiver.receive(late) == []
    assert receiver.frames == 2
    assert receiver.pending == 0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame(FIRST, b"a") + frame(TEXT, b"b"), "new message inside a fragmented one"),
        (frame(FIRST, b"a\xff"), "not UTF-8"),
        (frame(TEXT, b"\xff"), "not UTF-8"),
        (frame(TEXT, b"\xff" + b"x" * 50)[:20], "not UTF-8"),
    ],
)
def test_data_after_an_error_is_ignored(bad: bytes, reason: str) -> None:
    """An error is told once, with its reason; then the receiver is deaf and holds nothing."""
    receiver = WsReceiver(max_message=100)
    with pytest.raises(WsProtocolError) as caught:
        receiver.receive(bad)
    assert caught.value.reason == reason
    assert receiver.receive(frame(TEXT, b"c")) == []
    assert receiver.pending == 0
    assert receiver.declared == 0


def test_a_long_close_reason_is_cut_at_a_character() -> None:
    """124 bytes of reason don't fit; half a character would be an error of ours."""
    payload = encode_close(1008, "ä" * 100)[2:]
    assert len(payload) == 2 + 122
    assert payload[2:].decode() == "ä" * 61
    assert encode_close(1008, "x" * 124)[2:] == b"\x03\xf0" + b"x" * 123
    assert encode_close(None) == b"\x88\x00"
    with pytest.raises(ValueError):
        encode_close(None, "why")


# --- limits


@pytest.mark.parametrize("limit", [0, 10, 125, 126, 200, 65535, 65536, 70_000])
def test_a_message_may_be_exactly_as_large_as_allowed(limit: int) -> None:
    """The limit itself passes, one byte more is 1009."""
    for step in (0, 1009):
        assert receive(frame(TEXT, b"x" * limit), limit=limit, step=step) == ([b"x" * limit], 0)
        assert receive(frame(TEXT, b"x" * (limit + 1)), limit=limit, step=step) == ([], 1009)


def test_a_declared_length_is_judged_before_the_payload() -> None:
    """1009 as soon as the length is there: no key, no payload byte needed."""
    receiver = WsReceiver(max_message=65536)
    assert receiver.receive(b"\x81\xff" + (65537).to_bytes(8, "big")[:7]) == []
    with pytest.raises(WsProtocolError) as caught:
        receiver.receive((65537).to_bytes(8, "big")[7:])
    assert caught.value.code == 1009


def test_fragments_count_together() -> None:
    """The total of a message's fragments is bounded, by the declared length of the one that passes the limit."""
    whole = frame(FIRST, b"x" * 60) + frame(MIDDLE, b"x" * 40)
    assert receive(whole + frame(CONTINUATION), limit=100) == ([b"x" * 100], 0)
    assert receive(whole + frame(MIDDLE, b"x")[:2], limit=100) == ([], 1009)


def test_control_frames_are_outside_the_message_limit() -> None:
    """A ping is not a message, nor is a close."""
    assert receive(frame(CLOSE, b"\x03\xe8bye"), limit=0) == ([Close(1000, "bye")], 0)
    assert receive(frame(FIRST, b"x") + frame(PING, b"y" * 125) + frame(CONTINUATION), limit=1) == (
        [Ping(b"y" * 125), b"x"],
        0,
    )


def test_the_limit_may_change_between_reads() -> None:
    """The small limit before authentication becomes the large one after."""
    receiver = WsReceiver(max_message=10)
    assert receiver.receive(frame(TEXT, b"x" * 10)) == [b"x" * 10]
    receiver.max_message = 1000
    assert receiver.receive(frame(TEXT, b"x" * 1000)) == [b"x" * 1000]
    receiver.max_message = 10
    with pytest.raises(WsProtocolError):
        receiver.receive(frame(TEXT, b"x" * 11))


def test_what_is_held_and_declared_is_told() -> None:
    """``pending`` is what an unfinished message holds, ``declared`` what it will hold as far as is known."""
    receiver = WsReceiver(max_message=1000)
    receiver.receive(frame(FIRST, b"x" * 100) + frame(CONTINUATION, b"y" * 300)[:58])
    assert receiver.pending == 150
    assert receiver.declared == 400
    receiver.receive(frame(CONTINUATION, b"y" * 300)[58:] + frame(PING, b"abcd")[:8])
    assert receiver.pending == 2
    assert receiver.declared == 0
    receiver.receive(frame(PING, b"abcd")[8:] + frame(FIRST, b"x" * 7) + frame(PING, b"y" * 9)[:8])
    assert receiver.pending == 9
    assert receiver.declared == 7


def test_frames_are_counted_once_each() -> None:
    """Every kind of frame counts for the frame rate, also when its header comes in pieces."""
    data = frame(FIRST) + frame(MIDDLE) + frame(PING) + frame(CONTINUATION) + frame(TEXT, b"x" * 130)
    receiver = WsReceiver(max_message=1000)
    for i in range(len(data)):
        receiver.receive(data[i : i + 1])
    assert receiver.frames == 5


def test_the_received_bytes_are_not_written_to() -> None:
    """Unmasking copies: the caller's buffer is its own."""
    data = frame(TEXT, b"x" * 5000) + frame(TEXT, b"small")
    before = bytes(bytearray(data))
    assert receive(data)[0] == [b"x" * 5000, b"small"]
    assert data == before


# --- masking


@given(st.binary(max_size=200), st.binary(min_size=4, max_size=4), st.sampled_from([0, 1, 2, 3, 4093, 8190]))
def test_unmasking_is_xor_with_the_repeated_key(payload: bytes, key: bytes, more: int) -> None:
    """Every way of unmasking equals the definition of RFC 6455 §5.3, on both sides of the threshold."""
    payload += b"\x5a" * more
    expected = bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    assert masking.unmask_plain(payload, key) == expected
    assert masking.unmask(payload, key) == expected


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.integers(0, 300))
def test_a_rotated_key_resumes_in_the_middle(payload: bytes, key: bytes, cut: int) -> None:
    """Unmasking in two pieces with the key rotated between is unmasking in one."""
    cut = min(cut, len(payload))
    first, second = payload[:cut], payload[cut:]
    pieces = masking.unmask_plain(first, key) + masking.unmask_plain(second, masking.rotate(key, cut))
    assert pieces == masking.unmask_plain(payload, key)


def refusing(*_: object) -> bytes:
    raise TypeError("called in another way")


def test_an_installed_masker_is_used_only_if_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no documented interface: one that is gone, refuses or answers wrongly is left alone."""

    def installed(speedups: object) -> masking.Masker | None:
        monkeypatch.setitem(sys.modules, "websockets.speedups", speedups)
        return masking._installed_masker()

    monkeypatch.setitem(sys.modules, "websockets", SimpleNamespace(__path__=[]))
    assert installed(SimpleNamespace(apply_mask=masking.unmask_plain)) is masking.unmask_plain
    assert installed(SimpleNamespace(apply_mask=lambda payload, _key: payload)) is None
    assert installed(SimpleNamespace(apply_mask=refusing)) is None
    assert installed(SimpleNamespace()) is None
    assert installed(None) is None
