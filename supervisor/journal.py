"""The supervisor's own audit events: a bounded ring from which the audit actor is fed, and fed again until it acks."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import attrs

from ipc.messages import AnyMessage, AuditAck, AuditBatch, AuditEvent

log = logging.getLogger("supervisor.journal")

Severity = Literal["info", "warning", "error", "critical"]
Outcome = Literal["success", "failure", "refused", "unknown"]
Details = dict[str, str | int | float | bool]

_CAPACITY = 4096
_BATCH = 64
"""A batch has to fit in one packet of the control socket."""

_REASON = 300


@attrs.define(eq=False)
class Journal:
    """``first`` numbers the oldest event kept; ``lost`` were dropped because the audit actor was away for too long.

    The ring holds ``first`` … ``first + len - 1``; of these, the ones before ``_sent`` are on their way.
    """

    source: str = attrs.field(factory=lambda: f"supervisor~{secrets.token_hex(4)}")  # of this run: numbers start anew
    capacity: int = _CAPACITY
    first: int = 0
    lost: int = 0
    _events: deque[AuditEvent] = attrs.field(factory=deque)
    _sent: int = 0

    def add(
        self,
        event: str,
        severity: Severity,
        outcome: Outcome,
        *,
        reason: str = "",
        detail: Details | None = None,
    ) -> None:
        self._events.append(
            AuditEvent(
                event=event,
                severity=severity,
                outcome=outcome,
                time_ns=time.time_ns(),
                reason=reason[:_REASON],
                detail=detail or {},
            )
        )
        if len(self._events) > self.capacity:
            self._events.popleft()
            self.first += 1
            self.lost += 1
            self._sent = max(self._sent, self.first)

    def next_batch(self) -> AuditBatch | None:
        """What was not sent yet, as far as it fits in one batch; it counts as sent."""
        start = self._sent - self.first
        events = [self._events[index] for index in range(start, min(len(self._events), start + _BATCH))]
        if not events:
            return None
        batch = AuditBatch(self.source, self._sent, events)
        self._sent += len(events)
        return batch

    def acked(self, upto: int) -> None:
        while self._events and self.first < min(upto, self._sent):
            self._events.popleft()
            self.first += 1

    def rewind(self) -> None:
        """The audit actor is another one now, or did not answer: what is not acked has to be sent again."""
        self._sent = self.first

    @property
    def waiting(self) -> int:
        return len(self._events)


@attrs.define(eq=False)
class AuditFeed:
    """Brings the journal to the audit actor. ``post`` sends a batch under an id; False: the actor is away.

    One batch is on its way at a time: of two, the first might be lost and the second taken, and what is sent again
    would then look like what the log has already. Only at the end there is no time for that (``hurry``).
    """

    _post: Callable[[int, AuditBatch], bool]
    journal: Journal = attrs.field(factory=Journal)
    _ids: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))
    _under_way: set[int] = attrs.field(factory=set)  # ids of the batches that are

    def record(
        self, event: str, severity: Severity, outcome: Outcome, *, reason: str = "", detail: Details | None = None
    ) -> None:
        self.journal.add(event, severity, outcome, reason=reason, detail=detail)
        self.feed()

    def feed(self, *, hurry: bool = False) -> None:
        """Send what was not sent yet, unless something is under way."""
        while (hurry or not self._under_way) and (batch := self.journal.next_batch()) is not None:
            number = next(self._ids)
            self._under_way.add(number)
            if not self._post(number, batch):
                self.restart()
                return

    def restart(self) -> None:
        """The actor is another one now, or away: what was not acked will be sent again."""
        self._under_way.clear()
        self.journal.rewind()

    def retry(self) -> None:
        """To be called now and then: after an answer that was none."""
        self.feed()

    def answered(self, number: int, answer: AnyMessage | None, reason: str) -> None:
        """To the batch of that id. One to an actor before the last restart is ignored."""
        if number not in self._under_way:
            return
        self._under_way.discard(number)
        if isinstance(answer, AuditAck):
            self.journal.acked(answer.upto)
            self.feed()
        else:
            log.warning("audit did not take the supervisor's events: %s", reason or answer)
            self.restart()
