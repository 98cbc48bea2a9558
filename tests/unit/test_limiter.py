"""The actor limiter: leases, connection counts, and what survives its death."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from policy_worker import WITHIN_NS, Worker, eventually, policy_worker

from actors import journal as journal_module
from actors import limiter
from actors.lease_book import LeaseBook
from ipc.errors import DeadlineExceeded
from ipc.messages import (
    Admit,
    Admitted,
    Exhausted,
    Lease,
    LeaseReport,
    LeaseRequest,
    Message,
    Refused,
    Released,
    Resync,
)

KEYS = ("ip:192.0.2.7",)
A0, A1 = "acceptor.0", "acceptor.1"


async def _limiter(worker: Worker, *acceptors: str, sync: bool = True, **changed: Any) -> None:
    for name in acceptors:
        worker.open(name)
    await worker.start("limiter", limiter.main, **changed)
    if sync:
        for name in acceptors:
            _control(worker, Resync(name, []))


def _control(worker: Worker, message: Message) -> None:
    worker.exchange.address("limiter").control(message)


async def _admit(worker: Worker, session: int, *, acceptor: str = A0, listener: Any = "ws", key: str = "k") -> Message:
    return await worker.ask("limiter", Admit(acceptor, session, listener, key))


async def _take_all(worker: Worker, acceptor: str = A0, keys: tuple[str, ...] = KEYS) -> int:
    """Spend leases until the limiter has no more; how many units that were."""
    units = 0
    while isinstance(lease := await worker.ask("limiter", LeaseRequest(acceptor, keys, 256)), Lease):
        used = [time.monotonic_ns()] * lease.units
        _control(worker, LeaseReport(acceptor, lease.lease, used, 0, True))
        units += lease.units
    assert isinstance(lease, Exhausted)
    assert lease.keys == keys
    assert 0 < lease.retry_after_ms <= 60_000
    return units


async def test_two_acceptors_share_one_budget(tmp_path: Path) -> None:
    """Whoever asks, the sum of all leases of a key is its limit, and another key has its own."""
    async with policy_worker(tmp_path, rate_limit_max_requests=50, rate_limit_burst_requests=40) as worker:
        await _limiter(worker, A0, A1)
        lease = await worker.ask("limiter", LeaseRequest(A1, KEYS, 10))
        assert isinstance(lease, Lease)
        assert await _take_all(worker) == 40 - lease.units
        assert await _take_all(worker, keys=("ip:192.0.2.8",)) == 40


async def test_all_keys_of_a_message_are_charged_or_none(tmp_path: Path) -> None:
    """When one of two counters is used up nothing is granted, and the other is not charged for the refusal."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=10) as worker:
        await _limiter(worker, A0)
        assert await _take_all(worker, keys=("ip:a",)) == 10
        assert isinstance(await worker.ask("limiter", LeaseRequest(A0, ("principal:p", "ip:a"), 1)), Exhausted)
        assert await _take_all(worker, keys=("principal:p",)) == 10


async def test_units_that_come_back_may_be_given_out_again(tmp_path: Path) -> None:
    """A returned unit is free at once; a lease closed without a word on its units leaves them spent."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=8) as worker:
        await _limiter(worker, A0)
        lease = await worker.ask("limiter", LeaseRequest(A0, KEYS, 1))
        assert isinstance(lease, Lease)
        _control(worker, LeaseReport(A0, lease.lease, [], lease.units, True))
        lease = await worker.ask("limiter", LeaseRequest(A0, KEYS, 1))
        assert isinstance(lease, Lease)
        _control(worker, LeaseReport(A0, lease.lease, [], 0, True))
        assert await _take_all(worker) == 8 - lease.units


async def test_a_dead_acceptors_units_stay_spent(tmp_path: Path) -> None:
    """What an acceptor held when it died is not given out again within the window."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=16) as worker:
        await _limiter(worker, A0, A1)
        lease = await worker.ask("limiter", LeaseRequest(A1, KEYS, 2))
        assert isinstance(lease, Lease)
        worker.shut(A1)
        assert await _take_all(worker) == 16 - lease.units
        assert (await worker.describe("limiter"))["units_forfeited"] == lease.units


@pytest.mark.parametrize("cut", [0, 1, 7])
async def test_a_restart_renews_no_budget(tmp_path: Path, cut: int) -> None:
    """Killed after an answer, or in the middle of the next record, the limiter comes back with its counts."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=32, rate_limit_burst_window_ms=60_000) as worker:
        await _limiter(worker, A0)
        lease = await worker.ask("limiter", LeaseRequest(A0, KEYS, 3))
        assert isinstance(lease, Lease)
        other = await worker.ask("limiter", LeaseRequest(A0, KEYS, 2))
        assert isinstance(other, Lease)
        # What a kill -9 leaves is what had been written when the last answer came.
        path = tmp_path / "state" / "limiter.journal"
        left = path.read_bytes()
        await worker.kill("limiter")
        path.write_bytes(left + b"\x40\x00\x00\x00\x99\x99\x99\x99"[:cut])
        await worker.start("limiter", limiter.main)
        # The leases are still outstanding, so a report of before counts.
        _control(worker, LeaseReport(A0, lease.lease, [], lease.units, True))
        assert await _take_all(worker) == 32 - other.units


async def test_another_boot_drops_the_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Monotonic times mean nothing after a reboot: budgets start anew."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=10) as worker:
        await _limiter(worker, A0)
        assert await _take_all(worker) == 10
        await worker.kill("limiter")
        monkeypatch.setattr(limiter, "boot_id", lambda: "00000000-0000-0000-0000-000000000000")
        await worker.start("limiter", limiter.main)
        assert await _take_all(worker) == 10


async def test_nothing_is_granted_that_cannot_be_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk everything is refused as unavailable; with room again no unit is lost or doubled."""
    full = False

    def write(fd: int, data: Any) -> int:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    real = journal_module._write_all

    async with policy_worker(tmp_path, rate_limit_burst_requests=20) as worker:
        await _limiter(worker, A0)
        monkeypatch.setattr(journal_module, "_write_all", write)
        full = True
        answer = await worker.ask("limiter", LeaseRequest(A0, KEYS, 1))
        assert isinstance(answer, Refused)
        assert answer.reason == "unavailable"
        answer = await _admit(worker, 1)
        assert isinstance(answer, Refused)
        full = False
        assert await _take_all(worker) == 20
        assert isinstance(await _admit(worker, 1), Admitted)
        await worker.kill("limiter")
        await worker.start("limiter", limiter.main)
        assert await _take_all(worker) == 0


async def test_without_a_limit_leases_have_no_end(tmp_path: Path) -> None:
    """RATE_LIMIT_ENABLED=false: a book with that lease takes as many as it likes and reports nothing."""
    async with policy_worker(tmp_path, rate_limit_enabled=False, rate_limit_burst_requests=1) as worker:
        await _limiter(worker, A0)
        book = LeaseBook(A0)
        now = time.monotonic_ns()
        request = book.want(KEYS, now, 1)
        assert request is not None
        answer = await worker.ask("limiter", request)
        assert isinstance(answer, Lease)
        book.granted(answer, now)
        assert all(book.take(KEYS, now) for _ in range(10_000))
        assert book.due_reports(now + 100_000_000) == []


# --- connections


async def test_totals_and_addresses_are_counted_over_all_acceptors(tmp_path: Path) -> None:
    """The limits hold for all workers together, for each listener its own and for an address over both."""
    async with policy_worker(tmp_path, ws_max_connections=3, tcp_max_connections=2, max_connections_per_ip=2) as worker:
        await _limiter(worker, A0, A1)
        assert isinstance(await _admit(worker, 1, key="a"), Admitted)
        assert isinstance(await _admit(worker, 1, acceptor=A1, listener="tcp", key="a"), Admitted)
        assert await _admit(worker, 2, key="a") == Refused("limit", 1000, "address")
        assert isinstance(await _admit(worker, 3, key="b"), Admitted)
        assert isinstance(await _admit(worker, 2, acceptor=A1, key="c"), Admitted)
        assert await _admit(worker, 4, key="d") == Refused("limit", 1000, "total")
        assert isinstance(await _admit(worker, 5, listener="tcp", key="d"), Admitted)
        _control(worker, Released(A0, [1, 77]))
        assert isinstance(await _admit(worker, 6, key="a"), Admitted)


async def test_asking_again_is_counted_once(tmp_path: Path) -> None:
    """An acceptor whose answer was lost asks again and holds one connection, not two."""
    async with policy_worker(tmp_path, ws_max_connections=1) as worker:
        await _limiter(worker, A0)
        assert isinstance(await _admit(worker, 1), Admitted)
        assert isinstance(await _admit(worker, 1), Admitted)
        _control(worker, Released(A0, [1]))
        assert isinstance(await _admit(worker, 2), Admitted)


async def test_a_dead_acceptors_connections_are_free(tmp_path: Path) -> None:
    """When an acceptor dies its connections are gone, and those of the others are not."""
    async with policy_worker(tmp_path, ws_max_connections=2) as worker:
        await _limiter(worker, A0, A1)
        assert isinstance(await _admit(worker, 1), Admitted)
        assert isinstance(await _admit(worker, 1, acceptor=A1), Admitted)
        assert isinstance(await _admit(worker, 2), Refused)
        worker.shut(A1)
        assert isinstance(await _admit(worker, 3), Admitted)
        assert isinstance(await _admit(worker, 4), Refused)


async def test_after_a_restart_nobody_is_admitted_before_all_have_told_theirs(tmp_path: Path) -> None:
    """A question waits until every acceptor that is up has sent Resync, and is then decided with all of them."""
    async with policy_worker(tmp_path, ws_max_connections=3) as worker:
        await _limiter(worker, A0, A1)
        await worker.kill("limiter")
        await worker.start("limiter", limiter.main)
        _control(worker, Resync(A0, [(1, "ws", "a", 0)]))
        answers: list[Message] = []

        async def ask(session: int) -> None:
            answers.append(await _admit(worker, session))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 2)
            nursery.start_soon(ask, 3)
            await trio.testing.wait_all_tasks_blocked()
            assert (await worker.describe("limiter"))["parked"] == 2
            assert answers == []
            _control(worker, Resync(A1, [(1, "ws", "a", 0)]))
        assert sorted(type(answer).__name__ for answer in answers) == ["Admitted", "Refused"]


async def test_after_a_restart_acceptors_that_are_still_joining_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limiter that comes back before the channel to a live acceptor admits nobody without that one's connections."""
    monkeypatch.setattr(limiter, "_JOINING_NS", 3_600_000_000_000)
    async with policy_worker(tmp_path, ws_max_connections=1) as worker:
        await _limiter(worker, A0)
        await worker.kill("limiter")
        await worker.start("limiter", limiter.main)
        _control(worker, Resync(A0, []))
        answers: list[Message] = []

        async def ask() -> None:
            answers.append(await _admit(worker, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert (await worker.describe("limiter"))["parked"] == 1
            worker.open(A1)
            _control(worker, Resync(A1, [(5, "ws", "a", 0)]))
        assert answers == [Refused("limit", 1000, "total")]


async def test_an_acceptor_that_never_joins_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the time for joining is over, those that are up decide."""
    monkeypatch.setattr(limiter, "_JOINING_NS", 20_000_000)
    async with policy_worker(tmp_path) as worker:
        await _limiter(worker, A0)
        await worker.kill("limiter")
        await worker.start("limiter", limiter.main)
        _control(worker, Resync(A0, []))
        assert isinstance(await _admit(worker, 1), Admitted)


async def test_a_question_that_waits_for_an_acceptor_ends_with_its_deadline(tmp_path: Path) -> None:
    """An acceptor that never tells its connections blocks no question past its own deadline."""
    async with policy_worker(tmp_path) as worker:
        await _limiter(worker, A0, A1, sync=False)
        _control(worker, Resync(A0, []))
        address = worker.exchange.address("limiter")
        with pytest.raises(DeadlineExceeded):
            await address.ask(Admit(A0, 1, "ws", "k"), time.monotonic_ns() + 20_000_000)
        await worker.describe("limiter")
        worker.shut(A1)
        assert isinstance(await address.ask(Admit(A0, 2, "ws", "k"), time.monotonic_ns() + WITHIN_NS), Admitted)


async def test_the_rate_of_new_connections_is_limited_and_survives(tmp_path: Path) -> None:
    """CONNECTION_RATE_LIMIT counts by address, ended connections too, over a restart; the wait that is told is true."""
    async with policy_worker(tmp_path, connection_rate_limit=3) as worker:
        await _limiter(worker, A0)
        for session in (1, 2, 3):
            assert isinstance(await _admit(worker, session), Admitted)
            _control(worker, Released(A0, [session]))
        await worker.kill("limiter")
        await worker.start("limiter", limiter.main)
        _control(worker, Resync(A0, []))
        _control(worker, Resync(A1, []))
        answer = await _admit(worker, 4)
        assert isinstance(answer, Refused)
        assert answer.reason == "rate"
        assert 0 < answer.retry_after_ms <= 60_000
        assert isinstance(await _admit(worker, 5, key="other"), Admitted)


async def test_the_limiter_drains(tmp_path: Path) -> None:
    """Drain answers what still waits and returns; an unknown acceptor's messages hurt nobody."""
    async with policy_worker(tmp_path) as worker:
        await _limiter(worker, A0)
        _control(worker, Resync("acceptor.99", [(1, "ws", "k")]))
        assert isinstance(await worker.ask("limiter", LeaseRequest("acceptor.99", KEYS, 1)), Refused)
        await worker.drain("limiter")
        assert not worker.crashes


async def test_the_journal_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is compacted as it grows, and a compacted one says the same."""
    monkeypatch.setattr(journal_module, "_SMALLEST_LIMIT", 2_000)
    async with policy_worker(tmp_path, rate_limit_burst_requests=1_000, rate_limit_max_requests=300) as worker:
        await _limiter(worker, A0)
        assert await _take_all(worker) == 300
        described = await worker.describe("limiter")
        assert described["journal_rewrites"] > 0
        assert described["journal_bytes"] < 20_000
        await worker.kill("limiter")
        await worker.start("limiter", limiter.main)
        assert await _take_all(worker) == 0
        await eventually(lambda: not worker.crashes)
