"""The gateway and a real browser: what a page of a listed origin can do, and what one of another origin can't."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from browser import CHROMIUM, dom_of, page_server, script_page, visit
from http_exchange import exchange, head, upgrade
from requirement import need

SCRIPT = Path(__file__).parent.parent / "pages" / "gateway.js"


@pytest.fixture(autouse=True)
def _chromium() -> None:
    need(CHROMIUM, "Chromium is not installed (Debian: apt-get install chromium)")


def production(origin: str) -> dict[str, str]:
    """As behind a TLS proxy, for one origin."""
    return {
        "SECURITY_PROFILE": "production",
        "SSL_ENABLED": "false",
        "WORKERS": "2",
        "CORS_ALLOWED_ORIGINS": origin,
        "AUTO_BLOCK_ENABLED": "false",
        "RATE_LIMIT_BURST_REQUESTS": "100",
    }


async def issued(gateway: Any) -> str:
    """A ticket that this test got for itself."""
    answer = await exchange(gateway.ws_port, head("POST", "/auth/ticket", f"Authorization: Bearer {gateway.ws_token}"))
    assert answer.status == 200
    return str(json.loads(answer.body)["ticket"])


def config(gateway: Any, **more: str) -> dict[str, str]:
    where = f"127.0.0.1:{gateway.ws_port}"
    return {"http": f"http://{where}", "ws": f"ws://{where}", "token": gateway.ws_token, **more}


async def test_a_page_of_a_listed_origin_works(start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    """It reads health and errors with their headers, gets a ticket by a preflighted request, and opens WebSockets by
    token and by ticket; what isn't listed for it (a header, a method, credentials) fails."""
    with page_server() as app:
        gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=production(app.origin)))
        app.page = script_page(SCRIPT, config(gateway))
        found = await trio.to_thread.run_sync(visit, app, tmp_path / "profile")
    assert found["health"]["status"] == 200
    assert json.loads(found["health"]["body"])["status"] == "healthy"
    assert found["health"]["headers"]["ratelimit-policy"] == '"default";q=100;w=60, "burst";q=100;w=1'
    assert found["missing"]["status"] == 404
    assert found["issued"]["status"] == 200
    assert found["wrongToken"]["status"] == 401
    assert found["wrongToken"]["headers"]["www-authenticate"].startswith("Bearer")
    assert json.loads(found["wrongToken"]["body"])["status"] == 401
    assert found["opaque"]["type"] == "opaque"
    for name in ("healthWithCredentials", "unlistedHeader", "unlistedMethod"):
        assert found[name] == {"refused": "TypeError"}, name
    for name in ("byBearer", "byTicketInQuery", "byTicketAsProtocol"):
        assert found[name]["opened"], name
        assert found[name]["protocol"] == "mcp", name
        assert found[name]["answer"] is not None, found[name]
        assert found[name]["answer"]["result"] == {}, name
        assert found[name]["code"] == 1000, name
    assert found["withoutCredential"] == {"opened": False, "protocol": None, "answer": None, "code": 1006}


async def test_a_page_of_another_origin_does_not(start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    """Even with a good token and a good ticket it reads nothing and opens nothing; the ticket isn't used up by that."""
    with page_server() as app, page_server() as other:
        gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=production(app.origin)))
        ticket = await issued(gateway)
        other.page = script_page(SCRIPT, config(gateway, ticket=ticket))
        found = await trio.to_thread.run_sync(visit, other, tmp_path / "profile")
        assert set(found) == {
            "health", "healthWithCredentials", "missing", "issued", "wrongToken", "unlistedHeader", "unlistedMethod",
            "opaque", "byBearer", "byTicketInQuery", "byTicketAsProtocol", "withoutCredential",
        }  # fmt: skip
        assert found.pop("opaque")["type"] == "opaque"  # sent, answered 403, and not to be read
        for name, finding in found.items():
            if "opened" in finding:
                assert finding == {"opened": False, "protocol": None, "answer": None, "code": 1006}, name
            else:
                assert finding == {"refused": "TypeError"}, name
        stream = await trio.open_tcp_stream("127.0.0.1", gateway.ws_port)
        with trio.fail_after(60):
            async with stream:
                await stream.send_all(upgrade(f"Sec-WebSocket-Protocol: mcp, ticket.{ticket}", f"Origin: {app.origin}"))
                assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 101 ")


async def test_a_name_that_was_made_to_point_here_shows_nothing(
    start_gateway: Callable[..., Any], tmp_path: Path
) -> None:
    """To the browser the gateway is same-origin with a page of that name; its Host is what gives it away."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=production("https://app.example")))
    own = await trio.to_thread.run_sync(dom_of, f"http://localhost:{gateway.ws_port}/health", tmp_path / "one")
    assert '"healthy"' in own
    rebound = await trio.to_thread.run_sync(dom_of, f"http://rebound.test:{gateway.ws_port}/health", tmp_path / "two")
    assert "this Host is not served here" in rebound
    assert "healthy" not in rebound
