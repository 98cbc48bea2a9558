"""SIGTERM under load: what is in flight is answered, what is new is refused, nothing is lost."""

from __future__ import annotations

import json
import signal
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed
from wire_clients import request, tcp_client, ws_client

PLENTY = {"WORKERS": "2", "RATE_LIMIT_MAX_REQUESTS": "1000000", "RATE_LIMIT_BURST_REQUESTS": "1000000"}


async def test_sigterm_loses_no_answer(start_gateway: Any) -> None:
    """Every call that was sent before its connection ended has an answer; WebSockets are closed with 1001; exit 0."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=PLENTY))
    counts: Counter[str] = Counter()

    async def go_on(client: Any) -> None:
        """One slow call in flight all the time; ends with the connection, with nothing unanswered."""
        await client.initialize()
        number = 0
        while True:
            number += 1
            arguments = {"name": "sleep", "arguments": {"seconds": 0.4}}
            try:
                await client.send(request("tools/call", arguments, id=b"%d" % number))
                answer = await client.answer_to(b"%d" % number)
            except ConnectionClosed as closed:
                counts[f"closed {closed.reason.code}"] += 1
                return
            except (EOFError, trio.BrokenResourceError):
                counts["ended"] += 1
                return
            counts["answered" if "result" in answer else str(answer["error"]["code"])] += 1
            if "result" not in answer:
                assert answer["error"]["data"]["reason"] == "draining"

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context((ws_client, tcp_client)[n % 2](gateway)) for n in range(10)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(go_on, client)
            while counts["answered"] < 20:
                await trio.sleep(0.02)
            gateway.process.send_signal(signal.SIGTERM)
    assert counts["closed 1001"] == 5, counts
    assert counts["ended"] == 5, counts
    await trio.to_thread.run_sync(gateway.process.wait)
    await trio.to_thread.run_sync(gateway.stop)  # only looks for what is left
    records = [json.loads(line.removeprefix("SECURITY ")) for line in
               "".join(p.read_text() for p in sorted(gateway.audit_dir.iterdir())).splitlines()]
    completed = [r for r in records if r["event"] == "call.completed"]
    answered = [r for r in completed if r["detail"]["outcome"] == "answered"]
    assert len(answered) == counts["answered"]
    assert {r["detail"]["outcome"] for r in completed} == {"answered"}
    assert records[-1]["event"] == "gateway.stopped"


async def test_the_end_of_the_drain_is_no_silence(start_gateway: Any) -> None:
    """Calls that outlast DRAIN_TIMEOUT_MS are answered before their connections end (502: the server has them, and
    nobody knows what becomes of them), WebSockets with 1001; and every newcomer of that time is answered or refused,
    not reset."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=PLENTY | {"DRAIN_TIMEOUT_MS": "2000"}))
    newcomers: Counter[str] = Counter()

    async def knock() -> None:
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
            except OSError:
                newcomers["refused"] += 1
                return
            async with stream:
                try:
                    line = await stream.receive_some(4096)
                    newcomers["answered" if b"draining" in line else f"other {line!r}"] += 1
                except trio.BrokenResourceError:
                    newcomers["reset"] += 1
            await trio.sleep(0.01)

    async with ws_client(gateway) as ws, tcp_client(gateway) as tcp:
        for client in (ws, tcp):
            await client.initialize()
            await client.send(request("tools/call", {"name": "sleep", "arguments": {"seconds": 50}}, id=b"1"))
            await client.call("ping")
        gateway.process.send_signal(signal.SIGTERM)
        while not any("draining" in line for line in gateway.log):
            await trio.sleep(0.02)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(knock)
            for client in (ws, tcp):
                answer = await client.answer_to(b"1")
                assert answer["error"]["code"] == 502
                assert answer["error"]["data"] == {"reason": "draining", "sent": True}
            with pytest.raises(ConnectionClosed) as closed:
                await ws.next()
            assert closed.value.reason.code == 1001
    assert newcomers["refused"] == 1
    assert newcomers["answered"] > 0
    assert set(newcomers) == {"refused", "answered"}, newcomers
    await trio.to_thread.run_sync(gateway.process.wait)


async def test_a_second_signal_ends_at_once(start_gateway: Any) -> None:
    """Without waiting for the call in flight; and even so nothing is left behind."""
    gateway = await trio.to_thread.run_sync(start_gateway)
    async with tcp_client(gateway) as client:
        await client.initialize()
        await client.send(request("tools/call", {"name": "sleep", "arguments": {"seconds": 50}}, id=b"1"))
        await client.call("ping")
        gateway.process.send_signal(signal.SIGTERM)
        while not any("draining" in line for line in gateway.log):
            await trio.sleep(0.02)
        await trio.to_thread.run_sync(lambda: gateway.stop(code=128 + signal.SIGTERM))
