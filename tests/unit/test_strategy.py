"""Supervision decisions, one story each; the property test covers what lies between them."""

from __future__ import annotations

import pytest

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


class Tree:
    """A tree and a clock; ``happens`` returns the effects."""

    def __init__(self, strategy: str = "one_for_one", **more: object) -> None:
        stages = (("a", 0), ("b", 1), ("c", 2), ("d", 2))
        children = tuple(ChildSpec(name, stage) for name, stage in stages)
        self.state = State.new(Plan(children, strategy=strategy, **more))
        self.now = 0

    def happens(self, event: Event) -> list[Effect]:
        self.state, effects = decide(self.state, event, self.now)
        return list(effects)

    def up(self, name: str) -> list[Effect]:
        return self.happens(Up(name, self.state.child(name).incarnation))

    def dies(self, name: str, jitter: float = 0.0) -> list[Effect]:
        return self.happens(Exited(name, self.state.child(name).incarnation, "died", jitter))

    def running(self) -> Tree:
        self.happens(Begin())
        for name in "abcd":
            self.up(name)
        return self


def starts(effects: list[Effect]) -> list[str]:
    return [effect.name for effect in effects if isinstance(effect, Start)]


def stops(effects: list[Effect]) -> list[str]:
    return [effect.name for effect in effects if isinstance(effect, Stop)]


def test_children_start_stage_by_stage() -> None:
    """A stage starts when every child before it is up; the children of one stage start together."""
    tree = Tree()
    assert starts(tree.happens(Begin())) == ["a"]
    assert starts(tree.up("a")) == ["b"]
    assert starts(tree.up("b")) == ["c", "d"]
    assert AllUp() not in tree.up("c")
    assert AllUp() in tree.up("d")


def test_children_stop_in_reverse() -> None:
    """The last stage is stopped first, all of it together, and each stage only when the later one has ended."""
    tree = Tree().running()
    assert stops(tree.happens(StopAll())) == ["c", "d"]
    assert stops(tree.dies("c")) == []
    assert stops(tree.dies("d")) == ["b"]
    assert stops(tree.dies("b")) == ["a"]
    assert tree.dies("a") == [Ended()]


def test_one_for_one_restarts_the_one() -> None:
    """The first restart comes at once, and nobody else is touched."""
    tree = Tree().running()
    effects = tree.dies("a")
    assert [type(effect) for effect in effects] == [Crashed, Start]
    assert effects[1] == Start("a", 2)


def test_rest_for_one_restarts_the_later_stages() -> None:
    """Those after it stop in reverse, then all start again in order; those before it, and its stage, stay."""
    tree = Tree("rest_for_one").running()
    assert stops(tree.dies("b")) == ["c", "d"]
    tree.dies("c")
    assert starts(tree.dies("d")) == ["b"]
    assert starts(tree.up("b")) == ["c", "d"]
    assert tree.state.child("a").incarnation == 1
    tree.up("c")
    tree.up("d")
    assert starts(tree.dies("c")) == ["c"]
    assert tree.state.child("d").incarnation == 2


def test_one_for_all_restarts_all() -> None:
    """All others stop in reverse, then all start again in order. Only the one that failed counts as restarted."""
    tree = Tree("one_for_all").running()
    assert stops(tree.dies("c")) == ["d"]
    assert stops(tree.dies("d")) == ["b"]
    assert stops(tree.dies("b")) == ["a"]
    assert starts(tree.dies("a")) == ["a"]
    assert starts(tree.up("a")) == ["b"]
    assert starts(tree.up("b")) == ["c", "d"]
    assert [child.restarts for child in tree.state.children] == [0, 0, 1, 0]


def test_backoff_doubles_up_to_the_cap_and_settles() -> None:
    """At once, then 50 ms doubling to 5 s; whoever stays up for the settling time starts afresh."""
    tree = Tree(escalates=False, intensity=Intensity(limit=100, window_ns=SECOND)).running()
    waits = []
    for _ in range(10):
        effects = tree.dies("a")
        waits.append(effects[0].due_ns - tree.now)
        tree.now += waits[-1]
        tree.happens(Tick())
        tree.up("a")
    assert [wait // MILLISECOND for wait in waits] == [0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]
    tree.now += 5 * SECOND
    assert tree.dies("a")[0].due_ns == tree.now


def test_a_failed_restart_is_tried_again() -> None:
    """A child that dies before it is up waits out its backoff and is started again, and again."""
    tree = Tree(escalates=False).running()
    tree.dies("b")
    for incarnation in range(2, 8):
        assert tree.state.child("b").incarnation == incarnation
        tree.dies("b", jitter=0.9)
        assert tree.state.child("b").phase == "waiting"
        tree.now = next_deadline(tree.state)
        assert starts(tree.happens(Tick())) == ["b"]


def test_a_waiting_restart_does_not_hold_up_a_stop() -> None:
    """A child in its backoff is simply not started any more."""
    tree = Tree(escalates=False).running()
    tree.dies("d")
    tree.dies("d")
    assert tree.state.child("d").phase == "waiting"
    assert stops(tree.happens(StopAll())) == ["c"]
    assert tree.state.child("d").phase == "idle"
    tree.dies("c")
    tree.dies("b")
    assert tree.dies("a") == [Ended()]


def test_a_child_that_does_not_come_up_is_killed() -> None:
    """Past its deadline, once; its exit then says why."""
    tree = Tree().running()
    tree.dies("a")
    tree.now += 10 * SECOND
    assert tree.happens(Tick()) == [Kill("a", 2, "did not come up in time")]
    tree.now += SECOND
    assert tree.happens(Tick()) == []
    assert tree.dies("a")[0].reason == "did not come up in time"


def test_a_child_that_does_not_stop_is_killed() -> None:
    """Past its deadline; the rest of the stop goes on after it."""
    tree = Tree().running()
    tree.happens(StopAll())
    tree.dies("c")
    tree.now += 2 * SECOND
    assert tree.happens(Tick()) == [Kill("d", 1, "did not stop in time")]
    assert stops(tree.dies("d")) == ["b"]


def test_too_many_restarts_escalate() -> None:
    """More than the limit within the window: the tree stops and says who and why."""
    tree = Tree(intensity=Intensity(limit=2, window_ns=10 * SECOND), backoff=Backoff(base_ns=0)).running()
    tree.dies("a")
    tree.dies("a")
    effects = tree.dies("a")
    assert isinstance(effects[0], Escalate)
    assert effects[0].name == "a"
    assert "more than 2 restarts in 10 s" in effects[0].reason
    assert stops(effects) == ["c", "d"]


def test_restarts_outside_the_window_do_not_count() -> None:
    """As many restarts as one likes, if they are far enough apart."""
    tree = Tree(intensity=Intensity(limit=2, window_ns=10 * SECOND)).running()
    for _ in range(20):
        tree.now += 6 * SECOND
        assert starts(tree.dies("a")) == ["a"]
        tree.up("a")


def test_the_root_never_gives_up() -> None:
    """Without escalation the child is in trouble until it is up again, and the restarts go on."""
    tree = Tree(escalates=False, intensity=Intensity(limit=1, window_ns=10 * SECOND)).running()
    for _ in range(50):
        tree.dies("a")
        assert tree.state.mode == "running"
        if tree.state.child("a").phase == "waiting":
            tree.now = next_deadline(tree.state)
            tree.happens(Tick())
    assert tree.state.child("a").trouble
    assert CameUp("a", 51) in tree.up("a")
    assert not tree.state.child("a").trouble


def test_a_failure_of_the_first_start_escalates_even_at_the_root() -> None:
    """What never ran can't be restarted: whoever started the tree has to know."""
    tree = Tree(escalates=False)
    tree.happens(Begin())
    tree.up("a")
    effects = tree.dies("b")
    assert effects[0] == Escalate("b", "died")
    assert stops(effects) == ["a"]
    assert tree.dies("a") == [Ended()]


def test_kill_all_waits_for_no_order() -> None:
    """All at once, also those that are being stopped already; then it has ended."""
    tree = Tree().running()
    tree.happens(StopAll())
    effects = tree.happens(KillAll())
    assert sorted(effect.name for effect in effects if isinstance(effect, Kill)) == ["a", "b", "c", "d"]
    assert not stops(effects)
    for name in "bad":
        tree.dies(name)
    assert tree.dies("c") == [Ended()]


def test_a_tree_that_never_began_ends_at_once() -> None:
    """A stop before the start leaves nothing to wait for."""
    assert Tree().happens(StopAll()) == [Ended()]


def test_plans_that_make_no_sense_are_refused() -> None:
    """Two children of one name, or stages out of order."""
    with pytest.raises(ValueError, match="one name"):
        Plan((ChildSpec("a", 0), ChildSpec("a", 1)))
    with pytest.raises(ValueError, match="order"):
        Plan((ChildSpec("a", 1), ChildSpec("b", 0)))


def test_a_renewed_child_ends_in_order_and_starts_again() -> None:
    """Renew stops one child and starts its next incarnation at once; nobody else, no backoff, no restart counted."""
    tree = Tree().running()
    (stop,) = tree.happens(Renew("b"))
    assert isinstance(stop, Stop)
    assert tree.happens(Renew("b")) == []
    assert tree.dies("b") == [Start("b", 2)]
    assert tree.up("b") == [CameUp("b", 2)]
    assert tree.state.restarts == 0
    assert [tree.state.child(name).incarnation for name in "acd"] == [1, 1, 1]


def test_renewed_children_stop_the_last_stage_first() -> None:
    """What is renewed together goes in the order of a stop: whoever is asked by the others last."""
    tree = Tree().running()
    assert [effect.name for effect in tree.happens(Renew("c"))] == ["c"]
    assert tree.happens(Renew("a")) == []
    assert [(type(effect), effect.name) for effect in tree.dies("c")] == [(Stop, "a"), (Start, "c")]
