"""The actor breaker: states published to subscribers, fed by outcomes, remembered over a restart."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import msgspec
import pytest
import trio
from policy_worker import Worker, eventually, policy_worker

from actors import audit, breaker
from actors.policy import circuit as circuit_module
from ipc.mailbox import Mailbox
from ipc.messages import (
    BreakerSnapshot,
    BreakerSubscribe,
    Circuit,
    Done,
    ListAnswer,
    ListAnswers,
    Outcomes,
    ProbesInFlight,
    ResetBreaker,
)

A0, A1 = "acceptor.0", "acceptor.1"
FIVE_DEATHS = ("time", 0, 5, 0, 0)


def _report(worker: Worker, *row: tuple[str, int, int, int, int], source: str = A0) -> None:
    worker.exchange.address("breaker").control(Outcomes(source, list(row)))


async def _subscribe(worker: Worker, name: str) -> Circuit:
    answer = await worker.ask("breaker", BreakerSubscribe(name))
    assert isinstance(answer, BreakerSnapshot)
    (circuit,) = answer.circuits
    return circuit


async def _told(mailbox: Mailbox) -> Circuit:
    """What the subscriber was told last."""
    last = (await mailbox.receive())[-1].message
    assert isinstance(last, BreakerSnapshot)
    return last.circuits[-1]


async def test_a_failing_upstream_opens_for_every_subscriber(tmp_path: Path) -> None:
    """Failures that one worker reports open the circuit for all, with the time of the next probe."""
    async with policy_worker(tmp_path) as worker:
        boxes = [worker.open(A0), worker.open(A1)]
        await worker.start("breaker", breaker.main)
        assert (await _subscribe(worker, A0)).state == "closed"
        assert (await _subscribe(worker, A1)).state == "closed"
        _report(worker, FIVE_DEATHS)
        for box in boxes:
            circuit = await _told(box)
            assert circuit.state == "open"
            assert 0 < circuit.retry_at_ns - time.monotonic_ns() <= 66_000_000_000


async def test_probes_are_shared_out_and_close_it(tmp_path: Path) -> None:
    """Half-open, all subscribers together hold exactly the permits of the rule; enough successes close it."""
    async with policy_worker(tmp_path, circuitbreaker_reset_timeout=10, circuitbreaker_half_open_calls=3) as worker:
        boxes = [worker.open(A0), worker.open(A1)]
        await worker.start("breaker", breaker.main)
        await _subscribe(worker, A0)
        await _subscribe(worker, A1)
        _report(worker, FIVE_DEATHS)
        told = []
        for box in boxes:
            while (circuit := await _told(box)).state != "half_open":
                pass
            told.append(circuit)
        assert sum(circuit.permits for circuit in told) == 3
        _report(worker, ("time", 2, 0, 0, 0))
        _report(worker, ("time", 1, 0, 0, 0))
        for box in boxes:
            while (circuit := await _told(box)).state != "closed":
                pass


async def test_an_unused_permit_goes_to_who_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever refused a call for want of a permit is dealt those that nobody uses, at once; never more than the rule's
    number are out, and those in use stay."""
    monkeypatch.setattr(circuit_module, "PERMITS_DEALT_FOR_NS", 3_600_000_000_000)
    async with policy_worker(tmp_path, circuitbreaker_reset_timeout=10, circuitbreaker_half_open_calls=2) as worker:
        boxes = {name: worker.open(name) for name in (A0, A1)}
        await worker.start("breaker", breaker.main)
        for name in boxes:
            await _subscribe(worker, name)
        _report(worker, FIVE_DEATHS)
        for box in boxes.values():
            while (circuit := await _told(box)).state != "half_open":
                pass
            assert circuit.permits == 1
        tell = worker.exchange.address("breaker").control
        tell(ProbesInFlight(A0, [("time", 1, True)]))
        assert [(await _told(box)).permits for box in boxes.values()] == [2, 0]
        tell(ProbesInFlight(A1, [("time", 0, True)]))
        assert [(await _told(box)).permits for box in boxes.values()] == [1, 1]
        tell(ProbesInFlight(A0, [("time", 0, False), ("unknown", 1, True)]))
        tell(ProbesInFlight("acceptor.9", [("time", 7, True)]))
        tell(ProbesInFlight(A1, [("time", 1, True)]))
        assert [(await _told(box)).permits for box in boxes.values()] == [0, 2]


def _answer(text: str, learnt_ns: int, method: str = "tools/list", cursor: str = "", name: str = "time") -> ListAnswer:
    result = b'{"tools":[{"name":"%b"}]}' % text.encode()
    return ListAnswer(name, method, cursor, "2025-11-25", learnt_ns, hashlib.blake2b(result, digest_size=16).digest(),
                      result)


async def _heard(mailbox: Mailbox) -> list[ListAnswer]:
    with trio.fail_after(5):
        while True:
            for delivery in await mailbox.receive():
                if isinstance(delivery.message, ListAnswers):
                    return delivery.message.rows


async def test_list_answers_reach_every_other_subscriber(tmp_path: Path) -> None:
    """What one acceptor tells, the others hear, and it doesn't; a later subscriber is told everything; an older or
    made-up answer changes nothing."""
    async with policy_worker(tmp_path) as worker:
        boxes = [worker.open(A0), worker.open(A1)]
        await worker.start("breaker", breaker.main)
        for name in (A0, A1):
            await _subscribe(worker, name)
        tell = worker.exchange.address("breaker").control
        strange = [_answer("x", 10, name="unknown"), _answer("y", 1, method="tools/call")]
        tell(ListAnswers(A0, [_answer("a", 10), *strange]))
        assert await _heard(boxes[1]) == [_answer("a", 10)]
        tell(ListAnswers(A1, [_answer("older", 9), ListAnswer("time", "tools/list", "", "2025-11-25", 11, b"other")]))
        tell(ListAnswers(A1, [msgspec.structs.replace(_answer("a", 12), result=b"")]))
        assert await _heard(boxes[0]) == [_answer("a", 12)]
        await _subscribe(worker, A1)  # anew, as after a restart
        assert await _heard(boxes[1]) == [_answer("a", 12)]
        tell(ListAnswers(A0, [ListAnswer("time", "tools/list", "", "2025-11-25", 13)]))
        assert [row.digest for row in await _heard(boxes[1])] == [b""]
        assert (await worker.describe("breaker"))["catalogue"] == {"time": {"answers": 0, "bytes": 0}}
        assert not worker.crashes


async def test_many_list_answers_come_in_parts(tmp_path: Path) -> None:
    """A new subscriber is told of megabytes in messages that fit into its mailbox, until it knows them all."""
    async with policy_worker(tmp_path) as worker:
        worker.open(A0)
        await worker.start("breaker", breaker.main)
        rows = [_answer("a" * 1_000_000, 1, cursor=str(number)) for number in range(4)]
        for row in rows:
            worker.exchange.address("breaker").control(ListAnswers(A0, [row]))
        box = worker.open(A1)
        await _subscribe(worker, A1)
        heard: list[ListAnswer] = []
        while len(heard) < len(rows):
            part = await _heard(box)
            assert sum(len(row.result) for row in part) <= 2 << 20
            heard += part
        assert sorted(heard, key=lambda row: row.cursor) == rows


async def test_a_new_subscriber_shares_in_the_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who subscribes while it is half-open is told so, and permits stay as many as the rule says."""
    monkeypatch.setattr(circuit_module, "PERMITS_DEALT_FOR_NS", 3_600_000_000_000)  # not dealt anew by the clock
    async with policy_worker(tmp_path, circuitbreaker_reset_timeout=10, circuitbreaker_half_open_calls=2) as worker:
        box = worker.open(A0)
        worker.open(A1)
        await worker.start("breaker", breaker.main)
        await _subscribe(worker, A0)
        _report(worker, FIVE_DEATHS)
        while (await _told(box)).state != "half_open":
            pass
        mine = await _subscribe(worker, A1)
        assert mine.permits + (await _told(box)).permits == 2
        worker.shut(A1)
        with trio.fail_after(5):
            assert (await _told(box)).permits == 2  # what the dead one held comes back


async def test_an_open_circuit_stays_open_over_a_restart(tmp_path: Path) -> None:
    """Killing the breaker closes nothing: state and probe time are those of before."""
    async with policy_worker(tmp_path) as worker:
        worker.open(A0)
        await worker.start("breaker", breaker.main)
        _report(worker, FIVE_DEATHS)
        before = await _subscribe(worker, A0)
        await worker.kill("breaker")
        await worker.start("breaker", breaker.main)
        assert await _subscribe(worker, A0) == before
        assert before.state == "open"


async def test_failures_in_a_row_are_remembered_too(tmp_path: Path) -> None:
    """Four failures before the breaker's death and one after it are five."""
    async with policy_worker(tmp_path) as worker:
        worker.open(A0)
        await worker.start("breaker", breaker.main)
        _report(worker, ("time", 0, 4, 0, 0))
        assert (await _subscribe(worker, A0)).state == "closed"
        await worker.kill("breaker")
        await worker.start("breaker", breaker.main)
        _report(worker, ("time", 0, 0, 1, 0))
        assert (await _subscribe(worker, A0)).state == "open"


async def test_what_is_unknown_counts_as_half_open(tmp_path: Path) -> None:
    """With a journal that cannot be read nothing is known of any upstream: a few calls have to find out."""
    async with policy_worker(tmp_path, circuitbreaker_half_open_calls=2) as worker:
        worker.open(A0)
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "breaker.journal").write_bytes(b"\x00garbage\xff" * 100)
        await worker.start("breaker", breaker.main)
        circuit = await _subscribe(worker, A0)
        assert (circuit.state, circuit.permits) == ("half_open", 2)


async def test_switched_off_it_is_always_closed(tmp_path: Path) -> None:
    """CIRCUITBREAKER_ENABLED=false: no failure opens anything."""
    async with policy_worker(tmp_path, circuitbreaker_enabled=False) as worker:
        worker.open(A0)
        await worker.start("breaker", breaker.main)
        _report(worker, ("time", 0, 500, 500, 0))
        assert (await _subscribe(worker, A0)).state == "closed"


async def test_an_operator_can_close_it(tmp_path: Path) -> None:
    """ResetBreaker closes a known circuit and says so of an unknown one; all moves are audited."""
    async with policy_worker(tmp_path) as worker:
        worker.open(A0)
        await worker.start("audit", audit.main)
        await worker.start("breaker", breaker.main)
        _report(worker, FIVE_DEATHS, ("unknown", 0, 9, 9, 9))
        assert (await _subscribe(worker, A0)).state == "open"
        assert await worker.ask("breaker", ResetBreaker("time")) == Done(ok=True)
        assert (await _subscribe(worker, A0)).state == "closed"
        answer = await worker.ask("breaker", ResetBreaker("unknown"))
        assert isinstance(answer, Done)
        assert not answer.ok
        await worker.drain("breaker")
        text = (tmp_path / "log" / "security-audit.log").read_text()
        assert '"event":"breaker.opened"' in text
        assert '"event":"breaker.closed"' in text
        assert '"upstream":"time"' in text
        assert not worker.crashes


async def test_a_full_subscriber_is_told_later(tmp_path: Path) -> None:
    """A subscriber whose mailbox is full for a moment still learns the state."""
    async with policy_worker(tmp_path) as worker:
        box = worker.open(A0)
        box.control_limit = 1
        await worker.start("breaker", breaker.main)
        await _subscribe(worker, A0)
        worker.exchange.address(A0).control(Done(ok=True))  # fills it
        _report(worker, FIVE_DEATHS)
        await worker.describe("breaker")
        assert (await worker.describe("breaker"))["undelivered"] >= 1
        seen: list[object] = [delivery.message for delivery in box.drain()]

        def learnt() -> bool:
            seen.extend(delivery.message for delivery in box.drain())
            return isinstance(seen[-1], BreakerSnapshot) and seen[-1].circuits[0].state == "open"

        await eventually(learnt)
