"""The supervisor with a table of tiny actors: ``python gateway_of_test_actors.py TABLE SETTINGS.json``."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from ipc.control import ActorSpec
from ipc.settings import Settings
from supervisor import run
from supervisor.backoff import MILLISECOND, SECOND
from supervisor.specs import SpecTable, WorkerSpec

HERE = str(Path(__file__).parent)


def actor(name: str, function: str, **more: object) -> ActorSpec:
    return ActorSpec(name, f"actors_for_tests:{function}", **more)


def policy(*others: ActorSpec, audit: str = "audit") -> WorkerSpec:
    return WorkerSpec("policy", "policy", stage=0, actors=(actor("audit", audit), *others), stop_ns=2 * SECOND)


def edges(function: str = "acceptor", count: int = 2) -> tuple[WorkerSpec, ...]:
    return tuple(
        WorkerSpec(
            f"edge.{number}",
            "edge",
            stage=4,
            actors=(actor(f"acceptor.{number}", function, listens=("ws", "tcp"), stop_ms=5_000),),
            handover=True,
            stop_ns=6 * SECOND,
        )
        for number in range(count)
    )


def admin() -> WorkerSpec:
    return WorkerSpec("admin", "admin", stage=1, actors=(actor("admin", "admin", listens=("health",)),))


def bridge(function: str = "bridge") -> WorkerSpec:
    return WorkerSpec("bridge", "bridge", stage=2, actors=(actor("bridge", function),), hosts_children=True)


def validator() -> WorkerSpec:
    return WorkerSpec("validator", "validator", stage=3, actors=(actor("validator", "validator"),))


def whole(**more: object) -> SpecTable:
    return SpecTable((policy(), admin(), bridge(), validator(), *edges()), search_path=(HERE,), **more)


def moved() -> SpecTable:
    """The validator in the policy worker, the bridge in the admin's."""
    return SpecTable(
        (
            policy(actor("validator", "validator")),
            WorkerSpec(
                "admin",
                "admin",
                stage=1,
                actors=(actor("admin", "admin", listens=("health",)), actor("bridge", "bridge")),
                hosts_children=True,
            ),
            *edges(),
        ),
        search_path=(HERE,),
    )


TABLES = {
    "whole": whole,
    "moved": moved,
    "no-standby": lambda: whole(standby=False),
    "fails-first": lambda: SpecTable((policy(), *edges("raises_at_once")), search_path=(HERE,)),
    "fails-import": lambda: SpecTable((policy(), *edges("no_such_function")), search_path=(HERE,)),
    "stubborn": lambda: SpecTable(
        (policy(), attrs_evolve(edges("stubborn")[0], stop_ns=500 * MILLISECOND)), search_path=(HERE,)
    ),
    "flaky": lambda: SpecTable((policy(actor("limiter", "raises_when_asked")), *edges()), search_path=(HERE,)),
    "liar": lambda: SpecTable((policy(), bridge("liar"), *edges()), search_path=(HERE,)),
}


def attrs_evolve(spec: WorkerSpec, **more: object) -> WorkerSpec:
    import attrs

    return attrs.evolve(spec, **more)


if __name__ == "__main__":
    settings = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=Settings)
    sys.exit(run.run(settings, TABLES[sys.argv[1]]()))
