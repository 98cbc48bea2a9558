"""Audit records of what was committed, kept beside it in the database until the audit log holds them.

A client or an operator hears of a revocation as soon as it is on the disk; the record of it is on its way to the
audit log then, through the memory of processes that may die. So it is committed with what it tells of, and dropped
once audit has acknowledged it. What a death leaves behind is recorded by the next incarnation, marked ``recovered``:
such a record may be there twice, never not at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ipc.messages import AuditEvent

from .audit_ring import AuditRing
from .policy.sessions import Changes


class KeptRecords:
    """Numbers are never used twice, so that a record of a commit that failed can't be taken for another."""

    def __init__(self, audit: AuditRing) -> None:
        self._audit = audit
        self._next = 1
        self._under_way: dict[int, int] = {}  # number → what audit must have acknowledged, in the order of both
        self._dropped: set[int] = set()  # the log has them; that they are dropped may not be on the disk yet

    def adopt(self, left: Mapping[int, AuditEvent], changes: Changes) -> None:
        """What the database holds: record it, unless that was done here already."""
        self._next = max(self._next, *left, 0) + 1
        self._dropped &= left.keys()
        for number, event in left.items():
            if number in self._dropped:
                changes.records[number] = None
            elif number not in self._under_way:
                self.publish(number, msgspec.structs.replace(event, detail={**event.detail, "recovered": True}))

    def keep(self, event: AuditEvent, changes: Changes) -> int:
        """Have it committed with the other changes; ``publish`` it then."""
        number, self._next = self._next, self._next + 1
        changes.records[number] = event
        return number

    def publish(self, number: int, event: AuditEvent) -> None:
        self._audit.record(event)
        self._under_way[number] = self._audit.appended

    def drop_acknowledged(self, changes: Changes) -> None:
        """Those that are in the log need not be kept any more."""
        acknowledged = self._audit.acknowledged
        for number, position in list(self._under_way.items()):
            if position > acknowledged:
                break
            del self._under_way[number]
            self._dropped.add(number)
            changes.records[number] = None
