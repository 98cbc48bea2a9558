"""The audit log's files on disk, for reading: which there are, in which order, and what they say about themselves."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import attrs
import msgspec

from actors.policy.chain import BadRecord, Head, read_unverified

from .failure import UsageError

PATTERN: Final = "security-*.log*"

# Longer than any record, whose texts are bounded when it is written.
LONGEST_LINE: Final = 1 << 20


@attrs.frozen
class Kept:
    """What the gateway keeps in STATE_DIR, out of reach of who can only change the log.

    ``head`` is the last record that was written, ``floor`` the last one of the files that rotation has deleted; its
    number is 0 where there is none.
    """

    key: bytes
    head: Head
    floor: Head


def files(directory: Path) -> list[Path]:
    """All files that hold records, oldest first. Raises UsageError."""
    return [path for _, path in numbered(directory)]


def numbered(directory: Path) -> list[tuple[int, Path]]:
    """The same with the number of each one's first record; what the files are called says nothing.

    0 where the first line is no record: it has to be noticed.
    """
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
            order = 0
        found.append((order, path))
    return sorted(found)


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
    try:
        data = (state_dir / "audit.journal").read_bytes()
    except OSError as error:
        raise UsageError(f"{state_dir / 'audit.journal'}: {error.strerror or error}") from None
    header, _, rest = data.partition(b"\n")
    if not header.startswith(b"portcullis-journal 1 audit "):
        raise UsageError(f"{state_dir / 'audit.journal'}: this is no journal of the audit log")
    head = floor = Head()
    for record in _journaled(rest):
        match msgspec.msgpack.decode(record):
            case ["s", int(seq), str(digest), int(floor_seq), str(floor_digest), *_]:
                head = Head(seq, digest)
                floor = Head(floor_seq, floor_digest)
            case ["f", int(seq), str(digest)]:
                floor = Head(seq, digest)
            case ["i", list(), int(seq), str(digest), *_]:
                head = Head(seq, digest)
            case _:
                raise UsageError(f"{state_dir / 'audit.journal'}: written by another version of the gateway")
    return Kept(key, head, floor)


def _journaled(data: bytes) -> Iterator[bytes]:
    """The whole records of a journal. Read here, because opening it as its owner does would repair it meanwhile.

    Each is a little-endian u32 length, a u32 CRC-32 and that many bytes; one that is torn or damaged ends it.
    """
    position = 0
    while position + 8 <= len(data):
        length, checksum = struct.unpack_from("<II", data, position)
        record = data[position + 8 : position + 8 + length]
        if not record or len(record) < length or zlib.crc32(record) != checksum:
            return
        yield record
        position += 8 + length
