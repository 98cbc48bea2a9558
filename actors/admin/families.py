"""The table of all metrics: every name that ``/metrics`` may show, its kind, its labels, and what it means.

``ops/docs/metrics.md`` has a line for each, and the dashboards and alerts use no other; tests hold them to it. Units
are Prometheus's base units. Labels hold names of ours and of the configuration only.
"""

from __future__ import annotations

from typing import Literal

import attrs

Kind = Literal["counter", "gauge", "histogram", "info"]


@attrs.frozen
class Family:
    """``name`` is without ``_total``, ``_bucket`` and the like."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def samples(self) -> tuple[str, ...]:
        """The names under which its values are shown."""
        match self.kind:
            case "counter":
                return (f"{self.name}_total",)
            case "histogram":
                return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
            case "info":
                return (f"{self.name}_info",)
            case _:
                return (self.name,)


def _rows(*rows: tuple[str, Kind, str, str]) -> dict[str, Family]:
    return {name: Family(name, kind, text, tuple(labels.split())) for name, kind, labels, text in rows}


FAMILIES = _rows(
    # the gateway
    ("portcullis_build", "info", "version", "Version of the gateway."),
    ("portcullis_uptime_seconds", "gauge", "", "Time since the start."),
    ("portcullis_ready", "gauge", "", "1 if new clients are welcome."),
    ("portcullis_status", "gauge", "status", "1 for the status that holds: healthy, degraded or unhealthy."),
    ("portcullis_restarts", "counter", "", "Restarts of workers and actors, all together."),
    # connections and messages
    ("portcullis_connections", "gauge", "transport", "Open client connections."),
    ("portcullis_connections_limit", "gauge", "listener", "WS_MAX_CONNECTIONS and TCP_MAX_CONNECTIONS."),
    ("portcullis_connections_accepted", "counter", "listener", "Connections accepted from the network."),
    ("portcullis_connections_opened", "counter", "transport", "Connections that were let in."),
    ("portcullis_connections_closed", "counter", "transport", "Connections that were let in and have ended."),
    ("portcullis_connections_refused", "counter", "listener reason", "Connections refused: block, rate, limit, tls, …"),
    ("portcullis_messages_received", "counter", "listener", "Messages of clients."),
    ("portcullis_messages_sent", "counter", "listener", "Messages to clients."),
    ("portcullis_received_bytes", "counter", "listener", "Bytes of clients, before TLS is taken off."),
    ("portcullis_sent_bytes", "counter", "listener", "Bytes to clients."),
    ("portcullis_refusals", "counter", "code", "Messages that the gateway refused, by the error's code."),
    ("portcullis_calls_failed", "counter", "code", "Forwarded calls that failed, by the code their client got."),
    ("portcullis_offences", "counter", "kind", "What clients did wrong: auth, malformed, rate, content, probe, …"),
    ("portcullis_content_findings", "counter", "action rule", "Messages in which a content rule found something."),
    ("portcullis_acceptor_events", "counter", "what", "Other things that the acceptors count."),
    ("portcullis_inflight_bytes", "gauge", "actor", "Clients' bytes that this acceptor holds."),
    ("portcullis_inflight_limit_bytes", "gauge", "", "MAX_INFLIGHT_BYTES, for all workers together."),
    ("portcullis_calls_in_flight", "gauge", "actor", "Calls that wait for their answer."),
    # latency and sizes (PERFORMANCE_MONITORING)
    ("portcullis_call_duration_seconds", "histogram", "stage upstream",
     "Calls: policy (received to forwarded), upstream (forwarded to answered), total."),
    ("mcp_server_operation_duration_seconds", "histogram", "mcp_method_name error_type",
     "OpenTelemetry's mcp.server.operation.duration: calls as clients see them."),
    ("mcp_server_session_duration_seconds", "histogram", "network_transport",
     "OpenTelemetry's mcp.server.session.duration: how long connections were open."),
    ("portcullis_call_request_size_bytes", "histogram", "", "Size of forwarded requests."),
    ("portcullis_call_response_size_bytes", "histogram", "", "Size of answers."),
    ("portcullis_turn_messages", "histogram", "", "Messages that an acceptor took in one turn of its loop."),
    ("portcullis_loop_lag_seconds", "histogram", "worker", "How late a worker's loop came round."),
    ("portcullis_mailbox_messages", "counter", "actor lane", "Messages that came into an actor's mailbox."),
    ("portcullis_mailbox_drains", "counter", "actor", "How often it was emptied; messages by drains is the batch."),
    ("portcullis_mailbox_refused", "counter", "actor", "Messages for which it had no room."),
    ("portcullis_mailbox_depth", "gauge", "actor lane", "Messages that waited in it, when last looked at."),
    # who may
    ("portcullis_authentications", "counter", "outcome", "Credentials: ok or failed."),
    ("portcullis_anonymous_grants", "counter", "", "Connections let in without a credential."),
    ("portcullis_tickets", "counter", "outcome", "One-time tickets: issued, redeemed or refused."),
    ("portcullis_sessions", "gauge", "", "Issued sessions that are live."),
    ("portcullis_revocations", "gauge", "", "Revocations kept."),
    ("portcullis_auth_store_errors", "counter", "", "Sessions or revocations that could not be written."),
    ("portcullis_blocks", "gauge", "", "Blocks in force."),
    ("portcullis_blocks_unwritten", "gauge", "", "Blocks in force that are not on disk yet."),
    ("portcullis_block_store_errors", "counter", "", "Blocks that could not be written at once."),
    ("portcullis_rate_limited", "counter", "", "Lease requests that found the limit reached."),
    ("portcullis_limiter_leases", "counter", "", "Leases granted to acceptors."),
    ("portcullis_limiter_units", "counter", "what", "Units of budget: granted, forfeited, overspent."),
    ("portcullis_limiter_keys", "gauge", "", "Clients whose budget is tracked."),
    ("portcullis_limiter_admissions", "counter", "outcome", "Connections: admitted, or refused by block, limit, rate."),
    ("portcullis_limiter_journal_errors", "counter", "", "Budgets that could not be written down."),
    # audit
    ("portcullis_audit_events", "counter", "event", "Security events, each counted, also where records are merged."),
    ("portcullis_audit_events_dropped", "counter", "actor", "Events for which there was no room."),
    ("portcullis_audit_waiting_events", "gauge", "actor", "Events that are not in the log yet."),
    ("portcullis_audit_lag_seconds", "gauge", "actor", "Age of the oldest of them."),
    ("portcullis_audit_failing", "gauge", "", "1 while the log can't be written."),
    ("portcullis_audit_records", "counter", "", "Records written."),
    ("portcullis_audit_bytes", "counter", "", "Bytes written."),
    ("portcullis_audit_gaps", "counter", "", "Gaps recorded in the log."),
    ("portcullis_audit_rotations", "counter", "", "Files begun anew."),
    ("portcullis_audit_errors", "counter", "what", "Failed attempts to write or to sync."),
    # servers
    ("portcullis_upstream_available", "gauge", "upstream", "1 if calls may pass."),
    ("portcullis_upstream_in_flight", "gauge", "upstream", "Calls in flight."),
    ("portcullis_upstream_instances", "gauge", "upstream", "Running processes or connections of it."),
    ("portcullis_upstream_changes", "counter", "upstream change", "Times that an instance went up, down, restarted."),
    ("portcullis_upstream_events", "counter", "what", "What the servers' keepers count: dropped, oversize, …"),
    ("portcullis_breaker_state", "gauge", "upstream state", "1 for the state that the breaker is in."),
    ("portcullis_breaker_transitions", "counter", "upstream state", "Times that the breaker went into that state."),
    ("portcullis_validator_messages", "counter", "verdict", "Large messages: valid or invalid."),
    ("portcullis_validator_bytes", "counter", "", "Bytes of them."),
    # actors and processes
    ("portcullis_worker_up", "gauge", "worker role", "1 if the worker process is up."),
    ("portcullis_worker_restarts", "counter", "worker role", "Restarts of a worker."),
    ("portcullis_worker_resident_memory_bytes", "gauge", "worker role", "Resident memory of a process."),
    ("portcullis_worker_cpu_seconds", "counter", "worker role", "Processor time of a worker, all its processes."),
    ("portcullis_worker_open_fds", "gauge", "worker role", "Open descriptors of a process."),
    ("portcullis_actor_up", "gauge", "actor", "1 if the actor is up."),
    ("portcullis_actor_restarts", "counter", "actor", "Restarts of an actor."),
    ("portcullis_actor_report_age_seconds", "gauge", "actor", "Age of the actor's figures here."),
    ("portcullis_admin", "counter", "what", "What the health listener did."),
)  # fmt: skip
