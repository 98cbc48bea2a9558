"""Streamable HTTP upstreams, as the bridge holds them: real servers of the official SDKs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sdk_servers
import trio
from bridge_rig import MODERN, rig

from ipc.messages import CallFailed
from ipc.settings import Upstream

MODES = {
    "sdk1": ("sdk1",),
    "sdk1-json": ("sdk1", "json"),
    "sdk1-stateless": ("sdk1", "stateless"),
    "sdk2": ("sdk2",),
    "sdk2-json": ("sdk2", "json"),
}


def http(server: sdk_servers.SdkServer, **options: Any) -> Upstream:
    return Upstream(name="http", kind="http", url=server.url, **options)


def text(result: Any) -> str:
    assert not isinstance(result, CallFailed), result
    assert "content" in result, result
    return str(result["content"][0]["text"])


@pytest.mark.parametrize("mode", list(MODES))
async def test_two_clients_with_the_same_ids_are_isolated(tmp_path: Path, mode: str) -> None:
    """Legacy clients of one server get their own answers and progress, whatever the server's mode."""
    with sdk_servers.running(tmp_path, *MODES[mode]) as server:
        async with rig(http(server)) as this:
            clients = [this.client("http", number) for number in (1, 2)]
            for client in clients:
                greeting = await client.initialize()
                assert greeting["serverInfo"]["name"] == "sdk"
            calls = [
                client.request("tools/call", {"name": "echo", "arguments": {"text": f"mine {client.number}"}}, id=7)
                for client in clients
            ]
            for client, call in zip(clients, calls, strict=True):
                answer = await client.outcome(call)
                assert isinstance(answer, dict)
                assert answer["id"] == 7
                assert text(answer["result"]) == f"mine {client.number}"
            slow = []
            for client in clients:
                arguments = {"name": "sleep", "arguments": {"seconds": 0.2, "steps": 2 + client.number}}
                slow.append(client.request("tools/call", arguments | {"_meta": {"progressToken": "t"}}, id=8))
            for client, call in zip(clients, slow, strict=True):
                answer = await client.outcome(call)
                assert isinstance(answer, dict)
                assert text(answer["result"]) == "slept"
                if "json" not in mode:
                    steps = [note["params"]["progress"] for note in client.partial[call]]
                    assert steps == [float(step + 1) for step in range(2 + client.number)]
                    assert {note["params"]["progressToken"] for note in client.partial[call]} == {"t"}
            assert (await this.describe())["links"] == 1
            await this.drain()


@pytest.mark.parametrize("mode", ["sdk2", "sdk2-json"])
async def test_the_modern_era(tmp_path: Path, mode: str) -> None:
    """2026-07-28: no handshake, the metadata headers are what the server demands, also for names that need encoding."""
    with sdk_servers.running(tmp_path, *MODES[mode]) as server:
        async with rig(http(server)) as this:
            client = this.client("http", 1)
            found = await client.call("server/discover", {"_meta": MODERN})
            assert "2026-07-28" in found["supportedVersions"]
            listed = await client.call("tools/list", {"_meta": MODERN})
            assert "echo" in [tool["name"] for tool in listed["tools"]]
            called = {"name": "echo", "arguments": {"text": "grüße"}, "_meta": MODERN}
            assert text(await client.call("tools/call", called)) == "grüße"
            asked = {"name": "header", "arguments": {"name": "mcp-name"}, "_meta": MODERN}
            assert text(await client.call("tools/call", asked)) == "header"
            odd = await client.call("tools/call", {"name": " ä\n", "arguments": {}, "_meta": MODERN})
            assert "HTTP" not in str(odd), odd  # the server's own words about an unknown tool
            unknown = await client.call("no/such", {"_meta": MODERN})
            assert unknown["code"] == -32601
            await this.drain()


@pytest.mark.parametrize("listed", [True, False])
async def test_arguments_that_a_server_wants_in_headers(tmp_path: Path, listed: bool) -> None:
    """``x-mcp-header``: sent with the call when the tools have been listed; if not, the server's refusal is the call's
    answer and leads to a look at its list, and the next call is sent with them."""
    with sdk_servers.running(tmp_path, "sdk2") as server:
        async with rig(http(server)) as this:
            client = this.client("http", 1)
            if listed:
                await client.call("tools/list", {"_meta": MODERN})
            else:
                called = {"name": "where", "arguments": {"region": "x", "zone": 1}, "_meta": MODERN}
                assert (await client.call("tools/call", called))["code"] == -32020
            for region, header in (("us-west1", "us-west1"), ("süd", "=?base64?c8O8ZA==?=")):
                called = {"name": "where", "arguments": {"region": region, "zone": 1}, "_meta": MODERN}
                assert text(await client.call("tools/call", called)) == f"{region} {header}"
            await this.drain()


async def test_listening_and_cancelling_in_the_modern_era(tmp_path: Path) -> None:
    """``subscriptions/listen`` is a stream of its own; cancelling a call closes its connection and nothing else."""
    with sdk_servers.running(tmp_path, "sdk2") as server:
        async with rig(http(server)) as this:
            client = this.client("http", 1)
            wanted = {"_meta": MODERN, "notifications": {"toolsListChanged": True}}
            listening = client.request("subscriptions/listen", wanted, id="mine")
            await this.until(lambda: listening in client.partial)
            assert client.partial[listening][0]["method"] == "notifications/subscriptions/acknowledged"
            slow = client.request("tools/call", {"name": "sleep", "arguments": {"seconds": 60, "steps": 0},
                                                 "_meta": MODERN}, id=5)  # fmt: skip
            await client.call("tools/call", {"name": "grow", "arguments": {}, "_meta": MODERN}, id=6)
            await this.until(lambda: len(client.partial[listening]) > 1)
            changed = client.partial[listening][1]
            assert changed["method"] == "notifications/tools/list_changed"
            assert changed["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "mine"
            client.abandon(slow)
            client.notify("notifications/cancelled", {"requestId": "mine"}, call=listening)
            await this.until_described(lambda found: not found["upstreams"]["http"]["in_flight"])
            called = {"name": "echo", "arguments": {"text": "on"}, "_meta": MODERN}
            assert text(await client.call("tools/call", called, id=9)) == "on"
            await this.drain()


async def test_configured_headers_and_the_session(tmp_path: Path) -> None:
    """The operator's headers go with every request, the session's and the version's too."""
    with sdk_servers.running(tmp_path, "sdk1") as server:
        async with rig(http(server, headers={"X-Key": "k 1", "Authorization": "Bearer own"})) as this:
            client = this.client("http", 1)
            await client.initialize()
            for name, value in (
                ("x-key", "k 1"),
                ("authorization", "Bearer own"),
                ("mcp-protocol-version", "2025-11-25"),
                ("accept", "application/json, text/event-stream"),
                ("accept-encoding", "identity"),
            ):
                arguments = {"name": "header", "arguments": {"name": name}}
                assert text(await client.call("tools/call", arguments)) == value
            asked = {"name": "header", "arguments": {"name": "mcp-session-id"}}
            assert text(await client.call("tools/call", asked))
            await this.drain()


async def test_what_the_server_says_by_itself(tmp_path: Path) -> None:
    """The GET stream: ``list_changed`` reaches every client that is initialised."""
    with sdk_servers.running(tmp_path, "sdk1") as server:
        async with rig(http(server)) as this:
            clients = [this.client("http", number) for number in (1, 2)]
            for client in clients:
                await client.initialize()

            def heard() -> bool:
                return all(
                    any(note["method"] == "notifications/tools/list_changed" for note in client.unsolicited)
                    for client in clients
                )

            with trio.fail_after(30):
                while not heard():  # until the stream is open, what is said is said to nobody
                    assert text(await clients[0].call("tools/call", {"name": "grow", "arguments": {}})) == "grown"
                    await trio.sleep(0.05)
            await this.drain()


async def test_a_stream_that_breaks_off_is_resumed(tmp_path: Path) -> None:
    """After an event with an id the call goes on over a GET, and is not sent again."""
    with sdk_servers.running(tmp_path, "sdk1", "resumable") as server:
        async with rig(http(server)) as this:
            client = this.client("http", 1)
            await client.initialize()
            assert text(await client.call("tools/call", {"name": "hang_up", "arguments": {}})) == "fetched"
            await this.drain()


@pytest.mark.parametrize("mode", ["sdk1", "sdk2-json"])
async def test_kill_9_of_the_server_in_the_middle_of_calls(tmp_path: Path, mode: str) -> None:
    """Each call is answered 502 at once, one death counts, and the next server on that port is greeted and used."""
    with sdk_servers.running(tmp_path, *MODES[mode]) as server:
        async with rig(http(server)) as this:
            client = this.client("http", 1)
            await client.initialize()
            arguments = {"name": "sleep", "arguments": {"seconds": 60, "steps": 0}}
            calls = [client.request("tools/call", arguments, id=number) for number in range(5)]
            await this.until_described(lambda found: found["upstreams"]["http"]["in_flight"] == 5)
            await client.call("ping", id="after")
            server.kill()
            for call in calls:
                answer = await client.outcome(call)
                assert isinstance(answer, CallFailed)
                assert (answer.code, answer.sent) == (502, True), answer
            await this.until_described(lambda found: found["upstreams"]["http"]["state"] != "up")
            another = await trio.to_thread.run_sync(server.again)
            try:
                await this.until_described(lambda found: found["upstreams"]["http"]["state"] == "up")
                assert text(await client.call("tools/call", {"name": "pid", "arguments": {}})) == str(
                    another.process.pid
                )
                assert not client.lost
            finally:
                another.kill()
            await this.drain()


async def test_a_session_of_its_own(tmp_path: Path) -> None:
    """``per-session``: the client's own handshake reaches the server, each has its own session, and leaving ends it."""
    with sdk_servers.running(tmp_path, "sdk1") as server:
        async with rig(http(server, instance="per-session")) as this:
            found = []
            for number in (1, 2):
                client = this.client("http", number)
                assert (await client.initialize())["serverInfo"]["name"] == "sdk"
                asked = {"name": "header", "arguments": {"name": "mcp-session-id"}}
                found.append(text(await client.call("tools/call", asked, id="x")))
            assert len(set(found)) == 2
            assert (await this.describe())["links"] == 2
            client.detach()
            await this.until_described(lambda described: described["links"] == 1)
            await this.drain()


async def test_a_redirect_to_a_slash_is_followed(tmp_path: Path) -> None:
    """307 within the origin, as frameworks answer a missing slash."""
    with sdk_servers.running(tmp_path, "sdk1", "slash") as server:
        async with rig(http(server)) as this:
            client = this.client("http", 1)
            await client.initialize()
            assert text(await client.call("tools/call", {"name": "echo", "arguments": {"text": "b"}})) == "b"
            await this.drain()


async def test_an_answer_that_is_too_large(tmp_path: Path) -> None:
    """Only its own call fails, with 502 ``response_too_large``."""
    with sdk_servers.running(tmp_path, "sdk1") as server:
        async with rig(http(server), max_response_size=100_000) as this:
            client = this.client("http", 1)
            await client.initialize()
            slow = client.request("tools/call", {"name": "sleep", "arguments": {"seconds": 0.5, "steps": 0}}, id=1)
            big = await client.call("tools/call", {"name": "big", "arguments": {"size": 300_000}}, id=2)
            assert isinstance(big, CallFailed)
            assert (big.code, big.reason) == (502, "response_too_large")
            answer = await client.outcome(slow)
            assert isinstance(answer, dict)
            await this.drain()
