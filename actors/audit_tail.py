"""The end of an audit file, as a crash or an enemy has left it."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from .policy.chain import BadRecord, Record, read_unverified
from .policy.chain import read as read_record

# Longer than any record, whose texts are bounded by the sender.
_LONGEST_LINE = 1 << 20


@attrs.frozen
class Tail:
    """``record``: the last whole line, if it is a record, and whether its hash is ours. ``torn``: bytes behind it."""

    record: Record | None = None
    verified: bool = False
    torn: int = 0


def read_tail(path: Path, key: bytes) -> Tail:
    """Look at the end of a file. One that is missing or empty has an empty tail."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2 * _LONGEST_LINE))
            data = file.read()
    except FileNotFoundError:
        return Tail()
    whole, newline, rest = data.rpartition(b"\n")
    torn = len(rest) if newline else len(data)
    line = whole.rpartition(b"\n")[2]
    if not newline or not line:
        return Tail(torn=torn)
    try:
        return Tail(read_record(line, key), True, torn)
    except BadRecord:
        pass  # not ours: what it claims is looked at below
    try:
        return Tail(read_unverified(line)[0], False, torn)
    except BadRecord:
        return Tail(torn=torn)
