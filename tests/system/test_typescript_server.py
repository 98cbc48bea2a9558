"""The TypeScript SDK's Streamable HTTP server behind the gateway's bridge."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from bridge_rig import rig
from requirement import need

from ipc.settings import Upstream

NODE = Path(__file__).parent.parent / "conformance" / "node"


@pytest.fixture(params=["", "json"])
def port(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A running server, answering in event streams or in JSON."""
    node = shutil.which("node")
    need(node, "node is not installed")
    need((NODE / "node_modules" / "zod").exists(), "the TypeScript SDK is missing: run ops/test")
    port_file = tmp_path / "port"
    process = subprocess.Popen([str(node), str(NODE / "server.mjs"), str(port_file), request.param])
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield int(port_file.read_text())
    finally:
        process.kill()
        process.wait()


def sessions(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/sessions")
    count = int(connection.getresponse().read())
    connection.close()
    return count


async def test_the_typescript_sdks_server(port: int, request: pytest.FixtureRequest) -> None:
    """One session for two clients, answers and progress to the right one, and the session is ended with the link."""
    async with rig(Upstream(name="ts", kind="http", url=f"http://127.0.0.1:{port}/mcp")) as this:
        clients = [this.client("ts", number) for number in (1, 2)]
        for client in clients:
            assert (await client.initialize())["serverInfo"]["name"] == "typescript"
        for client in clients:
            arguments = {"name": "echo", "arguments": {"text": f"to {client.number}"}}
            assert (await client.call("tools/call", arguments, id=1))["content"][0]["text"] == f"to {client.number}"
        for client in clients:
            arguments = {"name": "steps", "arguments": {"count": 2 + client.number}, "_meta": {"progressToken": "p"}}
            call = client.request("tools/call", arguments, id=2)
            answer = await client.outcome(call)
            assert isinstance(answer, dict)
            assert answer["result"]["content"][0]["text"] == "done"
            if "json" not in request.node.name:
                assert len(client.partial[call]) == 2 + client.number
        assert await trio.to_thread.run_sync(sessions, port) == 1
        await this.drain()
    assert await trio.to_thread.run_sync(sessions, port) == 0
