"""``mcp-secure-client ws`` and ``tcp`` against a small gateway in this process."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import trio
from stand_in import TOKEN, stand_in

from ops.cli import client

VARIABLES = ("WS_AUTH_TOKEN", "WS_AUTH_TOKEN_FILE", "TCP_AUTH_TOKEN", "TCP_AUTH_TOKEN_FILE", "WS_PORT", "TCP_PORT")


@pytest.fixture(autouse=True)
def _no_tokens_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


async def run(*arguments: str) -> int:
    """The command has an event loop of its own, so it gets a thread of its own."""
    return await trio.to_thread.run_sync(lambda: client.main(arguments))


async def test_over_websocket_it_lists_all_pages_and_calls_the_tool(capsys: pytest.CaptureFixture[str]) -> None:
    """The printed first-run command shows the tools of every page and the answer of the call."""
    async with stand_in() as gateway:
        code = await run("ws", "--url", gateway.url, "--token", TOKEN, "--call", "echo", '{"text":"hello there"}')
    out = capsys.readouterr().out
    assert code == 0
    assert all(name in out for name in ("stand-in 1", "2025-11-25", "echo", "fails", "never", "hello there"))


async def test_over_tcp_it_authenticates_first(capsys: pytest.CaptureFixture[str]) -> None:
    """The same over TCP, where the token goes into the first message."""
    async with stand_in() as gateway:
        port = str(gateway.tcp_port)
        code = await run("tcp", "--host", "127.0.0.1", "--port", port, "--token", TOKEN, "--server", "time")
        methods = [message["method"] for message in gateway.seen]
    assert code == 0
    assert methods == ["initialize", "notifications/initialized", *["tools/list"] * 3, "tools/call"]
    assert "hello" in capsys.readouterr().out


async def test_in_the_modern_era_every_request_speaks_for_itself() -> None:
    """No handshake, and each request has the three members of _meta that 2026-07-28 asks for."""
    async with stand_in() as gateway:
        assert await run("ws", "--url", gateway.url, "--token", TOKEN, "--era", "modern") == 0
        seen = gateway.seen
    assert [message["method"] for message in seen] == ["server/discover", *["tools/list"] * 3, "tools/call"]
    for message in seen:
        meta = message["params"]["_meta"]
        assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
        assert meta["io.modelcontextprotocol/clientInfo"]["name"] == "mcp-secure-client"
        assert meta["io.modelcontextprotocol/clientCapabilities"] == {}


async def test_json_output_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """A program can read everything: the server, the tools, the call and its result."""
    async with stand_in() as gateway:
        code = await run("ws", "--url", gateway.url, "--token", TOKEN, "--json", "--call", "echo", '{"text":"ü\\n"}')
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [tool["name"] for tool in document["tools"]] == ["echo", "fails", "never"]
    assert document["call"]["result"]["content"][0]["text"] == "ü\n"
    assert document["server"] == {"name": "stand-in", "version": "1"}


async def test_the_server_is_chosen_by_the_path() -> None:
    """``--server NAME`` becomes ``/ws/NAME``, escaped."""
    async with stand_in() as gateway:
        assert await run("ws", "--url", gateway.url, "--token", TOKEN, "--list", "--server", "a/b") == 0
        assert await run("ws", "--url", f"{gateway.url}/ws/time", "--token", TOKEN, "--list") == 0
        assert gateway.paths == ["/ws/a%2Fb", "/ws/time"]


@pytest.mark.parametrize("source", ["option", "file", "environment", "environment file"])
async def test_every_source_of_the_token(source: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Option, file, variable and the file that a variable names; of several tokens the first one is presented."""
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    arguments = []
    match source:
        case "option":
            arguments = ["--token", TOKEN]
        case "file":
            arguments = ["--token-file", str(file)]
        case "environment":
            monkeypatch.setenv("WS_AUTH_TOKEN", f"{TOKEN}, another")
        case "environment file":
            monkeypatch.setenv("WS_AUTH_TOKEN_FILE", str(file))
    async with stand_in() as gateway:
        assert await run("ws", "--url", gateway.url, "--list", *arguments) == 0


@pytest.mark.parametrize("transport", ["ws", "tcp"])
@pytest.mark.parametrize("token", ["wrong-and-secret", None])
async def test_a_refusal_exits_3_and_prints_no_token(
    transport: str, token: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalid or missing token is said to be that on stderr, and is never repeated."""
    async with stand_in() as gateway:
        where = ["--url", gateway.url] if transport == "ws" else ["--port", str(gateway.tcp_port)]
        code = await run(transport, *where, *(["--token", token] if token else []))
    printed = capsys.readouterr()
    assert code == 3
    assert "401" in printed.err
    assert "wrong-and-secret" not in printed.err + printed.out


@pytest.mark.parametrize("transport", ["ws", "tcp"])
async def test_nobody_there_exits_4(transport: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A port that nobody listens on is unreachable, in one line."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        where = ["--url", f"ws://127.0.0.1:{port}"] if transport == "ws" else ["--port", str(port)]
        assert await run(transport, *where, "--token", TOKEN) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert TOKEN not in error


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 \xff\xfe\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n", b"\x00" * 99])
async def test_what_is_no_websocket_server_exits_4(reply: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """A peer that hangs up, or answers the upgrade with something else, is unreachable, whatever bytes it sends."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if reply:
            await stream.send_all(reply)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        code = await run("ws", "--url", url, "--token", TOKEN)
        nursery.cancel_scope.cancel()
    assert code in (3, 4)
    assert "Traceback" not in capsys.readouterr().err


async def test_a_tool_that_reports_an_error_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    """``isError`` is a failed call; and what servers write cannot drive the terminal."""
    async with stand_in() as gateway:
        code = await run("ws", "--url", gateway.url, "--token", TOKEN, "--call", "fails")
    printed = capsys.readouterr()
    assert code == 1
    assert "\x1b" not in printed.out
    assert "luck" in printed.out
    assert "fails" in printed.err


async def test_silence_exits_1_after_the_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    """A call without an answer ends with --timeout."""
    async with stand_in() as gateway:
        code = await run("ws", "--url", gateway.url, "--token", TOKEN, "--timeout", "0.3", "--call", "never")
    assert code == 1
    assert "no answer" in capsys.readouterr().err


async def test_a_server_that_pages_in_circles_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """The same cursor twice ends the listing with an error instead of never."""
    async with stand_in(endless_pages=True) as gateway:
        assert await run("ws", "--url", gateway.url, "--token", TOKEN) == 1
    assert "pages without an end" in capsys.readouterr().err


async def test_an_unknown_protocol_version_is_not_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that answers initialize with a version that we never heard of is not talked to."""
    async with stand_in(version="1999-01-01") as gateway:
        assert await run("ws", "--url", gateway.url, "--token", TOKEN) == 1
    assert "1999-01-01" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ws", "--url", "http://127.0.0.1"],
        ["ws", "--url", "ws://user:secret@127.0.0.1"],
        ["ws", "--url", "ws://127.0.0.1:99999"],
        ["ws", "--url", "ws://127.0.0.1/ws/a", "--server", "b"],
        ["ws", "--token", "with space-secret"],
        ["ws", "--token", "secret\r\nX-Evil: 1"],
        ["ws", "--token", " "],
        ["ws", "--token-file", "/nonexistent/secret-file"],
        ["ws", "--call", "echo", "not json"],
        ["ws", "--call", "echo", "[1]"],
        ["ws", "--call", "echo", "{}", "{}"],
        ["ws", "--interactive", "--json"],
        ["tcp", "--port", "70000"],
        ["ws", "--tokn", "secret"],
        ["ws", "--tok", "secret"],
        [],
    ],
)
def test_a_wrong_command_line_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors are found before anything is connected to, and repeat no secret."""
    try:
        code = client.main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    error = capsys.readouterr().err
    assert error
    assert not any(word in error for word in ("user:secret", "space-secret", "X-Evil", " secret"))


async def test_the_prompt_goes_on_after_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--interactive answers each line, errors included, until the end of its input."""
    lines = iter(["tools", "", "nonsense", 'call echo {"text":"one"}', "call echo {", "call never-heard {}", "help"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    async with stand_in() as gateway:
        assert await run("ws", "--url", gateway.url, "--token", TOKEN, "--interactive") == 0
    out = capsys.readouterr().out
    assert "Says it back" in out
    assert "\none\n" in out
    assert out.count("! ") == 3
