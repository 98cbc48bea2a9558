"""An HTTP server that would have a call sent again, or that keeps what it is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from bridge_rig import MODERN, rig
from hostile_server import Exchange, HostileServer, hostile, raw

from ipc.messages import CallFailed
from ipc.settings import Upstream

MISMATCH = b'{"code":-32020,"message":"Header mismatch"}'


def http(url: str, **options: Any) -> Upstream:
    return Upstream(name="http", kind="http", url=url, **options)


async def test_a_call_that_lacks_headers_is_not_sent_again() -> None:
    """The server's refusal, which may come with any status, is the answer; what it wanted is learnt before that, so
    that the next call has it."""
    seen: list[bool] = []

    async def handler(exchange: Exchange) -> None:
        if exchange.message["method"] == "tools/list":
            schema = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A"}}}
            await exchange.result({"tools": [{"name": "t", "inputSchema": schema}]})
            return
        seen.append("\r\nmcp-param-a: v" in exchange.head)
        if seen[-1]:
            await exchange.result({})
        else:
            number = json.dumps(exchange.message["id"]).encode()
            body = b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (number, MISMATCH)
            await exchange.answer("500 Oh", body)

    async with hostile(handler) as server, rig(http(server.url)) as this:
        client = this.client("http", 1)
        called = {"name": "t", "arguments": {"a": "v"}, "_meta": MODERN}
        assert await client.call("tools/call", called) == json.loads(MISMATCH)
        assert seen == [False]
        assert await client.call("tools/call", called, id=2) == {}
        assert seen == [False, True]
        await this.drain()


@pytest.mark.parametrize("method", ["tools/call", "anything/else"])
async def test_a_call_does_not_follow_a_redirect(method: str) -> None:
    """It fails unsent, so that the client may try again; the next one goes there at once."""
    targets: list[str] = []

    async def handler(exchange: Exchange) -> None:
        targets.append(exchange.head.split(" ")[1])
        if targets[-1] == "/mcp":
            await exchange.answer("307 Temporary Redirect", more="Location: /mcp/\r\n")
        else:
            await exchange.result({})

    async with hostile(handler) as server, rig(http(server.url)) as this:
        client = this.client("http", 1)
        called = {"name": "t", "_meta": MODERN}
        failed = await client.call(method, called)
        assert isinstance(failed, CallFailed)
        assert (failed.code, failed.sent) == (503, False)
        assert targets == ["/mcp"]
        assert await client.call(method, called, id=2) == {}
        assert targets == ["/mcp", "/mcp/"]
        await this.drain()
        assert this.outcomes["http"][1] == 0


async def test_a_server_that_hangs_keeps_no_connections() -> None:
    """Each probe that goes unanswered, and each call that is given up, gives its connection back."""
    hanging = 0
    probes = 0

    class Hangs(HostileServer):
        async def answer(self, exchange: Exchange) -> None:
            nonlocal hanging, probes
            method = exchange.message.get("method")
            if method not in ("ping", "hang", "notifications/cancelled"):
                await super().answer(exchange)
                return None
            if method == "notifications/cancelled":
                return await trio.aclose_forcefully(exchange.stream)
            probes += method == "ping"
            hanging += 1
            try:
                await exchange.stream.receive_some()
            finally:
                hanging -= 1

    async def handler(exchange: Exchange) -> None:
        await exchange.result({})

    checks: dict[str, Any] = {"health_check_interval": 1000, "circuitbreaker_timeout": 300}
    async with raw(Hangs(0, handler).serve) as port, rig(http(f"http://127.0.0.1:{port}/mcp"), **checks) as this:
        client = this.client("http", 1)
        await client.initialize()
        calls = [client.request("hang", id=number) for number in range(5)]
        with trio.fail_after(30):
            while hanging < 5:
                await trio.sleep(0.01)
            for call in calls:
                client.abandon(call)
            while probes < 3 or hanging > 1:
                await trio.sleep(0.01)
        await this.drain()
