"""Like refusals of one client become one record a second with a count, so that a flood fills neither disk nor channel.

The first of its kind passes at once and opens a window of a second. What follows in it is counted; when it ends with
something counted, one record says how many, and the next window opens. Nothing is ever left out of the sum.
"""

from __future__ import annotations

from collections import OrderedDict

import attrs
import msgspec

from ipc.messages import AuditEvent

WINDOW_NS = 1_000_000_000
# These are no refusals, or few and each matters; only a flood of them is counted instead of listed.
_ALLOWED = {"auth.failed": 10, "content.flagged": 10, "content.stripped": 10}

Kind = tuple[str, ...]


def kind_of(event: AuditEvent) -> Kind | None:
    """What makes two events alike; None for an event that is never merged with others."""
    if event.event == "auth.ok" and event.detail.get("again"):
        # A connection that authenticates over and over: it alone, so that the first one of each is always there.
        return (event.event, event.transport, event.peer_ip, event.principal, event.connection)
    if event.outcome != "refused" and event.event not in _ALLOWED:
        return None
    return (event.event, event.transport, event.peer_ip, event.principal, event.rule, event.reason, event.upstream)


def count_of(event: AuditEvent) -> int:
    """How many events a record stands for."""
    count = event.detail.get("count", 1)
    return count if isinstance(count, int) and count > 0 else 1


@attrs.define
class _Window:
    ends_ns: int
    allowed: int
    count: int = 0
    sample: AuditEvent | None = None  # the first one counted


class Coalescer:
    """Args: ``capacity``: kinds told apart at a time; past it, clients are no longer told apart."""

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._windows: OrderedDict[Kind, _Window] = OrderedDict()  # in the order in which they end

    def __len__(self) -> int:
        return len(self._windows)

    def offer(self, event: AuditEvent, now: int) -> AuditEvent | None:
        """The event if it is to be recorded now, None if it has been counted."""
        kind = kind_of(event)
        if kind is None:
            return event
        window = self._windows.get(kind)
        if window is None or (now >= window.ends_ns and not window.count):
            if window is None and len(self._windows) >= self._capacity:
                self.absorb(event, now)
                return None
            self._windows[kind] = _Window(now + WINDOW_NS, _ALLOWED.get(event.event, 1) - 1)
            self._windows.move_to_end(kind)
            return event
        if window.allowed:
            window.allowed -= 1
            return event
        self._count(window, event)
        return None

    def absorb(self, event: AuditEvent, now: int) -> None:
        """Count an event that isn't to be recorded by itself."""
        kind = kind_of(event)
        if kind is None:
            raise ValueError(f"{event.event} is never merged")
        window = self._windows.get(kind)
        if window is None and len(self._windows) >= self._capacity:
            event = msgspec.structs.replace(event, peer_ip="", peer_port=0, connection="", principal="")
            kind = (*kind[:2], "", "", *kind[4:])
            window = self._windows.get(kind)
        if window is None:
            window = self._windows[kind] = _Window(now + WINDOW_NS, 0)
        self._count(window, event)

    def settle(self, summary: AuditEvent) -> None:
        """That summary has been recorded: forget what was counted for it."""
        kind = kind_of(summary)
        if kind is not None:
            self._windows.pop(kind, None)

    def due(self, now: int) -> list[AuditEvent]:
        """The summaries of the windows that have ended."""
        return self._summaries(now)

    def everything(self) -> list[AuditEvent]:
        """The summaries of all windows, for an end in order."""
        summaries = self._summaries(None)
        self._windows.clear()
        return summaries

    def pending(self) -> list[AuditEvent]:
        """What has been counted and not recorded, as summaries; nothing changes."""
        return [_summary(window) for window in self._windows.values() if window.count]

    @property
    def next_due_ns(self) -> int | None:
        first = next(iter(self._windows.values()), None)
        return None if first is None else first.ends_ns

    def _count(self, window: _Window, event: AuditEvent) -> None:
        window.count += count_of(event)
        if window.sample is None:
            window.sample = event

    def _summaries(self, now: int | None) -> list[AuditEvent]:
        summaries = []
        for kind, window in list(self._windows.items()):
            if now is not None and now < window.ends_ns:
                break
            if not window.count:
                del self._windows[kind]
                continue
            summaries.append(_summary(window))
            if now is not None:
                self._windows[kind] = _Window(now + WINDOW_NS, 0)
                self._windows.move_to_end(kind)
        return summaries


def _summary(window: _Window) -> AuditEvent:
    if window.sample is None:
        raise ValueError("a window without a counted event has no summary")
    sample = window.sample
    detail = {**sample.detail, "count": window.count}
    if sample.event == "auth.ok":  # of one connection
        return msgspec.structs.replace(sample, detail=detail)
    return msgspec.structs.replace(sample, connection="", peer_port=0, detail=detail)
