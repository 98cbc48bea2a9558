"""Everything that a live view shows, in one document: what the dashboard and ``mcp-admin top`` ask for each second."""

from __future__ import annotations

from typing import Any, Final

from ipc.settings import Settings

from .health import Health, connections_of
from .rates import Rates
from .survey import View
from .tree import Tree

MOST_CONNECTIONS: Final = 200
"""Rows; the busiest come first. ``/connections`` has all."""

_LIMITER: Final = (
    "keys", "leases_outstanding", "units_granted", "exhausted", "parked", "admitted", "refused_block", "refused_limit",
    "refused_rate", "refused_unavailable", "scored", "offences", "blocks",
)  # fmt: skip
_AUDIT: Final = ("enabled", "failing", "records", "coalesced", "dropped", "write_errors", "waiting")
_REFUSALS: Final = ("invalid", "denied", "content_refused", "content_flagged", "results_refused", "tls_failed")


def overview(settings: Settings, health: Health, tree: Tree | None, views: list[View], rates: Rates) -> dict[str, Any]:
    """Without blocks and events, which are asked of others."""
    rows = [row for view in views if view.kind == "acceptor" and view.answering for row in connections_of(view)]
    rows.sort(key=_activity)
    acceptors = [view.data.get("totals") for view in views if view.kind == "acceptor"]
    return {
        "health": health.document,
        "tree": tree.document() if tree is not None else None,
        "connections": {
            "rows": rows[:MOST_CONNECTIONS],
            "total": len(rows),
            "missing": [view.name for view in views if view.kind == "acceptor" and not view.answering],
        },
        "rates": {"present": rates.present(), "history": rates.history()},
        "limiter": {**_limits(settings), **_of("limiter", _LIMITER, views)},
        "breaker": {"enabled": settings.circuitbreaker_enabled, "circuits": _circuits(views)},
        "audit": _of("audit", _AUDIT, views),
        "refused": {
            name: sum(_number(totals.get(name)) for totals in acceptors if isinstance(totals, dict))
            for name in _REFUSALS
        },
    }


def _activity(row: dict[str, Any]) -> tuple[float, str]:
    idle = row.get("idle_s")
    return (float(idle) if isinstance(idle, int | float) else 0.0, str(row.get("id")))


def _limits(settings: Settings) -> dict[str, Any]:
    return {
        "enabled": settings.rate_limit_enabled,
        "max_requests": settings.rate_limit_max_requests,
        "window_ms": settings.rate_limit_window_ms,
        "burst_requests": settings.rate_limit_burst_requests,
        "burst_window_ms": settings.rate_limit_burst_window_ms,
    }


def _of(kind: str, names: tuple[str, ...], views: list[View]) -> dict[str, Any]:
    """These members of what the actor last said. ``answering``: whether that is of now."""
    for view in views:
        if view.kind == kind:
            known = {name: view.data[name] for name in names if isinstance(view.data.get(name), int)}
            return {"answering": view.answering, **known}
    return {"answering": False}


def _circuits(views: list[View]) -> dict[str, int]:
    """How often each has opened."""
    for view in views:
        circuits = view.data.get("circuits")
        if view.kind == "breaker" and isinstance(circuits, dict):
            return {str(name): _number(row.get("openings")) for name, row in circuits.items() if isinstance(row, dict)}
    return {}


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
