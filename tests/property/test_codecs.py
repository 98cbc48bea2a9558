"""The acceptor's codecs under Hypothesis, judged as the fuzzer judges them (``fuzz/fuzz_codecs``)."""

from __future__ import annotations

import random

from fuzz.fuzz_codecs import FIRST, LINES, check_head, check_lines, check_ws, client_frame, cut, ws_ours, ws_theirs
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol

from actors.acceptor.http import HeadReader, HttpError
from actors.acceptor.lines import LineReader, LineTooLong, Oversize
from actors.acceptor.ws import Close, Item, Ping, Pong, encode_close, encode_text, is_close_code
from actors.policy.origin import host_allowed, origin_allowed, split_host
from ipc.settings import Settings

cuts = st.lists(st.integers(0, 1 << 20), max_size=12)
short = st.binary(max_size=125)
codes = st.integers(1000, 4999).filter(is_close_code)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Item]]:
    """What a well-behaved client, wsproto's, sends for a list of messages and control frames."""
    client = FrameProtocol(client=True, extensions=[])
    out = b""
    expected: list[Item] = []
    for _ in range(draw(st.integers(0, 6))):
        fragments = draw(st.lists(st.text(max_size=200), min_size=1, max_size=4))
        for number, fragment in enumerate(fragments, start=1):
            out += client.send_data(fragment, fin=number == len(fragments))
            if number < len(fragments) and draw(st.booleans()):
                payload = draw(short)
                out += client.ping(payload)
                expected.append(Ping(payload))
        expected.append("".join(fragments).encode())
        if draw(st.booleans()):
            payload = draw(short)
            out += client.pong(payload)
            expected.append(Pong(payload))
    if draw(st.booleans()):
        code, reason = draw(codes), draw(st.text(max_size=30))
        out += client.close(code, reason)
        expected.append(Close(code, reason))
    return out, expected


@given(conversations(), cuts)
def test_what_a_client_sends_is_what_arrives(conversation: tuple[bytes, list[Item]], places: list[int]) -> None:
    """Every message and control frame of wsproto's client comes out, in order, however it is cut."""
    data, expected = conversation
    items, code, _ = ws_ours(cut(data, places))
    assert (items, code) == (expected, 0)


frames = st.builds(
    client_frame,
    st.builds(random.Random, st.integers(0, 1 << 32)),
    st.sampled_from([0x81, 0x01, 0x00, 0x80, 0x88, 0x89, 0x8A]) | st.integers(0, 255),
    st.text(max_size=200).map(str.encode) | st.binary(max_size=200),
)


@given(st.lists(frames, max_size=6).map(b"".join), cuts, st.none() | st.integers(0, 2000))
@example(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", [], None)
@example(b"\x01\x82\x00\x00\x00\x00\xed\xa0\x88\x80\x00\x00\x00\x00", [8], None)
def test_any_frames_are_judged_as_wsproto_judges_them(data: bytes, places: list[int], length: int | None) -> None:
    """Right and wrong frames, cut off anywhere, split anywhere: the same items and the same close code."""
    check_ws(data[:length], places)


@given(st.binary(max_size=300), cuts)
def test_any_bytes_are_judged_as_wsproto_judges_them(data: bytes, places: list[int]) -> None:
    """Bytes that are no frames raise nothing but the declared error, wherever they are split."""
    check_ws(data, places)


@given(st.lists(frames, max_size=6).map(b"".join), cuts, st.integers(0, 400))
def test_no_message_passes_the_limit(data: bytes, places: list[int], limit: int) -> None:
    """Under a limit the result still doesn't depend on the splits, and no message is above it."""
    whole = ws_ours([data], limit)
    assert ws_ours(cut(data, places), limit) == whole
    items, code, _ = whole
    assert all(len(item) <= limit for item in items if isinstance(item, bytes))
    if code != 1009:
        assert whole == ws_ours([data])


@given(st.text(max_size=300), codes, st.text(max_size=200))
def test_what_is_sent_is_what_a_client_reads(message: str, code: int, reason: str) -> None:
    """wsproto's client reads our text and our close, whose reason may have lost its end."""
    client = FrameProtocol(client=True, extensions=[])
    client.receive_bytes(encode_text(message.encode()) + (encode_close(code, reason) if code != 1014 else b""))
    events = list(client.received_frames())
    assert events[0].payload == message
    if code != 1014:  # registered after wsproto's list was written
        payload = events[1].payload
        assert isinstance(payload, tuple)
        assert payload[0] == code
        assert reason.startswith(payload[1])
        assert payload[1] == reason or len(payload[1].encode()) > 119


def test_the_oracle_knows_good_from_bad() -> None:
    """wsproto, as it is used here, accepts a message and refuses an unmasked one."""
    assert ws_theirs(bytes.fromhex("818537fa213d7f9f4d5158")) == ([b"Hello"], 0)
    assert ws_theirs(bytes.fromhex("810548656c6c6f")) == ([], 1002)


token = st.text(st.sampled_from("abcXYZ019!#$%&'*+.^_`|~-"), min_size=1, max_size=10)
value = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.just("\t"), max_size=30)
good_lines = st.sampled_from(LINES) | st.builds("{}:{}".format, token, value)
bad_lines = st.text(st.characters(max_codepoint=0xFF), max_size=20)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Request heads that are good or nearly so."""
    path = st.text(st.sampled_from('abc/%20?=&;.~-#\\"<>{}@:'), max_size=15)
    first = draw(st.sampled_from(FIRST) | st.builds("{} /{} HTTP/1.1".format, token, path))
    lines = draw(st.lists(good_lines, max_size=6))
    if draw(st.integers(0, 9)):
        lines.insert(0, "Host: h")
    if not draw(st.integers(0, 9)):
        lines.append(draw(bad_lines))
    end = draw(st.sampled_from(["\r\n"] * 9 + ["\n"]))
    return end.join([first, *lines, "", ""]).encode("latin-1") + draw(st.binary(max_size=20))


@given(heads(), cuts)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", [29])
@example(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [])
def test_a_head_that_is_accepted_means_to_h11_what_it_means_to_us(data: bytes, places: list[int]) -> None:
    """No request reads differently here and in h11, body and keep-alive included; splits change nothing."""
    check_head(data, places)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"GET / HTTP/1.1\r\nHost: h\r\n" + tail), cuts)
def test_any_bytes_are_a_head_for_h11_too_or_none(data: bytes, places: list[int]) -> None:
    """Bytes that are no head raise nothing but HttpError."""
    check_head(data, places)


@given(st.binary(max_size=400), st.integers(16, 100), cuts)
def test_a_head_never_holds_more_than_its_limit(data: bytes, limit: int, places: list[int]) -> None:
    """Size is bounded before anything else, for small limits as for large ones."""
    reader = HeadReader(max_head=limit)
    for piece in cut(data, places):
        try:
            done = reader.receive(piece) is not None
        except HttpError:
            done = True
        assert reader.pending <= limit
        if done:
            break


pieces_of_lines = st.sampled_from([b"\n", b"\r", b"\r\n", b"x", b"{}", b"\x00", b"0123456789"]) | st.binary(max_size=8)


@given(st.lists(pieces_of_lines, max_size=40).map(b"".join), cuts, st.integers(0, 20))
def test_lines_are_those_of_split(data: bytes, places: list[int], limit: int) -> None:
    """Both modes agree with a model on ``bytes.split``, whatever the splits."""
    check_lines(data, places, limit)


@given(st.lists(st.binary(max_size=30), max_size=10), st.integers(0, 20))
def test_no_line_passes_the_limit(pieces: list[bytes], limit: int) -> None:
    """A reader that raises holds at most the limit and one CR, and gives out nothing above the limit."""
    reader = LineReader(max_line=limit)
    for piece in pieces:
        try:
            lines = reader.receive(piece)
        except LineTooLong as error:
            lines = error.items
        assert all(0 < len(line) <= limit for line in lines)
        assert not any(isinstance(line, Oversize) for line in lines)
        assert reader.pending <= limit + 1


@given(st.binary(max_size=60) | st.text(st.sampled_from("localhst.:[]12f7@/"), max_size=20).map(str.encode))
def test_any_host_and_origin_is_judged(value: bytes) -> None:
    """No bytes raise, and what is allowed is well formed."""
    if host_allowed(value, ("localhost", "127.0.0.1", "::1"), ("127.0.0.1",)):
        split = split_host(value)
        assert split is not None
        assert split[0] in ("localhost", "127.0.0.1", "::1")
    for origin in (value, b"http://" + value):
        if origin_allowed(origin, Settings()):
            assert split_host(origin.partition(b"://")[2]) is not None
