"""The supervisor's own audit events: a bounded ring from which the audit actor is fed, and fed again until it acks."""

from __future__ import annotations

import time
from collections import deque
from typing import Literal

import attrs

from ipc.messages import AuditBatch, AuditEvent

_CAPACITY = 4096
_BATCH = 64
"""A batch has to fit in one packet of the control socket."""

_REASON = 300


@attrs.define(eq=False)
class Journal:
    """``first`` numbers the oldest event kept; ``lost`` were dropped because the audit actor was away for too long.

    The ring holds ``first`` … ``first + len - 1``; of these, the ones before ``_sent`` are on their way.
    """

    source: str = "supervisor"
    capacity: int = _CAPACITY
    first: int = 0
    lost: int = 0
    _events: deque[AuditEvent] = attrs.field(factory=deque)
    _sent: int = 0

    def add(
        self,
        event: str,
        severity: Literal["info", "warning", "error", "critical"],
        outcome: Literal["success", "failure", "refused", "unknown"],
        *,
        reason: str = "",
        detail: dict[str, str | int | float | bool] | None = None,
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
