"""The actor ``audit``: the only one that writes the audit log.

Each turn takes all batches there are and puts them into the log in one write, then acknowledges them. Another task
syncs the file every AUDIT_FSYNC_MS, in a thread; a turn with a failed authentication or a block is synced at once,
and acknowledged only then.

When the disk fails, AUDIT_ON_FULL says what becomes of a batch: it waits here unacknowledged, so that the senders'
rings fill (``block``); it waits and the senders are told (``fail-closed``); or it is dropped and acknowledged, and a
gap record says how many when the disk is back (``drop``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

import attrs
import msgspec
import trio

from ipc.context import Context
from ipc.mailbox import Delivery
from ipc.messages import (
    AuditAck,
    AuditBatch,
    AuditEvent,
    Describe,
    Description,
    Drain,
    Refused,
    ReopenLog,
    SettingsChanged,
)

from .alarm import Alarm
from .audit_log import AuditLog, Entry, lost, sync_and_close
from .policy.coalescing import Coalescer, count_of

log = logging.getLogger("portcullis.audit")

_MS = 1_000_000
_RETRY_NS = 1_000 * _MS
_RETRY_MS = 1000
# How often a quiet log notices that its file was moved.
_LOOK_NS = 1_000 * _MS
# Events that wait here while the disk fails. Each sender has one batch under way, so this is room for hundreds.
_MOST_HELD = 65_536
_SYNCED_AT_ONCE = frozenset({"auth.failed", "ip.blocked", "ip.unblocked"})


@attrs.define
class Counters:
    events: int = 0
    duplicates: int = 0
    coalesced: int = 0
    dropped: int = 0
    write_errors: int = 0
    syncs: int = 0
    sync_errors: int = 0


@attrs.define
class _Waiting:
    delivery: Delivery
    upto: int


class Audit:
    """The log and what waits for it; the trio part is in ``main``."""

    def __init__(self, context: Context, now: int) -> None:
        settings = context.settings
        self._context = context
        self.alarm = Alarm()
        self.counters = Counters()
        self.draining = False
        self._on_full = settings.audit_on_full
        self._fsync_ns = settings.audit_fsync_ms * _MS
        self._coalescer = Coalescer()
        self._entry = Entry()  # not in the log yet
        self._waiting: dict[str, _Waiting] = {}  # by source: whom to answer when ``_entry`` is in the log
        self._unsynced: list[_Waiting] = []  # whom to answer after the next sync
        self._lost = 0  # dropped since the last gap record
        self._failing = False
        self._retry_ns = 0
        self._sync_ns = 0  # when the next sync is due; 0: nothing is to be synced
        self._look_ns = now + _LOOK_NS
        self._log: AuditLog | None = None
        if settings.security_audit_log:
            self._log = AuditLog(
                Path(settings.audit_log_dir),
                settings.state_dir,
                max_bytes=settings.audit_max_bytes,
                keep=settings.audit_keep,
                counted=self._coalescer.pending,
            )
            for summary in self._log.left_counted:
                self._coalescer.absorb(summary, now)
            self._sync_soon(now, at_once=False)

    # --- one turn

    def serve(self, batch: Iterable[Delivery]) -> None:
        now = time.monotonic_ns()
        described = []
        for delivery in batch:
            message = delivery.message
            if isinstance(message, AuditBatch):
                self._take(delivery, message, now)
            elif isinstance(message, ReopenLog):
                self._look(now)
            elif isinstance(message, Describe):
                described.append(delivery)
            elif isinstance(message, SettingsChanged):
                self._context.renew()
            elif isinstance(message, Drain):
                self.draining = True
            else:
                log.warning("unexpected %s from %s", type(message).__name__, delivery.sender)
        self._summarise(now)
        self._write(now)
        for delivery in described:
            if delivery.wants_reply:
                delivery.reply(Description(self.describe()))

    def tick(self) -> None:
        now = time.monotonic_ns()
        self._summarise(now)
        if not self._failing or now >= self._retry_ns:
            self._write(now)
        if now >= self._look_ns:
            self._look_ns = now + _LOOK_NS
            self._look(now)

    def _take(self, delivery: Delivery, message: AuditBatch, now: int) -> None:
        upto = message.first + len(message.events)
        if self._log is None:
            self._answer(_Waiting(delivery, upto))
            return
        if self._failing and len(self._entry.events) >= _MOST_HELD:
            return  # its ring keeps it, and asks again
        done = self._entry.marks.get(message.source, self._log.next_of(message.source))
        fresh = message.events[max(0, done - message.first) :]
        self.counters.events += len(fresh)
        self.counters.duplicates += len(message.events) - len(fresh)
        for event in fresh:
            if event.event == "gateway.stopped":  # nothing that came before it may follow it
                self._settle(self._coalescer.everything())
            if self._coalescer.offer(event, now) is None:
                self._entry.absorbed.append(event)
                self.counters.coalesced += 1
            else:
                self._entry.events.append(event)
        if fresh:
            self._entry.marks[message.source] = upto
        # Who asks again has given up on the earlier question.
        self._waiting[message.source] = _Waiting(delivery, max(upto, done))

    def _summarise(self, now: int) -> None:
        if not self._failing:  # otherwise the sums go on, so that what waits here stays small
            self._settle(self._coalescer.due(now))

    def _settle(self, summaries: list[AuditEvent]) -> None:
        self._entry.events.extend(summaries)
        self._entry.settled.extend(summaries)

    def _write(self, now: int) -> None:
        """Write what there is, and answer."""
        if self._log is None or not (self._entry or self._waiting):
            return
        if self._failing and now < self._retry_ns:
            self._hold()
            return
        gap = [lost("the disk failed", self._lost)] if self._lost else []
        try:
            if self._entry:
                self._log.write(attrs.evolve(self._entry, events=gap + self._entry.events))
        except OSError as error:
            self.counters.write_errors += 1
            if not self._failing:
                log.error("the audit log cannot be written: %s (AUDIT_ON_FULL=%s)", error, self._on_full)  # noqa: TRY400
            self._failing = True
            self._retry_ns = now + _RETRY_NS
            self._hold()
            return
        if self._failing:
            log.warning("the audit log can be written again")
        self._failing = False
        self._lost = 0
        entry, self._entry = self._entry, Entry()
        waiting, self._waiting = self._waiting, {}
        at_once = any(event.event in _SYNCED_AT_ONCE for event in entry.events)
        if self._log.is_dirty:
            self._sync_soon(now, at_once=at_once)
        if at_once:
            self._unsynced.extend(waiting.values())
        else:
            for answer in waiting.values():
                self._answer(answer)

    def _hold(self) -> None:
        """The disk fails: do with what waits as the setting says."""
        if self._on_full == "block":
            return
        waiting, self._waiting = self._waiting, {}
        if self._on_full == "drop":
            dropped = sum(map(count_of, self._entry.events))
            self._lost += dropped
            self.counters.dropped += dropped
            # What was only counted is not lost: it stays in the sums. The marks say that the senders were answered.
            self._entry = Entry(marks=self._entry.marks, absorbed=self._entry.absorbed)
        for answer in waiting.values():
            if self._on_full == "drop":
                self._answer(answer)
            elif answer.delivery.wants_reply:
                answer.delivery.reply(Refused("unavailable", _RETRY_MS, "the audit log cannot be written"))

    def _answer(self, waiting: _Waiting) -> None:
        if waiting.delivery.wants_reply:
            waiting.delivery.reply(AuditAck(waiting.upto))

    def _look(self, now: int) -> None:
        if self._log is None or self._failing:
            return
        try:
            self._log.settle_file()
        except OSError as error:
            self.counters.write_errors += 1
            log.warning("the audit log's file cannot be opened anew: %s", error)
        if self._log.is_dirty:
            self._sync_soon(now, at_once=False)

    # --- the disk

    def _sync_soon(self, now: int, *, at_once: bool) -> None:
        due = now if at_once else now + self._fsync_ns
        if not self._sync_ns or due < self._sync_ns:
            self._sync_ns = due
            self.alarm.at(due)

    async def sync_if_due(self) -> None:
        if self._log is None or not self._sync_ns or time.monotonic_ns() < self._sync_ns:
            return
        await self.sync()

    async def sync(self) -> None:
        """Sync what has been written, then answer those who wait for that."""
        if self._log is None:
            return
        self._sync_ns = 0
        waiting, self._unsynced = self._unsynced, []
        try:
            with trio.CancelScope(shield=True):  # or the descriptors would be nobody's
                await trio.to_thread.run_sync(sync_and_close, self._log.take_unsynced())
            self.counters.syncs += 1
        except OSError as error:
            # The kernel has dropped the pages or not; it won't say again. The gap says that it may have.
            self.counters.sync_errors += 1
            log.error("the audit log cannot be synced: %s", error)  # noqa: TRY400
            self._entry.events.append(lost("the disk failed to sync: earlier records may be missing", 0))
        for answer in waiting:
            self._answer(answer)

    @property
    def next_due_ns(self) -> int:
        due = [self._look_ns]
        if self._sync_ns:
            due.append(self._sync_ns)
        if self._failing:
            due.append(self._retry_ns)
        elif (summary := self._coalescer.next_due_ns) is not None:
            due.append(summary)
        return min(due)

    async def end(self) -> None:
        """Everything into the log and onto the disk."""
        self._settle(self._coalescer.everything())
        now = time.monotonic_ns()
        self._retry_ns = now
        self._write(now)
        await self.sync()
        if self._log is not None and not self._failing:
            try:
                self._log.checkpoint()
            except OSError as error:
                log.warning("the audit journal stays as it is: %s", error)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def describe(self) -> bytes:
        log_counters = {} if self._log is None else attrs.asdict(self._log.counters)
        head = None if self._log is None else attrs.asdict(self._log.head)
        return msgspec.json.encode(
            {
                **attrs.asdict(self.counters),
                **log_counters,
                "enabled": self._log is not None,
                "failing": self._failing,
                "waiting": len(self._waiting) + len(self._unsynced),
                "head": head,
            }
        )


async def main(context: Context) -> None:
    """The actor ``audit``."""
    audit = Audit(context, time.monotonic_ns())

    async def tick_on() -> None:
        while True:
            audit.alarm.at(audit.next_due_ns)
            await audit.alarm.wait()
            audit.tick()
            await audit.sync_if_due()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick_on)
            context.ready()
            while not audit.draining:
                audit.serve(await context.mailbox.receive())
                audit.alarm.at(audit.next_due_ns)
            nursery.cancel_scope.cancel()
        await audit.end()
    finally:
        audit.close()
