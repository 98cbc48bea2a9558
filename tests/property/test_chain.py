"""The audit chain: what it shows, and that nothing in a record can fool a reader."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.policy.chain import GENESIS, Head, Verification, read, render, timestamp, verify
from ipc.messages import AuditEvent

KEY = b"k" * 32
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def _event(**fields: Any) -> AuditEvent:
    fields = {"event": "call.completed", "severity": "info", "outcome": "success", "time_ns": 1, **fields}
    return AuditEvent(**fields)


def _chain(events: list[AuditEvent], head: Head | None = None) -> list[bytes]:
    head = head or Head()
    lines = []
    for event in events:
        line, head = render(event, head, KEY)
        lines.append(line)
    return lines


def _head(lines: list[bytes]) -> Head:
    return read(lines[-1][:-1], KEY).head


def _check(lines: list[bytes], **options: Any) -> Verification:
    return verify(lines, KEY, **options)


@given(st.lists(texts, min_size=1, max_size=6), texts, st.dictionaries(texts, texts, max_size=3))
def test_any_text_comes_back_and_no_character_of_it_can_harm(
    methods: list[str], principal: str, detail: dict[str, str]
) -> None:
    """A record is one line of printable characters; decoded, it says exactly what was recorded; the chain verifies."""
    events = [_event(method=method, principal=principal, detail=dict(detail)) for method in methods]
    lines = _chain(events)
    for line, method in zip(lines, methods, strict=True):
        assert line.count(b"\n") == 1
        text = line[:-1].decode()
        assert text.startswith("SECURITY {")
        assert len(text.splitlines()) == 1
        assert not [character for character in text if _is_harmful(character)]
        record = json.loads(text.removeprefix("SECURITY "))
        assert record.get("method", "") == method
        assert record.get("principal", "") == principal
        assert record.get("detail", {}) == detail
    checked = _check(lines, head=_head(lines))
    assert (checked.first_bad, checked.records, checked.gaps) == (None, len(lines), ())


def _is_harmful(character: str) -> bool:
    """Controls, line separators, and the format characters that reorder text."""
    category = unicodedata.category(character)
    if category == "Cf":
        return unicodedata.bidirectional(character) in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return category in {"Cc", "Zl", "Zp"}


@given(st.integers(2, 6), st.data())
def test_any_change_is_found_at_its_place(count: int, data: st.DataObject) -> None:
    """One byte changed, a line removed, doubled or moved: verification names the first record that is wrong."""
    lines = _chain([_event(method=f"method {number}") for number in range(count)])
    place = data.draw(st.integers(0, count - 1))
    how = data.draw(st.sampled_from(["byte", "removed", "doubled", "swapped", "torn", "forged"]))
    tampered = list(lines)
    expected = place + 1
    if how == "byte":
        at = data.draw(st.integers(0, len(lines[place]) - 2))
        line = bytearray(lines[place])
        line[at] ^= data.draw(st.integers(1, 127))
        tampered[place] = bytes(line)
    elif how == "removed":
        del tampered[place]
    elif how == "doubled":
        tampered.insert(place, lines[place])
        expected = place + 2
    elif how == "swapped":
        other = (place + 1) % count
        tampered[place], tampered[other] = tampered[other], tampered[place]
        expected = min(place, other) + 1
    elif how == "torn":
        tampered = [*lines[:place], lines[place][:-1]]
    else:
        forged = render(_event(method="forged"), Head(place, GENESIS), b"x" * 32)[0]
        tampered[place] = forged
    bad = _check(tampered, head=_head(lines)).first_bad
    assert bad is not None
    assert bad.seq == expected


@given(st.integers(1, 5), st.integers(0, 5))
def test_a_cut_tail_shows_against_the_head(kept: int, cut: int) -> None:
    """The head that is kept elsewhere tells a shortened log from a whole one; an older head fits a longer log."""
    lines = _chain([_event() for _ in range(kept + cut)])
    bad = _check(lines[:kept], head=_head(lines)).first_bad
    assert (bad is None) is (cut == 0)
    if bad is not None:
        assert (bad.seq, bad.line) == (kept + 1, 0)
    assert _check(lines, head=_head(lines[:kept])).first_bad is None


def test_the_start_is_checked_against_what_was_deleted() -> None:
    """After a rotation the remaining log must follow the last record of the deleted file."""
    lines = _chain([_event() for _ in range(5)])
    before = read(lines[1][:-1], KEY).head
    assert _check(lines[2:], before=before).first_bad is None
    bad = _check(lines[3:], before=before).first_bad
    assert bad is not None
    assert bad.seq == 3


def test_a_recorded_gap_is_reported_and_not_an_error() -> None:
    """Missing records that the gateway itself has recorded are gaps; the same hole without the record is an error."""
    lines = _chain([_event() for _ in range(4)])
    head = _head(lines)
    gap = _chain([_event(event="audit.gap", reason="records are missing")], head)
    checked = _check([*lines[:2], *gap])
    assert checked.first_bad is None
    assert [(finding.seq, finding.why) for finding in checked.gaps] == [(3, "records are missing")]
    assert _check([*lines[:2], *_chain([_event()], head)]).first_bad is not None


@given(st.integers(-(10**30), 10**30))
def test_any_time_is_rfc_3339(time_ns: int) -> None:
    """Whatever clock a sender had, the time has the one form, to the microsecond."""
    text = timestamp(time_ns)
    assert len(text) == len("2026-01-02T03:04:05.123456Z")
    assert text.endswith("Z")


def test_the_time_is_utc_to_the_microsecond() -> None:
    """A known instant."""
    assert timestamp(1_767_323_045_123_456_789) == "2026-01-02T03:04:05.123456Z"
