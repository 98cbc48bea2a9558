"""The actor audit: lines, acknowledgements, crashes, rotation, a disk that fails."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from policy_worker import Worker, eventually, policy_worker

from actors import audit, audit_log
from actors.audit_ring import AuditRing
from actors.policy.chain import START, Head, Verification, verify
from ipc.errors import DeadlineExceeded
from ipc.messages import AuditAck, AuditBatch, AuditEvent, Refused, ReopenLog


def _event(event: str = "call.completed", **fields: Any) -> AuditEvent:
    fields = {"severity": "info", "outcome": "success", "time_ns": time.time_ns(), **fields}
    return AuditEvent(event=event, **fields)


def _files(tmp_path: Path) -> list[Path]:
    found = sorted((tmp_path / "log").glob("security-*.log.*"), key=lambda path: path.name)
    return [*found, tmp_path / "log" / "security-audit.log"]


def _lines(tmp_path: Path) -> list[bytes]:
    return [line for path in _files(tmp_path) for line in path.read_bytes().splitlines(keepends=True)]


def _records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(b"SECURITY ")) for line in _lines(tmp_path)]


def _methods(tmp_path: Path) -> list[str]:
    return [record["method"] for record in _records(tmp_path) if "method" in record]


def _verify(tmp_path: Path, before: Head | None = START) -> Verification:
    return verify(_lines(tmp_path), bytes.fromhex((tmp_path / "state" / "audit.key").read_text()), before=before)


async def _send(worker: Worker, first: int, *events: AuditEvent, source: str = "test~1") -> object:
    return await worker.ask("audit", AuditBatch(source, first, list(events)))


async def test_events_become_chained_lines(tmp_path: Path) -> None:
    """Each event is a SECURITY line in the contract's field order, chained to the one before, after an anchor."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        event = _event(connection="c", transport="ws", peer_ip="::1", peer_port=7, principal="p", method="m", rule="r")
        assert await _send(worker, 0, event, _event(method="n")) == AuditAck(2)
        assert all(line.startswith(b"SECURITY {") for line in _lines(tmp_path))
        records = _records(tmp_path)
        assert [record["event"] for record in records] == ["audit.anchor", "call.completed", "call.completed"]
        assert [record["seq"] for record in records] == [1, 2, 3]
        assert list(records[1]) == [
            "time", "seq", "event", "severity", "outcome", "connection", "transport", "peer_ip", "peer_port",
            "principal", "method", "rule", "prev", "hash",
        ]  # fmt: skip
        checked = _verify(tmp_path)
        assert checked.first_bad is None
        assert checked.records == 3
        assert (tmp_path / "state" / "audit.key").stat().st_mode & 0o777 == 0o600


async def test_a_batch_that_comes_again_is_in_the_log_once(tmp_path: Path) -> None:
    """Resends, whole or overlapping, before and after a restart of audit, add only what is new."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        a, b, c = (_event(method=name) for name in "abc")
        assert await _send(worker, 0, a, b) == AuditAck(2)
        assert await _send(worker, 0, a, b) == AuditAck(2)
        await worker.kill("audit")
        await worker.start("audit", audit.main)
        assert await _send(worker, 0, a, b, c) == AuditAck(3)
        assert await _send(worker, 0, a, source="test~2") == AuditAck(1)
        assert _methods(tmp_path) == ["a", "b", "c", "a"]
        assert _verify(tmp_path).first_bad is None


@pytest.mark.parametrize("keep", ["nothing", "half a line", "one line", "one and a half", "all"])
async def test_a_crash_between_intent_and_lines_loses_and_doubles_nothing(tmp_path: Path, keep: str) -> None:
    """Killed at any point of writing a batch, the next incarnation completes it; the sender's resend adds nothing."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        await _send(worker, 0, _event(method="before"))
        path = _files(tmp_path)[-1]
        whole = path.read_bytes()
        events = [_event(method="first"), _event(method="second")]
        await _send(worker, 1, *events)
        journal = (tmp_path / "state" / "audit.journal").read_bytes()
        await worker.kill("audit")
        lines = path.read_bytes()[len(whole) :].splitlines(keepends=True)
        left = {
            "nothing": b"",
            "half a line": lines[0][:50],
            "one line": lines[0],
            "one and a half": lines[0] + lines[1][:-1],
            "all": lines[0] + lines[1],
        }[keep]
        path.write_bytes(whole + left)
        (tmp_path / "state" / "audit.journal").write_bytes(journal)
        await worker.start("audit", audit.main)
        assert await _send(worker, 1, *events, _event(method="after")) == AuditAck(4)
        assert _methods(tmp_path) == ["before", "first", "second", "after"]
        checked = _verify(tmp_path)
        assert checked.first_bad is None
        assert len(checked.gaps) == ("half" in keep)  # the torn line is recorded


async def test_a_torn_line_without_a_journal_is_cut_and_recorded(tmp_path: Path) -> None:
    """What a crash of the machine left of the last line is cut off; the gap is in the log and verifies."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        await _send(worker, 0, _event(method="a"), _event(method="b"))
        await worker.kill("audit")
        path = _files(tmp_path)[-1]
        path.write_bytes(path.read_bytes()[:-20])
        (tmp_path / "state" / "audit.journal").unlink()
        await worker.start("audit", audit.main)
        assert _methods(tmp_path) == ["a"]
        assert _records(tmp_path)[-1]["event"] == "audit.gap"
        assert _verify(tmp_path).first_bad is None


async def test_records_cut_off_the_end_show(tmp_path: Path) -> None:
    """Whole lines removed from the end while nothing ran leave a gap record that names them."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        for number in range(4):
            await _send(worker, number, _event(method=str(number)))
        await worker.drain("audit")
        path = _files(tmp_path)[-1]
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-2]))
        await worker.start("audit", audit.main)
        gap = _records(tmp_path)[-1]
        assert gap["event"] == "audit.gap"
        assert gap["detail"] == {"first": 4, "last": 5}
        assert gap["seq"] == 6  # a number is never used twice
        checked = _verify(tmp_path)
        assert checked.first_bad is None
        assert [finding.seq for finding in checked.gaps] == [4]


async def test_full_files_are_rotated_and_the_chain_runs_on(tmp_path: Path) -> None:
    """Past AUDIT_MAX_BYTES a new file begins with an anchor; AUDIT_KEEP old ones stay; all of them verify together."""
    async with policy_worker(tmp_path, audit_max_bytes=2_000, audit_keep=3) as worker:
        await worker.start("audit", audit.main)
        for number in range(60):
            await _send(worker, number, _event(method=str(number)))
        files = _files(tmp_path)
        assert len(files) == 4
        for path in files:
            assert path.stat().st_size < 3_000
            assert b'"event":"audit.anchor"' in path.read_bytes().splitlines()[0]
        checked = _verify(tmp_path, None)
        assert checked.first_bad is None
        assert _methods(tmp_path) == [str(number) for number in range(60 - len(_methods(tmp_path)), 60)]
        await worker.kill("audit")
        await worker.start("audit", audit.main)
        await _send(worker, 60, _event(method="60"))
        assert _verify(tmp_path, None).first_bad is None


async def test_a_moved_file_is_left_and_a_new_one_begun(tmp_path: Path) -> None:
    """After logrotate's rename the next record goes to a new file under the old name, and the chain runs on."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        await _send(worker, 0, _event(method="a"))
        path = _files(tmp_path)[-1]
        path.rename(path.with_name("security-audit.log.1"))
        await _send(worker, 1, _event(method="b"))
        assert _methods(tmp_path) == ["a", "b"]
        assert _verify(tmp_path).first_bad is None


async def test_it_is_told_of_a_moved_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ReopenLog begins the new file without a record to write, and without waiting for the next look."""
    monkeypatch.setattr(audit, "_LOOK_NS", 10**18)
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        await _send(worker, 0, _event(method="a"))
        path = _files(tmp_path)[-1]
        path.rename(path.with_name("security-audit.log.1"))
        worker.exchange.address("audit").tell(ReopenLog())
        await eventually(path.exists)
        assert _verify(tmp_path).first_bad is None


async def test_a_file_that_was_copied_and_emptied_begins_anew(tmp_path: Path) -> None:
    """After logrotate's copytruncate the emptied file opens with an anchor, and the copy and it verify together."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        await _send(worker, 0, _event(method="a"))
        path = _files(tmp_path)[-1]
        path.with_name("security-audit.log.1").write_bytes(path.read_bytes())
        os.truncate(path, 0)
        await _send(worker, 1, _event(method="b"))
        assert b'"event":"audit.anchor"' in path.read_bytes().splitlines()[0]
        assert _methods(tmp_path) == ["a", "b"]
        assert _verify(tmp_path).first_bad is None


async def test_a_crash_in_the_middle_of_a_rotation_keeps_the_chain(tmp_path: Path) -> None:
    """Killed between the rename and the new file, audit finds the end of the chain in the renamed one."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        await _send(worker, 0, _event(method="a"))
        await worker.kill("audit")
        path = _files(tmp_path)[-1]
        path.rename(path.with_name("security-audit.log.000000000002"))
        (tmp_path / "state" / "audit.journal").unlink()
        await worker.start("audit", audit.main)
        await _send(worker, 0, _event(method="b"), source="test~2")
        checked = _verify(tmp_path)
        assert (checked.first_bad, checked.records) == (None, 4)


async def test_a_flood_of_refusals_is_one_record_a_second_with_a_count(tmp_path: Path) -> None:
    """Like refusals of one address, from any sender, are counted; the sum is exact, also over a crash of audit."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        refusal = _event("connection.refused", outcome="refused", peer_ip="192.0.2.7", reason="rate")
        other = _event("connection.refused", outcome="refused", peer_ip="192.0.2.8", reason="rate")
        await _send(worker, 0, *[refusal] * 100, other)
        await _send(worker, 0, *[refusal] * 50, source="test~2")
        assert len(_records(tmp_path)) == 3
        await worker.kill("audit")
        await worker.start("audit", audit.main)
        await _send(worker, 50, refusal, source="test~2")
        await worker.drain("audit")
        counts = [r.get("detail", {}).get("count", 1) for r in _records(tmp_path) if r.get("peer_ip") == "192.0.2.7"]
        assert sum(counts) == 151
        assert len(counts) <= 3
        assert _verify(tmp_path).first_bad is None


async def test_a_failed_authentication_is_on_the_disk_before_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auth.failed is synced at once; an ordinary record is acknowledged without waiting for the disk."""
    released = trio.Event()
    syncs = 0
    real: Callable[[Any], None] = audit_log.sync_and_close

    def sync(fds: Any) -> None:
        nonlocal syncs
        trio.from_thread.run(released.wait)
        syncs += 1
        real(fds)

    async with policy_worker(tmp_path, audit_fsync_ms=3_600_000) as worker:
        await worker.start("audit", audit.main)
        monkeypatch.setattr(audit, "sync_and_close", sync)
        assert await _send(worker, 0, _event()) == AuditAck(1)
        assert syncs == 0
        answers: list[object] = []

        async def fail() -> None:
            answers.append(await _send(worker, 1, _event("auth.failed", outcome="failure")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await eventually(lambda: len(_records(tmp_path)) == 3)
            assert answers == []
            released.set()
        assert (answers, syncs) == ([AuditAck(2)], 1)


def _broken_disk(monkeypatch: pytest.MonkeyPatch, place: str = "") -> Callable[[bool], None]:
    """Writes to files whose path contains ``place`` fail while it is switched on; by default the journal's too."""
    state = {"full": False}
    real = os.write

    def write(fd: int, data: Any) -> int:
        name = str(Path(f"/proc/self/fd/{fd}").readlink())
        if state["full"] and name.startswith("/") and place in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)

    def switch(full: bool) -> None:
        state["full"] = full

    return switch


async def test_on_a_full_disk_block_holds_the_senders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUDIT_ON_FULL=block: nothing is acknowledged, the ring fills and says so; with room again nothing was lost."""
    monkeypatch.setattr(audit, "_RETRY_NS", 1_000_000)
    async with policy_worker(tmp_path, audit_on_full="block") as worker:
        await worker.start("audit", audit.main)
        ring = AuditRing(worker.exchange.address("audit"), "test", 16, "block")
        full = _broken_disk(monkeypatch)
        full(True)
        for number in range(14):
            assert not ring.full
            ring.record(_event(method=str(number)))
            ring.flush()
        assert ring.full
        assert (await worker.describe("audit"))["failing"]
        full(False)
        assert await ring.settled()
        assert not ring.full
        assert _methods(tmp_path) == [str(number) for number in range(14)]
        assert _verify(tmp_path).first_bad is None


async def test_what_was_only_counted_is_not_counted_twice_after_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's disk fails while the journal's works; after the retry and a crash the sum is still exact."""
    monkeypatch.setattr(audit, "_RETRY_NS", 1_000_000)
    async with policy_worker(tmp_path, audit_on_full="block") as worker:
        await worker.start("audit", audit.main)
        ring = AuditRing(worker.exchange.address("audit"), "test", 1024, "block")
        full = _broken_disk(monkeypatch, str(tmp_path / "log"))
        full(True)
        refusal = _event("rate.limited", outcome="refused", peer_ip="192.0.2.7")
        batch = AuditBatch("test~1", 0, [refusal] * 20)
        with pytest.raises(DeadlineExceeded):
            await worker.exchange.address("audit").ask(batch, time.monotonic_ns() + 50_000_000)
        full(False)
        assert await _send(worker, 0, *[refusal] * 20) == AuditAck(20)
        await worker.kill("audit")
        await worker.start("audit", audit.main)
        ring.record(_event(method="end"))
        assert await ring.settled()
        await worker.drain("audit")
        counts = [r.get("detail", {}).get("count", 1) for r in _records(tmp_path) if r["event"] == "rate.limited"]
        assert sum(counts) == 20
        assert _verify(tmp_path).first_bad is None


async def test_on_a_full_disk_drop_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUDIT_ON_FULL=drop: events are acknowledged and dropped; the gap record says how many."""
    monkeypatch.setattr(audit, "_RETRY_NS", 1_000_000)
    async with policy_worker(tmp_path, audit_on_full="drop") as worker:
        await worker.start("audit", audit.main)
        full = _broken_disk(monkeypatch)
        full(True)
        assert await _send(worker, 0, *[_event(method="lost")] * 7) == AuditAck(7)
        assert await _send(worker, 7, _event(method="lost")) == AuditAck(8)
        full(False)
        number = 8
        while "there" not in _methods(tmp_path):
            await _send(worker, number, _event(method="there"))
            number += 1
        assert "lost" not in _methods(tmp_path)
        gaps = [record["detail"] for record in _records(tmp_path) if record["event"] == "audit.gap"]
        assert sum(gap["dropped"] for gap in gaps) >= 8
        assert _verify(tmp_path).first_bad is None


async def test_on_a_full_disk_fail_closed_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUDIT_ON_FULL=fail-closed: the ring is full from the first refusal on, until the disk is back."""
    monkeypatch.setattr(audit, "_RETRY_NS", 1_000_000)
    async with policy_worker(tmp_path, audit_on_full="fail-closed") as worker:
        await worker.start("audit", audit.main)
        ring = AuditRing(worker.exchange.address("audit"), "test", 1024, "fail-closed")
        full = _broken_disk(monkeypatch)
        full(True)
        assert isinstance(await _send(worker, 0, _event(method="x")), Refused)
        ring.record(_event(method="y"))
        ring.flush()
        await eventually(lambda: ring.full)
        full(False)
        assert await ring.settled()
        assert not ring.full
        assert sorted(_methods(tmp_path)) == ["x", "y"]


async def test_switched_off_it_acknowledges_and_writes_nothing(tmp_path: Path) -> None:
    """SECURITY_AUDIT_LOG=false: senders are not held up, no file is made."""
    async with policy_worker(tmp_path, security_audit_log=False) as worker:
        await worker.start("audit", audit.main)
        assert await _send(worker, 5, _event()) == AuditAck(6)
        await worker.drain("audit")
        assert not (tmp_path / "log").exists()


async def test_a_ring_sends_again_what_a_dead_audit_left(tmp_path: Path) -> None:
    """Events recorded while audit is down, or unacknowledged when it died, are in the log once and in order."""
    async with policy_worker(tmp_path) as worker:
        ring = AuditRing(worker.exchange.address("audit"), "test", 1024, "block")
        ring.record(_event(method="0"))
        ring.flush()
        await worker.start("audit", audit.main)
        for number in range(1, 300):
            ring.record(_event(method=str(number)))
            ring.flush()
            if number % 60 == 0:
                await worker.kill("audit")
                ring.record(_event(method=f"down {number}"))
                ring.flush()
                await worker.start("audit", audit.main)
        assert await ring.settled()
        methods = _methods(tmp_path)
        assert len(methods) == len(set(methods)) == 304
        assert [int(method) for method in methods if method.isdigit()] == list(range(300))


async def test_a_full_ring_counts_what_it_drops(tmp_path: Path) -> None:
    """With audit down and the ring full, events are dropped, counted, and the gap is recorded later."""
    async with policy_worker(tmp_path) as worker:
        ring = AuditRing(worker.exchange.address("audit"), "test", 8, "drop")
        for number in range(20):
            ring.record(_event(method=str(number)))
        assert not ring.full
        assert ring.statistics().dropped == 12
        await worker.start("audit", audit.main)
        assert await ring.settled()
        ring.record(_event(method="next"))
        assert await ring.settled()
        assert _methods(tmp_path) == [*map(str, range(8)), "next"]
        assert [record["detail"]["dropped"] for record in _records(tmp_path) if record["event"] == "audit.gap"] == [12]


async def test_a_ring_bounds_what_clients_chose(tmp_path: Path) -> None:
    """A method or principal of any size takes a bounded part of a record."""
    async with policy_worker(tmp_path) as worker:
        await worker.start("audit", audit.main)
        ring = AuditRing(worker.exchange.address("audit"), "test")
        ring.record(_event(method="m" * 1_000_000, principal="é" * 1_000_000, detail={"tool": "t" * 1_000_000}))
        assert await ring.settled()
        assert max(map(len, _lines(tmp_path))) < 8_000
