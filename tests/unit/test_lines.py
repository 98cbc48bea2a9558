"""Lines of TCP clients and of upstreams."""

from __future__ import annotations

import pytest

from actors.acceptor.lines import KEPT_HEAD, KEPT_TAIL, LineReader, LineTooLong, Oversize


def pieces(data: bytes, step: int) -> list[bytes]:
    return [data[i : i + step] for i in range(0, len(data), step)]


def read(reader: LineReader[bytes], data: bytes, step: int) -> tuple[list[bytes], bool]:
    """The lines, and whether the reader refused."""
    lines: list[bytes] = []
    for piece in pieces(data, step):
        try:
            lines += reader.receive(piece)
        except LineTooLong as error:
            return lines + error.items, True
    return lines, False


@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_lines_end_with_lf_or_crlf(step: int) -> None:
    """LF ends a line, one CR before it belongs to the end, any other CR to the line."""
    assert read(LineReader(max_line=10), b"a\nb\r\nc\rd\ne\r\r\nf", step) == ([b"a", b"b", b"c\rd", b"e\r"], False)


@pytest.mark.parametrize("step", [1, 2, 100])
def test_empty_lines_are_skipped_but_counted(step: int) -> None:
    """An empty line is nothing to answer, yet it is metered; with CR too."""
    reader = LineReader(max_line=10)
    assert read(reader, b"\n\r\na\n\n\r\n\nb\n", step) == ([b"a", b"b"], False)
    assert reader.empty == 5


def test_the_unfinished_line_is_held() -> None:
    """``pending`` is what has no end yet; an unfinished line at the end is nobody's line."""
    reader = LineReader(max_line=10)
    assert reader.receive(b"one\ntwo") == [b"one"]
    assert reader.pending == 3
    assert reader.receive(b"!\n") == [b"two!"]
    assert reader.pending == 0


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_line_may_be_exactly_as_long_as_allowed(end: bytes, step: int) -> None:
    """The limit itself passes whatever the line end; one byte more does not, and what came before counts."""
    assert read(LineReader(max_line=8), b"x" * 8 + end + b"y" + end, step) == ([b"x" * 8, b"y"], False)
    assert read(LineReader(max_line=8), b"ok" + end + b"x" * 9 + end, step) == ([b"ok"], True)


def test_a_line_too_long_is_refused_before_its_end() -> None:
    """At the first byte too many, not when the line ends: nothing more of it is read."""
    reader = LineReader(max_line=8)
    assert reader.receive(b"a\n12345678") == [b"a"]
    assert reader.receive(b"\r") == []
    with pytest.raises(LineTooLong) as caught:
        reader.receive(b"9")
    assert caught.value.items == []
    assert caught.value.limit == 8
    assert reader.pending == 0
    assert reader.receive(b"b\n") == []


def test_lines_behind_a_line_too_long_are_not_read() -> None:
    """The error carries the lines before the offence and none behind it."""
    with pytest.raises(LineTooLong) as caught:
        LineReader(max_line=4).receive(b"a\nb\n12345\nc\n")
    assert caught.value.items == [b"a", b"b"]


def test_the_limit_may_change_between_reads() -> None:
    """The small limit before authentication becomes the large one after, in the middle of a line too."""
    reader = LineReader(max_line=4)
    assert reader.receive(b"1234") == []
    reader.max_line = 8
    assert reader.receive(b"5678\n") == [b"12345678"]


@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_too_long_of_an_upstream_is_clipped_and_reading_goes_on(step: int, end: bytes) -> None:
    """Its head, tail and length take its place; the lines around it are whole."""
    line = bytes(range(32, 127)) * 1000
    reader = LineReader(max_line=80_000, on_overflow="discard")
    items: list[bytes | Oversize] = []
    for piece in pieces(b"before" + end + line + end + b"after" + end, step):
        items += reader.receive(piece)
        assert reader.pending <= 80_001 + max(step, KEPT_TAIL * 2) or step > 80_000
    assert items == [b"before", Oversize(line[:KEPT_HEAD], line[-KEPT_TAIL:], len(line)), b"after"]
    assert reader.pending == 0


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("length", [11, KEPT_HEAD - 1, KEPT_HEAD, KEPT_HEAD + 1, KEPT_HEAD + KEPT_TAIL, 80_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_head_and_tail_never_overlap(step: int, length: int, end: bytes) -> None:
    """A line that just passes the limit is in head and tail completely, each byte once."""
    line = (bytes(range(32, 127)) * 1000)[:length]
    reader = LineReader(max_line=10, on_overflow="discard")
    items: list[bytes | Oversize] = []
    for piece in pieces(line + end, step):
        items += reader.receive(piece)
    [item] = items
    assert isinstance(item, Oversize)
    assert item.length == length
    assert item.head == line[:KEPT_HEAD]
    assert item.tail == line[KEPT_HEAD:][-KEPT_TAIL:]


@pytest.mark.parametrize("step", [1, 999, 1 << 20])
def test_what_was_held_before_the_limit_passed_is_in_the_tail(step: int) -> None:
    """A limit beyond the kept head: what lies between the two isn't lost when the limit passes."""
    line = (bytes(range(32, 127)) * 1000)[: KEPT_HEAD + 10_003]
    reader = LineReader(max_line=KEPT_HEAD + 10_000, on_overflow="discard")
    items: list[bytes | Oversize] = []
    for piece in pieces(line + b"\n", step):
        items += reader.receive(piece)
    assert items == [Oversize(line[:KEPT_HEAD], line[-KEPT_TAIL:], len(line))]


def test_a_cr_that_the_tail_ends_with_costs_it_no_byte() -> None:
    """The tail is full whether or not the line ended with CR, also just after it was trimmed."""
    line = (bytes(range(32, 127)) * 2000)[: KEPT_HEAD + 20_000]
    reader = LineReader(max_line=10, on_overflow="discard")
    assert reader.receive(line[: KEPT_HEAD + 5_000]) == []
    assert reader.receive(line[KEPT_HEAD + 5_000 : KEPT_HEAD + 10_000]) == []
    assert reader.receive(line[KEPT_HEAD + 10_000 :] + b"\r") == []
    assert reader.receive(b"\n") == [Oversize(line[:KEPT_HEAD], line[-KEPT_TAIL:], len(line))]


def test_an_endless_line_is_held_in_constant_space() -> None:
    """However much comes without an end, only head and tail are kept."""
    reader = LineReader(max_line=1000, on_overflow="discard")
    for _ in range(2000):
        assert reader.receive(b"x" * 65_536) == []
        assert reader.pending <= KEPT_HEAD + 2 * (KEPT_TAIL + 1)
    [item] = reader.receive(b"\n")
    assert isinstance(item, Oversize)
    assert item.length == 2000 * 65_536
