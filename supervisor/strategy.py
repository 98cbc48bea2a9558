"""Supervision as a pure function: what happened goes in, what is to be done comes out.

The same rules hold for the supervisor over its workers and for each worker over its actors. They are OTP's:

* Children start in the order of the table, stage by stage: a stage starts when every child of the stages before it
  has said that it is up. Children of one stage start together.
* They stop in reverse: the last stage first, each child with a deadline, past which it is killed.
* A child that exits unbidden is restarted: alone (``one_for_one``), with the children of all later stages
  (``rest_for_one``) or with all (``one_for_all``). The others are stopped in reverse order first.
* A restart that fails is one more failure, tried again after the backoff; nothing waits for it but children of later
  stages under ``rest_for_one`` and ``one_for_all``, and a stop goes past it at once.
* A child can be renewed: it alone stops in order and starts again, which is no failure.
* Too many restarts in the window escalate, or, at the root (``escalates=False``), only mark the child as troubled.
* A failure before every child was up once always escalates.

::

            Begin          turn, due         Up
    idle ----------> waiting ------> starting -----> up
     ^                  ^               |             |
     |                  |    Exited     |   Exited    |
     |                  +---------------+-------------+
     |                  |               | Stop        | Stop
     |     Exited (tree stops)          v             v
     +------------------+------------- stopping <-----+
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs

from .backoff import SECOND, Backoff
from .intensity import Intensity, Moments

Strategy = Literal["one_for_one", "rest_for_one", "one_for_all"]
Phase = Literal["idle", "waiting", "starting", "up", "stopping"]
Mode = Literal["new", "starting", "running", "stopping", "ended"]

ALIVE: frozenset[Phase] = frozenset(("starting", "up", "stopping"))


@attrs.frozen
class ChildSpec:
    """One child. ``start_ns`` and ``stop_ns`` are how long it may take to come up and to end when told to."""

    name: str
    stage: int
    start_ns: int = 10 * SECOND
    stop_ns: int = 2 * SECOND


@attrs.frozen
class Plan:
    """What a tree is made of and by which rules. ``children`` are in order of their stages; names are unique."""

    children: tuple[ChildSpec, ...] = attrs.field()
    strategy: Strategy = "one_for_one"
    intensity: Intensity = attrs.field(factory=lambda: Intensity(limit=5, window_ns=10 * SECOND))
    backoff: Backoff = attrs.field(factory=Backoff)
    escalates: bool = True

    @children.validator
    def _check_children(self, _attribute: object, children: tuple[ChildSpec, ...]) -> None:
        if len({child.name for child in children}) != len(children):
            raise ValueError("two children have one name")
        stages = [child.stage for child in children]
        if stages != sorted(stages):
            raise ValueError("children must be in the order of their stages")


@attrs.frozen
class Child:
    """The state of one child."""

    spec: ChildSpec
    phase: Phase = "idle"
    incarnation: int = 0  # starts so far; an event of another incarnation is stale
    restarts: int = 0  # failures that led to a restart
    streak: int = 0  # failures in a row, since it last was up for the settling time
    due_ns: int = 0  # waiting: not started before this
    deadline_ns: int = 0  # starting, stopping: killed past this
    up_since_ns: int = 0
    killed: bool = False  # a Kill was asked for this incarnation; there is no second one
    doomed: bool = False  # to be stopped, then started again: for a sibling's sake, or to be renewed
    fault: str = ""  # why it was killed; more telling than "killed by SIGKILL"
    trouble: str = ""  # past the restart intensity: why; until it is up again

    @property
    def alive(self) -> bool:
        return self.phase in ALIVE


@attrs.frozen
class State:
    """A whole tree. ``at_ns`` is the time of the last decision."""

    plan: Plan
    children: tuple[Child, ...]
    mode: Mode = "new"
    history: Moments = ()
    at_ns: int = 0

    @classmethod
    def new(cls, plan: Plan) -> State:
        return cls(plan, tuple(Child(spec) for spec in plan.children))

    def child(self, name: str) -> Child:
        """Raises KeyError."""
        for child in self.children:
            if child.spec.name == name:
                return child
        raise KeyError(name)

    @property
    def restarts(self) -> int:
        return sum(child.restarts for child in self.children)


# --- events ------------------------------------------------------------------------------------------------------


@attrs.frozen
class Begin:
    """Start the tree. Once."""


@attrs.frozen
class Up:
    """The child has said that it is up."""

    name: str
    incarnation: int


@attrs.frozen
class Exited:
    """The child is gone, or could not be started. ``jitter`` in [0, 1) is the randomness for its backoff."""

    name: str
    incarnation: int
    reason: str
    jitter: float


@attrs.frozen
class Tick:
    """A moment of ``next_deadline`` has come."""


@attrs.frozen
class Renew:
    """Stop this child in order and start it again: no failure, and it counts as none."""

    name: str


@attrs.frozen
class StopAll:
    """Stop in reverse order."""


@attrs.frozen
class KillAll:
    """Stop at once, in no order."""


Event = Begin | Up | Exited | Tick | Renew | StopAll | KillAll

# --- effects -----------------------------------------------------------------------------------------------------


@attrs.frozen
class Start:
    """Start this incarnation; answer with Up or Exited."""

    name: str
    incarnation: int


@attrs.frozen
class Stop:
    """Ask it to end; answer with Exited."""

    name: str
    incarnation: int
    deadline_ns: int


@attrs.frozen
class Kill:
    """End it by force; answer with Exited."""

    name: str
    incarnation: int
    reason: str


@attrs.frozen
class Crashed:
    """For the record: a child ended unbidden. It starts again at ``due_ns``."""

    name: str
    incarnation: int
    reason: str
    due_ns: int
    trouble: str


@attrs.frozen
class CameUp:
    """For the record."""

    name: str
    incarnation: int


@attrs.frozen
class AllUp:
    """The first start is complete."""


@attrs.frozen
class Escalate:
    """This tree has failed. Its children are being stopped; whoever is above decides what comes next."""

    name: str
    reason: str


@attrs.frozen
class Ended:
    """Everything has stopped."""


Effect = Start | Stop | Kill | Crashed | CameUp | AllUp | Escalate | Ended
Effects = tuple[Effect, ...]


def decide(state: State, event: Event, now: int) -> tuple[State, Effects]:
    """The state after ``event``, and the effects to carry out in their order.

    ``now`` is in monotonic nanoseconds and never runs backwards. Stale events (of another incarnation, or after the
    end) change nothing.
    """
    step = _Step(attrs.evolve(state, at_ns=now), now)
    match event:
        case Begin():
            step.begin()
        case Up():
            step.up(event)
        case Exited():
            step.exited(event)
        case Tick():
            step.tick()
        case Renew():
            step.renew(event)
        case StopAll():
            step.stop_all()
        case KillAll():
            step.kill_all()
    step.advance()
    return step.state, tuple(step.effects)


def next_deadline(state: State) -> int | None:
    """When a Tick is due next; None: not before another event.

    Moments up to the last decision were acted on by it, or wait for something else than time.
    """
    moments = [
        child.due_ns if child.phase == "waiting" else child.deadline_ns
        for child in state.children
        if child.phase == "waiting" or (child.phase in ("starting", "stopping") and not child.killed)
    ]
    return min((moment for moment in moments if moment > state.at_ns), default=None)


class _Step:
    """One decision in the making. Works on values only; lives no longer than the call of ``decide``."""

    def __init__(self, state: State, now: int) -> None:
        self.state = state
        self.now = now
        self.effects: list[Effect] = []

    # --- events

    def begin(self) -> None:
        if self.state.mode != "new":
            return
        self._mode("starting")
        for child in self.state.children:
            self._put(attrs.evolve(child, phase="waiting", due_ns=self.now))

    def up(self, event: Up) -> None:
        child = self._current(event.name, event.incarnation)
        if child is None or child.phase != "starting" or child.killed:
            return
        self._put(attrs.evolve(child, phase="up", up_since_ns=self.now, trouble=""))
        self.effects.append(CameUp(event.name, event.incarnation))

    def exited(self, event: Exited) -> None:
        child = self._current(event.name, event.incarnation)
        if child is None or not child.alive:
            return
        gone = attrs.evolve(child, killed=False, doomed=False, fault="")
        if self.state.mode == "stopping":
            self._put(attrs.evolve(gone, phase="idle"))
        elif child.phase == "stopping":  # it was told to: no failure of its own
            self._put(attrs.evolve(gone, phase="waiting", due_ns=self.now))
        else:
            self._failed(child, gone, child.fault or event.reason, event.jitter)

    def tick(self) -> None:
        for child in self.state.children:
            if child.killed or child.phase not in ("starting", "stopping") or child.deadline_ns > self.now:
                continue
            fault = "did not come up in time" if child.phase == "starting" else "did not stop in time"
            self._kill(child, fault)

    def renew(self, event: Renew) -> None:
        """One that isn't there now starts anew by itself."""
        child = self.state.child(event.name)
        if self.state.mode in ("starting", "running") and child.alive and child.phase != "stopping":
            self._put(attrs.evolve(child, doomed=True))

    def stop_all(self) -> None:
        if self.state.mode in ("new", "starting", "running"):
            self._begin_stop()

    def kill_all(self) -> None:
        if self.state.mode == "ended":
            return
        self._begin_stop()
        for child in self.state.children:
            if child.alive:
                if not child.killed:
                    self._kill(child, "ended at once")
                self._put(attrs.evolve(self.state.child(child.spec.name), phase="stopping"))

    # --- consequences

    def _failed(self, child: Child, gone: Child, reason: str, jitter: float) -> None:
        name = child.spec.name
        plan = self.state.plan
        if self.state.mode == "starting":
            self._put(attrs.evolve(gone, phase="idle"))
            self._escalate(name, reason)
            return
        history = plan.intensity.record(self.state.history, self.now)
        self.state = attrs.evolve(self.state, history=history)
        trouble = ""
        if plan.intensity.exceeded(history, self.now):
            trouble = f"{reason}; more than {plan.intensity.limit} restarts in {plan.intensity.window_ns / SECOND:g} s"
            if plan.escalates:
                self._put(attrs.evolve(gone, phase="idle"))
                self._escalate(name, trouble)
                return
        recovered = child.phase == "up" and self.now - child.up_since_ns >= plan.backoff.settle_ns
        streak = 0 if recovered else child.streak
        due = self.now + plan.backoff.delay(streak, jitter)
        self._put(
            attrs.evolve(
                gone, phase="waiting", due_ns=due, restarts=child.restarts + 1, streak=streak + 1, trouble=trouble
            )
        )
        self.effects.append(Crashed(name, child.incarnation, reason, due, trouble))
        for sibling in self._bound_to(child):
            if sibling.alive and sibling.phase != "stopping":
                self._put(attrs.evolve(sibling, doomed=True))

    def _bound_to(self, failed: Child) -> Iterator[Child]:
        """Those that have to be restarted with it."""
        for child in self.state.children:
            if child.spec.name == failed.spec.name or self.state.plan.strategy == "one_for_one":
                continue
            if self.state.plan.strategy == "one_for_all" or child.spec.stage > failed.spec.stage:
                yield child

    def _escalate(self, name: str, reason: str) -> None:
        self.effects.append(Escalate(name, reason))
        self._begin_stop()

    def _begin_stop(self) -> None:
        """Nothing starts any more."""
        self._mode("stopping")
        for child in self.state.children:
            phase: Phase = "idle" if child.phase == "waiting" else child.phase
            self._put(attrs.evolve(child, phase=phase, doomed=False, trouble=""))

    # --- what is possible now

    def advance(self) -> None:
        match self.state.mode:
            case "starting" | "running":
                self._stop_doomed()
                self._start_due()
                if self.state.mode == "starting" and all(child.phase == "up" for child in self.state.children):
                    self._mode("running")
                    self.effects.append(AllUp())
            case "stopping":
                self._stop_last_stage([child for child in self.state.children if child.alive])
                if not any(child.alive for child in self.state.children):
                    self._mode("ended")
                    self.effects.append(Ended())

    def _stop_doomed(self) -> None:
        """Only those that start again are in phase stopping here; later stages go first."""
        self._stop_last_stage([child for child in self.state.children if child.doomed or child.phase == "stopping"])

    def _stop_last_stage(self, children: list[Child]) -> None:
        last = max((child.spec.stage for child in children), default=0)
        for child in children:
            if child.spec.stage == last and child.phase != "stopping":
                deadline = self.now + child.spec.stop_ns
                self._put(attrs.evolve(child, phase="stopping", deadline_ns=deadline))
                self.effects.append(Stop(child.spec.name, child.incarnation, deadline))

    def _start_due(self) -> None:
        for child in self.state.children:
            if child.phase == "waiting" and child.due_ns <= self.now and self._turn(child):
                incarnation = child.incarnation + 1
                self._put(
                    attrs.evolve(
                        child, phase="starting", incarnation=incarnation, deadline_ns=self.now + child.spec.start_ns
                    )
                )
                self.effects.append(Start(child.spec.name, incarnation))

    def _turn(self, child: Child) -> bool:
        ordered = self.state.mode == "starting" or self.state.plan.strategy != "one_for_one"
        return not ordered or not any(
            other.doomed or other.phase == "stopping" or (other.phase != "up" and other.spec.stage < child.spec.stage)
            for other in self.state.children
        )

    # --- values

    def _kill(self, child: Child, fault: str) -> None:
        self._put(attrs.evolve(child, killed=True, fault=fault))
        self.effects.append(Kill(child.spec.name, child.incarnation, fault))

    def _current(self, name: str, incarnation: int) -> Child | None:
        return next((c for c in self.state.children if c.spec.name == name and c.incarnation == incarnation), None)

    def _put(self, child: Child) -> None:
        name = child.spec.name
        children = tuple(child if other.spec.name == name else other for other in self.state.children)
        self.state = attrs.evolve(self.state, children=children)

    def _mode(self, mode: Mode) -> None:
        self.state = attrs.evolve(self.state, mode=mode)
