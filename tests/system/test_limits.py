"""Limits hold across all workers and connections together, and through the death of the one that counts."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from test_crashes import kill
from trio_websocket import ConnectionRejected, open_websocket_url
from wire_clients import TcpClient, WireClient, request, tcp_client, ws_client

TWO = {"WORKERS": "2", "CONNECTION_RATE_LIMIT": "100000"}
ECHO = {"name": "echo", "arguments": {"text": "x"}}


async def hammer(client: WireClient, calls: int, codes: Counter[int]) -> None:
    """Send that many calls at once and count the codes of their answers; 0 is a result."""
    for number in range(calls):
        await client.send(request("ping", id=b"%d" % number))
    for number in range(calls):
        answer = await client.answer_to(b"%d" % number)
        codes[answer.get("error", {}).get("code", 0)] += 1


async def test_the_window_is_one_for_all_connections_and_workers(start_gateway: Any) -> None:
    """Ten connections on two workers get exactly the limit between them; whoever is refused hears when to come back."""
    environment = TWO | {"RATE_LIMIT_MAX_REQUESTS": "60", "RATE_LIMIT_BURST_REQUESTS": "60"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    codes: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context((ws_client, tcp_client)[n % 2](gateway)) for n in range(10)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(hammer, client, 20, codes)
        assert codes == {0: 55, 429: 145}  # the five upgrades were messages of that window too
        refused = await clients[0].call("ping")
        assert 0 < refused["error"]["data"]["retryAfterMs"] <= 60_000
    async with tcp_client(gateway) as again:
        assert (await again.call("ping"))["error"]["code"] == 429


async def test_a_killed_policy_worker_renews_no_budget(start_gateway: Any) -> None:
    """However often the one that counts is killed, no more than the limit passes; and nothing passes unchecked."""
    environment = TWO | {"RATE_LIMIT_MAX_REQUESTS": "40", "RATE_LIMIT_BURST_REQUESTS": "40"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    codes: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context((ws_client, tcp_client)[n % 2](gateway)) for n in range(4)]
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(hammer, client, 5, codes)
            await kill(gateway, "policy")
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(hammer, client, 5, codes)
    assert 0 < codes[0] <= 40, codes
    assert set(codes) <= {0, 429, 503}


async def test_connection_totals_hold_over_both_workers(start_gateway: Any) -> None:
    """The sixth of five is refused in the language of its listener, whichever worker it meets; a place that is given
    up is free again; an edge worker that is killed frees the places of its connections."""
    environment = TWO | {"TCP_MAX_CONNECTIONS": "5", "WS_MAX_CONNECTIONS": "5"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    async with AsyncExitStack() as stack:
        tcp = [await stack.enter_async_context(tcp_client(gateway)) for _ in range(5)]
        for _ in range(5):
            await stack.enter_async_context(ws_client(gateway))
        for _ in range(6):
            stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
            async with stream:
                refusal = json.loads(await TcpClient(stream).next())
                assert refusal["id"] is None
                assert refusal["error"]["code"] == 503
                assert refusal["error"]["data"]["retryAfterMs"] > 0
                with pytest.raises((EOFError, trio.BrokenResourceError)):
                    await TcpClient(stream).next()
            with pytest.raises(ConnectionRejected) as rejected:
                async with open_websocket_url(gateway.ws_url()):
                    raise AssertionError("let in")
            assert rejected.value.status_code == 503
            assert dict(rejected.value.headers)[b"retry-after"]
        await tcp.pop().stream.aclose()
        with trio.fail_after(30):
            while True:
                try:
                    await stack.enter_async_context(tcp_client(gateway))
                    break
                except (KeyError, EOFError, trio.BrokenResourceError):
                    await trio.sleep(0.05)
    await kill(gateway, "edge")
    async with AsyncExitStack() as stack:
        for _ in range(5):
            with trio.fail_after(30):
                while True:
                    try:
                        await stack.enter_async_context(tcp_client(gateway))
                        break
                    except (KeyError, EOFError, OSError, trio.BrokenResourceError):
                        await trio.sleep(0.05)


async def test_silence_before_authentication_ends(start_gateway: Any) -> None:
    """A connection that doesn't authenticate is told so and closed after AUTH_TIMEOUT_MS; what it may say before that
    is answered by the gateway, and nothing of it reaches the server."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment={"AUTH_TIMEOUT_MS": "1500"}))
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
    async with stream:
        client = TcpClient(stream)
        initialized = await client.initialize("2025-06-18")
        assert initialized["result"]["capabilities"] == {}
        assert "embedded" not in json.dumps(initialized)
        assert (await client.call("ping"))["result"] == {}
        assert (await client.call("server/discover"))["result"]["capabilities"] == {}
        assert (await client.call("tools/list"))["error"]["code"] == 401
        assert (await client.call("authenticate", {"token": "wrong"}))["error"]["code"] == 401
        last = json.loads(await client.next())
        assert (last["id"], last["error"]["code"]) == (None, 401)
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await client.next()


async def test_initialize_before_authenticate_holds_after_it(start_gateway: Any) -> None:
    """A client may do the MCP handshake first and authenticate then: its session needs no second handshake."""
    gateway = await trio.to_thread.run_sync(start_gateway)
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
    async with stream:
        client = TcpClient(stream)
        await client.initialize("2025-06-18")
        assert (await client.call("authenticate", {"token": gateway.tcp_token}))["result"]["authenticated"] is True
        assert (await client.call("tools/call", ECHO))["result"]["content"][0]["text"] == "x"


async def test_idle_connections_end_and_busy_ones_do_not(start_gateway: Any) -> None:
    """The idle timeout is reset by complete messages only, and a connection with a call open isn't idle."""
    environment = {"TCP_CONNECTION_TIMEOUT": "700", "WS_CONNECTION_TIMEOUT": "700"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    async with tcp_client(gateway) as idle, tcp_client(gateway) as busy, tcp_client(gateway) as dribbling:
        await busy.initialize()
        await busy.send(request("tools/call", {"name": "sleep", "arguments": {"seconds": 2.5}}, id=b"1"))

        async def dribble() -> None:
            for _ in range(100):
                await dribbling.stream.send_all(b" ")
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble)
            for client in (idle, dribbling):
                with pytest.raises((EOFError, trio.BrokenResourceError)):
                    await client.next()
            nursery.cancel_scope.cancel()
        assert "result" in await busy.answer_to(b"1")
