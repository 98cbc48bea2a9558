"""Who makes room when all places are taken: strangers that take their time, never who has authenticated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from policy_worker import Worker, eventually, policy_worker

from actors import limiter
from actors.policy.connections import ConnectionLimits, Connections
from ipc.mailbox import Mailbox
from ipc.messages import Admit, Admitted, Established, Evict, Message, Refused, Released, Resync

A0, A1 = "acceptor.0", "acceptor.1"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine nobody here is to run out of time."""
    monkeypatch.setattr(limiter, "_ROOM_NS", 60_000_000_000)


def test_the_oldest_of_the_address_with_most_strangers_goes() -> None:
    """Only one that is ripe, of the listener that is full, and each is asked once."""
    connections = Connections(ConnectionLimits(ws=5, tcp=5, per_key=3))
    for session, (key, ripe_ns) in enumerate([("a", 10), ("b", 5), ("b", 4), ("b", 90)]):
        connections.add(A0, session, "ws", key, ripe_ns)
    connections.add(A0, 9, "tcp", "b", 1)
    assert connections.evict("total", "ws", "c", 3) is None
    assert connections.evict("total", "ws", "c", 20) == (A0, 2)
    assert connections.is_leaving(A0, 2)
    assert connections.evict("total", "ws", "c", 20) == (A0, 1)  # one each by now: the address doesn't matter
    assert connections.evict("total", "ws", "c", 20) == (A0, 0)
    assert connections.evict("total", "ws", "c", 20) is None
    connections.release(A0, [2])
    assert not connections.is_leaving(A0, 2)
    assert connections.totals["ws"] == 3


def test_an_address_that_is_full_makes_room_for_its_own() -> None:
    """Whichever listener its stranger came through; another address's strangers stay."""
    connections = Connections(ConnectionLimits(ws=5, tcp=5, per_key=1))
    connections.add(A0, 1, "tcp", "a", 10)
    connections.add(A0, 2, "ws", "b", 5)
    assert connections.evict("address", "ws", "a", 20) == (A0, 1)
    assert connections.evict("address", "ws", "a", 20) is None


def test_who_has_authenticated_stays() -> None:
    """However old it is, also when it was just asked to go."""
    connections = Connections(ConnectionLimits(ws=5, tcp=5, per_key=5))
    connections.add(A0, 1, "ws", "a", 10)
    assert connections.evict("total", "ws", "c", 20) == (A0, 1)
    connections.settle(A0, [1])
    assert not connections.is_leaving(A0, 1)
    assert connections.evict("total", "ws", "c", 20) is None
    connections.resync(A1, [(1, "ws", "a", 0), (2, "ws", "a", 15)])
    assert connections.evict("total", "ws", "c", 20) == (A1, 2)


async def _evicted(mailbox: Mailbox) -> list[int]:
    with trio.fail_after(5):
        while True:
            for delivery in await mailbox.receive():
                if isinstance(delivery.message, Evict):
                    return delivery.message.sessions


def _tell(worker: Worker, message: Message) -> None:
    worker.exchange.address("limiter").control(message)


async def _limiter(worker: Worker) -> tuple[Mailbox, Mailbox]:
    mailboxes = worker.open(A0), worker.open(A1)
    await worker.start("limiter", limiter.main)
    for name in (A0, A1):
        _tell(worker, Resync(name, []))
    return mailboxes


def _admit(acceptor: str, session: int, ripe_ns: int, key: str = "k") -> Admit:
    return Admit(acceptor, session, "ws", key, ripe_ns=ripe_ns)


async def _in_background(worker: Worker, nursery: trio.Nursery, question: Admit) -> Callable[[], Any]:
    answers: list[Message] = []

    async def ask() -> None:
        answers.append(await worker.ask("limiter", question))

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    return lambda: answers[0] if answers else None


async def test_a_newcomer_gets_the_place_when_it_is_free(tmp_path: Path) -> None:
    """Not before: the limit stays exact over all workers; and nobody who comes later gets it first."""
    async with policy_worker(tmp_path, ws_max_connections=1) as worker, trio.open_nursery() as nursery:
        first, _ = await _limiter(worker)
        past = time.monotonic_ns() - 1
        assert isinstance(await worker.ask("limiter", _admit(A0, 1, past)), Admitted)
        answer = await _in_background(worker, nursery, _admit(A1, 1, past + 10**12))
        assert await _evicted(first) == [1]
        assert answer() is None
        assert isinstance(await worker.ask("limiter", _admit(A0, 2, past)), Refused)
        described = await worker.describe("limiter")
        assert (described["connections"]["ws"], described["evicted"]) == (1, 1)
        _tell(worker, Released(A0, [1]))
        assert isinstance(await worker.ask("limiter", _admit(A0, 3, past)), Refused)
        await eventually(lambda: isinstance(answer(), Admitted))
        assert (await worker.describe("limiter"))["connections"]["ws"] == 1


@pytest.mark.parametrize("told", [True, False])
async def test_who_authenticates_or_is_young_is_not_evicted(tmp_path: Path, told: bool) -> None:
    """A newcomer is then refused as ever."""
    async with policy_worker(tmp_path, ws_max_connections=1) as worker:
        await _limiter(worker)
        now = time.monotonic_ns()
        assert isinstance(await worker.ask("limiter", _admit(A0, 1, now - 1 if told else now + 10**12)), Admitted)
        if told:
            _tell(worker, Established(A0, [1]))
        assert await worker.ask("limiter", _admit(A1, 1, now)) == Refused("limit", 1000, "total")


async def test_one_that_authenticates_in_the_last_moment_keeps_its_place(tmp_path: Path) -> None:
    """The newcomer's turn comes with another's place, or not at all."""
    async with policy_worker(tmp_path, ws_max_connections=1) as worker, trio.open_nursery() as nursery:
        first, _ = await _limiter(worker)
        past = time.monotonic_ns() - 1
        assert isinstance(await worker.ask("limiter", _admit(A0, 1, past)), Admitted)
        answer = await _in_background(worker, nursery, _admit(A1, 1, past))
        assert await _evicted(first) == [1]
        _tell(worker, Established(A0, [1]))
        await worker.describe("limiter")
        await eventually(lambda: answer() == Refused("limit", 1000, "total"))


async def test_a_restarted_limiter_knows_who_is_a_stranger(tmp_path: Path) -> None:
    """By what the acceptors tell it; and a newcomer that waited is decided by all of them."""
    async with policy_worker(tmp_path, ws_max_connections=2) as worker, trio.open_nursery() as nursery:
        _, second = await _limiter(worker)
        await worker.kill("limiter")
        await worker.start("limiter", limiter.main)
        past = time.monotonic_ns() - 1
        _tell(worker, Resync(A0, [(1, "ws", "a", 0)]))
        _tell(worker, Resync(A1, [(7, "ws", "b", past)]))
        answer = await _in_background(worker, nursery, _admit(A0, 2, past))
        assert await _evicted(second) == [7]
        worker.shut(A1)
        await eventually(lambda: isinstance(answer(), Admitted))


async def test_a_newcomer_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An acceptor that does not let go of a connection costs the newcomer a bounded time."""
    monkeypatch.setattr(limiter, "_ROOM_NS", 20_000_000)
    async with policy_worker(tmp_path, ws_max_connections=1) as worker:
        await _limiter(worker)
        past = time.monotonic_ns() - 1
        assert isinstance(await worker.ask("limiter", _admit(A0, 1, past)), Admitted)
        assert await worker.ask("limiter", _admit(A1, 1, past)) == Refused("limit", 1000, "total")
