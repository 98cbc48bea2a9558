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


async def test_a_refused_listening_is_no_end_of_the_session() -> None:
    """404 to the GET, which frameworks answer where the specification has 405: nothing is listened for, and that is
    all. A call then tells whether the session is over."""

    class NoGet(HostileServer):
        async def answer(self, exchange: Exchange) -> None:
            if exchange.method == "GET":
                await exchange.answer("404 Not Found")
            else:
                await super().answer(exchange)

    async def handler(exchange: Exchange) -> None:
        await exchange.result({})

    server = NoGet(0, handler)
    async with raw(server.serve) as port, rig(http(f"http://127.0.0.1:{port}/mcp")) as this:
        client = this.client("http", 1)
        await client.initialize()
        with trio.fail_after(30):
            while ("GET", "") not in server.requests:
                await trio.sleep(0.01)
        for number in range(10):
            assert await client.call("x", id=number) == {}
        assert server.calls("initialize") == 1
        assert not client.lost
        await this.drain()


async def test_a_stream_that_ends_at_once_is_not_asked_for_at_once() -> None:
    """Whatever ``retry`` says, a server that brings nothing is asked again later and later."""
    many = trio.Event()

    class Ends(HostileServer):
        async def answer(self, exchange: Exchange) -> None:
            if exchange.method == "GET":
                await exchange.answer("200 OK", b"retry: 0\n\n", "text/event-stream")
                if sum(method == "GET" for method, _ in self.requests) > 20:
                    many.set()
            else:
                await super().answer(exchange)

    async def handler(exchange: Exchange) -> None:
        await exchange.result({})

    server = Ends(0, handler)
    async with raw(server.serve) as port, rig(http(f"http://127.0.0.1:{port}/mcp")) as this:
        client = this.client("http", 1)
        await client.initialize()
        with trio.move_on_after(1.5):
            await many.wait()
        assert not many.is_set()
        await this.drain()


@pytest.mark.parametrize(("status", "deaths"), [("500 Oh", 0), ("501 No", 0), ("502 Bad Gateway", 3)])
async def test_one_tool_that_fails_says_nothing_of_the_server(status: str, deaths: int) -> None:
    """HTTP 500 is the server's word about one request; what a proxy says instead of it is about the server."""

    async def handler(exchange: Exchange) -> None:
        await exchange.answer(status)

    async with hostile(handler) as server, rig(http(server.url)) as this:
        client = this.client("http", 1)
        await client.initialize()
        for number in range(3):
            failed = await client.call("tools/call", {"name": "x"}, id=number)
            assert isinstance(failed, CallFailed)
            assert (failed.code, failed.sent) == (502, True)
        await this.drain()
        assert this.outcomes["http"][1] == deaths


async def test_large_answers_at_once_fail_nobody() -> None:
    """Several answers of the largest size together are all delivered, though no more than a few are held at a time;
    a small one between them is too."""
    size = 900_000

    async def handler(exchange: Exchange) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": exchange.message["id"], "result": {"x": "x" * size}}).encode()
        if exchange.message["method"] == "small":
            await exchange.result({})
            return
        await exchange.stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        await exchange.stream.send_all(body[: size - 1000])
        started.append(1)
        await go_on.wait()
        await exchange.stream.send_all(body[size - 1000 :])

    started: list[int] = []
    go_on = trio.Event()
    async with hostile(handler) as server, rig(http(server.url), max_response_size=1_000_000) as this:
        client, other = (this.client("http", number) for number in (1, 2))
        await client.initialize()
        await other.initialize()
        calls = [client.request("big", id=number) for number in range(8)]
        await this.until_described(lambda found: len(started) >= 4)
        assert await other.call("small") == {}
        go_on.set()
        for call in calls:
            answer = await client.outcome(call)
            assert isinstance(answer, dict), answer
            assert len(answer["result"]["x"]) == size
        await this.drain()
