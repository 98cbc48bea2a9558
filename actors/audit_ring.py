"""The sender's half of the audit: a bounded ring of events that haven't reached the log file yet.

Whoever has something to record calls ``record``, which never waits, and ``flush`` once a turn. One batch is under way
at a time; it leaves the ring when audit has acknowledged it, and is sent again to audit's next incarnation. Audit
knows by ``source`` and number what it has written already.

When nothing can be written, ``policy`` (the setting AUDIT_ON_FULL) says what ``full`` means to the caller, who has to
refuse new messages while it is true:

- ``block``: true while the ring is nearly full; the last eighth is for what is in flight and for the refusals;
- ``fail-closed``: true also as soon as audit reports that it cannot write;
- ``drop``: never.

An event for which there is no room is dropped and counted, and the gap is recorded as soon as there is room.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Literal

import attrs
import msgspec
import trio

from ipc.address import Address, Reply
from ipc.messages import AuditAck, AuditBatch, AuditEvent, Refused

from .policy.coalescing import Coalescer

OnFull = Literal["block", "drop", "fail-closed"]

BATCH = 256  # events a message
ANSWER_WITHIN_NS = 5_000_000_000
_AGAIN_NS = 50_000_000
# Texts come from clients: their size here is ours to choose. It leaves every method, tool and principal of practice
# whole, and keeps a batch under a few megabytes.
LONGEST_TEXT = 1024
LONGEST_DETAIL = 16
_KEPT = "audit ring"


@attrs.frozen
class AuditRingStatistics:
    source: str
    waiting: int
    capacity: int
    recorded: int
    coalesced: int
    acknowledged: int
    dropped: int
    failing: bool
    lag_ns: int  # age of the oldest event that waits
    events: dict[str, int]  # recorded, by name


class AuditRing:
    """Args:
    address: of audit.
    source: the sender's name; made unique here, because a restarted sender counts from 0 again.
    capacity: events kept at most.
    policy: see above.
    """

    def __init__(
        self,
        address: Address,
        source: str,
        capacity: int = 8192,
        policy: OnFull = "block",
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.source = f"{source}~{secrets.token_hex(4)}"
        self._address = address
        self._capacity = capacity
        self._high = capacity - capacity // 8
        self.policy = policy
        self._clock = clock
        self._coalescer = Coalescer()
        self._waiting: deque[AuditEvent] = deque()
        self._first = 0  # number of _waiting[0] since the start of this source
        self._sent = 0  # how many of _waiting are under way; 0: no batch is
        self._failing = False
        self._recorded = self._coalesced = self._dropped = 0
        self._events: dict[str, int] = {}
        self._gap = 0  # dropped since the last gap record
        self._idle: trio.Event | None = None

    @classmethod
    def kept(
        cls, keep: dict[str, Any], address: Address, source: str, capacity: int = 8192, policy: OnFull = "block"
    ) -> AuditRing:
        """The ring of an actor's predecessor that crashed, with what it had not handed over; otherwise a new one.

        ``keep`` is the actor's ``Context.keep``.
        """
        ring = keep.get(_KEPT)
        if isinstance(ring, cls):
            ring._take_over(policy)  # noqa: SLF001 - of this very class
            return ring
        ring = keep[_KEPT] = cls(address, source, capacity, policy)
        return ring

    @property
    def full(self) -> bool:
        """Whether new messages have to be refused for want of an audit."""
        if self.policy == "drop":
            return False
        return len(self._waiting) >= self._high or (self._failing and self.policy == "fail-closed")

    @property
    def appended(self) -> int:
        """How many events of this source there have been."""
        return self._first + len(self._waiting)

    @property
    def acknowledged(self) -> int:
        """How many of them, the first ones, are in the log file."""
        return self._first

    def record(self, event: AuditEvent) -> None:
        """Take one event in; never waits, never fails."""
        self._recorded += 1
        self._events[event.event] = self._events.get(event.event, 0) + 1
        bounded = _bounded(event)
        now = self._clock()
        passed = self._coalescer.offer(bounded, now)
        if passed is None:
            self._coalesced += 1
        else:
            self._append(passed)

    def flush(self) -> None:
        """Send what is waiting, unless a batch is under way or audit is down. Once a turn is enough."""
        for summary in self._coalescer.due(self._clock()):
            self._append(summary)
        if self._sent or not self._waiting or not self._address.incarnation:
            return
        if self._gap and len(self._waiting) < self._capacity:
            self._record_gap()
        events = list(islice(self._waiting, BATCH))
        self._sent = len(events)
        self._address.request(
            AuditBatch(self.source, self._first, events), self._clock() + ANSWER_WITHIN_NS, self._answered
        )

    @property
    def next_due_ns(self) -> int | None:
        """When ``flush`` has something to do, as far as is known now. For a caller without turns of its own."""
        due = self._coalescer.next_due_ns
        if self._waiting and not self._sent:
            again = self._clock() + _AGAIN_NS
            return again if due is None else min(due, again)
        return due

    async def settled(self, within_s: float = 2.0) -> bool:
        """Send everything, what was only counted included, and wait for it to be in the log. False: time was up."""
        for summary in self._coalescer.everything():
            self._append(summary)
        with trio.move_on_after(within_s):
            while self._waiting:
                self.flush()
                self._idle = trio.Event()
                with trio.move_on_after(0.05):  # audit may be down now and up in a moment
                    await self._idle.wait()
        return not self._waiting

    def statistics(self) -> AuditRingStatistics:
        return AuditRingStatistics(
            source=self.source,
            waiting=len(self._waiting),
            capacity=self._capacity,
            recorded=self._recorded,
            coalesced=self._coalesced,
            acknowledged=self._first,
            dropped=self._dropped,
            failing=self._failing,
            lag_ns=max(0, time.time_ns() - self._waiting[0].time_ns) if self._waiting else 0,
            events=dict(self._events),
        )

    def _take_over(self, policy: OnFull) -> None:
        # The answer to what was under way was the predecessor's to take. Audit knows what it has written already.
        self._sent = 0
        self._idle = None
        self.policy = policy

    def _append(self, event: AuditEvent) -> None:
        if len(self._waiting) >= self._capacity:
            self._dropped += 1
            self._gap += 1
            return
        if self._gap:
            self._record_gap()
        if len(self._waiting) < self._capacity:
            self._waiting.append(event)
        else:
            self._dropped += 1
            self._gap += 1

    def _record_gap(self) -> None:
        gap, self._gap = self._gap, 0
        self._waiting.append(
            AuditEvent(
                event="audit.gap",
                severity="error",
                outcome="unknown",
                time_ns=time.time_ns(),
                reason="no room in the sender",
                detail={"source": self.source, "dropped": gap},
            )
        )

    def _answered(self, reply: Reply) -> None:
        sent, self._sent = self._sent, 0
        if isinstance(reply, AuditAck):
            self._failing = False
            done = max(0, min(reply.upto - self._first, sent))
            for _ in range(done):
                self._waiting.popleft()
            self._first += done
            if done:
                self.flush()
        elif isinstance(reply, Refused):
            self._failing = True
        if self._idle is not None:
            self._idle.set()


def _bounded(event: AuditEvent) -> AuditEvent:
    cut = {
        field: value[:LONGEST_TEXT] + "…"
        for field in ("connection", "principal", "method", "rule", "upstream", "reason")
        if len(value := getattr(event, field)) > LONGEST_TEXT
    }
    detail = event.detail
    if len(detail) > LONGEST_DETAIL or any(isinstance(v, str) and len(v) > LONGEST_TEXT for v in detail.values()):
        bounded = {
            name: value[:LONGEST_TEXT] + "…" if isinstance(value, str) and len(value) > LONGEST_TEXT else value
            for name, value in islice(detail.items(), LONGEST_DETAIL)
        }
        return msgspec.structs.replace(event, **cut, detail=bounded)
    return msgspec.structs.replace(event, **cut) if cut else event
