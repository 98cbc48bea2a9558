"""The official Python SDK's clients, of both major versions, through the gateway to real MCP servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gateway import Gateway
from real_clients import HERE, bridge_job, run_client, ticket

TIME_CALLS = [["get_current_time", {"timezone": "Europe/Berlin"}]]


def sdk1_client(sdk1: Path) -> list[str]:
    return [str(sdk1 / "python"), str(HERE / "scripts" / "sdk1_client.py")]


def sdk2_client(sdk2: Path) -> list[str]:
    return [str(sdk2 / "python"), str(HERE / "scripts" / "sdk2_client.py")]


def test_websocket_client_with_a_ticket_calls_the_time_server(real_servers: Gateway, sdk1: Path) -> None:
    """SDK 1.30's websocket_client can set no header; a one-time ticket in the URL lets it in."""
    url = f"{real_servers.ws_url('time')}?ticket={ticket(real_servers)}"
    outcome = run_client(sdk1_client(sdk1), {"url": url, "calls": TIME_CALLS})
    assert outcome["server"] == "mcp-time"
    assert set(outcome["tools"]) == {"get_current_time", "convert_time"}
    assert outcome["results"][0]["error"] is False
    assert json.loads(outcome["results"][0]["text"])["timezone"] == "Europe/Berlin"


def test_websocket_client_calls_the_git_server(real_servers: Gateway, sdk1: Path, repository: Path) -> None:
    """The second server behind the same gateway, chosen by its path, answers from a real repository."""
    url = f"{real_servers.ws_url('git')}?ticket={ticket(real_servers)}"
    calls = [["git_log", {"repo_path": str(repository)}], ["git_status", {"repo_path": str(repository)}]]
    outcome = run_client(sdk1_client(sdk1), {"url": url, "calls": calls})
    assert "git_log" in outcome["tools"]
    assert "The first commit of this repository" in outcome["results"][0]["text"]
    assert "nothing to commit" in outcome["results"][1]["text"]


def test_a_ticket_works_once(real_servers: Gateway, sdk1: Path) -> None:
    """The same ticket a second time is refused."""
    url = f"{real_servers.ws_url('time')}?ticket={ticket(real_servers)}"
    run_client(sdk1_client(sdk1), {"url": url, "calls": []})
    with pytest.raises(AssertionError, match="401"):
        run_client(sdk1_client(sdk1), {"url": url, "calls": []})


def test_stdio_client_reaches_the_gateway_through_the_bridge(real_servers: Gateway, sdk1: Path) -> None:
    """A host that knows only stdio names mcp-secure-client stdio as its server."""
    outcome = run_client(sdk1_client(sdk1), bridge_job(real_servers, "time", TIME_CALLS))
    assert outcome["server"] == "mcp-time"
    assert json.loads(outcome["results"][0]["text"])["timezone"] == "Europe/Berlin"


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_sdk2_stdio_client_with_an_older_server(real_servers: Gateway, sdk2: Path, mode: str) -> None:
    """SDK 2.x works with a server of SDK 1.x, whether it initialises at once or probes for the newer era first."""
    outcome = run_client(sdk2_client(sdk2), bridge_job(real_servers, "time", TIME_CALLS) | {"mode": mode})
    assert json.loads(outcome["results"][0]["text"])["timezone"] == "Europe/Berlin"


@pytest.mark.parametrize(
    ("mode", "version"), [("legacy", "2025-11-25"), ("auto", "2026-07-28"), ("2026-07-28", "2026-07-28")]
)
def test_sdk2_stdio_client_in_both_eras(gateway: Gateway, sdk2: Path, mode: str, version: str) -> None:
    """With a server that speaks both, SDK 2.x gets the era that it asks for, and the newer one when it may choose."""
    job = bridge_job(gateway, "", [["echo", {"text": "¡hola!"}]]) | {"mode": mode}
    outcome = run_client(sdk2_client(sdk2), job)
    assert outcome["version"] == version
    assert outcome["results"] == [{"error": False, "text": "¡hola!"}]
