"""Acceptors and the limiter in virtual time: the real limiter with its journal, the real budget and lease book of each
acceptor, and between them a network that delays, loses and keeps the order of what one sends to another.

An acceptor's hub is played by ``Edge``, which does with a message what ``dispatch`` does: spend, or wait, or refuse.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import attrs

from actors import limiter as limiter_module
from actors.acceptor.budget import WAIT_NS, Budget
from actors.acceptor.connection import Stage
from actors.block_store import BlockStore
from actors.limiter import Limiter
from actors.policy.window import WindowRule
from ipc.errors import ActorDown, DeadlineExceeded
from ipc.mailbox import Delivery
from ipc.messages import Message
from ipc.settings import Settings, Upstream

MS = 1_000_000
S = 1_000 * MS
START = 10 * S
Keys = tuple[str, ...]


@attrs.frozen
class Admitted:
    at: int
    keys: Keys
    cost: int


@attrs.frozen
class Refused:
    """At ``at``, one message of ``cost`` units was told to come back after ``retry_ms``; 0: the limiter is down."""

    at: int
    edge: int
    keys: Keys
    cost: int
    retry_ms: int


@attrs.define(eq=False)
class Client:
    """One connection."""

    keys: Keys
    edge: Edge
    parked: deque[Any] = attrs.field(factory=deque)
    parked_for: str = ""
    stage: Stage = Stage.OPEN
    fd: int = 0


@attrs.define(eq=False)
class Sent:
    cost: int

    @property
    def envelope(self) -> Any:
        return SimpleNamespace(method=f"cost{self.cost}")


class Edge:
    """One incarnation of an acceptor: the hub that its budget sees."""

    def __init__(self, world: World, index: int, incarnation: int) -> None:
        self.world = world
        self.index = index
        self.incarnation = incarnation
        self.name = f"acceptor.{index}"
        self.settings = world.settings
        self.limiter = ToLimiter(self)
        self.dispatch = self
        self.dirty: dict[int, Client] = {}
        self.alive = True  # its channels stand
        self.budget = Budget(self)  # type: ignore[arg-type]
        self.clients: dict[Keys, Client] = {}

    @property
    def now(self) -> int:
        return self.world.now

    def post(self, call: Callable[[], None]) -> None:
        self.world.at(self.now, call)

    def step(self, client: Client, action: Callable[..., None], *arguments: object) -> None:
        action(client, *arguments)

    def offence(self, *_arguments: object) -> None:
        pass

    def event(self, *_arguments: object, **_named: object) -> None:
        pass

    # --- what dispatch does

    def message(self, keys: Keys, cost: int = 1) -> None:
        client = self.clients.get(keys)
        if client is None:
            client = self.clients[keys] = Client(keys, self)
            self.budget.join(keys)
        item = Sent(cost)
        if client.parked or not self.process(client, item):
            client.parked.append(item)
        self.budget.look_ahead(self.now)

    def request(self, keys: Keys) -> None:
        """An HTTP request: a connection of its own, which nobody joins to a budget."""

        def entered(_client: Client, quota: object, over_ms: int) -> None:
            if over_ms or quota is None:
                self.world.refused.append(Refused(self.now, self.index, keys, 1, over_ms))
            else:
                self.world.admitted.append(Admitted(self.now, keys, 1))

        self.budget.enter(Client(keys, self), keys, entered)  # type: ignore[arg-type]
        self.budget.look_ahead(self.now)

    def process(self, client: Client, item: Sent) -> bool:
        cost = self.budget.cost(item.envelope)
        if not self.budget.spend(client.keys, self.now, cost):
            return self.budget.wait(client, item, client.keys, self.now, cost)  # type: ignore[arg-type]
        self.world.admitted.append(Admitted(self.now, client.keys, cost))
        return True

    def resume(self, client: Client) -> None:
        while client.parked:
            if not self.process(client, client.parked[0]):
                return
            client.parked.popleft()

    def refuse(self, client: Client, item: Sent, _code: int, _text: str, data: dict[str, int]) -> None:
        self.world.refused.append(Refused(self.now, self.index, client.keys, item.cost, data["retryAfterMs"]))

    def unavailable(self, client: Client, item: Sent, _text: str, _reason: str) -> None:
        self.world.refused.append(Refused(self.now, self.index, client.keys, item.cost, 0))


class ToLimiter:
    """The limiter's address as an acceptor has it."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge

    def control(self, message: Message) -> None:
        world, edge = self.edge.world, self.edge
        if edge.alive and not world.loses():
            world.send(("up", edge.index), lambda: world.serve(edge, Delivery(message, "edge")))

    def request(self, message: Message, deadline_ns: int, answered: Callable[[Any], None]) -> None:
        world, edge = self.edge.world, self.edge
        pending = [answered]

        def finish(reply: Any) -> None:
            if pending:
                pending.pop()(reply)

        def answer(reply: Message) -> None:
            if edge.alive and not world.loses():
                world.send(("down", edge.index), lambda: finish(reply))

        def arrive() -> None:
            if world.limiter is None:
                world.send(("down", edge.index), lambda: finish(ActorDown("limiter", "down")))
            else:
                world.serve(edge, Delivery(message, "edge", answer, deadline_ns))

        world.at(deadline_ns, lambda: finish(DeadlineExceeded("limiter")))
        if edge.alive and not world.loses():
            world.send(("up", edge.index), arrive)


class ToEdge:
    """An acceptor's address as the limiter has it."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.incarnation = 1  # as the limiter knows

    def control(self, message: Message) -> None:
        edge = self.world.edges[self.index]
        if not self.world.loses():
            self.world.send(("down", self.index), lambda: edge.alive and edge.budget.delivered(message))

    def watch(self, _changed: Callable[[int], None]) -> Callable[[], None]:
        return lambda: None


class Nobody:
    """Audit."""

    incarnation = 0

    def watch(self, _changed: Callable[[int], None]) -> Callable[[], None]:
        return lambda: None

    def request(self, *_arguments: object) -> None:
        pass


class World:
    def __init__(
        self,
        directory: Path,
        rules: tuple[WindowRule, WindowRule],
        *,
        edges: int = 2,
        seed: int = 0,
        slowest_ns: int = 3 * MS,
    ) -> None:
        self.now = START
        self.random = random.Random(seed)
        self.slowest_ns = slowest_ns
        self.loss = 0.0
        self.rules = rules
        self.path = directory / "limiter.journal"
        costs = {f"cost{cost}": cost for cost in range(20)}
        self.settings = Settings(
            state_dir=str(directory), audit_log_dir=str(directory),
            upstreams=(Upstream(name="u", kind="stdio", command="true"),),
            rate_limit_max_requests=rules[0].limit, rate_limit_window_ms=rules[0].length_ns // MS,
            rate_limit_burst_requests=rules[1].limit, rate_limit_burst_window_ms=rules[1].length_ns // MS,
            rate_limit_method_costs=costs,
        )  # fmt: skip
        self.events: list[tuple[int, int, Callable[[], object]]] = []
        self.order = 0
        self.last_sent: dict[object, int] = {}
        self.admitted: list[Admitted] = []
        self.refused: list[Refused] = []
        self.addresses = [ToEdge(self, index) for index in range(edges)]
        self.edges = [Edge(self, index, 1) for index in range(edges)]
        self.clock = mock.patch.object(limiter_module, "time", SimpleNamespace(monotonic_ns=lambda: self.now))
        self.clock.start()
        self.store = BlockStore(directory / "blocks.sqlite")
        self.limiter: Limiter | None = None
        self.start_limiter()
        self.tick()

    def close(self) -> None:
        self.stop_limiter()
        self.store.close()
        self.clock.stop()

    # --- time and the network

    def at(self, when: int, what: Callable[[], object]) -> None:
        self.order += 1
        heapq.heappush(self.events, (when, self.order, what))

    def send(self, link: object, what: Callable[[], object]) -> None:
        when = max(self.now + self.random.randrange(1, self.slowest_ns), self.last_sent.get(link, 0))
        self.last_sent[link] = when
        self.at(when, what)

    def loses(self) -> bool:
        return self.random.random() < self.loss

    def run(self, until: int) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = until

    def tick(self) -> None:
        """Every 50 ms an acceptor tells what it owes; the limiter wakes up when it said it would, or a little later."""
        for edge in self.edges:
            edge.budget.report(self.now)
        self.at(self.now + 50 * MS, self.tick)

    # --- the limiter

    def start_limiter(self) -> None:
        context = SimpleNamespace(
            settings=self.settings,
            name="limiter",
            keep={},
            peers=lambda _kind: [f"acceptor.{index}" for index in range(len(self.addresses))],
            address=lambda name: self.addresses[int(name[9:])] if name.startswith("acceptor") else Nobody(),
        )
        self.limiter = Limiter(context, self.path, self.now, self.store, ())  # type: ignore[arg-type]
        self.limiter.start()
        self.wake(self.limiter)

    def stop_limiter(self) -> None:
        """As a death leaves it: what was written is written, and nobody is answered any more."""
        if self.limiter is not None:
            self.limiter._journal.close()
            self.limiter = None

    def crash_limiter(self, *, down_ns: int = 0, compact: bool = False) -> None:
        if self.limiter is not None and compact:
            self.limiter._behind = True
            self.limiter._write([])
        self.stop_limiter()
        self.at(self.now + down_ns, lambda: self.limiter is None and self.start_limiter())

    def serve(self, edge: Edge, delivery: Delivery) -> None:
        if self.limiter is not None and edge.alive:
            self.limiter.serve([delivery])
            self.wake(self.limiter)

    def wake(self, limiter: Limiter) -> None:
        """Its second task: it sleeps until the next thing is due."""
        when = limiter.next_due_ns

        def tick() -> None:
            if self.limiter is limiter and limiter.next_due_ns <= self.now:
                limiter.tick()
                self.wake(limiter)

        if when > self.now:
            self.at(when, tick)

    # --- acceptors

    def crash_edge(self, index: int, *, lingers_ns: int = 0, unseen_ns: int = 0) -> None:
        """Its channels break now; its process goes on serving for ``lingers_ns``, with what it holds; the limiter hears
        of the next incarnation after ``unseen_ns``."""
        old = self.edges[index]
        old.alive = False
        new = self.edges[index] = Edge(self, index, old.incarnation + 1)
        new.alive = False
        until = self.now + lingers_ns
        for keys in list(old.clients):
            for _ in range(200):  # a dying process may spend all it holds, at its last moment
                self.at(until, lambda keys=keys: old.message(keys))

        def joined() -> None:
            if self.edges[index] is new:
                new.alive = True
                self.addresses[index].incarnation = new.incarnation

        self.at(self.now + unseen_ns, joined)

    # --- claims

    def spent(self, key: str) -> list[tuple[int, int]]:
        """When units of that key were spent, and how many."""
        return sorted((one.at, one.cost) for one in self.admitted if key in one.keys)

    def assert_exact(self) -> None:
        """In no window of any key, wherever it starts, are more units than its limit."""
        for key in {key for one in self.admitted for key in one.keys}:
            spent = self.spent(key)
            for rule in self.rules:
                first = total = 0
                for at, cost in spent:
                    total += cost
                    while spent[first][0] <= at - rule.length_ns:
                        total -= spent[first][1]
                        first += 1
                    assert total <= rule.limit, f"{total} > {rule.limit} of {key} up to {at}"

    def fits(self, keys: Keys, cost: int, at: int) -> bool:
        """Whether a message of that cost is within all limits at that time, given what was spent."""
        for key in keys:
            spent = self.spent(key)
            times = [when for when, _ in spent]
            for rule in self.rules:
                inside = spent[bisect_right(times, at - rule.length_ns) : bisect_right(times, at)]
                if sum(units for _, units in inside) + cost > rule.limit:
                    return False
        return True


PATIENCE = WAIT_NS
"""The longest that an acceptor lets a message wait."""
