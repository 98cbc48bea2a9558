"""Short rounds of the chaos harness; ``python -m ops.chaos`` runs long ones, and all negative controls."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import trio

from ops.chaos import controls, report
from ops.chaos.arena import Arena, Plan
from ops.chaos.gateway import BUILD
from ops.chaos.plan import Fault, draw

SEED = 20

CHOSEN = (
    ("kill", "edge.0"), ("raise", "auth"), ("kill", "policy"), ("upstream-die", "stdio"), ("kill", "bridge"),
    ("raise", "acceptor.1"), ("reload", "supervisor"), ("upstream-torn", "tcp"), ("net-reset", "proxied"),
    ("kill", "validator"), ("kill", "edge.1"),
)  # fmt: skip


async def run(directory: Path, faults: list[Fault], plan: Plan) -> None:
    """Judge them; whatever is found fails, and is shown with the end of the gateway's log."""
    arena = Arena(directory, SEED, plan)
    await arena.run(chain(faults, draw(SEED, build=True)))
    document = report.document(arena, 0)
    assert document["green"], report.text(document) + "".join(arena.log[-200:])
    assert document["faults"] >= len(faults)
    assert document["outcomes"]["result"] > 10 * len(faults)


async def test_chosen_faults_leave_the_judge_green(tmp_path: Path) -> None:
    """Over TLS, with client certificates: each kind of death once, under load; and nothing is left at the end."""
    faults = [
        Fault(number, kind, target, 0.4 if kind in ("upstream-die", "upstream-torn") else 0.0, 0.2)
        for number, (kind, target) in enumerate(CHOSEN, 1)
    ]
    await run(tmp_path, faults, Plan(len(faults), per_life=len(faults), build=BUILD, tls=True, endings=("quiet",)))


async def test_drawn_faults_leave_the_judge_green(tmp_path: Path) -> None:
    """In the clear: faults drawn from a seed, and a stop in the middle of everything."""
    only = ("kill", "raise", "pause", "upstream-twice", "upstream-halves", "upstream-garbage", "storm", "slow-writers")
    drawn = draw(SEED, build=True, only=only)
    faults = [next(drawn) for _ in range(8)]
    await run(tmp_path, faults, Plan(len(faults), per_life=len(faults), build=BUILD, tls=False, endings=("busy",)))


@pytest.mark.parametrize("name", ["leases", "ids"])
async def test_a_guard_that_is_off_is_noticed(name: str) -> None:
    """Without the accounting of leases, and without ids of our own, the judge is red."""
    found = await trio.to_thread.run_sync(controls.run_one, name, SEED, BUILD)
    assert controls.CONTROLS[name].expected & found.keys(), found
