"""``mcp-secure-client stdio`` as a host sees it: a process with three pipes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from stand_in import TOKEN, stand_in

from ops.cli.stdio_bridge import Calls

# By its module, so that this works in a tree whose console scripts are not installed; from any directory.
COMMAND = [sys.executable, "-m", "ops.cli.client", "stdio"]


@asynccontextmanager
async def bridge(url: str, *arguments: str, cwd: Path | None = None) -> AsyncIterator[trio.Process]:
    environment = {name: value for name, value in os.environ.items() if "AUTH_TOKEN" not in name}
    process = await trio.lowlevel.open_process(
        [*COMMAND, "--url", url, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=cwd, env=environment | {"WS_AUTH_TOKEN": TOKEN},
    )  # fmt: skip
    try:
        with trio.fail_after(30):
            yield process
            await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                await stream.aclose()


async def say(process: trio.Process, *messages: dict[str, Any] | bytes) -> None:
    lines = [message if isinstance(message, bytes) else json.dumps(message).encode() for message in messages]
    await process.stdin.send_all(b"".join(line + b"\n" for line in lines))


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


def call(request_id: object, tool: str = "echo", **arguments: object) -> dict[str, Any]:
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


async def test_answers_in_flight_arrive_after_the_end_of_stdin(tmp_path: Path) -> None:
    """A host that writes its requests and closes stdin gets every answer, a line each, and exit 0; from anywhere."""
    async with stand_in() as gateway, bridge(gateway.url, "--server", "time", cwd=tmp_path) as process:
        await say(process, *(call(number, text="a\nb\u2028c") for number in range(50)), b"", b"  \r")
        await process.stdin.aclose()
        lines = (await everything(process.stdout)).split(b"\n")
        assert await process.wait() == 0
        assert await everything(process.stderr) == b""
        assert gateway.paths == ["/ws/time"]
    assert lines.pop() == b""
    answers = [json.loads(line) for line in lines]
    assert sorted(answer["id"] for answer in answers) == list(range(50))
    assert all(answer["result"]["content"][0]["text"] == "a\nb\u2028c" for answer in answers)


async def test_waiting_for_the_last_answers_is_bounded() -> None:
    """A request that is never answered does not keep the process: it ends --timeout after stdin."""
    async with stand_in() as gateway, bridge(gateway.url, "--timeout", "0.5") as process:
        await say(process, call(1, "never"))
        await gateway.asked.wait()
        await process.stdin.aclose()
        assert await everything(process.stdout) == b""
        assert await process.wait() == 0


async def test_a_cancelled_request_is_not_waited_for() -> None:
    """notifications/cancelled takes the request back: no answer will come, so the end of stdin is the end."""
    async with stand_in() as gateway, bridge(gateway.url, "--timeout", "600") as process:
        await say(process, call("x", "never"))
        await gateway.asked.wait()
        await say(process, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "x"}})
        await process.stdin.aclose()
        assert await process.wait() == 0


async def test_when_the_gateway_closes_every_request_gets_an_error() -> None:
    """Ids come back as they were written, the reason is on stderr, and the exit code says that this was no success."""
    async with stand_in() as gateway, bridge(gateway.url) as process:
        await say(process, call(1, "never"), call("1", "never"), call(9007199254740993, "never"))
        await gateway.asked.wait()
        await say(process, {"jsonrpc": "2.0", "method": "close-me"})
        answers = [json.loads(line) for line in (await everything(process.stdout)).splitlines()]
        assert await process.wait() == 3
        errors = await everything(process.stderr)
    assert [answer["id"] for answer in answers] == [1, "1", 9007199254740993]
    for answer in answers:
        assert answer["error"]["code"] == 502
        assert answer["error"]["data"] == {"reason": "gateway_closed", "sent": True}
        assert "policy says no" in answer["error"]["message"]
    assert b"policy says no" in errors


async def test_a_refusal_is_said_on_stderr_and_exits_3(tmp_path: Path) -> None:
    """Whatever was read by then is answered, nothing else is on stdout, and the token is nowhere."""
    file = tmp_path / "token"
    file.write_text("wrong-token")
    async with stand_in() as gateway, bridge(gateway.url, "--token-file", str(file)) as process:
        lines = (await everything(process.stdout)).splitlines()
        assert await process.wait() == 3
        errors = await everything(process.stderr)
    assert b"401" in errors
    assert b"wrong-token" not in errors
    assert lines == []


async def test_without_a_connection_what_was_asked_gets_an_error() -> None:
    """The request that waited for the connection is answered when there is none: unavailable, and surely not sent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        async with bridge(url, "--timeout", "2") as process:
            await say(process, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}})
            [line] = (await everything(process.stdout)).splitlines()
            assert await process.wait() == 4
    answer = json.loads(line)
    assert (answer["id"], answer["error"]["code"], answer["error"]["data"]["sent"]) == (0, 503, False)


async def test_bytes_that_are_not_utf8_are_answered_here() -> None:
    """A WebSocket text message can't carry them; the host gets -32700, and the connection goes on."""
    async with stand_in() as gateway, bridge(gateway.url) as process:
        await say(process, b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', call(2, text="still here"))
        await process.stdin.aclose()
        first, second = (json.loads(line) for line in (await everything(process.stdout)).splitlines())
    assert (first["id"], first["error"]["code"]) == (None, -32700)
    assert second["result"]["content"][0]["text"] == "still here"


async def test_a_host_that_stops_reading_ends_the_bridge() -> None:
    """With stdout gone there is nobody to bridge for; a traceback would help nobody."""
    async with stand_in() as gateway, bridge(gateway.url) as process:
        await process.stdout.aclose()
        await say(process, call(1))
        assert await process.wait() == 1
        assert b"Traceback" not in await everything(process.stderr)


async def test_a_regular_file_can_be_stdin(tmp_path: Path) -> None:
    """epoll takes no regular files; the bridge does."""
    file = tmp_path / "requests"
    file.write_text(json.dumps(call(1, text="from a file")))  # no newline at the end either
    async with stand_in() as gateway:
        with file.open("rb") as source:
            result = await trio.run_process(
                [*COMMAND, "--url", gateway.url, "--token", TOKEN], stdin=source, capture_stdout=True
            )
    assert json.loads(result.stdout)["result"]["content"][0]["text"] == "from a file"


def describe(calls: Calls) -> list[dict[str, Any]]:
    return [json.loads(line) for line in calls.error_lines("why")]


def test_open_ended_requests_are_not_waited_for_but_answered_at_the_end() -> None:
    """A subscription stays open for ever: stdin's end does not wait for it, a lost gateway still ends it."""
    calls = Calls()
    request_id = calls.asked(b'{"jsonrpc":"2.0","id":"s","method":"subscriptions/listen","params":{}}')
    calls.sent(request_id)
    assert not calls.waited_for()
    assert [answer["id"] for answer in describe(calls)] == ["s"]


def test_one_and_its_string_are_two_requests() -> None:
    """An answer to 1 does not answer "1", and a request of the server's answers nothing."""
    calls = Calls()
    calls.asked(b'{"id":1,"method":"a"}')
    calls.asked(b'{"id":"1","method":"b"}')
    calls.answered(b'{"id":"1","method":"roots/list"}')
    calls.answered(b'{"id":1,"result":{}}')
    assert [answer["id"] for answer in describe(calls)] == ["1"]
    assert calls.waited_for()
    calls.answered(b'{"id":"1","error":{}}')
    assert not calls.waited_for()
