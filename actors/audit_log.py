"""The audit log's files, and what of them survives a crash.

Everything that is to be written is first put into a journal in STATE_DIR as an *intent*: the very lines, which events
of which senders they stand for, and what was only counted. Then the lines are written. After a crash at any point
between, the intent completes the log; so an event that is sent again, because its sender never got the answer, is in
the log once.

The active file keeps its name. When it is full it is renamed to that name and the number of its last record, so that
names sort by age and one rename is all. If somebody else has moved it, a new one is begun. Each file opens with an
anchor record; the chain runs on from file to file.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import msgspec

from ipc.messages import AuditEvent

from .audit_tail import Tail, read_tail
from .journal import Journal, state_file
from .policy.chain import ANCHOR, GAP, BadRecord, Head, read, render
from .policy.coalescing import Coalescer

ACTIVE = "security-audit.log"
_ROTATED = re.compile(re.escape(ACTIVE) + r"\.(\d{12,})(?:\.gz)?")
# Senders remembered: each is one incarnation of an actor. Forgotten in the order of their last batches.
_MOST_SOURCES = 1024
_KEY_BYTES = 32


class _Intent(msgspec.Struct, frozen=True, array_like=True, tag="i", gc=False):
    lines: list[bytes]
    seq: int  # of the last line, or of the head when there is none
    hash: str
    marks: list[tuple[str, int]]
    absorbed: list[AuditEvent]
    settled: list[AuditEvent]


class _Floor(msgspec.Struct, frozen=True, array_like=True, tag="f", gc=False):
    seq: int
    hash: str


class _State(msgspec.Struct, frozen=True, array_like=True, tag="s", gc=False):
    seq: int
    hash: str
    floor_seq: int
    floor_hash: str
    marks: list[tuple[str, int]]
    counted: list[AuditEvent]


@attrs.define
class Entry:
    """What one write puts into the log.

    Args:
      events: a record each.
      marks: source → the number of its first event that is not in the log after this.
      absorbed: events that were only counted so far.
      settled: the summaries among ``events``: what was counted for them is in the log with this.
    """

    events: list[AuditEvent] = attrs.field(factory=list)
    marks: dict[str, int] = attrs.field(factory=dict)
    absorbed: list[AuditEvent] = attrs.field(factory=list)
    settled: list[AuditEvent] = attrs.field(factory=list)

    def __bool__(self) -> bool:
        return bool(self.events or self.marks or self.absorbed)


@attrs.define
class LogCounters:
    records: int = 0
    bytes: int = 0
    rotations: int = 0
    reopened: int = 0
    gaps: int = 0
    redone: int = 0
    torn_bytes: int = 0
    checkpoint_errors: int = 0


class AuditLog:
    """The log of one gateway. Methods that write raise OSError and then leave the log as it was.

    Args:
      directory: AUDIT_LOG_DIR.
      max_bytes: of the active file, past which it is rotated.
      keep: rotated files.
      counted: what has been counted and not recorded, as summaries, whenever the journal is made anew.
    """

    def __init__(
        self,
        directory: Path,
        state_dir: str,
        *,
        max_bytes: int,
        keep: int,
        counted: Callable[[], list[AuditEvent]],
    ) -> None:
        self.counters = LogCounters()
        self.left_counted: list[AuditEvent] = []  # by a predecessor
        self._directory = directory
        self._max_bytes = max_bytes
        self._keep = keep
        self._counted = counted
        self._path = directory / ACTIVE
        self._fd = -1
        self._size = 0
        self._inode = (0, 0)
        self._head = Head()
        self._floor = Head()  # the last record of the newest file that was deleted
        self._marks: OrderedDict[str, int] = OrderedDict()
        self._encode = msgspec.msgpack.Encoder().encode
        self._unsynced: list[int] = []  # descriptors of files that are complete
        self._dirty = False
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._key = _load_key(state_file(state_dir, "audit.key"))
        self._journal, recovered = Journal.open(state_file(state_dir, "audit.journal"), "audit")
        try:
            self._recover(recovered.records, damaged=recovered.damaged)
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> Head:
        return self._head

    @property
    def floor(self) -> Head:
        return self._floor

    @property
    def is_dirty(self) -> bool:
        """Whether something was written that is in no ``take_unsynced`` yet."""
        return self._dirty or bool(self._unsynced)

    def next_of(self, source: str) -> int:
        """The number of the first event of that source that is not in the log; 0 for one that isn't known."""
        return self._marks.get(source, 0)

    def write(self, entry: Entry) -> None:
        """Put it into the log: all of it, or nothing and OSError."""
        self.settle_file()
        lines, head = self._render(entry.events)
        self._put(_Intent(lines, head.seq, head.hash, list(entry.marks.items()), entry.absorbed, entry.settled))
        if self._journal.is_grown:
            try:
                self.checkpoint()
            except OSError:  # the entry is written all the same; the next write tries again
                self.counters.checkpoint_errors += 1

    def settle_file(self) -> None:
        """Make the active file the one under its name, with room in it and an anchor at its start."""
        if self._fd >= 0:
            self._notice_others()
        if self._fd >= 0 and self._size >= self._max_bytes:
            self._rotate()
        if self._fd < 0:
            self._open()
        if self._size == 0:
            self._put_own([_own(ANCHOR, detail={"key": self._key_id()})])

    def checkpoint(self) -> None:
        """Make the journal small."""
        self._checkpoint(self._counted())

    def _checkpoint(self, counted: list[AuditEvent]) -> None:
        self._journal.rewrite(
            [
                self._encode(
                    _State(
                        self._head.seq,
                        self._head.hash,
                        self._floor.seq,
                        self._floor.hash,
                        list(self._marks.items()),
                        counted,
                    )
                )
            ]
        )

    def take_unsynced(self) -> list[int]:
        """Descriptors to be given to ``sync_and_close``."""
        taken, self._unsynced = self._unsynced, []
        if self._dirty and self._fd >= 0:
            taken.append(os.dup(self._fd))
        self._dirty = False
        return taken

    def close(self) -> None:
        self._journal.close()
        for fd in (*self._unsynced, self._fd):
            if fd >= 0:
                os.close(fd)
        self._unsynced.clear()
        self._fd = -1

    # --- writing

    def _render(self, events: Iterable[AuditEvent]) -> tuple[list[bytes], Head]:
        lines = []
        head = self._head
        for event in events:
            line, head = render(event, head, self._key)
            lines.append(line)
        return lines, head

    def _put(self, intent: _Intent) -> None:
        self._journal.append([self._encode(intent)])
        try:
            self._append(intent.lines)
        except OSError:
            self._journal.undo()
            raise
        self._head = Head(intent.seq, intent.hash)
        self.counters.records += len(intent.lines)
        self._mark(intent.marks)

    def _put_own(self, events: Sequence[AuditEvent]) -> None:
        lines, head = self._render(events)
        self._put(_Intent(lines, head.seq, head.hash, [], [], []))
        self.counters.gaps += sum(event.event == GAP for event in events)

    def _append(self, lines: Sequence[bytes]) -> None:
        data = b"".join(lines)
        if not data:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            if os.fstat(self._fd).st_size > self._size:
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        self.counters.bytes += len(data)
        self._dirty = True

    def _mark(self, marks: Iterable[tuple[str, int]]) -> None:
        for source, number in marks:
            self._marks[source] = number
            self._marks.move_to_end(source)
        while len(self._marks) > _MOST_SOURCES:
            self._marks.popitem(last=False)

    # --- files

    def _open(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        found = os.fstat(fd)
        self._fd = fd
        self._inode = (found.st_dev, found.st_ino)
        self._size = found.st_size

    def _notice_others(self) -> None:
        """The file may have been moved, deleted, or emptied after a copy was made (logrotate's copytruncate)."""
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != self._inode:
            self.counters.reopened += 1
            self._retire()
        elif there.st_size < self._size:
            self._size = there.st_size

    def _retire(self) -> None:
        """The active file is complete; it has only to be synced."""
        self._unsynced.append(self._fd)
        self._fd = -1
        self._size = 0

    def _rotate(self) -> None:
        self._path.rename(self._path.with_name(f"{ACTIVE}.{self._head.seq:012d}"))
        self._retire()
        self.counters.rotations += 1
        rotated = self._rotated()
        for path in rotated[: max(0, len(rotated) - self._keep)]:
            tail = read_tail(path, self._key)
            if tail.record is not None:
                self._floor = tail.record.head
                self._journal.append([self._encode(_Floor(self._floor.seq, self._floor.hash))])
            path.unlink()

    def _rotated(self) -> list[Path]:
        """Oldest first."""
        found = [(match, path) for path in self._directory.iterdir() if (match := _ROTATED.fullmatch(path.name))]
        return [path for match, path in sorted(found, key=lambda pair: int(pair[0][1]))]

    def _key_id(self) -> str:
        """Tells keys apart, and nothing else about them."""
        return render(_own("audit.key", time_ns=0), Head(), self._key)[1].hash[:16]

    # --- after a crash

    def _recover(self, records: Sequence[bytes], *, damaged: bool) -> None:
        intent = self._replay(records)
        gaps = [_gap("the journal was damaged")] if damaged else []
        self._open()
        tail = read_tail(self._path, self._key)
        if tail.torn:
            self._size -= tail.torn
            os.ftruncate(self._fd, self._size)
            self.counters.torn_bytes = tail.torn
            gaps.append(_gap("the last line was torn", cut_bytes=tail.torn))
        if self._size == 0:  # a rotation may have been under way
            rotated = self._rotated()
            tail = read_tail(rotated[-1], self._key) if rotated else Tail()
            gaps.extend(self._continue_after(tail, intent))
        elif tail.record is None:
            gaps.append(_gap("the last line is not a record"))
        else:
            gaps.extend(self._continue_after(tail, intent))
        self.settle_file()
        if gaps:
            self._put_own(gaps)
        self._checkpoint(self.left_counted)

    def _replay(self, records: Sequence[bytes]) -> _Intent | None:
        """Restore what the journal says. Returns the last intent, which may not have been carried out."""
        decode = msgspec.msgpack.Decoder(_Intent | _State | _Floor).decode
        counted = Coalescer()
        last: _Intent | None = None
        for data in records:
            record = decode(data)
            if isinstance(record, _Floor):
                self._floor = Head(record.seq, record.hash)
                continue
            self._head = Head(record.seq, record.hash)
            self._mark(record.marks)
            if isinstance(record, _State):
                last = None
                self._floor = Head(record.floor_seq, record.floor_hash)
                counted = Coalescer()
                absorbed = record.counted
            else:
                last = record
                absorbed = record.absorbed
                for summary in record.settled:
                    counted.settle(summary)
            for event in absorbed:
                counted.absorb(event, 0)
        self.left_counted = counted.pending()
        return last

    def _continue_after(self, tail: Tail, intent: _Intent | None) -> list[AuditEvent]:
        """Bring the log to where the journal says it is. Returns gap records for what can't be had any more."""
        known = self._head
        found = tail.record.head if tail.record is not None else Head()
        if tail.record is not None and not tail.verified:
            if known.seq == 0:
                self._head = found  # numbers go on, although the key that signed them is not ours
            return [_gap("the last record does not verify", record=found.seq)]
        if found == known:
            return []
        if found.seq >= known.seq:
            self._head = found  # after a crash of the machine the log, which is synced, may be ahead
            if found.seq == known.seq:
                return [_gap("the last record is not the one that was written", record=known.seq)]
            return []
        if intent is not None and self._redo(intent, found):
            return []
        if found.seq == 0:
            return []  # taken away as a whole while nothing ran; the anchor of the new file says after which record
        return [_gap("records are missing", first=found.seq + 1, last=known.seq)]

    def _redo(self, intent: _Intent, found: Head) -> bool:
        """Write what the intent announced and the log doesn't hold. False: it doesn't follow what is there."""
        first = intent.seq - len(intent.lines) + 1
        missing = intent.lines[max(0, found.seq + 1 - first) :]
        if found.seq + 1 < first or not missing:
            return False
        try:
            if read(missing[0][:-1], self._key).prev != found.hash:
                return False
        except BadRecord:
            return False
        self._append(missing)
        self.counters.redone += len(missing)
        return True


def sync_and_close(fds: Sequence[int]) -> None:
    """Blocks until the files are on the disk. Raises OSError; the descriptors are closed all the same."""
    try:
        for fd in fds:
            os.fdatasync(fd)
    finally:
        for fd in fds:
            os.close(fd)


def lost(why: str, count: int) -> AuditEvent:
    """The gap record for events that were given up."""
    return _gap(why, dropped=count)


def _gap(why: str, **detail: int) -> AuditEvent:
    return AuditEvent(
        event=GAP, severity="error", outcome="unknown", time_ns=time.time_ns(), reason=why, detail=dict(detail)
    )


def _own(event: str, *, detail: Mapping[str, str] | None = None, time_ns: int | None = None) -> AuditEvent:
    return AuditEvent(
        event=event,
        severity="info",
        outcome="success",
        time_ns=time.time_ns() if time_ns is None else time_ns,
        detail=dict(detail or {}),
    )


def _load_key(path: Path) -> bytes:
    """The key of the chain, made at the first start. Raises ValueError for a file that holds none."""
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        key = secrets.token_bytes(_KEY_BYTES)
        beside = path.with_name(path.name + ".new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(key.hex())
            file.flush()
            os.fsync(fd)
        beside.rename(path)
    if len(key) != _KEY_BYTES:
        raise ValueError(f"{path} does not hold a key of {_KEY_BYTES} bytes")
    return key
