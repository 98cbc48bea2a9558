"""A TCP server's lines are dealt with a few in each turn of the hub."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from actors.acceptor.tcp_upstream import TcpUpstream
from actors.upstream.pace import ITEMS_A_TURN, ITEMS_PER_S
from ipc.settings import Settings, Upstream


@attrs.define(eq=False)
class Hub:
    """As much of a hub as a connection to an upstream uses; the test makes its turns and its time."""

    settings: Settings = attrs.field(factory=Settings)
    now: int = 10**9
    posted: list[Callable[[], None]] = attrs.field(factory=list)
    timers: list[tuple[int, Callable[[int], None]]] = attrs.field(factory=list)
    dirty_links: dict[int, Any] = attrs.field(factory=dict)
    epoll: Any = attrs.field(factory=select.epoll)
    ready: Any = None

    @property
    def wheel(self) -> Any:
        return SimpleNamespace(add=lambda when, call: self.timers.append((when, call)))

    def post(self, call: Callable[[], None]) -> None:
        self.posted.append(call)

    def watch(self, fd: int, mask: int, step: Any) -> None:
        self.epoll.register(fd, mask)
        self.ready = step

    def forget(self, fd: int) -> None:
        self.epoll.unregister(fd)

    def link_step(self, _link: Any, action: Callable[..., None], *arguments: Any) -> None:
        action(*arguments)

    def turn(self) -> None:
        """One of the hub's turns: sockets, posted calls, sending; timers come at once if nothing else is there."""
        events = self.epoll.poll(0)
        for _, mask in events:
            self.ready(mask, self.now)
        posted, self.posted = self.posted, []
        for call in posted:
            call()
        if not events and not posted and self.timers:
            when, call = self.timers.pop(0)
            self.now = max(self.now, when)
            call(self.now)
        links, self.dirty_links = self.dirty_links, {}
        for link in links.values():
            link.flush()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_a_flood_of_lines_is_dealt_with_in_turns_and_at_a_rate(pair: tuple[socket.socket, socket.socket]) -> None:
    """No turn hands on more than its share, nothing is read while something waits, all lines come in order, and once
    the rate is exceeded time passes; an end that comes meanwhile is told after the lines."""
    ours, theirs = pair
    hub = Hub()
    lines: list[bytes] = []
    ends: list[str] = []
    instance = SimpleNamespace(
        line=lambda raw, _now: lines.append(raw),
        oversize=None,
        opened=lambda _link, _now: None,
        closed=lambda reason, _now: ends.append(reason),
    )
    link = TcpUpstream(hub, Upstream(name="u", kind="tcp"), instance)  # type: ignore[arg-type]
    link._opened(ours)
    began = hub.now
    wanted = ITEMS_PER_S + 10_000
    data = b"".join(b"%d\n" % number for number in range(wanted))
    sent = 0
    while len(lines) < wanted:
        if sent < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += theirs.send(data[sent : sent + 65536])
            if sent == len(data):
                theirs.close()
        before = len(lines)
        hub.turn()
        assert len(lines) - before <= ITEMS_A_TURN
        assert not ends or len(lines) == wanted
    assert lines == [b"%d" % number for number in range(wanted)]
    assert hub.timers or hub.now > began
    while not ends:
        hub.turn()
    assert ends == ["closed by the server"]


def test_an_end_of_the_instance_drops_what_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nothing is handed on, or scheduled for ever, after a line has made the pool end the connection."""
    ours, theirs = pair
    hub = Hub()
    lines: list[bytes] = []

    def line(raw: bytes, _now: int) -> None:
        lines.append(raw)
        link.close()

    instance = SimpleNamespace(line=line, opened=lambda _link, _now: None, closed=lambda _reason, _now: None)
    link = TcpUpstream(hub, Upstream(name="u", kind="tcp"), instance)  # type: ignore[arg-type]
    link._opened(ours)
    theirs.send(b"x\n" * 10_000)
    hub.turn()
    hub.turn()
    assert lines == [b"x"]
    assert not hub.posted
    assert not hub.timers


def test_a_message_larger_than_the_buffer_is_taken_when_nothing_waits(
    pair: tuple[socket.socket, socket.socket]
) -> None:
    """What one limit allows another doesn't shut out; a second one has to wait, and is told when there is room."""
    ours, theirs = pair
    hub = Hub(Settings(max_buffer_size=1000))
    rooms: list[int] = []
    instance = SimpleNamespace(
        opened=lambda _link, _now: None, closed=lambda _reason, _now: None, room=lambda: rooms.append(1)
    )
    link = TcpUpstream(hub, Upstream(name="u", kind="tcp"), instance)  # type: ignore[arg-type]
    link._opened(ours)
    assert link.send(b"x" * 1001)
    assert not link.send(b"y")
    assert not rooms
    hub.turn()
    assert theirs.recv(4096) == b"x" * 1001 + b"\n"
    assert rooms
    assert link.send(b"y")
