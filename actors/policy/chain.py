"""The lines of the audit log, and the chain that holds them together.

A line is ``SECURITY `` and a JSON object whose last two members are ``prev``, the hash of the record before it, and
``hash``: HMAC-SHA-256, with the gateway's audit key, over the bytes of the same object without ``hash``. So a record
can't be changed, removed from the middle or put elsewhere without the key; the records' numbers and the head that is
kept elsewhere show what is missing at the ends.

Everything in a record that came from outside is escaped so that a terminal and a line-wise tool show what is there:
no control characters, no bidirectional marks, no invisible ones, no line or paragraph separators. They appear as
JSON escapes, so nothing is lost.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec

from ipc.messages import AuditEvent

PREFIX = b"SECURITY "
GENESIS = "0" * 64
ANCHOR = "audit.anchor"
GAP = "audit.gap"

_TEXTS_BEFORE_PORT = ("connection", "transport", "peer_ip")
_TEXTS_AFTER_PORT = ("principal", "method", "rule", "upstream", "reason")
# C1 controls and DEL (C0 is escaped by JSON itself), the soft hyphen, bidirectional and zero-width characters, line
# and paragraph separators, interlinear marks, the byte-order mark, and the invisible tag characters.
_UNSAFE = re.compile(
    "[\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_HASH_AT = -len(',"hash":""}') - 64
_LAST_SECOND = 253_402_300_799  # of the year 9999, where RFC 3339 ends
_encode = msgspec.json.Encoder().encode


@attrs.frozen
class Head:
    """The last record of a chain; that of an empty one has number 0."""

    seq: int = 0
    hash: str = GENESIS


START = Head()


@attrs.frozen
class Record:
    """One line that is intact by itself."""

    seq: int
    prev: str
    hash: str
    event: str
    members: dict[str, Any]

    @property
    def head(self) -> Head:
        return Head(self.seq, self.hash)


class BadRecord(ValueError):
    """A line that this gateway has not written, or not so."""


def render(event: AuditEvent, head: Head, key: bytes) -> tuple[bytes, Head]:
    """The line of the record that follows ``head``, newline included, and the head that it makes."""
    members: dict[str, object] = {
        "time": timestamp(event.time_ns),
        "seq": head.seq + 1,
        "event": event.event,
        "severity": event.severity,
        "outcome": event.outcome,
    }
    for name in _TEXTS_BEFORE_PORT:
        if value := getattr(event, name):
            members[name] = value
    if event.peer_port:
        members["peer_port"] = event.peer_port
    for name in _TEXTS_AFTER_PORT:
        if value := getattr(event, name):
            members[name] = value
    if event.detail:
        members["detail"] = event.detail
    members["prev"] = head.hash
    body = _escape(_encode(members))
    digest = _sign(body, key)
    return b'%s%s,"hash":"%s"}\n' % (PREFIX, body[:-1], digest.encode()), Head(head.seq + 1, digest)


def read(line: bytes, key: bytes) -> Record:
    """Check one line, without its newline, by itself. Raises BadRecord."""
    record, signed = read_unverified(line)
    if not hmac.compare_digest(_sign(signed, key), record.hash):
        raise BadRecord(f"record {record.seq}: its content does not fit its hash")
    return record


def read_unverified(line: bytes) -> tuple[Record, bytes]:
    """The record as it claims to be, and the bytes that its hash has to sign. Raises BadRecord."""
    if not line.startswith(PREFIX):
        raise BadRecord("a line does not begin with SECURITY")
    text = line[len(PREFIX) :]
    body, tail = text[:_HASH_AT], text[_HASH_AT:]
    try:
        members = msgspec.json.decode(text, type=dict[str, Any])
        record = Record(int(members["seq"]), str(members["prev"]), str(members["hash"]), str(members["event"]), members)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"a line is not a record: {error}") from error
    if tail != b',"hash":"%s"}' % record.hash.encode():
        raise BadRecord(f"record {record.seq}: the hash is not its last member")
    return record, body + b"}"


def timestamp(time_ns: int) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    seconds = max(0, min(seconds, _LAST_SECOND))
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


@attrs.frozen
class Finding:
    """``seq``: of the first record that is bad or missing. ``line``: counted from 1 over all that was read, 0 for
    the end."""

    seq: int
    line: int
    why: str


@attrs.frozen
class Verification:
    """``gaps``: losses that the gateway itself has recorded; they are signed, so no one else has made them up."""

    records: int
    head: Head
    first_bad: Finding | None
    gaps: tuple[Finding, ...]


def verify(
    lines: Iterable[bytes], key: bytes, *, before: Head | None = START, head: Head | None = None
) -> Verification:
    """Check a chain.

    Args:
      lines: of all files, oldest first, each with its newline.
      before: the last record of the newest file that was deleted in rotation; None when that isn't known, so that
        nothing missing at the start can show.
      head: the last record, as the gateway remembers it.
    """
    chain = _Chain(key, before)
    for line in lines:
        if chain.bad is None:
            chain.follow(line)
    if chain.bad is None and head is not None:
        chain.compare(head)
    return Verification(chain.records, chain.last or START, chain.bad, tuple(chain.gaps))


class _Chain:
    def __init__(self, key: bytes, before: Head | None) -> None:
        self.records = 0
        self.last = before
        self.bad: Finding | None = None
        self.gaps: list[Finding] = []
        self._key = key
        self._line = 0
        self._seen: dict[int, str] = {}  # the last hashes, for the comparison with a head that is a little older

    def follow(self, line: bytes) -> None:
        self._line += 1
        expected = self.last.seq + 1 if self.last else 1
        if not line.endswith(b"\n"):
            self.bad = Finding(expected, self._line, "the last line is torn")
            return
        try:
            record = read(line[:-1], self._key)
        except BadRecord as error:
            self.bad = Finding(expected, self._line, str(error))
            return
        if self.last is not None and (record.seq != expected or record.prev != self.last.hash):
            why = f"record {record.seq} does not follow record {self.last.seq}"
            if record.event != GAP or record.seq < expected:
                self.bad = Finding(expected, self._line, why)
                return
            self.gaps.append(Finding(expected, self._line, str(record.members.get("reason", why))))
        elif record.event == GAP:
            self.gaps.append(Finding(record.seq, self._line, str(record.members.get("reason", ""))))
        self.records += 1
        self.last = record.head
        self._seen[record.seq] = record.hash
        if len(self._seen) > 65_536:
            del self._seen[next(iter(self._seen))]

    def compare(self, head: Head) -> None:
        last = self.last or START
        if last.seq < head.seq:
            self.bad = Finding(last.seq + 1, 0, f"the records {last.seq + 1} to {head.seq} are missing at the end")
        elif self._seen.get(head.seq, head.hash) != head.hash:
            self.bad = Finding(head.seq, 0, f"record {head.seq} is not the one that was written")


def _sign(body: bytes, key: bytes) -> str:
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def _escape(encoded: bytes) -> bytes:
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    return _UNSAFE.sub(_as_json_escape, encoded.decode()).encode()


def _as_json_escape(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
