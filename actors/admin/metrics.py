"""All metrics of the gateway in one scrape, made from what the actors last said of themselves.

No label holds an address, a principal or a name that a client chose. What an actor counts by itself is exported
under the actor's name and its own (``portcullis_limiter_leases_outstanding``), without a claim to be a counter,
because it starts anew with each incarnation of the actor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from .health import Health
from .survey import View
from .tree import Tree

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_OWN_LIMIT = 128
"""Of names that one kind of actor may add."""

_STATES = ("healthy", "degraded", "unhealthy")
_BREAKER_STATES = ("closed", "open", "half_open")


@attrs.frozen(eq=False)
class Snapshot(Collector):
    """What one scrape sees."""

    health: Health
    views: list[View]
    tree: Tree
    own: dict[str, int]  # the admin actor's own counts

    def collect(self) -> Iterator[Metric]:
        yield from self._gateway()
        yield from self._tree()
        yield from self._upstreams()
        yield from self._counted()

    def _gateway(self) -> Iterator[Metric]:
        yield InfoMetricFamily("portcullis_build", "Version of the gateway.", {"version": self.tree.version})
        yield GaugeMetricFamily("portcullis_uptime_seconds", "Since the start.", self.tree.uptime_s)
        yield GaugeMetricFamily("portcullis_ready", "1 if new clients are welcome.", int(self.health.ready))
        status = GaugeMetricFamily("portcullis_status", "1 for the status that holds.", labels=["status"])
        for name in _STATES:
            status.add_metric([name], int(name == self.health.status))
        yield status
        connections = GaugeMetricFamily("portcullis_connections", "Live client connections.", labels=["transport"])
        for transport, count in self.health.connections.items():
            if transport != "total":
                connections.add_metric([transport], count)
        yield connections
        own = CounterMetricFamily("portcullis_admin", "What the health listener did.", labels=["what"])
        for what, count in self.own.items():
            own.add_metric([what], count)
        yield own

    def _tree(self) -> Iterator[Metric]:
        restarts = CounterMetricFamily("portcullis_restarts", "Restarts of workers and actors, all together.")
        restarts.add_metric([], self.tree.restarts)
        yield restarts
        up = GaugeMetricFamily("portcullis_worker_up", "1 if the worker process is up.", labels=["worker", "role"])
        again = CounterMetricFamily("portcullis_worker_restarts", "Restarts of a worker.", labels=["worker", "role"])
        memory = GaugeMetricFamily(
            "portcullis_worker_resident_memory_bytes", "Resident memory of a worker.", labels=["worker", "role"]
        )
        actors_again = CounterMetricFamily("portcullis_actor_restarts", "Restarts of an actor.", labels=["actor"])
        for worker in self.tree.workers:
            labels = [worker.name, worker.role]
            up.add_metric(labels, int(worker.state == "up"))
            again.add_metric(labels, worker.restarts)
            if worker.rss_kb:
                memory.add_metric(labels, worker.rss_kb * 1024)
            for actor in worker.actors:
                actors_again.add_metric([actor.name], actor.restarts)
        yield from (up, again, memory, actors_again)
        actor_up = GaugeMetricFamily("portcullis_actor_up", "1 if the actor is up.", labels=["actor"])
        age = GaugeMetricFamily(
            "portcullis_actor_report_age_seconds", "Age of the actor's figures here.", labels=["actor"]
        )
        for view in self.views:
            actor_up.add_metric([view.name], int(view.up))
            if view.data:
                age.add_metric([view.name], view.age_s)
        yield from (actor_up, age)

    def _upstreams(self) -> Iterator[Metric]:
        available = GaugeMetricFamily("portcullis_upstream_available", "1 if calls may pass.", labels=["upstream"])
        in_flight = GaugeMetricFamily("portcullis_upstream_in_flight", "Calls in flight.", labels=["upstream"])
        instances = GaugeMetricFamily("portcullis_upstream_instances", "Running instances.", labels=["upstream"])
        breaker = GaugeMetricFamily(
            "portcullis_breaker_state", "1 for the state that the breaker is in.", labels=["upstream", "state"]
        )
        for upstream in self.health.upstreams:
            available.add_metric([upstream.name], int(upstream.available))
            in_flight.add_metric([upstream.name], upstream.in_flight)
            instances.add_metric([upstream.name], len(upstream.instances))
            for state in _BREAKER_STATES:
                breaker.add_metric([upstream.name, state], int(upstream.breaker == state))
        yield from (available, in_flight, instances, breaker)

    def _counted(self) -> Iterator[Metric]:
        families: dict[str, UnknownMetricFamily] = {}
        for view in self.views:
            source = view.data.get("totals") if view.kind == "acceptor" else view.data
            for name, number in _numbers(source):
                metric = f"portcullis_{view.kind}_{name}"
                if metric not in families:
                    families[metric] = UnknownMetricFamily(metric, f"{name} of {view.kind}.", labels=["actor"])
                families[metric].add_metric([view.name], number)
        yield from families.values()


def exposition(snapshot: Snapshot) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(snapshot)
    return generate_latest(registry)


def _numbers(source: object, prefix: str = "") -> Iterable[tuple[str, float]]:
    """Numbers of an object and of objects right inside it, as far as their names can be metrics' names."""
    if not isinstance(source, dict):
        return
    members: dict[str, Any] = source
    for number, (key, value) in enumerate(members.items()):
        if number >= _OWN_LIMIT:
            return
        name = f"{prefix}{str(key).replace('-', '_').replace('.', '_').replace(' ', '_').lower()}"
        if not _NAME.match(name):
            continue
        if isinstance(value, int | float):
            yield name, float(value)
        elif not prefix and key not in _NOT_NUMBERS:
            yield from _numbers(value, f"{name}_")


_NOT_NUMBERS = frozenset({"upstreams", "circuits", "acceptors", "catalogue"})
"""Members whose own members are names, not counts; the first two have metrics of their own."""
