"""What a worker measures of itself: how late its loop is, and how its actors' mailboxes are filled.

The figures lie on the worker's shelf, where the admin process finds them: nobody has to answer for them. With
PERFORMANCE_MONITORING=false nothing is measured; what was counted until then stays.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ipc.mailbox import Mailbox, MailboxStatistics
from ipc.shelf import Shelf
from ipc.tally import (
    DURATION,
    LOOP_LAG,
    MAILBOX_DEPTH,
    MAILBOX_DRAINS,
    MAILBOX_MESSAGES,
    MAILBOX_REFUSED,
    Tally,
    key,
    observe,
)

log = logging.getLogger("supervisor.worker")


class Monitor:
    """Args:
    shelf: the worker's own place.
    measuring: the setting PERFORMANCE_MONITORING.
    """

    def __init__(self, shelf: Shelf, *, measuring: bool) -> None:
        self._shelf = shelf
        self._tally = Tally.load(shelf)
        self._tally.gauges = {}
        self._lag = self._tally.histogram(LOOP_LAG, DURATION)
        self._seen: dict[str, tuple[Mailbox, MailboxStatistics]] = {}
        self._measuring = measuring
        self._put()

    def configure(self, *, measuring: bool) -> None:
        """Go by the new settings."""
        self._measuring = measuring
        if not measuring:
            self._tally.gauges = {}
            self._put()

    def beat(self, late_ns: int, mailboxes: Iterable[Mailbox]) -> None:
        """The loop came round, so much later than it was to."""
        if not self._measuring:
            return
        observe(self._lag, DURATION, max(0, late_ns))
        seen: dict[str, tuple[Mailbox, MailboxStatistics]] = {}
        self._tally.gauges = {}
        for mailbox in mailboxes:
            now = mailbox.statistics()
            known = self._seen.get(mailbox.name)
            before = known[1] if known is not None and known[0] is mailbox else None
            self._count(now, before)
            seen[mailbox.name] = (mailbox, now)
        self._seen = seen
        self._put()

    def _count(self, now: MailboxStatistics, before: MailboxStatistics | None) -> None:
        """What is new since the last look at this mailbox."""
        tally, name = self._tally, now.name
        for counter, field in (
            (key(MAILBOX_MESSAGES, name, "data"), "data_received"),
            (key(MAILBOX_MESSAGES, name, "control"), "control_received"),
            (key(MAILBOX_REFUSED, name), "refused"),
            (key(MAILBOX_DRAINS, name), "drains"),
        ):
            tally.count(counter, getattr(now, field) - getattr(before, field, 0))
        tally.gauges[key(MAILBOX_DEPTH, name, "data")] = now.data_queued
        tally.gauges[key(MAILBOX_DEPTH, name, "control")] = now.control_queued

    def _put(self) -> None:
        try:
            self._tally.put(self._shelf)
        except ValueError as error:
            self._measuring = False
            log.warning("performance is not monitored any more: %s", error)
