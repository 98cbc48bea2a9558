"""A notification that is refused is never answered (JSON-RPC §4.1), and never without a record."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
from large_clients import MIB, raw_client
from test_content_hostile import audited
from test_large_messages import POOL, goes_on, taken_in
from wire_clients import CLIENTS, WITHIN

UNBOUND = {"RATE_LIMIT_ENABLED": "false", "AUTO_BLOCK_ENABLED": "false", "WORKERS": "1"}


@pytest.mark.parametrize("version_last", [False, True])
async def test_given_up_by_the_pool(start_gateway: Any, version_last: bool) -> None:
    """One that finds no room is read away in silence; a request in its place would be told."""
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(environment=POOL | {"MAX_INFLIGHT_BYTES": str(8 * MIB), "WORKERS": "1"})
    )
    begin, end = b'{"jsonrpc":"2.0","method":"notifications/x","params":{"a":"', b'"}}'
    if version_last:
        begin, end = b'{"method":"notifications/x","params":{"a":"', b'"},"jsonrpc":"2.0"}'
    raw = begin + b"x" * (2 * MIB - 8192) + end
    async with (
        raw_client(gateway, ws=True) as a,
        raw_client(gateway, ws=False) as b,
        raw_client(gateway, ws=True) as c,
        raw_client(gateway, ws=version_last) as d,
    ):
        for client in (a, b, c):
            await client.begin(len(raw), raw[:-100])
        await taken_in(gateway, a, b, c)
        await d.begin(len(raw), raw[: 3 * MIB // 2])
        await d.go_on(raw[3 * MIB // 2 :], last=True)
        await goes_on(d)  # the next message that comes is the answer to its ping
        (record,) = [row for row in await audited(gateway, "message.invalid") if row.get("reason") == "overloaded"]
        assert record["outcome"] == "refused"


async def test_nested_too_deep(start_gateway: Any) -> None:
    """Even where it can't be decoded; a request, or what could be one, is told."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=UNBOUND))
    for transport in CLIENTS:
        async with CLIENTS[transport](gateway) as client:
            for filling in (b"", b"x" * 300_000):
                deep = b'{"t":"' + filling + b'","a":' + b"[" * 2_000 + b"]" * 2_000 + b"}"
                await client.send(b'{"jsonrpc":"2.0","method":"notifications/x","params":%b}' % deep)
                assert await client.nothing_more() == []
                await client.send(b'{"jsonrpc":"2.0","method":"x","params":%b,"id":7}' % deep)
                assert (await client.answer_to(b"7"))["error"]["code"] == -32600
                await client.send(b'{"jsonrpc":"2.0","method":"x","params":%b,"id":[7]}' % deep)
                assert (await client.answer_to(b"null"))["error"]["code"] == -32600
    await audited(gateway, "message.invalid", least=12)


async def test_a_call_without_an_id(start_gateway: Any) -> None:
    """It is no notification that MCP knows, and goes nowhere."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=UNBOUND))
    async with CLIENTS["tcp"](gateway) as client:
        await client.initialize()
        await client.send(b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"echo","arguments":{}}}')
        assert await client.nothing_more() == []
    (record,) = await audited(gateway, "message.invalid")
    assert (record["method"], record["reason"]) == ("tools/call", "a request needs an id")


async def test_while_the_breaker_is_open(start_gateway: Any) -> None:
    """What can't be forwarded is dropped with a record."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    environment = UNBOUND | {"CIRCUITBREAKER_FAILURE_THRESHOLD": "1"}
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(servers={"gone": {"url": url}}, environment=environment)
    )
    async with CLIENTS["tcp"](gateway) as client:
        with trio.fail_after(WITHIN):
            while True:
                answer = await client.call("tools/call", {"name": "t"})
                if answer["error"].get("data", {}).get("reason") == "breaker open" and (
                    answer["error"]["data"]["retryAfterMs"] > 1000
                ):
                    break
                await trio.sleep(0.05)
        await client.send(b'{"jsonrpc":"2.0","method":"notifications/x"}')
        await client.send(b'{"jsonrpc":"2.0","id":"n","method":"tools/call","params":{"name":"t"}}')
        await client.answer_to(b'"n"')
        assert client.inbox == []
    (record,) = await audited(gateway, "message.invalid")
    assert (record["method"], record["reason"]) == ("notifications/x", "breaker open")
