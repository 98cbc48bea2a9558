"""A message's unit of its client's budget: from a lease that is held here, or asked of the limiter."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from typing import TYPE_CHECKING, Final

from actors.lease_book import LeaseBook
from ipc.address import Reply
from ipc.errors import ActorDown, MailboxFull
from ipc.messages import Exhausted, Lease

from .connection import Connection, Item, Stage

if TYPE_CHECKING:
    from .hub import Hub

MOST_OWED: Final = 256
WAIT_NS: Final = 250_000_000  # how long a message may wait for the limiter


class Budget:
    """The hub's use of its lease book: who waits for which lease. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._leases = LeaseBook(hub.name, enabled=hub.settings.rate_limit_enabled)
        self._waiting: dict[tuple[str, ...], list[Connection]] = {}  # by the keys that are charged
        self._connections: Counter[tuple[str, ...]] = Counter()  # open ones, by the keys that they are charged to
        self._owed: Counter[tuple[str, ...]] = Counter()  # to be taken from the next lease
        self._spent: set[tuple[str, ...]] = set()  # in this turn

    def join(self, keys: tuple[str, ...]) -> None:
        """A connection of that client was opened."""
        self._connections[keys] += 1

    def leave(self, keys: tuple[str, ...]) -> None:
        """A connection of that client ended; what is left of its leases goes back with the last one."""
        self._connections[keys] -= 1
        if self._connections[keys] <= 0:
            del self._connections[keys]
            self._leases.forget(keys, self._hub.now)

    def spend(self, keys: tuple[str, ...], now: int) -> bool:
        """One unit for one message. False: there is none here."""
        if self._leases.take(keys, now):
            self._spent.add(keys)
            return True
        return False

    def charge(self, keys: tuple[str, ...], now: int) -> None:
        """One unit for what is refused whether there is one or not: now, or from the next lease."""
        if not self._leases.take(keys, now) and not self._leases.retry_after_ms(keys, now):
            self._owed[keys] = min(self._owed[keys] + 1, MOST_OWED)
            self._request(keys, self._owed[keys], now)

    def look_ahead(self, now: int) -> None:
        """At the end of a turn: ask for the next lease of a busy client before the last one is used up."""
        if self._spent:
            for keys in self._spent:
                self._request(keys, 0, now)
            self._spent.clear()

    def close(self) -> None:
        """The hub is drained: give everything back."""
        for report in self._leases.close(self._hub.now):
            with contextlib.suppress(ActorDown, MailboxFull):  # then it counts as spent
                self._hub.limiter.control(report)

    def wait(self, connection: Connection, item: Item, keys: tuple[str, ...], now: int) -> bool:
        """There is no unit for ``item`` here. False: it waits for one. True: it is over the limit and was refused."""
        over_ms = self._leases.retry_after_ms(keys, now)
        if over_ms:
            self._over_limit(connection, item, over_ms)
            return True
        if connection.parked_for != "budget":
            connection.parked_for = "budget"
            self._waiting.setdefault(keys, []).append(connection)
        parked = sum(len(connection.parked) or 1 for connection in self._waiting[keys])
        self._request(keys, parked, now)
        return False

    def _request(self, keys: tuple[str, ...], parked: int, now: int) -> None:
        request = self._leases.want(keys, now, parked)
        if request is None:
            return  # one is under way, or there is no need

        def answered(reply: Reply) -> None:
            self._hub.post(functools.partial(self._answered, keys, reply))

        self.report(now)  # first, so that the limiter answers from what really happened
        self._hub.limiter.request(request, now + WAIT_NS, answered)

    def _answered(self, keys: tuple[str, ...], reply: Reply) -> None:
        now = self._hub.now
        if isinstance(reply, Lease):
            self._leases.granted(reply, now)
            for _ in range(self._owed.pop(keys, 0)):
                self._leases.take(keys, now)
        elif isinstance(reply, Exhausted):
            self._leases.exhausted(reply, now)
            self._owed.pop(keys, None)  # all of the window is spent
        else:
            self._leases.unanswered(keys, now)
            self._owed.pop(keys, None)
        for connection in self._waiting.pop(keys, []):
            if connection.stage >= Stage.CLOSING or connection.parked_for != "budget":
                continue
            connection.parked_for = ""
            if isinstance(reply, Lease | Exhausted):
                self._hub.step(connection, self._hub.dispatch.resume)
            else:
                self._hub.step(connection, self._without_limiter)

    def _without_limiter(self, connection: Connection) -> None:
        """No answer from the limiter in time: nothing passes unchecked."""
        dispatch = self._hub.dispatch
        parked, connection.parked = list(connection.parked), type(connection.parked)()
        for item in parked:
            dispatch.unavailable(connection, item, "limits can't be checked now", "policy actor down")
        dispatch.resume(connection)

    def _over_limit(self, connection: Connection, item: Item, wait_ms: int) -> None:
        self._hub.event(connection, "rate.limited", severity="warning", outcome="refused", reason="rate")
        self._hub.dispatch.refuse(connection, item, 429, "rate limit exceeded", {"retryAfterMs": wait_ms})

    def report(self, now: int) -> None:
        """Account to the limiter for the units that were spent, and return those that were not."""
        reports = self._leases.due_reports(now)
        for index, report in enumerate(reports):
            try:
                self._hub.limiter.control(report)
            except (ActorDown, MailboxFull):
                self._leases.unsent(reports[index:])  # the units stay spent until its next incarnation hears of them
                return
