"""An acceptor's local half of the limiter: leases it holds, units it spends, reports it owes.

Synchronous and without I/O, so that the hub spends a unit in less than a microsecond. The hub asks for each message:
``take``. When that says no, ``retry_after_ms`` tells a client that is over its limit from one for which the limiter
has to be asked, and ``want`` makes the question. Order matters: send ``due_reports`` before what ``want`` returns, on
the same lane, so that the limiter answers from what really happened.

Every unit of every lease is reported used, or returned, exactly once; what is lost on the way counts as used.
Nothing of a lease is spent after its end.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection

import attrs

from ipc.messages import Exhausted, Lease, LeaseReport, LeaseRequest

REPORT_EVERY_NS = 50_000_000
LARGEST_WANT = 256
# How long the size of a client's leases is remembered after its last one.
_MEMORY_NS = 1_000_000_000
# From this size on the next lease is asked for while there is something left of the last.
_PREFETCH_FROM = 8
UNMETERED = 0
"""The lease id of a limiter that doesn't limit."""

Keys = tuple[str, ...]


@attrs.define(eq=False)
class _Held:
    lease: int
    owner: _Budget
    units: int
    left: int
    until_ns: int
    used: list[int] = attrs.field(factory=list)  # since the last report
    over: bool = False  # nothing more may be spent of it
    closed: bool = False  # its last report is out; implies ``over``
    due_ns: int = 0  # the earliest event of it in the heap


@attrs.define(eq=False)
class _Budget:
    """What is held for one client. In the book as long as it holds, asks or remembers something."""

    keys: Keys
    held: list[_Held] = attrs.field(factory=list)  # usable ones, oldest first
    size: int = 1  # of the next lease: doubled when one is used up, halved when one comes back
    asking: bool = False
    asked_for: int = 1  # what the first message of the last question costs
    # Until when nothing that costs so much may pass. What costs less may pass before, what costs more only later, so
    # each cost has a time of its own; there are as many as the settings name.
    exhausted: dict[int, int] = attrs.field(factory=dict)
    open: int = 0  # leases whose last report isn't out
    remaining: int = 0  # at the limiter, as its last lease told
    more_at_ns: int = 0
    burst: bool = False


@attrs.frozen
class Outlook:
    """Units left; how long until there are more; whether it is the burst window that says so."""

    remaining: int
    reset_ms: int
    burst: bool


@attrs.frozen
class LeaseBookStatistics:
    clients: int
    leases: int
    units_left: int
    taken: int
    returned: int
    late: int  # units that came too late to be spent


class LeaseBook:
    """All budgets of one incarnation of one acceptor. It ends with that incarnation.

    Args:
      acceptor: the actor's name, as the limiter knows it.
      capacity: how many clients are tracked at most; past it, new ones are told to try again later.
    """

    def __init__(self, acceptor: str, *, capacity: int = 65_536) -> None:
        self._acceptor = acceptor
        self.enabled = True  # False spends without limit and never asks
        self._capacity = capacity
        self._budgets: dict[Keys, _Budget] = {}
        self._events: list[tuple[int, int, _Held | _Budget]] = []  # heap: (when, order, what)
        self._order = 0
        self._urgent: list[_Held] = []
        self._unsent: list[LeaseReport] = []
        self._taken = self._returned = self._late = 0

    # --- for each message

    def take(self, keys: Keys, now: int, cost: int = 1) -> bool:
        """Spend ``cost`` units, all or none."""
        if not self.enabled:
            self._taken += cost
            return True
        budget = self._budgets.get(keys)
        if budget is None:
            return False
        held = budget.held
        while held and (held[0].left == 0 or now >= held[0].until_ns):
            self._end(held[0])
        if not held:
            return False
        if held[0].left < cost and sum(lease.left for lease in held if now < lease.until_ns) < cost:
            return False
        self._taken += cost
        for lease in held:
            part = min(cost, lease.left) if now < lease.until_ns else 0
            if part:
                self._spend(lease, part, now)
                cost -= part
            if not cost:
                break
        return True

    def retry_after_ms(self, keys: Keys, now: int, cost: int = 1) -> int:
        """More than 0: the client is over its limit for so long, refuse. 0: ask the limiter."""
        budget = self._budgets.get(keys)
        if budget is None:
            return 1000 if len(self._budgets) >= self._capacity else 0
        return max(0, math.ceil((budget.exhausted.get(cost, 0) - now) / 1e6))

    def outlook(self, keys: Keys, now: int) -> Outlook | None:
        """What the client has left, as far as is known here; None: nothing is known, since no lease has come yet."""
        budget = self._budgets.get(keys)
        if budget is None or not budget.more_at_ns:
            return None
        here = sum(lease.left for lease in budget.held if now < lease.until_ns)
        reset_ms = max(0, math.ceil((budget.more_at_ns - now) / 1e6))
        return Outlook(budget.remaining + here, reset_ms, budget.burst)

    def pardon(self) -> None:
        """Forget who is over the limit, and since when: the limits have changed."""
        for budget in self._budgets.values():
            budget.exhausted.clear()

    # --- questions to the limiter and its answers

    def want(self, keys: Keys, now: int, parked: int = 0, least: int = 1) -> LeaseRequest | None:
        """The question to ask now for that client, or None: one is under way, or there is no need.

        Args:
          parked: units that messages are waiting for. With 0 this is a look ahead: it asks only for a busy client
            whose lease runs low.
          least: what the first of these messages costs.

        Send ``due_reports`` first. Each question has to be answered by ``granted``, ``exhausted`` or ``unanswered``.
        """
        budget = self._budgets.get(keys)
        if budget is None:
            if not parked or not self.enabled or len(self._budgets) >= self._capacity:
                return None
            budget = self._budgets[keys] = _Budget(keys)
        if budget.asking or now < budget.exhausted.get(least, 0):
            return None
        left = sum(lease.left for lease in budget.held if now < lease.until_ns)
        if parked <= left and (budget.size < _PREFETCH_FROM or left > budget.size // 4):
            return None
        budget.asking = True
        budget.asked_for = least
        for lease in budget.held:
            if lease.used:
                self._urgent.append(lease)
        least = max(1, least - left)
        return LeaseRequest(self._acceptor, keys, max(least, min(LARGEST_WANT, max(parked - left, budget.size))), least)

    def granted(self, lease: Lease, now: int) -> None:
        budget = self._budgets.get(lease.keys)
        if budget is None:  # nobody asks any more: the lease goes back
            budget = _Budget(lease.keys)
        budget.asking = False
        budget.exhausted.clear()
        budget.remaining = lease.remaining
        budget.more_at_ns = now + lease.reset_ms * 1_000_000
        budget.burst = lease.burst
        held = _Held(lease.lease, budget, lease.units, lease.units, lease.until_ns)
        budget.held.append(held)
        budget.open += 1
        if now >= lease.until_ns or lease.keys not in self._budgets:
            self._late += lease.units
            self._end(held)
        else:
            self._schedule(held, lease.until_ns)

    def exhausted(self, answer: Exhausted, now: int) -> None:
        budget = self._budgets.get(answer.keys)
        if budget is not None:
            budget.asking = False
            until_ns = now + max(1, answer.retry_after_ms) * 1_000_000
            if 2 * len(self._budgets) > self._capacity:  # a flood of clients that are over the limit: not all are kept
                until_ns = min(until_ns, now + _MEMORY_NS)
            budget.exhausted[budget.asked_for] = until_ns
            self._forget_later(budget, until_ns)

    def unanswered(self, keys: Keys, now: int) -> None:
        """The question failed: the limiter is down, late, or refused it. ``want`` may ask again."""
        budget = self._budgets.get(keys)
        if budget is not None:
            budget.asking = False
            self._forget_later(budget, now + _MEMORY_NS)

    # --- reports

    def due_reports(self, now: int) -> list[LeaseReport]:
        """What has to be told to the limiter now, on the control lane. Call it at least every ``REPORT_EVERY_NS``."""
        reports, self._unsent = self._unsent, []
        urgent, self._urgent = self._urgent, []
        for lease in urgent:
            self._report(lease, now, reports)
        while self._events and self._events[0][0] <= now:
            _, _, what = heapq.heappop(self._events)
            if isinstance(what, _Held):
                if now >= what.due_ns:
                    self._report(what, now, reports)
            else:
                self._forget_if_idle(what, now)
        return reports

    def unsent(self, reports: list[LeaseReport]) -> None:
        """The limiter could not be told. They come again with the next ``due_reports``; their number is bounded by
        the leases, and without a limiter there are no new ones."""
        self._unsent.extend(reports)

    @property
    def next_due_ns(self) -> int | None:
        """When ``due_reports`` has something to say, as far as is known now; 0: at once."""
        if self._urgent or self._unsent:
            return 0
        return self._events[0][0] if self._events else None

    def forget(self, keys: Keys, now: int) -> None:
        """The last connection of that client is gone: what is left of its leases goes back with the next reports."""
        budget = self._budgets.get(keys)
        if budget is None:
            return
        for lease in list(budget.held):
            self._end(lease)
        budget.size = 1
        self._forget_later(budget, now)

    def recall(self, keys: Keys, leases: Collection[int]) -> None:
        """The limiter wants these leases back: nothing more is spent of them, and the next reports account for them."""
        budget = self._budgets.get(keys)
        for held in list(budget.held) if budget is not None else ():
            if held.lease in leases:
                self._end(held)

    def close(self, now: int) -> list[LeaseReport]:
        """End all leases. What the hub sends when it is drained."""
        for keys in list(self._budgets):
            self.forget(keys, now)
        return self.due_reports(now)

    def statistics(self) -> LeaseBookStatistics:
        counts: Counter[str] = Counter()
        for budget in self._budgets.values():
            counts["leases"] += len(budget.held)
            counts["left"] += sum(lease.left for lease in budget.held)
        return LeaseBookStatistics(
            clients=len(self._budgets),
            leases=counts["leases"],
            units_left=counts["left"],
            taken=self._taken,
            returned=self._returned,
            late=self._late,
        )

    # --- inside

    def _spend(self, lease: _Held, units: int, now: int) -> None:
        lease.left -= units
        if lease.lease == UNMETERED:
            return
        if not lease.used:
            self._schedule(lease, now + REPORT_EVERY_NS)
        if units == 1:
            lease.used.append(now)
        else:
            lease.used.extend([now] * units)

    def _end(self, lease: _Held) -> None:
        """Nothing more is spent of it; what is left is returned by its last report, with the next ones."""
        self._finish(lease)
        self._urgent.append(lease)

    def _finish(self, lease: _Held) -> None:
        budget = lease.owner
        budget.held.remove(lease)
        lease.over = True
        if lease.left == 0:
            budget.size = min(LARGEST_WANT, budget.size * 2)
        elif lease.left * 2 > lease.units:
            budget.size = max(1, budget.size // 2)

    def _report(self, lease: _Held, now: int, reports: list[LeaseReport]) -> None:
        if lease.closed:
            return
        if not lease.over and (lease.left == 0 or now >= lease.until_ns):
            self._finish(lease)
        if lease.lease != UNMETERED and (lease.used or lease.over):
            returned = lease.left if lease.over else 0
            reports.append(LeaseReport(self._acceptor, lease.lease, lease.used, returned, lease.over))
            self._returned += returned
        lease.used = []
        if lease.over:
            lease.closed = True
            lease.owner.open -= 1
            if not lease.owner.open:
                self._forget_later(lease.owner, now + _MEMORY_NS)
        else:
            self._schedule(lease, lease.until_ns, anew=True)

    def _schedule(self, lease: _Held, when: int, *, anew: bool = False) -> None:
        when = min(when, lease.until_ns)
        if anew or lease.due_ns == 0 or when < lease.due_ns:
            lease.due_ns = when
            self._push(when, lease)

    def _forget_later(self, budget: _Budget, when: int) -> None:
        self._push(when, budget)

    def _forget_if_idle(self, budget: _Budget, now: int) -> None:
        if self._budgets.get(budget.keys) is not budget or budget.asking or budget.open:
            return
        if any(now < until_ns for until_ns in budget.exhausted.values()):
            return  # another event is there for that time
        del self._budgets[budget.keys]

    def _push(self, when: int, what: _Held | _Budget) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, what))
