"""``python -m supervisor``, but with actors that can be hurt and guards that can be turned off. For tests only.

The production table names none of this, and nothing that is installed can reach it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import attrs
import chaos_controls
import msgspec

from ipc.control import ActorSpec
from ipc.settings import Settings
from supervisor import run, specs
from supervisor.settings.load import load
from supervisor.settings.show import answer

HERE = str(Path(__file__).parent)


def hurt(actor: ActorSpec) -> ActorSpec:
    kind = specs.kind_of(actor.name)
    return actor if kind == "admin" else msgspec.structs.replace(actor, target=f"chaos_actors:run_{kind}")


def table(settings: Settings) -> specs.SpecTable:
    production = specs.production(settings)
    workers = tuple(
        attrs.evolve(worker, actors=tuple(hurt(actor) for actor in worker.actors)) for worker in production.workers
    )
    return attrs.evolve(production, workers=workers, search_path=(HERE,))


if __name__ == "__main__":
    loaded = answer(sys.argv[1:], os.environ, Path.cwd())
    if isinstance(loaded, int):
        sys.exit(loaded)
    control = Path(loaded.settings.state_dir).parent / "sabotage" / "control"
    chaos_controls.in_supervisor(control.read_text())
    sys.exit(run.production(lambda: load(sys.argv[1:], os.environ, Path.cwd()), loaded, table))
