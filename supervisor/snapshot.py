"""The live tree, as the admin process shows it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import attrs

from ipc.control import ActorState
from ipc.messages import TreeSnapshot

from .strategy import State

_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


@attrs.frozen
class WorkerView:
    """What there is to say of a worker beside its place in the tree. ``pid`` is 0 while it has no process."""

    role: str
    pid: int = 0
    suspect: bool = False
    actors: tuple[ActorState, ...] = ()


def build(
    state: State, views: Mapping[str, WorkerView], *, uptime_s: float, version: str, draining: bool
) -> TreeSnapshot:
    workers = []
    for child in state.children:
        view = views[child.spec.name]
        worker: dict[str, object] = {
            "name": child.spec.name,
            "role": view.role,
            "pid": view.pid,
            "state": "suspect" if view.suspect and child.phase == "up" else child.phase,
            "incarnation": child.incarnation,
            "restarts": child.restarts,
            "actors": [
                {
                    "name": a.name,
                    "state": a.state,
                    "incarnation": a.incarnation,
                    "restarts": a.restarts,
                    "mailbox": {"queued": a.queued, "received": a.received, "refused": a.refused},
                }
                for a in view.actors
            ],
        }
        resident = rss_kb(view.pid)
        if resident:
            worker["rss_kb"] = resident
        workers.append(worker)
    document = {
        "uptime_s": round(uptime_s, 3),
        "version": version,
        "draining": draining,
        "degraded": list(degraded(state, views)),
        "restarts": state.restarts,
        "workers": workers,
    }
    return TreeSnapshot(json.dumps(document, separators=(",", ":")).encode())


def lives(actors: Iterable[ActorState]) -> list[tuple[str, str, int, int]]:
    """What of these states is news at once."""
    return [(actor.name, actor.state, actor.incarnation, actor.restarts) for actor in actors]


def degraded(state: State, views: Mapping[str, WorkerView]) -> Iterable[str]:
    """Why the tree is not what it should be, a line each. A first restart, which takes moments, is no reason."""
    if state.mode != "running":
        return
    for child in state.children:
        if child.trouble:
            yield f"{child.spec.name}: {child.trouble}"
        elif child.phase != "up" and child.streak > 1:
            yield f"{child.spec.name}: failed {child.streak} times in a row"
        elif child.phase == "up" and views[child.spec.name].suspect:
            yield f"{child.spec.name}: makes no progress"


def rss_kb(pid: int) -> int:
    """Resident memory; 0 when it can't be known."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE_KB
    return 0
