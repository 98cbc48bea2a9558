"""An acceptor's statistics, for the admin process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import msgspec

from .connection import Stage

if TYPE_CHECKING:
    from .hub import Hub


def acceptor(hub: Hub) -> bytes:
    """The acceptor's live connections and totals, as a JSON object."""
    now = hub.now
    connections = [
        {
            "id": hub.public_id(connection),
            "transport": connection.transport,
            "peer": _endpoint(connection.peer_ip, connection.peer_port),
            "principal": connection.grant.principal if connection.grant else "",
            "age_s": round((now - connection.opened_ns) / 1e9, 3),
            "idle_s": round((now - connection.idle_since_ns) / 1e9, 3),
            "messages_in": connection.messages_in,
            "messages_out": connection.messages_out,
            "bytes_in": connection.bytes_in,
            "bytes_out": connection.bytes_out,
            "upstream": connection.upstream,
            "worker": hub.context.worker,
        }
        for connection in hub.connections.values()
        if connection.stage is Stage.OPEN
    ]
    return msgspec.json.encode(
        {
            "connections": connections,
            "totals": {
                "connections": len(hub.connections),
                "open": len(connections),
                "refused": hub.refused,
                "faults": hub.faults,
                "calls": sum(len(connection.calls) for connection in hub.connections.values()),
                "inflight_bytes": hub.inflight.held,
                **hub.traffic.with_those(hub.connections.values()),
                **hub.counts,
            },
            "upstreams": (pool := hub.routes.pool.describe())["upstreams"],
            "counted": pool["counted"],
            "audit": attrs.asdict(hub.audit.statistics()),
            "breakers": hub.routes.breakers.describe(),
            "catalogue": hub.catalogue.statistics(),
        }
    )


def _endpoint(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
