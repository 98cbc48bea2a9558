"""What a service manager hears of the supervisor, datagram by datagram."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor import sd_notify

SECOND = 1_000_000_000


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A manager's socket and its address, as NOTIFY_SOCKET holds it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@portcullis-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.setblocking(False)
        yield sock, name


def heard(sock: socket.socket) -> list[list[str]]:
    """All datagrams so far, as their lines."""
    found = []
    while True:
        try:
            found.append(sock.recv(65536).decode().split("\n"))
        except BlockingIOError:
            return found


def service(name: str, **more: str) -> sd_notify.ServiceManager:
    return sd_notify.of_environment({"NOTIFY_SOCKET": name, **more})


def test_the_life_of_a_service(manager: tuple[socket.socket, str]) -> None:
    """READY once ready, RELOADING with its time and READY around a reload, STOPPING with time enough for the drain."""
    sock, name = manager
    told = service(name)
    told.ready("serving\nREADY=0")
    assert heard(sock) == [["READY=1", "STATUS=serving READY=0"]], "a status is one line, and can't be anything else"
    with told.reloading():
        (lines,) = heard(sock)
    assert lines[0] == "RELOADING=1"
    assert lines[1].startswith("MONOTONIC_USEC=")
    assert int(lines[1].partition("=")[2]) > 0
    assert heard(sock) == [["READY=1"]]
    told.stopping("draining", 45_000)
    assert heard(sock) == [["STOPPING=1", "STATUS=draining", "EXTEND_TIMEOUT_USEC=45000000"]]
    told.close()


def test_a_reload_that_fails_is_over_too(manager: tuple[socket.socket, str]) -> None:
    """A manager never waits for the end of a reload that has raised."""
    sock, name = manager
    told = service(name)
    told.ready("x")
    heard(sock)
    with pytest.raises(ValueError, match="broken"), told.reloading():
        raise ValueError("broken")
    assert [lines[0] for lines in heard(sock)] == ["RELOADING=1", "READY=1"]
    told.close()


def test_only_what_is_ready_is_ready_again(manager: tuple[socket.socket, str]) -> None:
    """A reload during the start or the drain says nothing; a start that ends in a drain was never ready."""
    sock, name = manager
    told = service(name)
    with told.reloading():
        pass
    assert heard(sock) == []
    told.stopping("draining", 1)
    heard(sock)
    told.ready("too late")
    with told.reloading():
        pass
    told.stopping("again", 1)
    assert heard(sock) == []
    told.close()


async def test_life_is_told_twice_in_the_managers_time(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    """WATCHDOG=1 at half of WATCHDOG_USEC; none while the look at the workers is overdue; again once it isn't."""
    name = str(tmp_path / "notify")
    late = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.setblocking(False)
        told = service(name, WATCHDOG_USEC="20000000", WATCHDOG_PID=str(os.getpid()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(told.keep_alive, lambda: late)
            await trio.sleep(25)
            assert heard(sock) == [["WATCHDOG=1"]] * 3
            late = 10 * SECOND
            await trio.sleep(50)
            assert heard(sock) == []
            late = 10 * SECOND - 1
            await trio.sleep(10)
            assert heard(sock) == [["WATCHDOG=1"]]
            nursery.cancel_scope.cancel()
        told.close()


@pytest.mark.parametrize(
    "more",
    [
        *({}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"}, {"WATCHDOG_USEC": "²"}),
        {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"},
    ],
)
async def test_without_a_watchdog_of_ours_there_is_no_sign_of_life(more: dict[str, str], tmp_path: Path) -> None:
    """None is wanted, or from another process, or the variable makes no sense."""
    told = service(str(tmp_path / "notify"), **more)
    assert told.watchdog_ns == 0
    await told.keep_alive(lambda: 0)


def test_what_we_start_can_not_speak_for_us() -> None:
    """The variables are gone from the environment as soon as they have been read."""
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1", "PATH": "/bin"}
    sd_notify.of_environment(environment)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "name", ["", "relative", "@", "/", "vsock:2:1", "/nonexistent/notify", "@nobody-is-here-" + "x" * 200]
)
def test_a_manager_that_is_not_there_hurts_nobody(name: str) -> None:
    """Whatever NOTIFY_SOCKET says, and though nobody listens there."""
    told = service(name, WATCHDOG_USEC="1000000")
    told.ready("x")
    with told.reloading():
        pass
    told.status("y")
    told.stopping("x", 1)
    told.close()


def test_what_found_no_room_comes_later(tmp_path: Path) -> None:
    """A full socket loses no state, and holds nobody up; a manager that is started anew hears the rest."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.setblocking(False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
            flood.setblocking(False)
            flood.connect(name)
            with suppress(BlockingIOError):
                while flood.send(b"x"):
                    pass
        told = service(name)
        told.ready("first")
        assert {b"".join(map(str.encode, lines)) for lines in heard(sock)} == {b"x"}
        told.status("second")
        assert heard(sock) == [["READY=1", "STATUS=first"], ["STATUS=second"]]
    told.status("third")
    Path(name).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.setblocking(False)
        told.status("fourth")
        assert heard(sock) == [["STATUS=third"], ["STATUS=fourth"]]
    told.close()
