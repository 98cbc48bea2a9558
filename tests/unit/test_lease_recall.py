"""Leases that are called back: units that lie unused somewhere are found before anybody is refused."""

from __future__ import annotations

import time
from pathlib import Path

import trio
from policy_worker import Worker, policy_worker

from actors import limiter
from actors.lease_book import LeaseBook
from ipc.errors import ActorDown
from ipc.mailbox import Mailbox
from ipc.messages import Exhausted, Lease, LeaseReport, LeaseRequest, Message, Recall, Resync

IP = ("ip:192.0.2.7",)
BOTH = ("principal:ann", "ip:192.0.2.7")
A0, A1 = "acceptor.0", "acceptor.1"
MS = 1_000_000


async def limiter_with(worker: Worker, *names: str) -> list[Mailbox]:
    boxes = [worker.open(name) for name in names]
    await worker.start("limiter", limiter.main)
    for name in names:
        worker.exchange.address("limiter").control(Resync(name, []))
    return boxes


async def lease(worker: Worker, acceptor: str, want: int, keys: tuple[str, ...] = IP) -> Message:
    return await worker.ask("limiter", LeaseRequest(acceptor, keys, want))


async def recalled(box: Mailbox) -> Recall:
    """The next one that arrives; everything else (blocks) is passed over."""
    with trio.fail_after(30):
        while True:
            for delivery in await box.receive():
                if isinstance(delivery.message, Recall):
                    return delivery.message


async def test_what_another_holds_is_asked_back_before_anybody_is_refused(tmp_path: Path) -> None:
    """The last unit lies in another acceptor: it is given back, and granted; and what was used of it stays used."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=2) as worker:
        (_, box) = await limiter_with(worker, A0, A1)
        first, second = await lease(worker, A1, 1), await lease(worker, A1, 1)
        assert isinstance(first, Lease)
        assert isinstance(second, Lease)
        answers: list[Message] = []

        async def ask() -> None:
            answers.append(await lease(worker, A0, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            recall = await recalled(box)
            assert recall.keys == IP
            assert set(recall.leases) == {first.lease, second.lease}
            control = worker.exchange.address("limiter").control
            control(LeaseReport(A1, first.lease, [time.monotonic_ns()], 0, True))
            assert not answers
            control(LeaseReport(A1, second.lease, [], 1, True))
        assert isinstance(answers[0], Lease)
        assert answers[0].units == 1


async def test_the_same_acceptor_is_asked_for_what_it_holds_under_other_keys(tmp_path: Path) -> None:
    """A principal's lease is a lease of its address too."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=1) as worker:
        (box,) = await limiter_with(worker, A0)
        held = await lease(worker, A0, 1, BOTH)
        assert isinstance(held, Lease)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease, worker, A0, 1)
            assert await recalled(box) == Recall(BOTH, [held.lease])
            worker.exchange.address("limiter").control(LeaseReport(A0, held.lease, [], 1, True))


async def test_who_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    """Silence of one acceptor costs another a moment; then the unit counts as spent."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=1) as worker:
        await limiter_with(worker, A0, A1)
        assert isinstance(await lease(worker, A1, 1), Lease)
        answer = await lease(worker, A0, 1)
        assert isinstance(answer, Exhausted)
        assert (await worker.describe("limiter"))["recalled"] == 1


async def test_an_acceptor_that_has_gone_is_not_asked(tmp_path: Path) -> None:
    """What it held counts as spent at once."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=1) as worker:
        await limiter_with(worker, A0, A1)
        assert isinstance(await lease(worker, A1, 1), Lease)
        worker.shut(A1)
        assert isinstance(await lease(worker, A0, 1), Exhausted)
        assert (await worker.describe("limiter"))["recalled"] == 0


async def test_a_question_that_waits_is_answered_when_the_limiter_ends(tmp_path: Path) -> None:
    """No message of a client is left without an answer."""
    async with policy_worker(tmp_path, rate_limit_burst_requests=1) as worker:
        (_, box) = await limiter_with(worker, A0, A1)
        assert isinstance(await lease(worker, A1, 1), Lease)
        answers: list[object] = []

        async def ask() -> None:
            try:
                answers.append(await lease(worker, A0, 1))
            except ActorDown as error:
                answers.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await recalled(box)
            await worker.drain("limiter")
        assert not isinstance(answers[0], Lease)


def test_a_book_gives_back_what_is_called_back() -> None:
    """At once, what was used apart; nothing more is spent of it, and other leases go on."""
    book = LeaseBook(A0)
    assert book.want(IP, 0, 1) is not None
    book.granted(Lease(1, IP, 4, 250 * MS), 0)
    assert book.want(IP, 0, 9) is not None
    book.granted(Lease(2, IP, 2, 250 * MS), 0)
    assert book.take(IP, MS)
    book.recall(IP, [1, 77])
    book.recall(BOTH, [2])
    assert book.due_reports(2 * MS) == [LeaseReport(A0, 1, [MS], 3, True)]
    assert [book.take(IP, 3 * MS) for _ in range(3)] == [True, True, False]
    book.recall(IP, [1])
    assert [report.lease for report in book.due_reports(60 * MS)] == [2]
