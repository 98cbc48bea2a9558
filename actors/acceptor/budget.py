"""A message's unit of its client's budget: from a lease that is held here, or asked of the limiter."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from actors.lease_book import LeaseBook
from actors.policy.rate_headers import BURST, DEFAULT, Quota
from ipc.address import Reply
from ipc.errors import ActorDown, MailboxFull
from ipc.messages import Envelope, Exhausted, Lease, Message, Recall

from .connection import Connection, Item, Stage

if TYPE_CHECKING:
    from .hub import Hub

Entered = Callable[[Connection, Quota | None, int], None]

MOST_OWED: Final = 256
WAIT_NS: Final = 250_000_000  # how long a message may wait for the limiter


class Budget:
    """The hub's use of its lease book: who waits for which lease. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._leases = LeaseBook(hub.name)
        self._waiting: dict[tuple[str, ...], list[Connection]] = {}  # by the keys that are charged
        self._entering: dict[tuple[str, ...], list[tuple[Connection, Entered]]] = {}
        self._connections: Counter[tuple[str, ...]] = Counter()  # open ones, by the keys that they are charged to
        self._owed: Counter[tuple[str, ...]] = Counter()  # to be taken from the next lease
        self._spent: set[tuple[str, ...]] = set()  # in this turn
        self.configure()

    def configure(self) -> None:
        """Go by the hub's settings. Whoever was over the limit may be under the new one: the limiter is asked."""
        self._costs = self._hub.settings.rate_limit_method_costs
        self._leases.enabled = self._hub.settings.rate_limit_enabled
        self._leases.pardon()

    def join(self, keys: tuple[str, ...]) -> None:
        """A connection of that client was opened."""
        self._connections[keys] += 1

    def leave(self, keys: tuple[str, ...]) -> None:
        """A connection of that client ended; what is left of its leases goes back with the last one."""
        self._connections[keys] -= 1
        if self._connections[keys] <= 0:
            del self._connections[keys]
            self._leases.forget(keys, self._hub.now)

    def cost(self, envelope: Envelope | None) -> int:
        """What a message costs: 1, unless RATE_LIMIT_METHOD_COSTS says otherwise of its method."""
        return self._costs.get(envelope.method, 1) if envelope is not None and self._costs else 1

    def spend(self, keys: tuple[str, ...], now: int, cost: int = 1) -> bool:
        """The units for one message. False: they aren't here."""
        if cost == 0 or self._leases.take(keys, now, cost):
            self._spent.add(keys)
            return True
        return False

    def enter(self, connection: Connection, keys: tuple[str, ...], entered: Entered) -> None:
        """One unit for an upgrade or an HTTP request.

        ``entered`` is called in the connection's step: with what is left, or with how long the client is over its
        limit; with neither when the limiter does not answer. Not at all for a connection that has ended meanwhile.
        """
        now = self._hub.now
        if self.spend(keys, now):
            entered(connection, self._quota(keys, now), 0)
        elif over_ms := self._leases.retry_after_ms(keys, now):
            entered(connection, self._used_up(over_ms), over_ms)
        else:
            waiting = self._entering.setdefault(keys, [])
            waiting.append((connection, entered))
            self._request(keys, len(waiting), now)

    def _entered(self, keys: tuple[str, ...], answered: bool) -> None:
        for connection, entered in self._entering.pop(keys, []):
            if connection.stage >= Stage.CLOSING:
                continue
            if answered:
                self._hub.step(connection, self.enter, keys, entered)
            else:
                self._hub.step(connection, entered, None, 0)
            if connection.stage is not Stage.CLOSED:  # it was not read meanwhile: the rest of a request may wait
                self._hub.dirty[connection.fd] = connection

    def quota(self, keys: tuple[str, ...]) -> Quota | None:
        """What that client has left, as far as it is known here without asking; None: it isn't."""
        now = self._hub.now
        if over_ms := self._leases.retry_after_ms(keys, now):
            return self._used_up(over_ms)
        return self._quota(keys, now) if self._leases.outlook(keys, now) is not None else None

    def _quota(self, keys: tuple[str, ...], now: int) -> Quota:
        outlook = self._leases.outlook(keys, now)
        if outlook is None:  # limits are off
            return Quota(0, 0)
        return Quota(outlook.remaining, outlook.reset_ms, BURST if outlook.burst else DEFAULT)

    def _used_up(self, over_ms: int) -> Quota:
        """Longer than the burst window it can only be the other one."""
        return Quota(0, over_ms, DEFAULT if over_ms > self._hub.settings.rate_limit_burst_window_ms else BURST)

    def charge(self, keys: tuple[str, ...], now: int) -> None:
        """One unit for what is refused whether there is one or not: now, or from the next lease."""
        if not self._leases.take(keys, now) and not self._leases.retry_after_ms(keys, now):
            self._owed[keys] = min(self._owed[keys] + 1, MOST_OWED)
            self._request(keys, self._owed[keys], now)

    def delivered(self, message: Message) -> bool:
        """The limiter asks for leases back, because another acceptor needs what is left of them."""
        if not isinstance(message, Recall):
            return False
        self._leases.recall(message.keys, message.leases)
        self.report(self._hub.now)
        return True

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

    def wait(self, connection: Connection, item: Item, keys: tuple[str, ...], now: int, cost: int = 1) -> bool:
        """``item`` can't be paid here. False: it waits for a lease. True: it is over the limit and was refused."""
        over_ms = self._leases.retry_after_ms(keys, now, cost)
        if over_ms:
            self._over_limit(connection, item, over_ms)
            return True
        if connection.parked_for != "budget":
            connection.parked_for = "budget"
            self._waiting.setdefault(keys, []).append(connection)
        parked = sum(len(connection.parked) or 1 for connection in self._waiting[keys])
        self._request(keys, parked + cost - 1, now, cost)
        return False

    def _request(self, keys: tuple[str, ...], parked: int, now: int, least: int = 1) -> None:
        request = self._leases.want(keys, now, parked, least)
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
        self._entered(keys, isinstance(reply, Lease | Exhausted))
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
        self._hub.offence(connection, "rate")
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
