"""The operators' commands against an admin actor that really listens."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from admin_bench import ADMIN_TOKEN, Bench, bench

from ipc.messages import AdminRequest, Disconnect, Done, ResetBreaker
from ops.cli import admin, connections, health
from ops.cli.operate import seconds
from supervisor.settings.variables import VARIABLES

ROW = {
    "id": "c1", "transport": "tcp", "peer": "127.0.0.1:5", "principal": "\x1b[31mred", "age_s": 3725.2, "idle_s": 1.5,
    "messages_in": 1, "messages_out": 2, "bytes_in": 3, "bytes_out": 4, "upstream": "time", "worker": "edge.0",
}  # fmt: skip


@attrs.define
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Any]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command's ``main`` beside the gateway, in a clean environment and an empty working directory."""
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(f"{name}_FILE", raising=False)

    async def run(main: Callable[[Sequence[str]], int], *arguments: str, **environ: str) -> Outcome:
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            capsys.readouterr()
            code = await trio.to_thread.run_sync(partial(main, arguments))
            captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def ready(made: Bench) -> None:
    made.actors["bridge"].data = {"upstreams": {"time": {"state": "up", "instances": []}}}
    made.actors["breaker"].data = {"circuits": {"time": {"state": "closed"}}}
    made.actors["acceptor.1"].data = {"connections": [ROW]}
    made.tree()
    await made.actors["acceptor.0"].status(lambda status: status.ready)
    await made.request("GET", "/admin/v1/connections", token=ADMIN_TOKEN)  # asks everybody


async def test_health_exits_with_0_1_or_2(command: Run) -> None:
    """Healthy, degraded, down (unhealthy, or nobody there), one line a component."""
    async with bench() as made:
        port = str(made.port)
        await ready(made)
        good = await command(health.main, HEALTH_PORT=port)
        assert (good.code, good.err) == (0, "")
        lines = [line.split() for line in good.out.splitlines()]
        assert ["gateway", "healthy", "up", "5s,", "version", "0.1.0,", "restarts", "3"] in lines
        assert ["limiter", "up", "restarts", "0"] in lines
        assert any(line[:3] == ["server", "time", "up"] for line in lines)
        await made.stop("validator")
        degraded = await command(health.main, HEALTH_PORT=port)
        assert degraded.code == 1
        assert "validator is down" in degraded.out
        await made.stop("limiter")
        assert (await command(health.main, "--url", f"http://127.0.0.1:{port}")).code == 2
        assert (await command(health.main, "--json", HEALTH_PORT=port)).json["status"] == "unhealthy"
    nobody = await command(health.main, "--json", HEALTH_PORT=str(free_port()))
    assert (nobody.code, nobody.json["status"]) == (2, "down")
    assert "no gateway answers" in nobody.err


async def test_health_needs_no_token_and_survives_a_wrong_one(command: Run) -> None:
    """On loopback; beyond it, one word is what can be had without the right token."""
    async with bench() as made:
        await ready(made)
        assert (await command(health.main, HEALTH_PORT=str(made.port), ADMIN_TOKEN="wrong")).code == 0
    async with bench(host="0.0.0.0") as made:
        await ready(made)
        environ = {"HEALTH_PORT": str(made.port), "HEALTH_HOST": "0.0.0.0"}
        word = await command(health.main, **environ)
        assert (word.code, len(word.out.splitlines())) == (0, 2)
        assert (await command(health.main, ADMIN_TOKEN="wrong", **environ)).code == 0
        whole = await command(health.main, ADMIN_TOKEN=ADMIN_TOKEN, **environ)
        assert "limiter" in whole.out


async def test_connections_lists_the_contract_s_members(command: Run) -> None:
    """As JSON exactly those; as a table without what a principal could do to a terminal."""
    async with bench() as made:
        await ready(made)
        environ = {"HEALTH_PORT": str(made.port), "ADMIN_TOKEN": ADMIN_TOKEN}
        assert (await command(connections.main, "--json", **environ)).json == [ROW]
        shown = await command(connections.main, **environ)
        assert shown.code == 0
        assert "\x1b" not in shown.out
        assert "\\x1b[31mred" in shown.out
        assert "1h 2m" in shown.out
        made.actors["acceptor.0"].deaf = True
        partial_list = await command(connections.main, "--json", **environ)
        assert partial_list.json == [ROW]
        assert "no answer from: acceptor.0" in partial_list.err


async def test_the_token_is_found_where_the_gateway_keeps_it(command: Run, tmp_path: Path) -> None:
    """ADMIN_TOKEN, its file, .env, STATE_DIR/admin.token; without any, the way to one is told."""
    async with bench() as made:
        await ready(made)
        port = str(made.port)
        none = await command(admin.main, "actors", HEALTH_PORT=port)
        assert none.code == 3
        assert "admin.token" in none.err
        state = tmp_path / "var" / "state"
        state.mkdir(parents=True)
        (state / "admin.token").write_text(ADMIN_TOKEN)
        (state / "admin.token").chmod(0o600)
        assert (await command(admin.main, "actors", HEALTH_PORT=port)).code == 0
        state.rename(tmp_path / "elsewhere")
        assert (await command(admin.main, "actors", HEALTH_PORT=port)).code == 3
        assert (await command(admin.main, "actors", "--state-dir", "elsewhere", HEALTH_PORT=port)).code == 0
        (tmp_path / ".env").write_text(f"ADMIN-TOKEN={ADMIN_TOKEN}\nHEALTH_PORT={port}\nbroken line\n")
        assert (await command(admin.main, "actors")).code == 0
        wrong = await command(admin.main, "actors", ADMIN_TOKEN="wrong-token")
        assert wrong.code == 3
        assert "wrong-token" not in wrong.out + wrong.err


async def test_the_port_in_use_is_found_in_the_ready_file(command: Run, tmp_path: Path) -> None:
    """Where port 0 let the system choose; without it, that is a usage error."""
    async with bench() as made:
        await ready(made)
        (tmp_path / "ready.json").write_text(json.dumps({"ws": 1, "tcp": 2, "health": made.port, "pid": 3}))
        assert (await command(health.main, HEALTH_PORT="0", READY_FILE="ready.json")).code == 0
        assert (await command(health.main, HEALTH_PORT="0")).code == 2
        assert "READY_FILE" in (await command(health.main, HEALTH_PORT="0")).err


async def test_operators_can_act(command: Run) -> None:
    """Disconnect, reset, drain: 0 when done, 1 when there was nothing to do it to."""
    async with bench() as made:
        await ready(made)
        for name in ("acceptor.0", "acceptor.1"):
            made.actors[name].answer = lambda m: Done(ok=isinstance(m, Disconnect) and m.connection == "c1")
        made.actors["breaker"].answer = lambda m: Done(ok=isinstance(m, ResetBreaker) and m.upstream == "time")
        made.actors["supervisor"].answer = lambda m: Done(ok=m == AdminRequest("drain"))
        environ = {"HEALTH_PORT": str(made.port), "ADMIN_TOKEN": ADMIN_TOKEN}
        done = await command(admin.main, "disconnect", "c1", **environ)
        assert (done.code, done.out.strip()) == (0, "disconnected")
        gone = await command(admin.main, "disconnect", "c2", **environ)
        assert (gone.code, gone.err.strip()) == (1, "mcp-admin: no connection has this id")
        assert (await command(admin.main, "disconnect", "../../drain", **environ)).code == 1
        assert (await command(admin.main, "disconnect", "..", **environ)).code == 2
        assert (await command(admin.main, "breaker", "reset", "time", "--json", **environ)).json["ok"] is True
        assert (await command(admin.main, "breaker", "reset", "none", **environ)).code == 1
        listed = await command(admin.main, "breaker", "list", **environ)
        assert ["time", "closed", "–"] in [line.split() for line in listed.out.splitlines()]
        assert not any(isinstance(message, AdminRequest) for message in made.actors["supervisor"].received)
        assert (await command(admin.main, "drain", **environ)).code == 0
        assert made.actors["supervisor"].received == [AdminRequest("drain")]


async def test_what_is_no_gateway_is_told_apart(command: Run) -> None:
    """Another server, another protocol, a wrong URL."""
    async with trio.open_nursery() as nursery:
        async def other(stream: trio.SocketStream) -> None:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        async def garbage(stream: trio.SocketStream) -> None:
            await stream.send_all(b"220 mail\r\n")
            await stream.aclose()

        for handler in (other, garbage):
            [listener] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), handler, 0)
            port = listener.socket.getsockname()[1]
            outcome = await command(admin.main, "actors", ADMIN_TOKEN=ADMIN_TOKEN, HEALTH_PORT=str(port))
            assert outcome.code == 4
            assert (await command(health.main, HEALTH_PORT=str(port))).code == 2
        nursery.cancel_scope.cancel()
    for url in ("localhost:1", "ftp://h", "http://h:x", "http://h/health", ""):
        assert (await command(health.main, "--url", url)).code == 2


async def test_usage_errors_and_help(command: Run) -> None:
    """argparse's own exit codes; only subcommands that exist are offered."""
    for arguments, code in ((["--help"], 0), ([], 2), (["block"], 2), (["restart"], 2)):
        with pytest.raises(SystemExit) as caught:
            await command(admin.main, *arguments)
        assert caught.value.code == code
    assert (await command(connections.main, "--interval", "0")).code == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m"), (61, "1m 1s"), (3600, "1h"), (90061, "1d 1h"), (None, "–"), ("x", "–")],
)
def test_durations_are_told_in_two_units(value: object, text: str) -> None:
    """The largest ones."""
    assert seconds(value) == text
