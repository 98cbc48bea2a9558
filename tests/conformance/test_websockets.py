"""The ``websockets`` library as a client: the ways to authenticate, subprotocols, and a plain conversation."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway
from real_clients import HERE, run_client, ticket

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": "first",
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}
MESSAGES = [
    INITIALIZE,
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 0, "method": "tools/call", "params": {"name": "echo", "arguments": {"text": "hi"}}},
    {"jsonrpc": "2.0", "id": -7, "method": "ping"},
]


def talk(sdk1: Path, url: str, headers: dict[str, str] | None = None, subprotocols: list[str] | None = None) -> Any:
    job = {"url": url, "headers": headers or {}, "subprotocols": subprotocols or [], "messages": MESSAGES}
    return run_client([str(sdk1 / "python"), str(HERE / "scripts" / "websockets_client.py")], job)


def check(outcome: dict[str, Any], subprotocol: str | None) -> None:
    assert outcome["subprotocol"] == subprotocol
    assert outcome["close"] == 1000
    first, second, third = outcome["answers"]
    assert (first["id"], first["result"]["protocolVersion"]) == ("first", "2025-11-25")
    assert (second["id"], second["result"]["content"][0]["text"]) == (0, "hi")
    assert (third["id"], third["result"]) == (-7, {})


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_authorization_header(gateway: Gateway, sdk1: Path, scheme: str) -> None:
    """The ordinary way in: a bearer token in the header, whose scheme has no case (RFC 9110 §11.1)."""
    check(talk(sdk1, gateway.ws_url(), {"Authorization": f"{scheme} {gateway.ws_token}"}), None)


def test_subprotocol_pair(gateway: Gateway, sdk1: Path) -> None:
    """Browsers can set no header but name subprotocols: mcp is agreed to, the one that holds the token never."""
    check(talk(sdk1, gateway.ws_url(), subprotocols=["mcp", f"bearer.{gateway.ws_token}"]), "mcp")
    encoded = base64.urlsafe_b64encode(gateway.ws_token.encode()).decode().rstrip("=")
    check(talk(sdk1, gateway.ws_url(), subprotocols=["mcp", f"bearer64.{encoded}"]), "mcp")


def test_ticket_as_subprotocol(gateway: Gateway, sdk1: Path) -> None:
    """A one-time ticket may come as a subprotocol, too."""
    check(talk(sdk1, gateway.ws_url(), subprotocols=["mcp", f"ticket.{ticket(gateway)}"]), "mcp")


def test_without_or_with_a_wrong_credential_it_gets_401(gateway: Gateway, sdk1: Path) -> None:
    """Nothing is let through on a missing or wrong token, nor on the right one in a place where it must not be."""
    assert talk(sdk1, gateway.ws_url()) == {"status": 401}
    assert talk(sdk1, gateway.ws_url() + f"?token={gateway.ws_token}") == {"status": 401}


def test_a_wrong_token_gets_401(gateway: Gateway, sdk1: Path) -> None:
    """A wrong token is refused; the right scheme is needed as well."""
    assert talk(sdk1, gateway.ws_url(), {"Authorization": "Bearer wrong"}) == {"status": 401}
    assert talk(sdk1, gateway.ws_url(), {"Authorization": f"Basic {gateway.ws_token}"}) == {"status": 401}
