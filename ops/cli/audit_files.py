"""The audit log's files on disk, for reading: which there are, in which order, and what they say about themselves."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Final

import attrs
import msgspec

from actors.journal import Journal
from actors.policy.chain import GENESIS, BadRecord, Head, read_unverified

from .failure import UsageError

PATTERN: Final = "security-*.log*"

# Longer than any record, whose texts are bounded when it is written.
LONGEST_LINE: Final = 1 << 20


@attrs.frozen
class Kept:
    """What the gateway keeps in STATE_DIR, out of reach of who can only change the log.

    ``head`` is the last record that was written, ``floor`` the last one of the files that rotation has deleted.
    """

    key: bytes
    head: Head
    floor: Head | None


def files(directory: Path) -> list[Path]:
    """All files that hold records, oldest first, whatever they have been renamed to. Raises UsageError."""
    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}; --log-dir or $AUDIT_LOG_DIR names another")
    found = []
    for path in directory.glob(PATTERN):
        if not path.is_file():
            continue
        with open_log(path) as file:
            first = file.readline(LONGEST_LINE)
        if not first:
            continue  # just begun: it has not even its anchor
        try:
            order = read_unverified(first.rstrip(b"\n"))[0].seq
        except BadRecord:
            order = 0  # whatever it is, it has to be noticed
        found.append((order, path))
    return [path for _, path in sorted(found)]


def open_log(path: Path) -> IO[bytes]:
    """Raises UsageError."""
    try:
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def lines(path: Path) -> Iterator[bytes]:
    """The lines with their newlines; one that is longer than any record comes in pieces. Raises UsageError."""
    with open_log(path) as file:
        try:
            while line := file.readline(LONGEST_LINE):
                yield line
        except (OSError, EOFError) as error:  # gzip's own errors are among them
            raise UsageError(f"{path}: {error}") from None


def kept(state_dir: Path) -> Kept:
    """Read key and head from STATE_DIR, without disturbing a gateway that runs. Raises UsageError."""
    try:
        key = bytes.fromhex((state_dir / "audit.key").read_text(encoding="ascii"))
    except FileNotFoundError:
        raise UsageError(f"{state_dir} holds no audit.key; --state-dir or $STATE_DIR names another directory") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{state_dir / 'audit.key'}: {error}") from None
    # Opening a journal repairs it, which is for its owner only: so a copy is opened.
    with tempfile.TemporaryDirectory(prefix="mcp-security-audit-") as scratch:
        copy = Path(scratch) / "audit.journal"
        try:
            shutil.copyfile(state_dir / "audit.journal", copy)
        except OSError as error:
            raise UsageError(f"{state_dir / 'audit.journal'}: {error.strerror or error}") from None
        journal, recovered = Journal.open(copy, "audit")
        with closing(journal):
            records = [msgspec.msgpack.decode(record) for record in recovered.records]
    head, floor = Head(), None
    for record in records:
        match record:
            case ["s", int(seq), str(digest), int(floor_seq), str(floor_digest), *_]:
                head = Head(seq, digest)
                floor = Head(floor_seq, floor_digest) if (floor_seq, floor_digest) != (0, GENESIS) else None
            case ["i", list(), int(seq), str(digest), *_]:
                head = Head(seq, digest)
            case _:
                raise UsageError(f"{state_dir / 'audit.journal'}: written by another version of the gateway")
    return Kept(key, head, floor)
