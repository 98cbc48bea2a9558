"""One stdio server as a child: its surroundings, its pipes under hostile use, and its end with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from actors.upstream import descendants
from actors.upstream.process import Child, ChildEvents, printable
from actors.upstream.registry import REGISTRY, SpawnFailed, end_all_now, environment

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
SECRET = "a-secret-that-no-message-may-hold"


def open_descriptors() -> set[str]:
    found = set()
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{entry.name}:{entry.readlink()}")
    return {item for item in found if not item.endswith("/fd") and "eventpoll" not in item}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Each test leaves no process and no descriptor behind."""
    before = descendants.become_subreaper()
    REGISTRY.open()
    descriptors = open_descriptors()
    below = set(descendants.children(os.getpid()))
    yield
    assert set(descendants.children(os.getpid())) - below == set()
    assert open_descriptors() - descriptors == set()
    descendants.become_subreaper(before)


@attrs.define(eq=False)
class Owner:
    """What a child has said."""

    lines: list[dict[str, Any]] = attrs.field(factory=list)
    oversizes: list[tuple[bytes, bytes, int]] = attrs.field(factory=list)
    reasons: list[str] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)
    rooms: int = 0
    turns: int = 0
    changed: trio.Event = attrs.field(factory=trio.Event)
    child: Child | None = None

    def events(self) -> ChildEvents:
        return ChildEvents(
            line=lambda raw: self.lines.append(json.loads(raw)),
            oversize=lambda head, tail, length: self.oversizes.append((head, tail, length)),
            room=self.note_room,
            closed=self.reasons.append,
            errors=self.errors.append,
            unsent=lambda: None,
            settle=self.settle,
        )

    def note_room(self) -> None:
        self.rooms += 1

    def settle(self) -> None:
        self.turns += 1
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, condition: Any) -> None:
        with trio.fail_after(30):
            while not condition():
                with trio.move_on_after(0.1):  # stderr has no turn of its own
                    await self.changed.wait()

    def ask(self, method: str, **params: Any) -> None:
        assert self.child is not None
        message = {"jsonrpc": "2.0", "id": len(self.lines) + 1, "method": method, "params": params}
        assert self.child.send(json.dumps(message).encode())
        self.child.flush()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        before = len(self.lines)
        self.ask(method, **params)
        await self.until(lambda: len(self.lines) > before)
        return self.lines[-1]["result"]


@asynccontextmanager
async def running(program: str, *args: str, max_line: int = 1 << 20, **options: Any) -> AsyncIterator[Owner]:
    owner = Owner()
    owner.child = spawn(owner, sys.executable, str(UPSTREAMS / program), *args, max_line=max_line, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(owner.child.run)
        yield owner
        owner.child.close()
    assert len(owner.reasons) == 1


def spawn(
    owner: Owner,
    command: str,
    *args: str,
    env: dict[str, str] | None = None,
    cwd: str = "",
    max_line: int = 1 << 20,
    max_buffer: int = 1 << 20,
) -> Child:
    return REGISTRY.spawn(
        command, args, environment(env or {}), cwd, owner.events(), max_line=max_line, max_buffer=max_buffer
    )


def alive(pid: int) -> bool:
    status = descendants.stat(pid)
    return status is not None and status.state != "Z"


async def appears(path: Path) -> dict[str, int]:
    with trio.fail_after(30):
        while not await trio.Path(path).exists():
            await trio.sleep(0.01)
    return json.loads(await trio.Path(path).read_text())


async def test_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server gets the seven variables and its own, its three pipes, its directory, and a session of its own."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    gateway = dict.fromkeys(("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG"), "/gateway")
    for name, value in (gateway | {"JWT_SECRET": SECRET, "PYTHONPATH": "/x"}).items():
        monkeypatch.setenv(name, value)
    read, write = os.pipe()
    os.set_inheritable(read, True)
    try:
        async with running(
            "surroundings.py", "--", "a b", "ü", env={"OWN": "1", "HOME": "/own"}, cwd=str(tmp_path)
        ) as owner:
            given = await owner.call("test")
    finally:
        os.close(read)
        os.close(write)
    given["environment"].pop("LC_CTYPE", None)  # set by the interpreter itself (PEP 538)
    assert given["environment"] == gateway | {"OWN": "1", "HOME": "/own"}
    assert given["arguments"] == ["--", "a b", "ü"]
    assert given["directory"] == str(tmp_path)
    assert {number for number, target in given["descriptors"].items() if "/fd" not in target} == {"0", "1", "2"}
    assert given["session"] == given["group"] == given["pid"] != os.getsid(0)
    ignored = int(given["ignored"], 16)
    assert not ignored & (1 << signal.SIGTERM - 1)
    assert not ignored & (1 << signal.SIGHUP - 1)


@pytest.mark.parametrize(
    ("command", "cwd", "reason"),
    [
        (f"no-such-program-{SECRET}", "", "cannot start: its program does not exist"),
        (f"/nowhere/{SECRET}", "", "cannot start: its program does not exist"),
        (str(UPSTREAMS / "dies.py"), "", "cannot start: Permission denied"),
        (sys.executable, f"/nowhere/{SECRET}", "cannot start: its working directory does not exist"),
    ],
)
async def test_what_cannot_start(command: str, cwd: str, reason: str) -> None:
    """A server that cannot be started says why, and nothing of its command line or paths."""
    with pytest.raises(SpawnFailed) as failure:
        spawn(Owner(), command, SECRET, cwd=cwd)
    assert reason in str(failure.value)
    assert SECRET not in str(failure.value)


async def test_nul_in_an_argument() -> None:
    """What no command line can hold is refused like everything else that cannot start."""
    with pytest.raises(SpawnFailed, match="NUL"):
        spawn(Owner(), sys.executable, "a\0b")


async def test_program_is_found_by_its_own_path(tmp_path: Path) -> None:
    """The command is looked up in the PATH of the server's own environment, if it has one."""
    program = tmp_path / "served"
    program.write_text(f"#!{sys.executable}\nprint('{{}}')\n")
    program.chmod(0o755)
    owner = Owner()
    child = spawn(owner, "served", env={"PATH": str(tmp_path)})
    await child.run()
    assert owner.lines == [{}]
    with pytest.raises(SpawnFailed):
        spawn(owner, "served")


async def test_exit_says_how() -> None:
    """The reason names the exit status or the signal, and what was printed before it arrives first."""
    for args, reason in ((("--status", "7"), "exited with status 7"), (("--status", "0"), "exited with status 0")):
        owner = Owner()
        await spawn(owner, sys.executable, str(UPSTREAMS / "dies.py"), *args).run()
        assert owner.reasons == [reason]
    async with running("dies.py", "--on", "never") as owner:
        await owner.call("hello")
        assert owner.child is not None
        os.kill(owner.child.pid, signal.SIGKILL)
        await owner.until(lambda: owner.reasons)
    assert owner.reasons == ["was killed by SIGKILL"]


@pytest.mark.parametrize("last", [False, True])
async def test_gigabyte_line(last: bool) -> None:
    """A line of 1 GB is discarded as it comes: no memory is taken for it, other tasks run, and the next line counts."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    turns = 0

    async def other_task() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    size = 1 << 30
    async with running("huge_line.py") as owner, trio.open_nursery() as nursery:
        nursery.start_soon(other_task)
        owner.ask("test/huge", bytes=size, last=last)
        await owner.until(lambda: owner.oversizes)
        assert (await owner.call("after"))["method"] == "after"
        nursery.cancel_scope.cancel()
    [(head, tail, length)] = owner.oversizes
    assert length > size
    assert (b'"id":1' in head) is not last
    assert (b'"id":1' in tail) is last
    assert turns > 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB; CI machines vary, 1 GB shows


async def test_stderr_never_blocks_and_is_bounded() -> None:
    """A server that writes megabytes to stderr is answered; the log gets few lines, with nothing to obey in them."""
    async with running("noisy.py") as owner:
        assert (await owner.call("hello"))["method"] == "hello"
        assert owner.child is not None
    assert 0 < len(owner.errors) < 2000
    assert all(line.isprintable() and len(line) <= 8192 for line in owner.errors)
    assert any("\\x1b[2J\\u202eevil\\x07" in line for line in owner.errors)


async def test_backpressure_of_a_server_that_does_not_read() -> None:
    """What waits for a server that doesn't read is bounded, and refused visibly; its end is not held up by it."""
    async with running("deaf.py", max_buffer=1 << 20) as owner:
        owner.ask("test/deaf")
        assert owner.child is not None
        message = b'{"jsonrpc":"2.0","method":"%s"}' % (b"x" * 100_000)
        taken = 0
        while owner.child.send(message):
            taken += 1
            owner.child.flush()
            await trio.lowlevel.checkpoint()
            assert taken < 100
        assert taken >= 10


async def test_room_is_announced() -> None:
    """After a refusal ``room`` comes as soon as the server has read enough, and everything arrives in order."""
    async with running("recorder.py", "--record", os.devnull, max_buffer=200_000, max_line=1 << 20) as owner:
        await owner.call("hello")
        assert owner.child is not None
        payload = "x" * 50_000
        number = 0
        while owner.child.send(json.dumps({"id": number, "method": "m", "params": [number, payload]}).encode()):
            number += 1
        owner.child.flush()
        await owner.until(lambda: owner.rooms)
        await owner.until(lambda: len(owner.lines) == number + 1)
        assert [line["result"]["echo"][0] for line in owner.lines[1:]] == list(range(number))


async def test_pause_stops_reading() -> None:
    """While paused nothing is read; after that nothing is missing."""
    async with running("recorder.py", "--record", os.devnull) as owner:
        await owner.call("hello")
        assert owner.child is not None
        owner.child.pause()
        owner.ask("later")
        with trio.move_on_after(0.3):
            await owner.until(lambda: len(owner.lines) > 1)
        assert len(owner.lines) == 1
        owner.child.resume()
        await owner.until(lambda: len(owner.lines) == 2)


async def test_last_words_are_heard_while_paused() -> None:
    """What a server wrote before it died arrives, although nothing was to be read just then."""
    async with running("recorder.py", "--record", os.devnull) as owner:
        await owner.call("hello")
        assert owner.child is not None
        owner.child.pause()
        owner.ask("later")
        answered, _, _ = await trio.to_thread.run_sync(select.select, [owner.child._stdout], [], [], 30)
        assert answered
        os.kill(owner.child.pid, signal.SIGKILL)
        await owner.until(lambda: owner.reasons)
        assert [line["result"]["method"] for line in owner.lines] == ["hello", "later"]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_end_takes_the_family(tmp_path: Path, stubborn: bool) -> None:
    """Ending a server ends what it started, whatever session or signal disposition it gave itself; others stay."""
    options = ["--stubborn"] if stubborn else []
    async with running("family.py", "--pids", str(tmp_path / "other")) as other:
        others = await appears(tmp_path / "other")
        async with running("family.py", "--pids", str(tmp_path / "one"), *options) as owner:
            family = await appears(tmp_path / "one")
            await owner.call("hello")
            REGISTRY.look()
            assert all(alive(pid) for pid in family.values())
        assert not [name for name, pid in family.items() if alive(pid)]
        assert not [name for name, pid in others.items() if not alive(pid)]
        await other.call("hello")
    assert not [name for name, pid in others.items() if alive(pid)]


@pytest.mark.parametrize("how", ["exits", "is killed"])
async def test_death_takes_the_family(tmp_path: Path, how: str) -> None:
    """When a server dies by itself, what it leaves behind is ended too."""
    async with running("family.py", "--pids", str(tmp_path / "one")) as owner:
        family = await appears(tmp_path / "one")
        await owner.call("hello")
        if how == "exits":
            owner.ask("test/die")
        else:
            os.kill(family["server"], signal.SIGKILL)
        await owner.until(lambda: owner.reasons)
        await owner.until(lambda: not any(alive(pid) for pid in family.values()))


async def test_cancellation_kills_at_once(tmp_path: Path) -> None:
    """A cancelled server is killed with its family; what escapes the first blow is caught by ``end_all_now``."""
    owner = Owner()
    child = spawn(owner, sys.executable, str(UPSTREAMS / "family.py"), "--stubborn", "--pids", str(tmp_path / "one"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.run)
        family = await appears(tmp_path / "one")
        nursery.cancel_scope.cancel()
    assert end_all_now()
    assert not [name for name, pid in family.items() if alive(pid)]
    assert owner.reasons == []


async def test_end_all_now_needs_no_loop(tmp_path: Path) -> None:
    """From a plain thread, with the loop at a standstill, everything is killed; after that nothing can be spawned."""
    owner = Owner()
    async with trio.open_nursery() as nursery:
        for name in ("one", "two"):
            child = spawn(owner, sys.executable, str(UPSTREAMS / "family.py"), "--pids", str(tmp_path / name))
            nursery.start_soon(child.run)
        families = [await appears(tmp_path / name) for name in ("one", "two")]
        assert await trio.to_thread.run_sync(end_all_now)
        assert not [name for family in families for name, pid in family.items() if alive(pid)]
    with pytest.raises(SpawnFailed, match="stopping"):
        spawn(owner, sys.executable)


def test_printable() -> None:
    """Everything that could act on a terminal or a log is escaped; ordinary text in any script is not."""
    assert printable("héllo wörld ✓".encode()) == "héllo wörld ✓"
    assert printable(b"\x1b[31m\r\x00\x7f\xff") == "\\x1b[31m\\r\\x00\\x7f\\xff"
    assert printable("a\u202eb\u2028c".encode()) == "a\\u202eb\\u2028c"
