"""Requests that wait for an answer, and the one place where their time runs out.

Pure apart from calling back: ``now_ns`` is an argument. One heap and one timer serve all requests, because a cancel
scope for each costs more than the rest of the request.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import attrs

from .address import Reply
from .callbacks import CallbackQueue
from .errors import ActorDown, DeadlineExceeded
from .mailbox import Mailbox


@attrs.define(eq=False)
class Pending:
    """One request. It is answered when its callback has been queued, and never again."""

    id: int
    actor: str
    incarnation: int
    deadline_ns: int
    on_reply: Callable[[Reply], None]
    owner: Mailbox | None


@attrs.define(eq=False)
class PendingRequests:
    """All requests of one process. Ids are never used twice.

    ``on_sooner`` is told a deadline that comes before all that were known.
    """

    _callbacks: CallbackQueue
    _on_sooner: Callable[[int], None]
    late: int = attrs.field(default=0, init=False)  # answers to requests that had ended, or to none
    expired: int = attrs.field(default=0, init=False)
    _last: int = attrs.field(default=0, init=False)
    _by_actor: dict[str, dict[int, Pending]] = attrs.field(factory=dict, init=False)
    _count: int = attrs.field(default=0, init=False)
    _heap: list[tuple[int, int, str]] = attrs.field(factory=list, init=False)  # also holds what has ended meanwhile

    def __len__(self) -> int:
        return self._count

    def open(
        self,
        actor: str,
        incarnation: int,
        deadline_ns: int,
        on_reply: Callable[[Reply], None],
        owner: Mailbox | None,
    ) -> int:
        """A new request's id."""
        self._last += 1
        mine = self._by_actor.setdefault(actor, {})
        mine[self._last] = Pending(self._last, actor, incarnation, deadline_ns, on_reply, owner)
        self._count += 1
        if len(self._heap) > 64 and len(self._heap) > 4 * self._count:
            self._compact()
        if not self._heap or deadline_ns < self._heap[0][0]:
            self._on_sooner(deadline_ns)
        heapq.heappush(self._heap, (deadline_ns, self._last, actor))
        return self._last

    def forget(self, actor: str, request: int) -> None:
        """Nobody waits any more; the callback will not be called. No error if it has ended already."""
        if self._by_actor.get(actor, {}).pop(request, None) is not None:
            self._count -= 1

    def settle(self, actor: str, incarnation: int, request: int, reply: Reply) -> bool:
        """The answer of one incarnation. False: nobody waits for it; it was counted as late."""
        mine = self._by_actor.get(actor)
        pending = mine.get(request) if mine is not None else None
        if mine is None or pending is None or pending.incarnation != incarnation:
            self.late += 1
            return False
        del mine[request]
        self._count -= 1
        self._answer(pending, reply)
        return True

    def fail(self, actor: str, reason: str) -> None:
        """Every request to that actor gets ActorDown."""
        mine = self._by_actor.pop(actor, {})
        self._count -= len(mine)
        for pending in mine.values():
            self._answer(pending, ActorDown(actor, reason))

    def expire(self, now_ns: int) -> int | None:
        """Every request whose deadline has come gets DeadlineExceeded. Returns the next deadline."""
        while self._heap:
            deadline_ns, request, actor = self._heap[0]
            pending = self._by_actor.get(actor, {}).get(request)
            if pending is not None:
                if deadline_ns > now_ns:
                    return deadline_ns
                del self._by_actor[actor][request]
                self._count -= 1
                self.expired += 1
                self._answer(pending, DeadlineExceeded(actor))
            heapq.heappop(self._heap)
        return None

    def _answer(self, pending: Pending, reply: Reply) -> None:
        self._callbacks.add(pending.owner, f"answer of {pending.actor}", pending.on_reply, reply)

    def _compact(self) -> None:
        """Most of the heap has been answered: keep what has not, so that its size follows the requests in flight."""
        self._heap = [entry for entry in self._heap if entry[1] in self._by_actor.get(entry[2], {})]
        heapq.heapify(self._heap)
