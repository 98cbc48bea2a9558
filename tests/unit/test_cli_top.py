"""``mcp-admin top`` on a terminal and elsewhere, beside an admin actor that really listens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio
from admin_bench import ADMIN_TOKEN, SETTINGS, Bench, bench
from terminal import Terminal, on_terminal

from actors.audit_log import AuditLog, Entry
from ipc.messages import AuditEvent, BlockListing, ListBlocks, ListenersChanged
from ops.cli import top
from supervisor.settings.variables import VARIABLES

HOSTILE = "\x1b]0;owned\x07\u202e[bold]x[/bold]"
CTRL_C = "\x03"


def environment(made: Bench, **more: str) -> dict[str, str]:
    names = {name for variable in VARIABLES for name in variable.names}
    plain = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in names}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):  # what the terminal itself says is to count
        plain.pop(name, None)
    return plain | {"HEALTH_PORT": str(made.port), "ADMIN_TOKEN": ADMIN_TOKEN, "TERM": "xterm-256color"} | more


@asynccontextmanager
async def shown(tmp_path: Path) -> AsyncIterator[tuple[Bench, AuditLog]]:
    """A gateway with something in every table."""
    log = AuditLog(tmp_path, str(tmp_path / "state"), max_bytes=1 << 20, keep=5, counted=list)
    log.write(Entry([failed("early")]))
    async with bench(msgspec.structs.replace(SETTINGS, audit_log_dir=str(tmp_path)), within_s=240) as made:
        row = {
            "id": "c1", "transport": "tcp", "peer": "192.0.2.5:4711", "principal": HOSTILE, "age_s": 65.0,
            "idle_s": 1.0, "messages_in": 1, "messages_out": 2, "bytes_in": 3, "bytes_out": 4096, "upstream": "time",
            "worker": "edge.0",
        }  # fmt: skip
        made.actors["acceptor.0"].data = {"connections": [row], "totals": {"messages_in": 1}}
        made.actors["breaker"].data = {"circuits": {"time": {"state": "open", "retry_at_ns": 2**62}}}
        blocks = BlockListing([("ip:192.0.2.9", 1, 2**52, 1, True, HOSTILE)], 1, more=False)
        made.actors["limiter"].answer = lambda message: blocks if isinstance(message, ListBlocks) else None
        mailbox = {"queued": 17, "received": 900, "refused": 0}
        actors = [{"name": "auth", "state": "up", "restarts": 3, "mailbox": mailbox}, {"name": "audit", "state": "up"}]
        made.tree(workers=[{"name": "policy", "state": "up", "rss_kb": 2048, "actors": actors}], degraded=["so and so"])
        while (await made.request("GET", "/health")).json["connections"]["total"] == 0:
            await trio.lowlevel.checkpoint()
        try:
            yield made, log
        finally:
            log.close()


def failed(reason: str) -> AuditEvent:
    return AuditEvent("auth.failed", "warning", "failure", time.time_ns(), peer_ip="192.0.2.5", reason=reason)


async def printed(made: Bench, tmp_path: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ops.cli.admin", "top", *arguments]
    run = partial(
        subprocess.run, command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env=environment(made, **more), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return await trio.to_thread.run_sync(run)


async def test_without_a_terminal_it_is_printed_once_and_says_so(tmp_path: Path) -> None:
    """All tables, no colour, no escape of anybody's; --once is the same without the note, --json is the document."""
    async with shown(tmp_path) as (made, _):
        implied, asked, document = [await printed(made, tmp_path, *how) for how in ((), ("--once",), ("--json",))]
    assert implied.returncode == asked.returncode == document.returncode == 0, implied.stderr
    assert implied.stderr == "mcp-admin top: this is no terminal, so it is printed once (--once)\n"
    assert asked.stderr == document.stderr == ""
    for text in (implied.stdout, asked.stdout):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert re.search(r"^policy +up +0 +2 MiB +auth +up +3 +17 +900", text, re.MULTILINE), text
        assert re.search(r"^time +unknown +open ", text, re.MULTILINE)
        assert re.search(r"^c1 +192\.0\.2\.5:4711 .*\[bold\]x\[/bold\] +time +1m 5s +1s +1 +2 +3 B +4\.0 KiB", text,
                         re.MULTILINE)  # fmt: skip
        assert re.search(r"^192\.0\.2\.9 ", text, re.MULTILINE)
        assert re.search(r"warning +auth\.failed +failure +192\.0\.2\.5 +reason=early", text)
        assert "because so and so" in text
    assert json.loads(document.stdout)["blocks"]["total"] == 1


async def test_on_a_terminal_it_is_live_until_ctrl_c(tmp_path: Path) -> None:
    """New events appear, the size is followed, Ctrl-C leaves the terminal as it was; the exit code is 130."""
    async with shown(tmp_path) as (made, log):
        command = [sys.executable, "-m", "ops.cli.admin", "top", "--interval", "0.2"]

        def use() -> int:
            with on_terminal(command, directory=tmp_path, environment=environment(made)) as terminal:
                terminal.until("\x1b[?1049h")  # the alternate screen
                place = terminal.until("reason=early")
                assert "\x1b[33m" in terminal.seen or "\x1b[31m" in terminal.seen  # colours
                log.write(Entry([failed("while it was watched")]))
                place = terminal.until("reason=while it was watched", after=place)
                terminal.resize(200, 60)
                place = terminal.until("bytes out", after=place)
                terminal.resize(60, 20)
                narrowed(terminal, place)
                terminal.type(CTRL_C)
                code = terminal.ended()
                assert terminal.seen.rstrip().endswith(("\x1b[?1049l", "\x1b[?25h")), terminal.seen[-200:]
                assert "Traceback" not in terminal.seen
                assert "owned\x07" not in terminal.seen
                return code

        assert await trio.to_thread.run_sync(use) == 130


def narrowed(terminal: Terminal, place: int) -> None:
    """Wait for a whole screen in the new size: no line of it is longer than 60, and there are no more than 20."""
    while True:
        start = terminal.until("\x1b[H", after=place)
        end = terminal.until("\x1b[H", after=start)
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.seen[start:end]).splitlines()
        if lines and max(map(len, lines)) <= 60 and len(lines) <= 20:
            return
        place = end - len("\x1b[H")


async def test_it_outlives_a_gateway_that_is_away_and_not_a_wrong_token(tmp_path: Path) -> None:
    """Out of reach is shown, and the next answer too; at the start it is an error with its exit code."""
    async with shown(tmp_path) as (made, log):
        nobody = await printed(made, tmp_path, "--once", HEALTH_PORT="1")
        assert (nobody.returncode, "no gateway answers" in nobody.stderr) == (4, True)
        refused = await printed(made, tmp_path, "--once", ADMIN_TOKEN="x" * 40)
        assert (refused.returncode, "Traceback" in refused.stderr) == (3, False)
        usage = await printed(made, tmp_path, "--interval", "0")
        assert usage.returncode == 2
        listeners = list(made.context.listeners)
        command = [sys.executable, "-m", "ops.cli.admin", "top", "--interval", "0.2"]
        away, back = trio.Event(), trio.Event()

        def use() -> None:
            with on_terminal(command, directory=tmp_path, environment=environment(made)) as terminal:
                place = terminal.until("reason=early")
                trio.from_thread.run_sync(away.set)
                place = terminal.until("out of reach", after=place)
                trio.from_thread.run_sync(back.set)
                log.write(Entry([failed("after it was back")]))
                terminal.until("reason=after it was back", after=place)
                terminal.type(CTRL_C)
                assert terminal.ended() == 130

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, use)
            await away.wait()
            made.context.listeners.clear()
            made.admin.control(ListenersChanged())
            await back.wait()
            made.context.listeners.extend(listeners)
            made.admin.control(ListenersChanged())


async def test_colour_is_for_terminals_and_not_where_it_is_unwanted(tmp_path: Path) -> None:
    """Every command that prints tables: colour on a terminal, none with NO_COLOR, no escape at all into a file."""
    async with shown(tmp_path) as (made, _):
        for line in ("health", "connections", "admin actors", "admin blocks", "admin top --once"):
            words = line.split()
            command = [sys.executable, "-m", f"ops.cli.{words[0]}", *words[1:]]

            def seen(command: list[str] = command, **more: str) -> str:
                with on_terminal(command, directory=tmp_path, environment=environment(made, **more)) as terminal:
                    terminal.ended()
                    return terminal.seen

            on, off = [await trio.to_thread.run_sync(partial(seen, **more)) for more in ({}, {"NO_COLOR": "1"})]
            if words[-1] not in ("connections", "blocks"):  # those have nothing that is good or bad
                assert re.search(r"\x1b\[(\d+;)*3\dm", on), (words, on)
            assert not re.search(r"\x1b\[(\d+;)*[34]\dm", off), (words, off)
            run = partial(subprocess.run, command, capture_output=True, check=False, timeout=120, cwd=tmp_path,
                          env=environment(made))  # fmt: skip
            piped = await trio.to_thread.run_sync(run)
            assert b"\x1b" not in piped.stdout + piped.stderr, words
            assert piped.stdout


def test_a_spark_is_never_longer_than_the_minutes_it_shows() -> None:
    """Two looks a character; nothing at all is not drawn as something, and something never as nothing."""
    assert top._spark([0.0] * 120) == " " * 60
    assert len(top._spark([1.0] * 1000)) == 60
    assert top._spark([1000.0, 1000.0, 0.1, 0.0]) == "█▁"
    assert top._spark([]) == ""
