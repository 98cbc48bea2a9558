"""What turns ``decide`` into deeds: the part that the tree of workers and the trees of actors have in common."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable

import trio

from .strategy import Effect, Event, Exited, Plan, Start, State, Tick, decide, next_deadline

log = logging.getLogger("supervisor.engine")

_RETRY_S = 0.1


class Engine:
    """Feeds events to ``decide`` one at a time and has their effects performed in order.

    This is a boundary: an error in a decision or in ``perform`` is logged and counted and the tree goes on. If what
    failed was a Start, that child has failed to start.
    """

    def __init__(self, plan: Plan, perform: Callable[[Effect], None]) -> None:
        self.state = State.new(plan)
        self.faults = 0
        self._perform = perform
        self._events: deque[Event] = deque()
        self._deciding = False
        self._changed = trio.Event()

    def post(self, event: Event) -> None:
        """Decide on it now; or, when called from within ``perform``, next."""
        self._events.append(event)
        if self._deciding:
            return
        self._deciding = True
        try:
            while self._events:
                for effect in self._decide(self._events.popleft()):
                    self._carry_out(effect)
        finally:
            self._deciding = False
            self._changed.set()

    def exited(self, name: str, incarnation: int, reason: str) -> None:
        self.post(Exited(name, incarnation, reason, random.random()))  # noqa: S311 - spreads restarts, hides nothing

    def _decide(self, event: Event) -> tuple[Effect, ...]:
        try:
            self.state, effects = decide(self.state, event, time.monotonic_ns())
        except Exception:
            self.faults += 1
            log.exception("no decision on %s", event)
            return ()
        return effects

    def _carry_out(self, effect: Effect) -> None:
        try:
            self._perform(effect)
        except Exception as error:
            self.faults += 1
            log.exception("%s failed", effect)
            if isinstance(effect, Start):
                jitter = random.random()  # noqa: S311
                self._events.append(Exited(effect.name, effect.incarnation, f"can't be started: {error}", jitter))

    async def keep_time(self) -> None:
        """Post a Tick whenever one is due, until cancelled."""
        while True:
            self._changed = trio.Event()
            deadline = next_deadline(self.state)
            wait = float("inf") if deadline is None else max(0.0, (deadline - time.monotonic_ns()) / 1e9)
            with trio.move_on_after(wait) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                self.post(Tick())
                if next_deadline(self.state) == deadline:  # only when the decision failed; not to spin on that
                    await trio.sleep(_RETRY_S)


