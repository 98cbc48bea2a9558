"""What clients see when an actor raises or a worker is killed, with the real actors and live clients."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway import started
from trio_websocket import ConnectionClosed, HandshakeError
from wire_clients import CLIENTS, request, tcp_client, ws_client

SABOTAGED = str(Path(__file__).parent / "sabotaged_gateway.py")
LOAD = {
    "RATE_LIMIT_BURST_REQUESTS": "100000",
    "RATE_LIMIT_MAX_REQUESTS": "100000",
    "CONNECTION_RATE_LIMIT": "100000",
    "WORKERS": "2",
}
PATIENCE_S = 30


def tree(gateway: Any) -> dict[str, Any]:
    """The workers and actors, from the admin API."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{gateway.health_port}/admin/v1/actors",
        headers={"Authorization": f"Bearer {gateway.admin_token}"},
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return json.load(answer)


def incarnations(snapshot: dict[str, Any]) -> dict[str, tuple[int, str]]:
    """By actor: its incarnation and its state; a worker that has just started has not told of its actors yet."""
    known = {a["name"]: (a["incarnation"], a["state"]) for w in snapshot["workers"] for a in w["actors"]}
    return {name: known.get(name, (0, "unknown")) for name in {*ACTORS, *known}}


async def until(condition: Callable[[], bool], gateway: Any) -> None:
    with trio.move_on_after(PATIENCE_S):
        while not await trio.to_thread.run_sync(condition):
            await trio.sleep(0.05)
        return
    raise AssertionError(f"it did not come to that\n{gateway.tail()}")


async def kill(gateway: Any, role: str) -> list[int]:
    """``kill -9`` all workers of that role, once they all run. Returns their process ids."""
    pids: list[int] = []

    def running() -> bool:
        pids[:] = [w["pid"] for w in tree(gateway)["workers"] if w["role"] == role and w["state"] == "up"]
        # What is told may be a moment old: a worker that is killed a second time has to be another one.
        return bool(pids) and 0 not in pids and all(started(pid) for pid in pids)

    await until(running, gateway)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


async def works(gateway: Any, transport: str) -> None:
    """A new client gets in and gets its answer."""
    async with CLIENTS[transport](gateway) as client:
        await client.initialize()
        answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": transport}})
        assert answer["result"]["content"][0]["text"] == transport


ACTORS = ("acceptor.0", "acceptor.1", "auth", "limiter", "breaker", "audit", "bridge", "validator")


@pytest.mark.parametrize("victim", ACTORS)
async def test_an_actor_that_raises_is_restarted_alone(start_gateway: Any, victim: str) -> None:
    """It gets a new incarnation, no other actor does, no process ends, and clients stay connected."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(program=(SABOTAGED,), environment=LOAD))
    fuses = gateway.state_dir.parent / "sabotage"
    fuses.mkdir()
    pids = set(gateway.workers())
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context((ws_client, tcp_client)[n % 2](gateway)) for n in range(8)]
        for client in clients:
            await client.initialize()
        await until(lambda: all(state == "up" for _, state in incarnations(tree(gateway)).values()), gateway)
        before = incarnations(await trio.to_thread.run_sync(tree, gateway))
        (fuses / victim).touch()

        def is_back() -> bool:
            incarnation, state = incarnations(tree(gateway))[victim]
            return incarnation > before[victim][0] and state == "up"

        await until(is_back, gateway)
        after = incarnations(await trio.to_thread.run_sync(tree, gateway))
        assert {name for name in before if after[name] != before[name]} == {victim}
        assert pids <= set(gateway.workers())
        for number, client in enumerate(clients):
            text = f"still {number}"
            answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": text}}, id=b"%d" % number)
            assert answer["result"]["content"][0]["text"] == text
        await works(gateway, "ws")
        await works(gateway, "tcp")


async def test_every_worker_is_killed_under_load(start_gateway: Any) -> None:
    """While clients connect all the time, every worker is killed with SIGKILL, one after the other: no connection is
    refused, the supervisor stays, a call succeeds after each kill, and whoever is not served hears why."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=LOAD))
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    going = True

    async def one(transport: str) -> None:
        try:
            async with CLIENTS[transport](gateway) as client:
                answer = await client.initialize()
                if "result" in answer:
                    answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": "x"}})
                if "result" in answer:
                    counts["answered"] += 1
                elif answer["error"]["code"] in (502, 503):
                    counts["unavailable"] += 1
                else:
                    wrong.append(str(answer))
        except ConnectionRefusedError:
            counts["refused"] += 1
        except (OSError, EOFError, trio.BrokenResourceError, ConnectionClosed, AssertionError, KeyError) as error:
            counts[f"ended: {type(error).__name__}"] += 1
        except HandshakeError as error:  # trio-websocket wraps what the connect said
            refused = "refused" in str(error.__cause__ or error).lower()
            counts["refused" if refused else f"ended: {type(error).__name__}"] += 1

    async def load(nursery: trio.Nursery) -> None:
        number = 0
        while going:
            nursery.start_soon(one, ("ws", "tcp")[number % 2])
            number += 1
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, nursery)
        await trio.sleep(0.5)
        victims = [w["pid"] for w in (await trio.to_thread.run_sync(tree, gateway))["workers"]]
        assert len(victims) == 6
        assert 0 not in victims
        for pid in victims:
            answered = counts["answered"]
            os.kill(pid, signal.SIGKILL)
            await until(lambda answered=answered: counts["answered"] > answered + 5, gateway)
            await works(gateway, "ws")
            await works(gateway, "tcp")
        going = False
    assert counts["refused"] == 0, counts
    assert wrong == []
    assert counts["answered"] > sum(n for what, n in counts.items() if what != "answered"), counts
    assert gateway.process.poll() is None
    now = {w["pid"] for w in (await trio.to_thread.run_sync(tree, gateway))["workers"]}
    assert not now & set(victims)


async def test_a_killed_bridge_answers_its_calls_and_keeps_its_clients(start_gateway: Any) -> None:
    """Calls in flight are answered with 502 and ``sent``; the sessions go on, without a new handshake, on a new server
    process; the old one and its like are gone."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=LOAD))
    async with ws_client(gateway) as one, tcp_client(gateway) as other:
        for client in (one, other):
            await client.initialize()
            sleep = {"name": "sleep", "arguments": {"seconds": 50}}
            await client.send(request("tools/call", sleep, id=b'"slow"'))
        await one.call("ping")
        await other.call("ping")
        await kill(gateway, "bridge")
        for client in (one, other):
            answer = await client.answer_to(b'"slow"')
            assert answer["error"]["code"] == 502
            assert answer["error"]["data"]["sent"] is True
        await until(lambda: incarnations(tree(gateway))["bridge"][1] == "up", gateway)
        for client in (one, other):
            for _ in range(100):
                answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": "again"}}, id=b"1")
                if "result" in answer:
                    break
                assert answer["error"]["code"] == 503
                await trio.sleep(0.05)
            assert answer["result"]["content"][0]["text"] == "again"
