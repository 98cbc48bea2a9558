"""``mcp-security-audit --follow``: every record, then each new one as it is written."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Final

from actors.policy.chain import BadRecord, read_unverified

from .audit_files import LONGEST_LINE, lines, numbered
from .failure import UsageError

# The file that is written to keeps its name; rotated ones get another.
ACTIVE: Final = "security-audit.log"

INTERVAL: Final = 0.2  # seconds between two looks


def follow(directory: Path) -> Iterator[bytes]:
    """All lines there are, then new ones, over any number of rotations; never ends. Raises UsageError."""
    last = 0  # number of the newest record that was given out
    while True:
        for line in _one_round(directory, last):
            number = _number(line)
            if number == 0 or number > last:
                last = max(last, number)
                yield line
        time.sleep(INTERVAL)


def _one_round(directory: Path, last: int) -> Iterator[bytes]:
    """Everything newer than ``last``, until the active file is replaced.

    The active file is opened before the others are listed: so a rotation in between hides nothing, because what was
    rotated before is in the list, and what is rotated after is still open.
    """
    active = directory / ACTIVE
    with _open(active) as file:
        begun = (file and _number(file.readline(LONGEST_LINE))) or math.inf
        for first, path in numbered(directory):
            if path != active and first < begun and (first > last or last == 0):
                yield from lines(path)
        if file is not None:
            file.seek(0)
            yield from _until_replaced(file, active)


def _open(path: Path) -> IO[bytes] | nullcontext[None]:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return nullcontext()  # renamed; the next one is about to be made
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _until_replaced(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Whole lines of this file, until another one has its name and all of this was read, or it was emptied."""
    ours = os.fstat(file.fileno())
    rest = b""
    replaced = False
    while True:
        data = file.read(LONGEST_LINE)
        if data:
            *whole, rest = (rest + data).split(b"\n")
            yield from (line + b"\n" for line in whole)
            continue
        if replaced:
            return
        time.sleep(INTERVAL)
        try:
            there = path.stat()
        except FileNotFoundError:
            continue
        # Then there is one more look at the old file, because it was written to until it was renamed.
        replaced = (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
        if not replaced and there.st_size < file.tell():
            return


def _number(line: bytes) -> int:
    """0 for what is no record."""
    try:
        return read_unverified(line.rstrip(b"\n"))[0].seq
    except BadRecord:
        return 0
