"""The table of workers and actors: which actor runs where, who talks to whom, and in which order they start.

Actors are named by ``module:function``; nothing of theirs is imported here. Another table (a test's, with actors
moved between workers) is as good as this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from typing import Literal

import attrs

from ipc.control import SUPERVISOR, ActorSpec
from ipc.settings import Role, Settings

from .backoff import SECOND, Backoff
from .intensity import Intensity
from .strategy import ChildSpec, Plan, Strategy

WorkerRole = Literal["edge", "policy", "validator", "bridge", "admin"]

ACTOR_INTENSITY = Intensity(limit=5, window_ns=10 * SECOND)
"""Of the actors within one worker: more crashes than this, and a fresh process is tried instead."""

WORKER_INTENSITY = Intensity(limit=10, window_ns=30 * SECOND)
"""Of the workers: more deaths than this are reported as degraded."""

STREAMS: frozenset[frozenset[str]] = frozenset(
    frozenset(pair)
    for pair in (
        *product(("acceptor",), ("auth", "limiter", "breaker", "audit", "bridge", "admin")),
        *product(("admin",), ("auth", "limiter", "breaker", "audit", "bridge", "validator")),
        *product(("bridge",), ("breaker", "audit")),
        *combinations(("auth", "limiter", "breaker", "audit"), 2),
    )
)
"""Kinds of actors that talk. Their workers get a channel, unless it is one worker."""

LINKS: tuple[tuple[str, str], ...] = (("acceptor", "validator"),)
"""Kinds of actors that pass descriptors: each pair of them gets a link of its own.

The first finds its end under the second's actor name, the second under the first's worker's name.
"""


def kind_of(actor: str) -> str:
    """``acceptor.1`` is an ``acceptor``."""
    return actor.partition(".")[0]


@attrs.frozen
class WorkerSpec:
    """One worker process and its actors.

    ``hosts_children``: its actors start processes of their own, which are ended when it dies. ``handover``: while it
    can't serve its listeners, another worker of its role may.
    """

    name: str
    role: WorkerRole
    stage: int
    actors: tuple[ActorSpec, ...]
    strategy: Strategy = "one_for_one"
    hosts_children: bool = False
    handover: bool = False
    start_ns: int = 30 * SECOND  # of processor time it needs a third of a second; a loaded machine may not have it soon
    stop_ns: int = 3 * SECOND

    @property
    def modules(self) -> tuple[str, ...]:
        """What to import before the assignment comes."""
        return tuple(dict.fromkeys(actor.target.partition(":")[0] for actor in self.actors))

    @property
    def listens(self) -> tuple[Literal["ws", "tcp", "health"], ...]:
        return tuple(dict.fromkeys(kind for actor in self.actors for kind in actor.listens))

    def actor_plan(self) -> Plan:
        return actor_plan(self.actors, self.strategy)


def actor_plan(actors: tuple[ActorSpec, ...], strategy: Strategy) -> Plan:
    children = tuple(
        ChildSpec(actor.name, actor.stage, start_ns=actor.start_ms * 1_000_000, stop_ns=actor.stop_ms * 1_000_000)
        for actor in sorted(actors, key=lambda actor: actor.stage)
    )
    return Plan(children, strategy=strategy, intensity=ACTOR_INTENSITY)


@attrs.frozen
class SpecTable:
    """Everything that the supervisor runs. ``search_path`` is where modules beside the project's own are found."""

    workers: tuple[WorkerSpec, ...] = attrs.field()
    standby: bool = True
    search_path: tuple[str, ...] = ()
    intensity: Intensity = WORKER_INTENSITY
    backoff: Backoff = attrs.field(factory=Backoff)
    streams: frozenset[frozenset[str]] = STREAMS
    links: tuple[tuple[str, str], ...] = LINKS

    def __attrs_post_init__(self) -> None:
        actors = [actor.name for worker in self.workers for actor in worker.actors]
        if len(set(actors)) != len(actors) or SUPERVISOR in actors:
            raise ValueError("every actor needs a name of its own")
        for worker in self.workers:
            kinds = [kind_of(actor.name) for actor in worker.actors]
            if any(kinds.count(kind) > 1 for pair in self.links for kind in pair):
                raise ValueError(f"{worker.name}: two actors of one kind that has links")
        listened = [kind for worker in self.workers for actor in worker.actors for kind in actor.listens]
        if listened.count("health") > 1:
            raise ValueError("one actor only serves the health listener")

    def worker(self, name: str) -> WorkerSpec:
        """Raises KeyError."""
        for worker in self.workers:
            if worker.name == name:
                return worker
        raise KeyError(name)

    @property
    def placement(self) -> dict[str, str]:
        """Actor name -> worker name."""
        return {actor.name: worker.name for worker in self.workers for actor in worker.actors}

    def plan(self) -> Plan:
        """How the supervisor treats the workers: each alone, and never giving up."""
        children = tuple(ChildSpec(w.name, w.stage, start_ns=w.start_ns, stop_ns=w.stop_ns) for w in self.workers)
        return Plan(children, intensity=self.intensity, backoff=self.backoff, escalates=False)

    def talk(self, one: str, other: str) -> bool:
        """Whether these two workers get a channel."""
        return one != other and any(
            frozenset((kind_of(a.name), kind_of(b.name))) in self.streams
            for a in self.worker(one).actors
            for b in self.worker(other).actors
        )

    def linked(self) -> Iterator[tuple[str, str]]:
        """All pairs of actors that get a link, as named in ``links``."""
        names = [actor.name for worker in self.workers for actor in worker.actors]
        for first_kind, second_kind in self.links:
            for first in names:
                for second in names:
                    if kind_of(first) == first_kind and kind_of(second) == second_kind:
                        yield first, second

    def settings_for(self, worker: WorkerSpec, settings: Settings) -> Settings:
        """Without the secrets that this worker's actors have no use for."""
        roles: set[Role] = {ROLES.get(kind_of(actor.name), worker.role) for actor in worker.actors}
        return settings.for_role(roles.pop() if len(roles) == 1 else "supervisor")


ROLES: dict[str, Role] = {
    "acceptor": "edge",
    "auth": "policy",
    "limiter": "policy",
    "breaker": "policy",
    "audit": "policy",
    "admin": "admin",
    "bridge": "bridge",
    "validator": "validator",
}
"""Which settings a kind of actor needs."""


def production(settings: Settings) -> SpecTable:
    """The gateway: policy first, because all ask it, and last to stop, because it writes the audit log."""
    drain_ns = settings.drain_timeout_ms * 1_000_000
    policy = WorkerSpec(
        "policy",
        "policy",
        stage=0,
        actors=(
            ActorSpec("audit", "actors.audit:main", stage=0),
            ActorSpec("auth", "actors.auth:main", stage=1),
            ActorSpec("limiter", "actors.limiter:main", stage=1),
            ActorSpec("breaker", "actors.breaker:main", stage=1),
        ),
        stop_ns=5 * SECOND,
    )
    admin = WorkerSpec(
        "admin", "admin", stage=1, actors=(ActorSpec("admin", "actors.admin.server:main", listens=("health",)),)
    )
    bridge = WorkerSpec(
        "bridge",
        "bridge",
        stage=2,
        actors=(ActorSpec("bridge", "actors.upstream.bridge:main", stop_ms=4_000),),
        hosts_children=True,
        stop_ns=5 * SECOND,
    )
    validator = WorkerSpec("validator", "validator", stage=3, actors=(ActorSpec("validator", "actors.validator:main"),))
    edges = tuple(
        WorkerSpec(
            f"edge.{number}",
            "edge",
            stage=4,
            actors=(
                ActorSpec(
                    f"acceptor.{number}",
                    "actors.acceptor.hub:main",
                    listens=("ws", "tcp"),
                    stop_ms=settings.drain_timeout_ms,
                ),
            ),
            handover=True,
            # The acceptor's own deadline comes first; a second is left for the process to end by itself.
            stop_ns=drain_ns + SECOND,
        )
        for number in range(settings.workers)
    )
    return SpecTable((policy, admin, bridge, validator, *edges))
