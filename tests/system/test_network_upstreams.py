"""The whole gateway in front of network servers: real clients, real workers, real kills."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gateway as gateways
import pytest
import sdk_servers
import trio
from wire_clients import CLIENTS, request, tcp_client, ws_client

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "wire", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def health(gateway: Any) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.health_port, timeout=30)
    connection.request("GET", "/health")
    document = json.loads(connection.getresponse().read())
    connection.close()
    return dict(document)


async def until(gateway: Any, condition: Any) -> dict[str, Any]:
    with trio.move_on_after(60):
        while True:
            document = await trio.to_thread.run_sync(health, gateway)
            if condition(document["upstreams"]):
                return document
            await trio.sleep(0.05)
    raise AssertionError(json.dumps(document["upstreams"]))


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, sdk_servers.SdkServer]]:
    with ExitStack() as stack:
        yield {
            "modern": stack.enter_context(sdk_servers.running(tmp_path, "sdk2")),
            "ws": stack.enter_context(sdk_servers.running(tmp_path, "sdk1", "websocket")),
        }


async def test_one_link_serves_the_clients_of_all_workers(start_gateway: Any, servers: Any) -> None:
    """Two workers, two transports, the same ids: each client gets its own, over one link a server and version; a
    client's credential goes nowhere; and kill -9 of the bridge worker is an answer at once and leaves nothing."""
    config = {name: {"url": server.url, "headers": {"X-Own": "${OWN}"}} for name, server in servers.items()}
    environment = {"WORKERS": "2", "RATE_LIMIT_BURST_REQUESTS": "1000", "OWN": "mine"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=config, environment=environment))

    async def one(number: int, transport: str, server: str) -> None:
        async with CLIENTS[transport](gateway, server=server) as client:
            await client.initialize()
            for raw_id in (b"1", b'"1"'):
                params: dict[str, Any] = {
                    "name": "sleep",
                    "arguments": {"seconds": 0.2, "steps": 1 + number},
                    "_meta": {"progressToken": 1},
                }
                await client.send(request("tools/call", params, id=raw_id))
                assert (await client.answer_to(raw_id))["result"]["content"][0]["text"] == "slept"
            steps = [json.loads(raw)["params"]["progress"] for raw in await client.nothing_more()]
            assert steps == [float(step + 1) for step in range(1 + number)] * 2

    async with trio.open_nursery() as nursery:
        for number, (transport, server) in enumerate([(t, s) for t in CLIENTS for s in servers] * 2):
            nursery.start_soon(one, number, transport, server)
    await until(gateway, lambda upstreams: all(len(upstreams[name]["instances"]) == 1 for name in servers))

    async with ws_client(gateway, server="modern") as client:
        for name, value in (("x-own", "mine"), ("authorization", ""), ("cookie", "")):
            params = {"name": "header", "arguments": {"name": name}, "_meta": MODERN}
            answer = await client.call("tools/call", params)
            assert answer["result"]["content"][0]["text"] == value

        await client.send(
            request("tools/call", {"name": "sleep", "arguments": {"seconds": 60, "steps": 0}, "_meta": MODERN}, id=b"9")
        )
        await until(gateway, lambda upstreams: upstreams["modern"]["in_flight"] == 1)
        bridge = _worker(gateway, "bridge")
        assert bridge in gateway.workers()
        os.kill(bridge, signal.SIGKILL)
        lost = await client.answer_to(b"9")
        assert lost["error"]["code"] == 502
        assert lost["error"]["data"]["sent"] is True
        with trio.fail_after(60):
            while True:
                params = {"name": "echo", "arguments": {"text": "again"}, "_meta": MODERN}
                answer = await client.call("tools/call", params, id=b"10")
                if "result" in answer:
                    break
                assert answer["error"]["code"] == 503
        assert answer["result"]["content"][0]["text"] == "again"


def _worker(gateway: Any, name: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.health_port, timeout=30)
    connection.request("GET", "/admin/v1/actors", headers={"Authorization": f"Bearer {gateway.admin_token}"})
    tree = json.loads(connection.getresponse().read())
    connection.close()
    return next(int(worker["pid"]) for worker in tree["workers"] if worker["name"] == name)


async def test_health_checks_open_and_close_the_breaker_of_every_kind(
    start_gateway: Any, servers: Any, tmp_path: Path
) -> None:
    """Servers that hang while nobody calls are found out, over stdio, TCP, WebSocket and HTTP; their breakers open, and
    close by themselves when the servers go on. Nobody has called in all that time."""
    port_file = tmp_path / "port"
    program = [sys.executable, str(UPSTREAMS / "two_era.py")]
    tcp = await trio.to_thread.run_sync(lambda: subprocess.Popen([*program, "--tcp", str(port_file)]))
    try:
        with trio.fail_after(30):
            while not port_file.exists():
                await trio.sleep(0.01)
        config = {
            "stdio": {"command": program[0], "args": program[1:]},
            "tcp": {"url": f"tcp://127.0.0.1:{port_file.read_text()}"},
            **{name: {"url": server.url} for name, server in servers.items()},
        }
        environment = {
            "HEALTH_CHECK_INTERVAL": "200",
            "CIRCUITBREAKER_FAILURE_THRESHOLD": "2",
            "CIRCUITBREAKER_RESET_TIMEOUT": "500",
            "CIRCUITBREAKER_SUCCESSES_TO_CLOSE": "2",
        }
        gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=config, environment=environment))
        async with (
            tcp_client(gateway, server="stdio") as one,
            tcp_client(gateway, server="tcp") as two,
            tcp_client(gateway, server="ws") as three,
            tcp_client(gateway, server="modern") as four,
        ):
            for client in (one, two, three):
                assert "result" in await client.initialize()
            assert "result" in await four.call("tools/list", {"_meta": MODERN})
            document = await until(
                gateway, lambda upstreams: all(one["state"] == "up" for one in upstreams.values())
            )
            stdio = document["upstreams"]["stdio"]["instances"][0]["pid"]
            assert stdio in gateways.descendants(gateway.pid)
            pids = [stdio, tcp.pid, *(server.process.pid for server in servers.values())]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                for name in config:
                    await until(gateway, lambda upstreams, name=name: upstreams[name]["breaker"] != "closed")
                assert health(gateway)["status"] != "healthy"
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            await until(gateway, lambda upstreams: all(one["breaker"] == "closed" for one in upstreams.values()))
            await until(
                gateway,
                lambda upstreams: not any(i["silent"] for one in upstreams.values() for i in one["instances"]),
            )
            for client in (one, two, three):
                assert "result" in await client.call("ping")
    finally:
        tcp.kill()
        tcp.wait()


async def test_a_server_that_is_not_there_yet(start_gateway: Any, tmp_path: Path) -> None:
    """Calls fail at once as unavailable until it listens; then the next one works."""
    with sdk_servers.running(tmp_path, "sdk1") as server:
        server.kill()
        gateway = await trio.to_thread.run_sync(
            lambda: start_gateway(
                servers={"late": {"type": "http", "url": server.url}},
                environment={"CIRCUITBREAKER_FAILURE_THRESHOLD": "1000", "CIRCUITBREAKER_MINIMUM_CALLS": "1000"},
            )
        )
        async with ws_client(gateway) as client:
            answer = await client.call("tools/list", {"_meta": MODERN})
            assert answer["error"]["code"] == 503
            assert "cannot connect" in answer["error"]["data"]["reason"]
            another = await trio.to_thread.run_sync(server.again)
            try:
                with trio.fail_after(60):
                    while "error" in (answer := await client.initialize()):
                        assert answer["error"]["code"] == 503
                        await trio.sleep(0.05)
                params = {"name": "echo", "arguments": {"text": "there"}}
                assert (await client.call("tools/call", params))["result"]["content"][0]["text"] == "there"
            finally:
                another.kill()
