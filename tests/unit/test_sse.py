"""Server-sent events: the HTML standard's rules, and the bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.upstream.sse import MAX_ID, Event, EventReader, EventTooLong


def read(*chunks: bytes, limit: int = 1000) -> list[tuple[bytes, bytes]]:
    reader = EventReader(limit)
    return [(event.type, event.data) for chunk in chunks for event in reader.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [(b"message", b"a")]),
        (b"data:a\n\n", [(b"message", b"a")]),
        (b"data:  a\n\n", [(b"message", b" a")]),
        (b"data: a\r\n\r\n", [(b"message", b"a")]),
        (b"data: a\r\r", [(b"message", b"a")]),
        (b"data: a\ndata: b\n\n", [(b"message", b"a\nb")]),
        (b"data\n\n", [(b"message", b"")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [(b"x", b"a"), (b"message", b"b")]),
        (b": comment\n\n", []),
        (b"id: 1\n\n", []),
        (b"foo: a\n\n", []),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"message", b"a")]),
        (b"data: a\n", []),
        (b"data: \xe2\x80\xa8\n\n", [(b"message", b"\xe2\x80\xa8")]),
    ],
)
def test_what_an_event_is(stream: bytes, events: list[tuple[bytes, bytes]]) -> None:
    """All at once and byte by byte alike."""
    assert read(stream) == events
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == events


LINES = [b"data: x", b"data", b":c", b"id: 7", b"event: e", b"", b"retry: 5", b"zz"]


@given(st.lists(st.sampled_from(LINES)), st.data())
def test_how_the_bytes_arrive_makes_no_difference(lines: list[bytes], data: st.DataObject) -> None:
    """Any line ends, any cuts."""
    stream = b"".join(line + data.draw(st.sampled_from([b"\n", b"\r\n"])) for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, parts = EventReader(1000), EventReader(1000)
    expected = whole.feed(stream)
    got: list[Event] = [event for piece in pieces for event in parts.feed(piece)]
    assert got == expected
    assert (parts.last_id, parts.retry_ms) == (whole.last_id, whole.retry_ms)


def test_ids_and_retry() -> None:
    """An id counts once its event has ended; what a header could not carry is no id; retry has a most."""
    reader = EventReader(1000)
    reader.feed(b"id: a\n")
    assert reader.last_id == b""
    reader.feed(b"\n")
    assert reader.last_id == b"a"
    for bad in (b"a b", b"\x00", b"\xff", b"x" * (MAX_ID + 1)):
        reader.feed(b"id: " + bad + b"\n\n")
        assert reader.last_id == b"a"
    reader.feed(b"retry: x\nretry: -1\nretry: 1.5\n\n")
    assert reader.retry_ms is None
    reader.feed(b"retry: 99999999\n\n")
    assert reader.retry_ms == 60_000


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 2000, b"data: x\n" * 700, b"data: " + b"x" * 2000 + b"\n\n"])
def test_too_much_data_is_an_error_before_it_is_kept(stream: bytes) -> None:
    """In one line or in many."""
    reader = EventReader(1000)

    def feed() -> None:
        for at in range(0, len(stream), 100):
            reader.feed(stream[at : at + 100])
            assert reader.held <= 1100

    with pytest.raises(EventTooLong):
        feed()


def test_other_long_lines_are_not_kept() -> None:
    """A comment of any length costs no memory, and what follows is read."""
    reader = EventReader(1000)
    for _ in range(100):
        reader.feed(b":" + b"x" * 10_000)
        assert reader.held < 20_000
    assert reader.feed(b"\ndata: a\n\n") == [Event(b"message", b"a")]
