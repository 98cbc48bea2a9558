"""``decide`` against a plain model of the world: children that come up, hang, crash and are killed in any order."""

from __future__ import annotations

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.backoff import MILLISECOND, SECOND, Backoff
from supervisor.intensity import Intensity
from supervisor.strategy import (
    AllUp,
    Begin,
    CameUp,
    ChildSpec,
    Crashed,
    Effect,
    Ended,
    Escalate,
    Event,
    Exited,
    Kill,
    KillAll,
    Plan,
    Renew,
    Start,
    State,
    Stop,
    StopAll,
    Tick,
    Up,
    decide,
    next_deadline,
)


@attrs.define
class Running:
    """One incarnation, as the world sees it."""

    incarnation: int
    since: int
    up: bool = False
    stop_by: int | None = None
    killed: bool = False


@attrs.define
class World:
    """The plain model: which children run, and what was done to them."""

    running: dict[str, Running] = attrs.field(factory=dict)
    incarnations: dict[str, int] = attrs.field(factory=dict)
    not_before: dict[str, int] = attrs.field(factory=dict)
    escalated: bool = False
    ended: bool = False
    all_up: bool = False
    stopping: bool = False
    renewed: set[str] = attrs.field(factory=set)  # asked for, and not begun yet


jitters = st.floats(min_value=0, max_value=1, exclude_max=True)


class Supervision(RuleBasedStateMachine):
    @initialize(
        stages=st.lists(st.integers(0, 3), min_size=1, max_size=5).map(sorted),
        strategy=st.sampled_from(["one_for_one", "rest_for_one", "one_for_all"]),
        limit=st.integers(0, 4),
        escalates=st.booleans(),
    )
    def make(self, stages: list[int], strategy: str, limit: int, escalates: bool) -> None:
        children = tuple(
            ChildSpec(f"c{number}", stage, start_ns=10 * SECOND, stop_ns=2 * SECOND)
            for number, stage in enumerate(stages)
        )
        self.stage = {child.name: child.stage for child in children}
        self.plan = Plan(
            children,
            strategy=strategy,
            intensity=Intensity(limit=limit, window_ns=10 * SECOND),
            backoff=Backoff(base_ns=50 * MILLISECOND, cap_ns=5 * SECOND, settle_ns=5 * SECOND),
            escalates=escalates,
        )
        self.state = State.new(self.plan)
        self.world = World()
        self.now = 1_000
        self.failing = ""  # the child whose exit is being decided on, if it counts as a failure
        self.feed(Begin())

    # --- the world's side of every effect

    def feed(self, event: Event) -> tuple[Effect, ...]:
        mode = self.state.mode
        self.state, effects = decide(self.state, event, self.now)
        if isinstance(event, (StopAll, KillAll)):
            self.world.stopping = True
        for effect in effects:
            self.perform(effect, mode)
        return effects

    def perform(self, effect: Effect, mode: str) -> None:
        world = self.world
        assert not world.ended, f"{effect} after the end"
        match effect:
            case Start(name, incarnation):
                assert not world.stopping
                assert name not in world.running, "two incarnations at once"
                assert incarnation == world.incarnations.get(name, 0) + 1
                assert self.now >= world.not_before.get(name, 0), "started before its backoff was over"
                if not world.all_up or self.plan.strategy != "one_for_one":
                    earlier = [other for other, stage in self.stage.items() if stage < self.stage[name]]
                    assert all(other in world.running and world.running[other].up for other in earlier)
                world.running[name] = Running(incarnation, self.now)
                world.incarnations[name] = incarnation
            case Stop(name, incarnation, deadline):
                child = world.running[name]
                assert child.incarnation == incarnation
                assert child.stop_by is None, "stopped twice"
                child.stop_by = deadline
                later = [other for other in world.running if self.stage[other] > self.stage[name]]
                if world.stopping:
                    assert not later, "stopped before a later stage had ended"
                else:
                    assert self.plan.strategy != "one_for_one" or name in world.renewed
                    world.renewed.discard(name)
                    assert all(other == self.failing or world.running[other].stop_by is None for other in later)
            case Kill(name, incarnation, _):
                child = world.running[name]
                assert child.incarnation == incarnation
                assert not child.killed, "killed twice"
                child.killed = True
            case Crashed(name, incarnation, _, due, trouble):
                assert name == self.failing
                assert mode == "running"
                assert self.now <= due <= self.now + self.plan.backoff.cap_ns
                assert not (trouble and self.plan.escalates)
                world.not_before[name] = due
            case Escalate():
                assert self.failing
                assert not world.stopping
                assert mode == "starting" or self.plan.escalates
                world.escalated = world.stopping = True
            case CameUp(name, incarnation):
                assert world.running[name].incarnation == incarnation
            case AllUp():
                assert not world.all_up
                assert all(name in world.running and world.running[name].up for name in self.stage)
                world.all_up = True
            case Ended():
                assert world.stopping
                assert not world.running
                world.ended = True

    # --- what may happen

    def pick(self, index: int) -> str:
        names = sorted(self.world.running)
        return names[index % len(names)]

    @precondition(lambda self: any(not child.up for child in self.world.running.values()))
    @rule(index=st.integers(0, 9))
    def comes_up(self, index: int) -> None:
        names = sorted(name for name, child in self.world.running.items() if not child.up)
        name = names[index % len(names)]
        child = self.world.running[name]
        child.up = not child.killed  # what a dying one says comes too late
        self.feed(Up(name, child.incarnation))

    @precondition(lambda self: self.world.running)
    @rule(index=st.integers(0, 9), jitter=jitters)
    def exits(self, index: int, jitter: float) -> None:
        name = self.pick(index)
        child = self.world.running.pop(name)
        others = {other: one.incarnation for other, one in self.world.running.items()}
        bidden = child.stop_by is not None or self.world.stopping
        self.failing = "" if bidden else name
        self.world.renewed.discard(name)
        effects = self.feed(Exited(name, child.incarnation, "it died", jitter))
        if not bidden:
            assert any(isinstance(effect, (Crashed, Escalate)) for effect in effects)
        if self.plan.strategy == "one_for_one" and not self.world.stopping:
            others = {o: i for o, i in others.items() if self.world.running[o].stop_by is None}
            now = {other: one.incarnation for other, one in self.world.running.items() if other != name}
            untouched = {o: i for o, i in now.items() if o in others and self.world.running[o].stop_by is None}
            assert untouched == others, "a sibling did not stay as it was"
        self.failing = ""

    @precondition(lambda self: self.world.incarnations)
    @rule(index=st.integers(0, 9), back=st.integers(1, 3), up=st.booleans())
    def stale_news(self, index: int, back: int, up: bool) -> None:
        """An event of an incarnation that is over changes nothing."""
        names = sorted(self.world.incarnations)
        name = names[index % len(names)]
        incarnation = self.world.incarnations[name] - (back if name in self.world.running else back - 1)
        event = Up(name, incarnation) if up else Exited(name, incarnation, "old news", 0.5)
        self.feed(Tick())  # whatever time itself has brought is not the news' doing
        before = attrs.evolve(self.state, at_ns=0)
        assert self.feed(event) == ()
        assert attrs.evolve(self.state, at_ns=0) == before

    @rule(wait=st.integers(0, 12 * SECOND))
    def time_passes(self, wait: int) -> None:
        self.now += wait
        self.feed(Tick())
        for name, child in self.world.running.items():
            if child.stop_by is not None:
                overdue = self.now >= child.stop_by
            else:
                overdue = not child.up and self.now >= child.since + 10 * SECOND
            assert child.killed or not overdue, f"{name} is left alone past its deadline"

    @precondition(lambda self: next_deadline(self.state) is not None)
    @rule()
    def until_the_next_deadline(self) -> None:
        """A deadline is always ahead, and something happens at it: the clock's task never spins or sleeps too long."""
        deadline = next_deadline(self.state)
        assert deadline is not None
        assert deadline > self.now or deadline > self.state.at_ns
        self.now = max(self.now, deadline)
        before = self.state
        effects = self.feed(Tick())
        assert effects or next_deadline(self.state) != next_deadline(before)

    @precondition(lambda self: self.world.running and not self.world.stopping)
    @rule(index=st.integers(0, 9))
    def is_renewed(self, index: int) -> None:
        """It ends in order and starts again, and nobody counts that as a failure."""
        name = self.pick(index)
        restarts = self.state.restarts
        others = {other for other, one in self.world.running.items() if one.stop_by is not None}
        self.world.renewed.add(name)
        self.feed(Renew(name))
        if self.world.running[name].stop_by is not None:
            self.world.renewed.discard(name)
        stopped = {other for other, one in self.world.running.items() if one.stop_by is not None}
        assert stopped - others <= {name}
        assert self.state.restarts == restarts

    @rule()
    def is_told_to_stop(self) -> None:
        self.feed(StopAll())

    @precondition(lambda self: self.world.stopping)
    @rule()
    def is_told_to_stop_at_once(self) -> None:
        self.feed(KillAll())
        assert all(child.killed for child in self.world.running.values())

    # --- what always holds

    @invariant()
    def agrees_with_the_world(self) -> None:
        if not hasattr(self, "world"):
            return
        alive = {child.spec.name for child in self.state.children if child.alive}
        assert alive == set(self.world.running)
        for name, child in self.world.running.items():
            seen = self.state.child(name)
            assert seen.incarnation == child.incarnation
            assert (seen.phase == "stopping") == (child.stop_by is not None) or child.killed
        assert (self.state.mode == "ended") == self.world.ended
        if self.world.stopping and not self.world.running:
            assert self.world.ended, "nothing is left, and it does not end"

    @invariant()
    def never_waits_for_nothing(self) -> None:
        """A tree that isn't told to stop either runs, or waits for a child or for a moment: it never gives up."""
        if not hasattr(self, "world") or self.world.stopping:
            return
        down = [name for name in self.stage if name not in self.world.running]
        pending = any(not child.up or child.stop_by is not None for child in self.world.running.values())
        assert not down or pending or next_deadline(self.state) is not None


Supervision.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSupervision = Supervision.TestCase
