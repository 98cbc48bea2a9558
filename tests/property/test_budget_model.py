"""The limiter of the contract's section 6, with the real limiter, budgets and lease books, in virtual time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from budget_model import MS, PATIENCE, S, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors.policy.window import WindowRule

IP = ("ip:192.0.2.1",)
BOTH = ("principal:ann", "ip:192.0.2.1")
ELSEWHERE = ("principal:ann", "ip:192.0.2.2")
KEYS = [IP, BOTH, ELSEWHERE]

windows = st.tuples(
    st.builds(WindowRule, st.integers(6, 60), st.integers(400, 3_000).map(lambda ms: ms * MS)),
    st.builds(WindowRule, st.integers(6, 30), st.integers(50, 400).map(lambda ms: ms * MS)),
)
edges = st.integers(0, 2)
keys = st.sampled_from(KEYS)


class Limits(RuleBasedStateMachine):
    """Three acceptors, whatever happens to them, to the limiter and to what they say to each other."""

    @initialize(rules=windows, seed=st.integers(0, 2**32), slowest=st.sampled_from([1, 5, 40]))
    def begin(self, rules: tuple[WindowRule, WindowRule], seed: int, slowest: int) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.world = World(Path(self.directory.name), rules, edges=3, seed=seed, slowest_ns=slowest * MS)

    @rule(index=edges, keys=keys, cost=st.sampled_from([1, 1, 1, 0, 2, 5]), count=st.integers(1, 40))
    def send(self, index: int, keys: tuple[str, ...], cost: int, count: int) -> None:
        for _ in range(count):
            self.world.edges[index].message(keys, cost)

    @rule(index=edges, count=st.integers(1, 20), gap=st.integers(0, 30))
    def send_http(self, index: int, count: int, gap: int) -> None:
        for number in range(count):
            self.world.at(self.world.now + number * gap * MS, lambda: self.world.edges[index].request(IP))

    @rule(index=edges, keys=keys, count=st.integers(10, 200), gap=st.integers(1, 20))
    def keep_sending(self, index: int, keys: tuple[str, ...], count: int, gap: int) -> None:
        for number in range(count):
            self.world.at(self.world.now + number * gap * MS, lambda: self.world.edges[index].message(keys))

    @rule(ms=st.integers(1, 700))
    def wait(self, ms: int) -> None:
        self.world.run(self.world.now + ms * MS)

    @rule(index=edges, lingers=st.integers(0, 300), unseen=st.integers(0, 300))
    def kill_an_edge(self, index: int, lingers: int, unseen: int) -> None:
        self.world.crash_edge(index, lingers_ns=lingers * MS, unseen_ns=unseen * MS)

    @rule(down=st.integers(0, 400), compact=st.booleans())
    def kill_the_limiter(self, down: int, compact: bool) -> None:
        self.world.crash_limiter(down_ns=down * MS, compact=compact)

    @rule(loss=st.sampled_from([0.0, 0.0, 0.1, 0.5]))
    def lose(self, loss: float) -> None:
        self.world.loss = loss

    @rule(index=edges, keys=keys)
    def disconnect(self, index: int, keys: tuple[str, ...]) -> None:
        edge = self.world.edges[index]
        client = edge.clients.pop(keys, None)
        if client is not None and not client.parked:
            edge.budget.leave(keys)

    @invariant()
    def no_window_is_exceeded(self) -> None:
        if hasattr(self, "world"):
            self.world.assert_exact()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.run(self.world.now + 4 * S)
            self.world.assert_exact()
            self.world.close()
            self.directory.cleanup()


TestLimits = Limits.TestCase
TestLimits.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(("limit", "burst"), [(1000, 200), (100, 20), (10, 3)])
@pytest.mark.parametrize("http", [False, True])
def test_the_limit_can_be_used_up(tmp_path: Path, count: int, limit: int, burst: int, http: bool) -> None:
    """Where more is asked for than allowed, and nothing dies, at least 95 % of the limit is admitted."""
    world = World(tmp_path, (WindowRule(limit, 10 * S), WindowRule(burst, S)), edges=count)
    span = 20 * S
    for ms in range(0, span // MS, 4):
        for index in range(count):
            edge = world.edges[index]
            world.at(world.now + ms * MS, lambda edge=edge: edge.request(IP) if http else edge.message(IP))
    world.run(world.now + span)
    world.assert_exact()
    world.close()
    assert len(world.admitted) >= 0.95 * min(limit * 2, burst * 20)


@given(
    rules=windows,
    seed=st.integers(0, 2**32),
    before=st.lists(st.tuples(edges, st.sampled_from(KEYS), st.integers(1, 3), st.integers(0, 120)), max_size=60),
    last=st.tuples(edges, st.sampled_from(KEYS), st.integers(1, 5)),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_retry_after_is_true(
    rules: tuple[WindowRule, WindowRule],
    seed: int,
    before: list[tuple[int, tuple[str, ...], int, int]],
    last: tuple[int, tuple[str, ...], int],
) -> None:
    """Who comes back at the time he was told is admitted, if nobody else has spent anything meanwhile; a little earlier
    he would not have been, by the exact window over all that was admitted."""
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory), rules, edges=3, seed=seed, slowest_ns=2 * MS)
        for index, keys, cost, gap in before:
            world.edges[index].message(keys, cost)
            world.run(world.now + gap * MS)
        world.run(world.now + PATIENCE)
        index, keys, cost = last
        seen = len(world.refused)
        for _ in range(2 * max(rule.limit for rule in rules)):
            world.edges[index].message(keys, cost)
            world.run(world.now + 10 * MS)
            if len(world.refused) > seen:
                break
        world.run(world.now + PATIENCE)
        if len(world.refused) == seen:  # there is more in such short windows than one asks for at this pace
            world.close()
            return
        told = world.refused[seen]
        assert told.retry_ms > 0
        when = told.at + told.retry_ms * MS
        assert not world.fits(keys, cost, when - 10 * MS), "needlessly late"
        world.run(max(when, world.now))
        admitted = len(world.admitted)
        world.edges[index].message(keys, cost)
        world.run(world.now + PATIENCE)
        assert len(world.admitted) == admitted + 1, "too early"
        world.assert_exact()
        world.close()


@given(seed=st.integers(0, 2**32), turns=st.lists(st.integers(1, 12), max_size=8))
@settings(max_examples=50, deadline=None)
def test_requests_one_after_the_other_get_all_there_is(seed: int, turns: list[int]) -> None:
    """HTTP requests of one client, each after the answer to the last, whichever of two workers each meets: exactly the
    limit passes, and none before it is refused."""
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory), (WindowRule(40, 60 * S), WindowRule(40, 60 * S)), seed=seed)
        choices = [index % 2 for index, turn in enumerate(turns) for _ in range(turn)]
        for index in (choices + [len(turns) % 2] * 60)[:60]:
            done = len(world.admitted) + len(world.refused)
            world.edges[index].request(IP)
            while len(world.admitted) + len(world.refused) == done:
                world.run(world.now + MS)
        world.close()
        assert len(world.admitted) == 40
        assert len(world.refused) == 20


@given(seed=st.integers(0, 2**32), cheap=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_what_costs_less_may_still_pass(seed: int, cheap: int) -> None:
    """That one message is too expensive for what is left refuses no cheaper one."""
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory), (WindowRule(10, 60 * S), WindowRule(10, 60 * S)), seed=seed)
        edge = world.edges[0]
        for _ in range(7):
            edge.message(IP)
            world.run(world.now + 20 * MS)
        edge.message(IP, 5)
        world.run(world.now + 300 * MS)
        assert len(world.refused) == 1
        edge.message(IP, cheap)
        world.run(world.now + 300 * MS)
        edge.message(IP, 5)
        world.run(world.now + 300 * MS)
        world.close()
        assert [one.cost for one in world.admitted] == [1] * 7 + [cheap]
        assert len(world.refused) == 2
