"""Whose credentials auth does not judge: those of who is blocked, and of who is about to be.

The limiter tells auth of its blocks as it tells the acceptors. But between the last failure that is allowed and the
block that follows from it lie two messages, and guesses made in parallel are all judged in that time. So auth, which
sees every failure first, counts them as well: past MAX_FAILED_ATTEMPTS nothing more is judged, until the limiter's
block takes over, an operator lifts it, or the failures are out of their window.

While the limiter is down what it told last holds; an auth that starts without it knows of no block, and the acceptors,
which do, let nobody in.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from ipc.messages import Blocked, Message, Unblocked
from ipc.settings import Settings

from .policy.address_set import AddressSet, canonical
from .policy.blocks import PRINCIPAL
from .policy.client_key import client_key

CAPACITY: Final = 16_384
"""Subjects whose failures are counted. The count matters for a moment only, so the oldest may go."""


class Barred:
    """Blocks as the limiter tells them, and failures since. Times are monotonic nanoseconds."""

    def __init__(self, settings: Settings) -> None:
        self._automatic = settings.auto_block_enabled
        self._most = settings.max_failed_attempts
        self._window_ns = settings.failed_attempts_window_ms * 1_000_000
        self._exempt = AddressSet.of((*settings.ip_allowlist, *settings.trusted_proxies))
        self._rows: dict[str, int] = {}  # key -> end in wall-clock milliseconds
        self._incoming: dict[str, int] | None = None
        self._failures: OrderedDict[str, list[int]] = OrderedDict()  # subject -> times, at most ``_most`` of them

    def __len__(self) -> int:
        return len(self._failures)

    def delivered(self, message: Message) -> bool:
        """Whether the message was one of these."""
        if isinstance(message, Blocked):
            rows = {key: until_ms for key, until_ms, _ in message.rows}
            if message.first:
                self._incoming = {}
            if self._incoming is None:
                self._rows.update(rows)
            else:
                self._incoming.update(rows)
                if message.last:
                    self._rows, self._incoming = self._incoming, None
            for key in rows:
                self._failures.pop(key, None)
        elif isinstance(message, Unblocked):
            for key in message.keys:
                self._rows.pop(key, None)
                self._failures.pop(key, None)
        else:
            return False
        return True

    def subject(self, peer_ip: str, principal: str = "") -> str:
        """On whose account a failure goes: the principal's that has authenticated already, or the address's; nobody's
        (empty) for an address that nothing is held against."""
        if principal:
            return PRINCIPAL + principal
        try:
            return "" if canonical(peer_ip) in self._exempt else client_key(peer_ip)
        except ValueError:
            return ""

    def refuses(self, subject: str, now: int) -> bool:
        """Whether no credential of this subject is judged."""
        if not subject:
            return False
        if self._holds(subject):
            return True
        failures = self._failures.get(subject)
        return failures is not None and len(failures) >= self._most and failures[0] > now - self._window_ns

    def refuses_principal(self, principal: str) -> bool:
        return bool(principal) and self._holds(PRINCIPAL + principal)

    def failed(self, subject: str, now: int) -> None:
        """One more failed authentication."""
        if not subject or not self._automatic:
            return
        failures = self._failures.setdefault(subject, [])
        self._failures.move_to_end(subject)
        failures.append(now)
        del failures[: -self._most]
        if len(self._failures) > CAPACITY:
            self._failures.popitem(last=False)

    def _holds(self, key: str) -> bool:
        until_ms = self._rows.get(key)
        return until_ms is not None and until_ms > time.time_ns() // 1_000_000
