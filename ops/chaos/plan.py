"""What is broken, when and how: drawn from a seed, so that the same seed gives the same plan. Pure.

Which process a target's name means, and what its number is, shows only when the fault is done; so the plan can be
repeated although no two runs are alike.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from typing import Final

import attrs

EDGES: Final = ("edge.0", "edge.1")
WORKERS: Final = (*EDGES, "policy", "bridge", "validator", "admin")
ACTORS: Final = ("acceptor.0", "acceptor.1", "auth", "limiter", "breaker", "audit", "bridge", "validator")
HOMES: Final = {
    "acceptor.0": "edge.0", "acceptor.1": "edge.1", "auth": "policy", "limiter": "policy", "breaker": "policy",
    "audit": "policy", "bridge": "bridge", "validator": "validator",
}  # fmt: skip
"""Which worker an actor lives in."""


@attrs.frozen
class Kind:
    """One kind of fault. ``seconds``: how long it lasts, between these two; ``weight``: how often it is drawn.

    ``build``: needs the test-only build of the child specs. ``hangs``: calls may run into their timeout.
    """

    name: str
    targets: tuple[str, ...]
    seconds: tuple[float, float] = (0.0, 0.0)
    weight: int = 4
    build: bool = False
    hangs: bool = False


KINDS: Final = (
    Kind("kill", (*WORKERS, *EDGES, "policy", "bridge", "standby"), weight=24),
    Kind("abort", WORKERS, weight=4),
    Kind("pause", WORKERS, (0.1, 0.8), weight=8),
    Kind("stop", WORKERS, weight=3, hangs=True),
    Kind("raise", ACTORS, weight=12, build=True),
    Kind("block", ACTORS, weight=2, build=True, hangs=True),
    Kind("spin", ACTORS, weight=2, build=True, hangs=True),
    Kind("answer-late", ("auth", "limiter", "breaker", "audit", "validator"), (1.0, 2.0), build=True, hangs=True),
    Kind("clock", ("+20", "-20", "+3"), (1.0, 2.0), weight=3, build=True),
    Kind("upstream-kill", ("stdio", "tcp"), weight=8),
    Kind("upstream-late", ("stdio", "tcp"), (1.0, 2.0)),
    Kind("upstream-twice", ("stdio", "tcp"), (0.5, 1.5)),
    Kind("upstream-halves", ("stdio", "tcp"), (0.5, 1.5)),
    Kind("upstream-garbage", ("stdio", "tcp"), (0.5, 1.5)),
    Kind("upstream-hang", ("stdio", "tcp"), (0.3, 1.0), weight=2, hangs=True),
    Kind("upstream-deaf", ("stdio", "tcp"), (0.5, 2.0), weight=2, hangs=True),
    Kind("upstream-die", ("stdio", "tcp"), (0.2, 0.6)),
    Kind("upstream-torn", ("stdio", "tcp"), (0.2, 0.6)),
    Kind("net-delay", ("proxied",), (0.5, 1.5)),
    Kind("net-split", ("proxied",), (0.5, 1.5)),
    Kind("net-join", ("proxied",), (0.5, 1.5)),
    Kind("net-reset", ("proxied",)),
    Kind("net-blackhole", ("proxied",), (0.5, 1.5), weight=2),
    Kind("storm", ("ws", "tcp"), (0.5, 1.0)),
    Kind("slow-readers", ("ws", "tcp"), (1.0, 2.0)),
    Kind("slow-writers", ("ws", "tcp"), (1.0, 2.0)),
    Kind("reload", ("supervisor",), weight=6),
    Kind("reopen-log", ("supervisor",), weight=2),
    Kind("descriptors", (*EDGES, "policy", "bridge"), (0.5, 1.5), hangs=True),
    Kind("full-disk", ("policy",), (0.5, 1.5), hangs=True),
)
BY_NAME: Final = {kind.name: kind for kind in KINDS}

TAKES_DOWN: Final = frozenset({"kill", "abort", "stop", "block", "spin"})
"""Kinds that end the process of a worker."""

_TOGETHER = 0.15
"""How often a fault is followed at once by the next one."""

_MOST_RAISED = 3
"""Of the last ten faults in one worker's actors: more would, rightly, take the worker down."""


@attrs.frozen
class Fault:
    """``gap_s``: how long after the one before; 0: at the same time."""

    number: int
    kind: str
    target: str
    seconds: float
    gap_s: float

    @property
    def worker(self) -> str:
        """Whose process it hurts; empty for none."""
        return HOMES.get(self.target, self.target) if self.target in (*WORKERS, *ACTORS) else ""



def draw(
    seed: int, *, build: bool, only: Collection[str] = (), gaps: tuple[float, float] = (0.1, 0.9)
) -> Iterator[Fault]:
    """Without end. ``only``: these kinds, or ``KIND:TARGET``. Raises ValueError if that leaves nothing to draw from."""
    chance = random.Random(seed)
    choices = [
        (kind, [target for target in kind.targets if not only or kind.name in only or f"{kind.name}:{target}" in only])
        for kind in KINDS
        if build or not kind.build
    ]
    choices = [(kind, targets) for kind, targets in choices if targets]
    if not choices:
        raise ValueError("no such fault, or it needs the test-only build")
    recent: list[Fault] = []
    number = 0
    while True:
        (kind, targets), = chance.choices(choices, [kind.weight for kind, _ in choices])
        target = chance.choice(targets)
        together = chance.random() < _TOGETHER
        gap_s = 0.0 if together else round(chance.uniform(*gaps), 3)
        fault = Fault(number + 1, kind.name, target, round(chance.uniform(*kind.seconds), 3), gap_s)
        if kind.name == "raise" and not only:
            raised = sum(old.kind == "raise" and old.worker == fault.worker for old in recent[-10:])
            if raised >= _MOST_RAISED:
                continue
        number += 1
        recent = [*recent[-20:], fault]
        yield fault
