"""All metrics of the gateway in one scrape: what lies on the shelves, what the actors last said of themselves, and
what /proc says of the processes.

Every name is in ``families``. No label holds an address, a principal or a name that a client chose. Counters and
histograms only ever grow while the gateway runs, whoever of it dies: what is on a shelf outlives its worker, and what
actors count from zero in each incarnation is added up in a book of totals, which lies on admin's own shelf.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import attrs
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ipc import tally
from ipc.context import Context
from ipc.shelf import worker_place
from ipc.tally import Tally, split

from . import processes
from .families import FAMILIES, Family
from .health import Health
from .survey import View
from .totals import Totals
from .tree import Tree

log = logging.getLogger("portcullis.admin")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_STATES = ("healthy", "degraded", "unhealthy")
_BREAKER_STATES = ("closed", "open", "half_open")
_MCP_BOUNDS = tuple(bound for bound in tally.SECONDS if bound >= 0.01)  # what the conventions advise
_MOST_NAMES = 128  # that one actor may give to what it counts

Labels = tuple[str, ...]


@attrs.frozen
class Source:
    """Where an actor of that kind says a number: members' names, with dots between them."""

    kind: str
    path: str
    family: str
    labels: Labels = ()


SOURCES = (
    Source("auth", "granted", "portcullis_authentications", ("ok",)),
    Source("auth", "failed", "portcullis_authentications", ("failed",)),
    Source("auth", "anonymous", "portcullis_anonymous_grants"),
    Source("auth", "tickets_issued", "portcullis_tickets", ("issued",)),
    Source("auth", "tickets_redeemed", "portcullis_tickets", ("redeemed",)),
    Source("auth", "tickets_refused", "portcullis_tickets", ("refused",)),
    Source("auth", "sessions", "portcullis_sessions"),
    Source("auth", "revocations", "portcullis_revocations"),
    Source("auth", "failed_commits", "portcullis_auth_store_errors"),
    Source("limiter", "blocks", "portcullis_blocks"),
    Source("limiter", "blocks_unwritten", "portcullis_blocks_unwritten"),
    Source("limiter", "store_errors", "portcullis_block_store_errors"),
    Source("limiter", "exhausted", "portcullis_rate_limited"),
    Source("limiter", "leases", "portcullis_limiter_leases"),
    Source("limiter", "units_granted", "portcullis_limiter_units", ("granted",)),
    Source("limiter", "units_forfeited", "portcullis_limiter_units", ("forfeited",)),
    Source("limiter", "units_overspent", "portcullis_limiter_units", ("overspent",)),
    Source("limiter", "keys", "portcullis_limiter_keys"),
    Source("limiter", "admitted", "portcullis_limiter_admissions", ("admitted",)),
    Source("limiter", "refused_block", "portcullis_limiter_admissions", ("block",)),
    Source("limiter", "refused_limit", "portcullis_limiter_admissions", ("limit",)),
    Source("limiter", "refused_rate", "portcullis_limiter_admissions", ("rate",)),
    Source("limiter", "refused_unavailable", "portcullis_limiter_admissions", ("unavailable",)),
    Source("limiter", "journal_errors", "portcullis_limiter_journal_errors"),
    Source("audit", "failing", "portcullis_audit_failing"),
    Source("audit", "records", "portcullis_audit_records"),
    Source("audit", "bytes", "portcullis_audit_bytes"),
    Source("audit", "gaps", "portcullis_audit_gaps"),
    Source("audit", "rotations", "portcullis_audit_rotations"),
    Source("audit", "write_errors", "portcullis_audit_errors", ("write",)),
    Source("audit", "sync_errors", "portcullis_audit_errors", ("sync",)),
    Source("validator", "valid", "portcullis_validator_messages", ("valid",)),
    Source("validator", "invalid", "portcullis_validator_messages", ("invalid",)),
    Source("validator", "bytes", "portcullis_validator_bytes"),
)

_LISTENERS = ("ws", "tcp")
_REASONS = (
    "auth", "block", "draining", "handshake", "host", "limit", "origin", "other", "rate", "timeout", "tls",
    "unavailable",
)  # fmt: skip
_CODES = ("-32700", "-32600", "-32601", "-32602", "-32603", "401", "403", "413", "422", "429", "502", "503")

ZEROS: tuple[tuple[str, *tuple[tuple[str, ...], ...]], ...] = (
    ("portcullis_connections_accepted", _LISTENERS),
    ("portcullis_connections_opened", _LISTENERS),
    ("portcullis_connections_closed", _LISTENERS),
    ("portcullis_connections_refused", _LISTENERS, _REASONS),
    ("portcullis_messages_received", _LISTENERS),
    ("portcullis_messages_sent", _LISTENERS),
    ("portcullis_received_bytes", _LISTENERS),
    ("portcullis_sent_bytes", _LISTENERS),
    ("portcullis_refusals", _CODES),
    ("portcullis_calls_failed", ("502", "503", "504")),
    ("portcullis_offences", ("auth", "malformed", "rate", "content", "probe", "handshake")),
)
"""Counters that there are from the beginning, and their labels' values."""

_TRAFFIC = {
    "messages_in": "portcullis_messages_received",
    "messages_out": "portcullis_messages_sent",
    "bytes_in": "portcullis_received_bytes",
    "bytes_out": "portcullis_sent_bytes",
}
_COUNTED = (
    ("refused_", "portcullis_refusals", ()),
    ("failed_", "portcullis_calls_failed", ()),
    ("offences_", "portcullis_offences", ()),
    ("content_flagged_", "portcullis_content_findings", ("flag",)),
    ("content_stripped_", "portcullis_content_findings", ("strip",)),
    ("content_refused_", "portcullis_content_findings", ("block",)),
)
"""Names of what acceptors count that end in a label's value."""


class Sheet(Collector):
    """What one scrape shows. Values with the same name and labels add up."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, tuple[Sequence[float], Sequence[float], float]]] = {}

    def add(self, family: str, value: float, *labels: str) -> None:
        """Raises KeyError for a name that is not in the table, ValueError for other labels than it has there."""
        if len(FAMILIES[family].labels) != len(labels):
            raise ValueError(f"{family} has the labels {FAMILIES[family].labels}")
        values = self._values.setdefault(family, {})
        values[labels] = values.get(labels, 0) + value

    def histogram(
        self, family: str, counted: Sequence[int], bounds: Sequence[float], shown: Sequence[float], unit: float,
        *labels: str,
    ) -> None:
        """``counted`` is a histogram as in ``ipc.tally``; ``bounds`` in the unit that is shown, of which ``shown`` are
        some; ``unit`` is what of them one of the tally's units is. One of a length that isn't ours is left out."""
        if len(counted) != len(bounds) + 2 or len(FAMILIES[family].labels) != len(labels):
            return
        below, cumulative = 0, {}
        for bound, count in zip(bounds, counted, strict=False):
            below += count
            cumulative[bound] = below
        total = below + counted[-2]
        buckets = [cumulative[bound] for bound in shown] + [total]
        found = self._histograms.setdefault(family, {})
        if labels in found:
            _, others, other_total = found[labels]
            added = [a + b for a, b in zip(others, buckets, strict=True)]
            found[labels] = (shown, added, other_total + counted[-1] * unit)
        else:
            found[labels] = (shown, buckets, counted[-1] * unit)

    def collect(self) -> Iterator[Metric]:
        for name, family in FAMILIES.items():
            if name in self._values:
                yield _family(family, self._values[name])
            elif name in self._histograms:
                found = HistogramMetricFamily(name, family.help, labels=family.labels)
                for labels, (bounds, buckets, total) in self._histograms[name].items():
                    names = [*map(floatToGoString, bounds), "+Inf"]
                    found.add_metric(labels, list(zip(names, buckets, strict=True)), total)
                yield found


def _family(family: Family, values: Mapping[Labels, float]) -> Metric:
    if family.kind == "info":
        (labels,) = values
        return InfoMetricFamily(family.name, family.help, dict(zip(family.labels, labels, strict=True)))
    if family.kind == "counter":
        counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
        for labels, value in values.items():
            counter.add_metric(labels, value)
        return counter
    gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in values.items():
        gauge.add_metric(labels, value)
    return gauge


class Metrics:
    """What is kept from one scrape to the next: the book of totals."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._shelf = context.shelves.of(context.name)
        self._totals = Totals(self._shelf.read())
        self._too_long = False

    # --- counters of actors and of the tree ----------------------------------------------------------------------

    def hear(self, views: Sequence[View], tree: Tree | None, own: Mapping[str, int]) -> None:
        """Take in what is known now, and write it down. To be called whenever there may be news."""
        for view in views:
            if view.of:
                for source in SOURCES:
                    if source.kind == view.kind and FAMILIES[source.family].kind == "counter":
                        self._heard(view, source.family, source.labels, _number(view.data, source.path))
                self._named(view)
        for what, count in own.items():
            self._totals.heard(_counter("portcullis_admin", "", what), self._context.incarnation, count)
        if tree is not None:
            self._of_tree(tree)
        try:
            self._shelf.put(self._totals.written())
        except ValueError as error:
            if not self._too_long:
                self._too_long = True
                log.warning("the next incarnation will not know these totals: %s", error)

    def _heard(self, view: View, family: str, labels: Labels, value: float | None) -> None:
        if value is not None:
            self._totals.heard(_counter(family, view.name, *labels), view.of, value)

    def _named(self, view: View) -> None:
        """What is counted under names that the actor gives."""
        data = view.data
        for event, count in _numbers(data, "audit.events"):
            self._heard(view, "portcullis_audit_events", (event,), count)
        self._heard(view, "portcullis_audit_events_dropped", (view.name,), _number(data, "audit.dropped"))
        for what, count in _numbers(data, "counted"):
            self._heard(view, "portcullis_upstream_events", (what,), count)
        for upstream, report in _members(data, "upstreams"):
            for change, count in _numbers(report, "changes"):
                self._heard(view, "portcullis_upstream_changes", (upstream, change), count)
        for upstream, circuit in _members(data, "circuits"):
            for state, count in _numbers(circuit, "transitions"):
                self._heard(view, "portcullis_breaker_transitions", (upstream, state), count)

    def _of_tree(self, tree: Tree) -> None:
        totals = self._totals
        totals.heard(_counter("portcullis_restarts", ""), 1, tree.restarts)
        for worker in tree.workers:
            name = worker.name
            totals.heard(_counter("portcullis_worker_restarts", name, name, worker.role), 1, worker.restarts)
            for actor in worker.actors:
                counter = _counter("portcullis_actor_restarts", name, actor.name)
                totals.heard(counter, worker.incarnation, actor.restarts)

    # --- a scrape ------------------------------------------------------------------------------------------------

    def exposition(
        self, health: Health, views: Sequence[View], tree: Tree | None, own: Mapping[str, int]
    ) -> bytes:
        """In Prometheus' text format."""
        sheet = Sheet()
        self._nothing_yet(sheet)
        self._processes(sheet, tree)
        self.hear(views, tree, own)
        for counter, total in self._totals.everything():
            family, (_, *labels) = split(counter)
            sheet.add(family, total, *labels)
        self._gateway(sheet, health, tree)
        self._actors(sheet, views)
        _upstreams(sheet, health)
        self._acceptors(sheet)
        self._workers(sheet, tree)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(sheet)
        return generate_latest(registry)

    def _nothing_yet(self, sheet: Sheet) -> None:
        """Begin at zero what can be counted by and by: nobody can see an increase from nothing."""
        for family, *values in ZEROS:
            for labels in product(*values):
                sheet.add(family, 0, *labels)
        for upstream in self._context.settings.upstreams:
            for state in _BREAKER_STATES:
                sheet.add("portcullis_breaker_transitions", 0, upstream.name, state)
            for change in ("up", "down", "restarted"):
                sheet.add("portcullis_upstream_changes", 0, upstream.name, change)

    def _gateway(self, sheet: Sheet, health: Health, tree: Tree | None) -> None:
        settings = self._context.settings
        if tree is not None:
            sheet.add("portcullis_build", 1, tree.version)
            sheet.add("portcullis_uptime_seconds", tree.uptime_s)
        sheet.add("portcullis_ready", int(health.ready))
        for status in _STATES:
            sheet.add("portcullis_status", int(status == health.status), status)
        for transport, count in health.connections.items():
            if transport != "total":
                sheet.add("portcullis_connections", count, transport)
        sheet.add("portcullis_connections_limit", settings.ws_max_connections, "ws")
        sheet.add("portcullis_connections_limit", settings.tcp_max_connections, "tcp")
        sheet.add("portcullis_inflight_limit_bytes", settings.max_inflight_bytes)

    def _actors(self, sheet: Sheet, views: Sequence[View]) -> None:
        for view in views:
            sheet.add("portcullis_actor_up", int(view.up), view.name)
            if view.data:
                sheet.add("portcullis_actor_report_age_seconds", view.age_s, view.name)
            if not (view.up and view.data):
                continue  # what it was is no more
            for source in SOURCES:
                if source.kind == view.kind and FAMILIES[source.family].kind == "gauge":
                    _gauge(sheet, source.family, _number(view.data, source.path), *source.labels)
            waiting = "waiting" if view.kind == "audit" else "audit.waiting"
            _gauge(sheet, "portcullis_audit_waiting_events", _number(view.data, waiting), view.name)
            lag = _number(view.data, "audit.lag_ns")
            _gauge(sheet, "portcullis_audit_lag_seconds", lag and lag / 1e9, view.name)
            if view.kind == "acceptor":
                _gauge(sheet, "portcullis_inflight_bytes", _number(view.data, "totals.inflight_bytes"), view.name)
                _gauge(sheet, "portcullis_calls_in_flight", _number(view.data, "totals.calls"), view.name)

    def _processes(self, sheet: Sheet, tree: Tree | None) -> None:
        """The supervisor is this process's parent."""
        rows = [("supervisor", "supervisor", os.getppid(), 0)]
        for worker in tree.workers if tree is not None else ():
            sheet.add("portcullis_worker_up", int(worker.state == "up"), worker.name, worker.role)
            rows.append((worker.name, worker.role, worker.pid, worker.rss_kb * 1024))
        for name, role, pid, told_bytes in rows:
            process = processes.look(pid) if pid > 0 else None
            resident_bytes = told_bytes or (process.resident_bytes if process is not None else 0)
            if resident_bytes:
                sheet.add("portcullis_worker_resident_memory_bytes", resident_bytes, name, role)
            if process is None:
                continue
            if process.open_fds >= 0:
                sheet.add("portcullis_worker_open_fds", process.open_fds, name, role)
            self._totals.heard(_counter("portcullis_worker_cpu_seconds", name, name, role), pid, process.cpu_s)

    def _acceptors(self, sheet: Sheet) -> None:
        """All acceptors' counters and histograms, added up."""
        together = Tally()
        for name in self._context.peers("acceptor"):
            together.add(Tally.load(self._context.shelves.of(name)))
        for counter, value in together.counters.items():
            name, labels = split(counter)
            match name, labels:
                case tally.ACCEPTED, (listener,):
                    sheet.add("portcullis_connections_accepted", value, listener)
                case tally.REFUSED, (listener, reason):
                    sheet.add("portcullis_connections_refused", value, listener, reason)
                case tally.OPENED, (transport,):
                    sheet.add("portcullis_connections_opened", value, transport)
                case tally.CLOSED, (transport,):
                    sheet.add("portcullis_connections_closed", value, transport)
                case tally.TRAFFIC, (listener, what) if what in _TRAFFIC:
                    sheet.add(_TRAFFIC[what], value, listener)
                case tally.COUNTED, (what,):
                    _counted(sheet, what, value)
        sizes, seconds = tally.SIZE_BOUNDS, tally.SECONDS
        for histogram, counted in together.histograms.items():
            name, labels = split(histogram)
            match name:
                case tally.CALL:
                    sheet.histogram("portcullis_call_duration_seconds", counted, seconds, seconds, 1e-9, *labels)
                case tally.OPERATION if len(labels) == 3:
                    upstream, *operation = labels
                    sheet.histogram(
                        "portcullis_call_duration_seconds", counted, seconds, seconds, 1e-9, "total", upstream
                    )
                    family = "mcp_server_operation_duration_seconds"
                    sheet.histogram(family, counted, seconds, _MCP_BOUNDS, 1e-9, *operation)
                case tally.SESSION:
                    family = "mcp_server_session_duration_seconds"
                    sheet.histogram(family, counted, seconds, _MCP_BOUNDS, 1e-9, *labels)
                case tally.REQUEST_SIZE:
                    sheet.histogram("portcullis_call_request_size_bytes", counted, sizes, sizes, 1)
                case tally.RESPONSE_SIZE:
                    sheet.histogram("portcullis_call_response_size_bytes", counted, sizes, sizes, 1)
                case tally.BATCH:
                    bounds = tally.BATCH_BOUNDS
                    sheet.histogram("portcullis_turn_messages", counted, bounds, bounds, 1)

    def _workers(self, sheet: Sheet, tree: Tree | None) -> None:
        """What they measure of themselves."""
        for worker in tree.workers if tree is not None else ():
            found = Tally.load(self._context.shelves.of(worker_place(worker.name)))
            for histogram, counted in found.histograms.items():
                if histogram == tally.LOOP_LAG:
                    family = "portcullis_loop_lag_seconds"
                    sheet.histogram(family, counted, tally.SECONDS, tally.SECONDS, 1e-9, worker.name)
            for counter, value in found.counters.items():
                name, labels = split(counter)
                match name, labels:
                    case tally.MAILBOX_MESSAGES, (actor, lane):
                        sheet.add("portcullis_mailbox_messages", value, actor, lane)
                    case tally.MAILBOX_DRAINS, (actor,):
                        sheet.add("portcullis_mailbox_drains", value, actor)
                    case tally.MAILBOX_REFUSED, (actor,):
                        sheet.add("portcullis_mailbox_refused", value, actor)
            if worker.state == "up":
                for gauge, depth in found.gauges.items():
                    name, labels = split(gauge)
                    if name == tally.MAILBOX_DEPTH and len(labels) == 2:
                        sheet.add("portcullis_mailbox_depth", depth, *labels)


def _upstreams(sheet: Sheet, health: Health) -> None:
    for upstream in health.upstreams:
        sheet.add("portcullis_upstream_available", int(upstream.available), upstream.name)
        sheet.add("portcullis_upstream_in_flight", upstream.in_flight, upstream.name)
        sheet.add("portcullis_upstream_instances", len(upstream.instances), upstream.name)
        for state in _BREAKER_STATES:
            sheet.add("portcullis_breaker_state", int(upstream.breaker == state), upstream.name, state)


def _counted(sheet: Sheet, what: str, value: int) -> None:
    for prefix, family, labels in _COUNTED:
        if what.startswith(prefix):
            sheet.add(family, value, *labels, what.removeprefix(prefix))
            return
    sheet.add("portcullis_acceptor_events", value, what)


def _counter(family: str, owner: str, *labels: str) -> str:
    return tally.key(family, owner, *labels)


def _gauge(sheet: Sheet, family: str, value: float | None, *labels: str) -> None:
    if value is not None:
        sheet.add(family, value, *labels)


def _number(data: object, path: str) -> float | None:
    for name in path.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return float(data) if isinstance(data, int | float) else None


def _members(data: object, path: str) -> Iterator[tuple[str, Any]]:
    """Those of an object, as far as there may be so many."""
    for name in path.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    if isinstance(data, dict):
        yield from list(data.items())[:_MOST_NAMES]


def _numbers(data: object, path: str) -> Iterator[tuple[str, float]]:
    for name, value in _members(data, path):
        if isinstance(value, int | float):
            yield name, float(value)
