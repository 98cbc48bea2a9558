"""How the gateway says that it is well, on both ports."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import trio
from http_exchange import Answer, exchange, head
from test_crashes import tree, until
from wire_clients import tcp_client

MEMBERS = {"status", "uptime", "version", "connections", "actors", "upstreams", "restarts"}


async def of_clients_port(gateway: Any, *fields: str) -> Answer:
    return await exchange(gateway.ws_port, head("GET", "/health", *fields))


async def of_health_port(gateway: Any, path: str) -> tuple[int, dict[str, Any]]:
    answer = await exchange(gateway.health_port, head("GET", path, "Connection: close"))
    return answer.status, json.loads(answer.body)


async def test_the_clients_port_says_one_word_and_the_rest_to_who_is_authenticated(gateway: Any) -> None:
    """The whole document for a good token, 401 for a bad one, which counts as a failed authentication; on the health
    port it is open, because that is bound to loopback."""
    async with tcp_client(gateway) as client:
        await client.initialize()
        with trio.fail_after(60):
            status, document = await of_health_port(gateway, "/health")
            while document.get("connections", {}).get("total") != 1 or document["status"] != "healthy":
                await trio.sleep(0.05)
                status, document = await of_health_port(gateway, "/health")
        assert status == 200
        assert document.keys() >= MEMBERS
        assert document["upstreams"]["embedded"]["state"] == "up"
        assert document["upstreams"]["embedded"]["breaker"] == "closed"
        short = await of_clients_port(gateway)
        assert (short.status, json.loads(short.body)) == (200, {"status": "healthy"})
        full = await of_clients_port(gateway, f"Authorization: Bearer {gateway.ws_token}")
        assert full.status == 200
        assert json.loads(full.body).keys() >= MEMBERS
        for wrong in ("Bearer wrong", f"Bearer {gateway.tcp_token}"):
            refused = await of_clients_port(gateway, f"Authorization: {wrong}")
            assert refused.status == 401
            assert MEMBERS.isdisjoint(refused.problem().keys() - {"status"})


async def test_a_stopped_server_and_a_dead_policy_worker_show(start_gateway: Any) -> None:
    """Not ready and unhealthy while the policy worker is down, with 503 and the reasons; alive all the while; well
    again without anybody's help."""
    gateway = start_gateway(environment={"HEARTBEAT_TIMEOUT_MS": "30000"})
    assert await of_health_port(gateway, "/livez") == (200, {"status": "alive"})

    async def say(path: str, wanted: int) -> dict[str, Any]:
        with trio.fail_after(60):
            while True:
                status, document = await of_health_port(gateway, path)
                if status == wanted:
                    return document
                await trio.sleep(0.05)

    assert await say("/readyz", 200) == {"ready": True, "reasons": []}
    workers = _workers(gateway)
    # It can't be started anew while the supervisor stands still.
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        os.kill(workers["policy"], signal.SIGKILL)
        unready = await say("/readyz", 503)
        assert unready["ready"] is False
        assert any("auth is down" in reason for reason in unready["reasons"])
        unwell = await say("/health", 503)
        assert unwell["status"] == "unhealthy"
        assert await of_health_port(gateway, "/livez") == (200, {"status": "alive"})
    finally:
        os.kill(gateway.pid, signal.SIGCONT)
    await say("/readyz", 200)
    await until(lambda: _workers(gateway)["policy"] not in (0, workers["policy"]), gateway)


def _workers(gateway: Any) -> dict[str, int]:
    return {worker["name"]: worker["pid"] for worker in tree(gateway)["workers"]}
