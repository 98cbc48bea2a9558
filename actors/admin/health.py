"""How the gateway is, judged from what is known of its parts. Pure.

*Unhealthy* is a gateway that nobody can use: no acceptor, or a policy actor is missing, without which nothing is let
in. *Degraded* is one that works with something amiss. *Ready* is one that new clients should be sent to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs
import msgspec

from ipc.settings import Settings, Upstream

from .survey import View
from .tree import Tree

Status = Literal["healthy", "degraded", "unhealthy"]

POLICY = ("auth", "limiter", "breaker", "audit")
_UNAVAILABLE = frozenset({"down", "failed"})


@attrs.frozen
class UpstreamHealth:
    """``state`` is up, starting, down, idle (started on demand) or unknown; ``breaker`` is closed, open, half_open or
    unknown.

    ``instances`` are the processes or connections of it, ``retry_in_ms`` the time until an open breaker's next probe.
    """

    name: str
    kind: str
    state: str
    breaker: str
    retry_in_ms: int
    sessions: int
    in_flight: int
    restarts: int
    instances: tuple[dict[str, Any], ...]

    @property
    def silent(self) -> bool:
        """Whether all that is up of it left the latest probe unanswered."""
        up = [instance for instance in self.instances if instance.get("state") == "up"]
        return bool(up) and all(instance.get("silent") is True for instance in up)

    @property
    def available(self) -> bool:
        return self.state not in _UNAVAILABLE and self.breaker != "open"

    def document(self) -> dict[str, object]:
        found: dict[str, object] = {
            "state": self.state,
            "breaker": self.breaker,
            "kind": self.kind,
            "sessions": self.sessions,
            "in_flight": self.in_flight,
            "restarts": self.restarts,
            "instances": list(self.instances),
        }
        if self.breaker == "open":
            found["retry_in_ms"] = self.retry_in_ms
        return found


@attrs.frozen
class Health:
    """``unready`` are the reasons against readiness, ``reasons`` everything that is amiss; both for people."""

    status: Status
    unready: tuple[str, ...]
    reasons: tuple[str, ...]
    upstreams: tuple[UpstreamHealth, ...]
    connections: dict[str, int]
    document: dict[str, object]

    @property
    def ready(self) -> bool:
        return not self.unready


def judge(settings: Settings, views: Sequence[View], tree: Tree | None, now_ns: int, own_age_s: float) -> Health:
    """``own_age_s`` is the uptime to show until the supervisor has told its own. ``tree`` is None until then, too."""
    upstreams = tuple(_upstreams(settings, views, now_ns))
    unready = tuple(_unready(views, tree, upstreams))
    fatal = tuple(_fatal(views))
    amiss = tuple(dict.fromkeys((*fatal, *unready, *_amiss(views, tree, upstreams))))
    status: Status = "unhealthy" if fatal else "degraded" if amiss else "healthy"
    connections = _connections(views)
    document: dict[str, object] = {
        "status": status,
        "ready": not unready,
        "reasons": list(amiss),
        "uptime": tree.uptime_s if tree is not None else round(own_age_s, 3),
        "version": tree.version if tree is not None else "",
        "connections": connections,
        "actors": _actors(views, tree),
        "upstreams": {upstream.name: upstream.document() for upstream in upstreams},
        "restarts": tree.restarts if tree is not None else 0,
    }
    return Health(status, unready, amiss, upstreams, connections, document)


def _fatal(views: Iterable[View]) -> Iterator[str]:
    acceptors = [view for view in views if view.kind == "acceptor"]
    if not any(view.up for view in acceptors):
        yield "no acceptor is up"
    yield from (f"{view.name} is down" for view in views if view.kind in POLICY and not view.up)


def _unready(views: Iterable[View], tree: Tree | None, upstreams: Sequence[UpstreamHealth]) -> Iterator[str]:
    views = list(views)
    if tree is None:
        yield "the gateway is starting"
    elif tree.draining:
        yield "the gateway is draining"
    yield from _fatal(views)
    if upstreams and not upstreams[0].available:
        yield _trouble(upstreams[0])


def _amiss(views: Iterable[View], tree: Tree | None, upstreams: Iterable[UpstreamHealth]) -> Iterator[str]:
    for view in views:
        if not view.up:
            yield f"{view.name} is down"
        elif not view.answering and view.data:
            yield f"{view.name} does not answer"
    for upstream in upstreams:
        if not upstream.available:
            yield _trouble(upstream)
        elif upstream.breaker == "half_open":
            yield f"server {upstream.name}: breaker half open"
        elif upstream.silent:
            yield f"server {upstream.name}: does not answer"
    if tree is not None:
        yield from tree.degraded


def _trouble(upstream: UpstreamHealth) -> str:
    return f"server {upstream.name}: {'breaker open' if upstream.breaker == 'open' else upstream.state}"


def _upstreams(settings: Settings, views: Sequence[View], now_ns: int) -> Iterator[UpstreamHealth]:
    circuits: dict[str, Any] = {}
    for view in views:
        if view.kind == "breaker":
            circuits = _mapping(view.data.get("circuits"))
    for upstream in settings.upstreams:
        yield _upstream(upstream, views, _mapping(circuits.get(upstream.name)), now_ns)


def _upstream(upstream: Upstream, views: Sequence[View], circuit: Mapping[str, Any], now_ns: int) -> UpstreamHealth:
    """An upstream may be known to several workers: the best state of any counts, and the numbers add up.

    What a worker last said of its upstreams means nothing once it is down: its processes went with it.
    """
    reports = [
        report
        for view in views
        if view.kind in ("bridge", "acceptor")
        if view.up
        if (report := _mapping(_mapping(view.data.get("upstreams")).get(upstream.name)))
    ]
    states = {str(report.get("state")) for report in reports}
    if upstream.kind != "tcp" and not any(view.up for view in views if view.kind == "bridge"):
        states.add("down")
    order = ("up", "starting", "idle", "down")
    instances = tuple(
        instance for report in reports for instance in report.get("instances", ()) if isinstance(instance, dict)
    )
    return UpstreamHealth(
        name=upstream.name,
        kind=upstream.kind,
        state=next((state for state in order if state in states), "unknown"),
        breaker=str(circuit.get("state", "unknown")),
        retry_in_ms=max(0, int(circuit.get("retry_at_ns", 0)) - now_ns) // 1_000_000,
        sessions=_sum(instances, "sessions"),
        in_flight=_sum(instances, "in_flight"),
        restarts=_sum(instances, "restarts"),
        instances=instances,
    )


def _connections(views: Iterable[View]) -> dict[str, int]:
    counts = {"total": 0, "ws": 0, "tcp": 0}
    for view in views:
        if view.kind != "acceptor" or not view.up:
            continue
        for connection in connections_of(view):
            counts["total"] += 1
            transport = str(connection.get("transport", ""))
            counts[transport] = counts.get(transport, 0) + 1
    return counts


def connections_of(view: View) -> list[dict[str, Any]]:
    found = view.data.get("connections")
    return [connection for connection in found if isinstance(connection, dict)] if isinstance(found, list) else []


def _actors(views: Iterable[View], tree: Tree | None) -> dict[str, dict[str, object]]:
    nodes = tree.actors() if tree is not None else {}
    actors: dict[str, dict[str, object]] = {}
    for view in views:
        node = nodes.get(view.name)
        actors[view.name] = {
            "state": "up" if view.up else node.state if node is not None and node.state != "up" else "down",
            "answering": view.answering,
            "incarnation": view.incarnation,
            "restarts": node.restarts if node is not None else 0,
        }
    return actors


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sum(rows: Iterable[Mapping[str, Any]], key: str) -> int:
    return sum(value for row in rows if isinstance(value := row.get(key), int))


def encode(health: Health) -> bytes:
    return msgspec.json.encode(health.document)
