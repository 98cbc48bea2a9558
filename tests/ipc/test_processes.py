"""The same between real processes: death by SIGKILL, and a peer that hangs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from ipc.address import Address
from ipc.errors import ActorDown, DeadlineExceeded
from ipc.exchange import Exchange
from ipc.messages import Describe, Ticket

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")

WORKER = Path(__file__).with_name("answering_worker.py")


def soon() -> int:
    return time.monotonic_ns() + 20_000_000_000


class Workers:
    """An exchange in this process and a child process with the actor ``target``."""

    def __init__(self) -> None:
        self.exchange = Exchange("near", {"user": "near", "target": "far"})
        self.target: Address = self.exchange.address("target")
        self.children: list[subprocess.Popen[bytes]] = []

    async def spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, str(WORKER), str(theirs.fileno())]
            self.children.append(
                await trio.to_thread.run_sync(lambda: subprocess.Popen(command, pass_fds=[theirs.fileno()]))
            )
        self.exchange.connect("far", ours)
        await self.turned(up=True)

    async def turned(self, *, up: bool) -> None:
        changed = trio.Event()
        stop = self.target.watch(lambda incarnation: changed.set() if bool(incarnation) is up else None)
        with trio.fail_after(20):
            await changed.wait()
        stop()

    def signal(self, number: signal.Signals) -> None:
        self.children[-1].send_signal(number)


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    made = Workers()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(made.exchange.run)
            await made.spawn()
            yield made
            nursery.cancel_scope.cancel()
    finally:
        for child in made.children:
            child.kill()
            child.wait()


async def test_kill_ends_every_pending_request(workers: Workers) -> None:
    """SIGKILL of a process answers each request that waits for it with ActorDown; its successor answers new ones."""
    assert await workers.target.ask(Ticket("echo", 1), soon()) == Ticket("echo", 1)
    answers: list[object] = []
    for _ in range(100):
        workers.target.request(Describe(), soon(), answers.append)
    workers.signal(signal.SIGKILL)
    with pytest.raises(ActorDown):
        await workers.target.ask(Describe(), soon())
    assert [type(answer) for answer in answers] == [ActorDown] * 100
    assert workers.target.incarnation == 0
    await workers.spawn()
    assert await workers.target.ask(Ticket("echo", 2), soon()) == Ticket("echo", 2)
    assert len(answers) == 100
    assert workers.exchange.statistics().pending == 0


async def test_a_stopped_process_is_not_waited_for(workers: Workers) -> None:
    """Requests to a process that was stopped end at their deadline, data to it ends at the bound, and what it answers
    after it goes on is late."""
    workers.signal(signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        await workers.target.ask(Ticket("echo", 1), time.monotonic_ns() + 50_000_000)
    assert [workers.target.tell(Describe()) for _ in range(17)] == [True] * 16 + [False]
    room = trio.Event()
    workers.target.on_room(room.set)
    workers.signal(signal.SIGCONT)
    with trio.fail_after(20):
        await room.wait()
    assert await workers.target.ask(Ticket("echo", 2), soon()) == Ticket("echo", 2)
    assert workers.exchange.statistics().late == 1


async def test_throughput_does_not_lose_or_reorder(workers: Workers) -> None:
    """Thousands of requests in flight at once all come back, each with its own answer."""
    answers: list[object] = []
    done = trio.Event()

    def take(number: int, reply: object) -> None:
        answers.append((number, reply))
        if len(answers) == 5000:
            done.set()

    for number in range(5000):
        workers.target.request(Ticket("", number), soon(), lambda reply, number=number: take(number, reply))
    with trio.fail_after(20):
        await done.wait()
    assert answers == [(number, Ticket("", number)) for number in range(5000)]
