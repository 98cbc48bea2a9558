"""``mcp-security-audit verify`` and ``head``: is every record there, and as it was written?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from actors.policy.chain import BadRecord, Head, Verification, read_unverified, verify

from .audit_files import kept, lines, numbered
from .terminal import printable


def show_head(state_dir: Path, *, as_json: bool) -> int:
    head = kept(state_dir).head
    print(json.dumps({"seq": head.seq, "hash": head.hash}) if as_json else f"{head.seq}:{head.hash}")
    return 0


@attrs.define
class _Reading:
    """Every line of all files, with a memory of where each file began."""

    paths: Sequence[Path]
    looked_for: Head | None = None
    starts: list[tuple[int, Path]] = attrs.field(factory=list, init=False)
    found: str = attrs.field(default="", init=False)  # the hash of the record whose number `looked_for` has
    _read: int = attrs.field(default=0, init=False)

    def __iter__(self) -> Iterator[bytes]:
        for path in self.paths:
            self.starts.append((self._read, path))
            for line in lines(path):
                self._read += 1
                self._look(line)
                yield line

    def _look(self, line: bytes) -> None:
        if self.looked_for is None or b'"seq":%d,' % self.looked_for.seq not in line:
            return
        try:
            record = read_unverified(line.rstrip(b"\n"))[0]
        except BadRecord:
            return  # verify says so
        if record.seq == self.looked_for.seq:
            self.found = record.hash

    def place(self, line: int) -> str:
        """Where the ``line``-th of all lines, counted from 1, is."""
        before, path = next((start, path) for start, path in reversed(self.starts) if start < line)
        return f"{path.name}:{line - before}"


def check(log_dir: Path, state_dir: Path, expected: Head | None, *, as_json: bool) -> int:
    """Report on the whole chain; ``expected`` is a head that was kept elsewhere. 0: intact."""
    state = kept(state_dir)  # first: what is written while we read makes the log longer than this head, never shorter
    present = numbered(log_dir)
    reading = _Reading([path for _, path in present], expected)
    # A file that is about to be deleted, and whose end is on record already, may still be there.
    before = None if present and 0 < present[0][0] <= state.floor.seq else state.floor
    result = verify(reading, state.key, before=before, head=state.head)
    bad = result.first_bad
    document: dict[str, Any] = {
        "intact": bad is None,
        "records": result.records,
        "files": len(reading.paths),
        "head": {"seq": result.head.seq, "hash": result.head.hash},
        "gaps": [{"seq": gap.seq, "where": reading.place(gap.line), "why": gap.why} for gap in result.gaps],
    }
    if bad is not None:
        where = reading.place(bad.line) if bad.line else "end"
        document["first_bad"] = {"seq": bad.seq, "where": where, "why": bad.why}
    elif expected is not None and (why := _missed(expected, reading.found, state.floor)):
        document |= {"intact": False, "first_bad": {"seq": expected.seq, "where": "", "why": why}}
    if as_json:
        print(json.dumps(document))
    else:
        _tell(document, result)
    return 0 if document["intact"] else 1


def _missed(head: Head, found: str, floor: Head) -> str:
    """Why a head that was kept elsewhere is not in an intact log; empty if it is, or if it has been rotated away."""
    if found:
        return "" if found == head.hash else f"record {head.seq} is not the one whose hash was kept"
    if head.seq <= floor.seq:
        return ""
    return f"record {head.seq}, whose hash was kept, is missing"


def _tell(document: Mapping[str, Any], result: Verification) -> None:
    for gap in document["gaps"]:
        print(printable(f"gap: record {gap['seq']} ({gap['where']}): {gap['why']}"))
    if document["intact"]:
        head = f"{result.head.seq}:{result.head.hash}"
        print(f"intact: {result.records} records in {document['files']} files, head {head}")
    else:
        bad = document["first_bad"]
        print(printable(f"broken: record {bad['seq']} ({bad['where'] or 'nowhere'}): {bad['why']}"))
