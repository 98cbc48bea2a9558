"""The official TypeScript SDK's clients through the gateway to real MCP servers."""

from __future__ import annotations

import json

from gateway import Gateway
from real_clients import bridge_job, run_client, ticket

TIME_CALLS = [["convert_time", {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}]]


def test_websocket_transport_with_a_ticket(real_servers: Gateway, node_client: list[str]) -> None:
    """WebSocketClientTransport offers the subprotocol mcp and can set no header; a ticket in the URL lets it in."""
    url = f"{real_servers.ws_url('time')}?ticket={ticket(real_servers)}"
    outcome = run_client(node_client, {"url": url, "calls": TIME_CALLS})
    assert outcome["server"] == "mcp-time"
    assert set(outcome["tools"]) == {"get_current_time", "convert_time"}
    assert "T21:00:00" in json.loads(outcome["results"][0]["text"])["target"]["datetime"]


def test_stdio_transport_through_the_bridge(real_servers: Gateway, node_client: list[str]) -> None:
    """A stdio-only host written in TypeScript uses the gateway by mcp-secure-client stdio."""
    outcome = run_client(node_client, bridge_job(real_servers, "time", TIME_CALLS))
    assert outcome["results"][0]["error"] is False


def test_the_embedded_server(gateway: Gateway, node_client: list[str]) -> None:
    """What a first run has behind it is a real server to the SDK: its results pass the SDK's own schemas."""
    url = f"{gateway.ws_url()}?ticket={ticket(gateway)}"
    outcome = run_client(node_client, {"url": url, "calls": [["echo", {"text": "héllo"}], ["time", {}]]})
    assert outcome["results"][0] == {"error": False, "text": "héllo"}
    assert outcome["results"][1]["error"] is False
