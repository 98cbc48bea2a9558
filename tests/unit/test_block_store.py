"""Blocks on disk, and the limiter that keeps them: written, found again, refused when damaged, told to acceptors."""

from __future__ import annotations

import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from policy_worker import Worker, eventually, policy_worker

from actors import limiter
from actors.block_store import FILE, BlockStore, BlockStoreDamaged
from actors.policy.blocks import Block
from ipc.mailbox import Mailbox
from ipc.messages import (
    Admit,
    Admitted,
    BlockClient,
    Blocked,
    BlockListing,
    Done,
    ListBlocks,
    OffenceKind,
    Offences,
    Refused,
    Resync,
    UnblockClient,
    Unblocked,
)

KEY = "ip:192.0.2.7"
A0, A1 = "acceptor.0", "acceptor.1"
BLOCK = Block(KEY, 1, 2, 3, True, "threat score")


def test_what_is_written_is_found_again(tmp_path: Path) -> None:
    """Replaced, dropped, in the order of their ends; and nobody else may read the file."""
    path = tmp_path / FILE
    store = BlockStore(path)
    other = Block("principal:x", 5, 6, 0, False, "operator")
    store.write([BLOCK, other], [])
    store.write([Block(KEY, 1, 9, 4, True, "again")], ["ip:unknown"])
    store.close()
    again = BlockStore(path)
    assert again.load() == [other, Block(KEY, 1, 9, 4, True, "again")]
    again.write([], [KEY])
    assert again.load() == [other]
    again.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_write_is_durable(tmp_path: Path) -> None:
    """WAL, and synced at each commit."""
    store = BlockStore(tmp_path / FILE)
    assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()


def test_a_write_is_whole_or_not_there(tmp_path: Path) -> None:
    """One row that can't be written takes the others with it, and the next write works."""
    store = BlockStore(tmp_path / FILE)
    with pytest.raises(sqlite3.Error):
        store.write([BLOCK, Block(None, 1, 2, 3, True, "x")], [])  # type: ignore[arg-type]
    assert store.load() == []
    store.write([BLOCK], [])
    assert store.load() == [BLOCK]
    store.close()


@pytest.mark.parametrize("content", [b"nonsense" * 1000, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """And left as it is."""
    path = tmp_path / FILE
    path.write_bytes(content)
    with pytest.raises(BlockStoreDamaged, match=r"blocks\.sqlite"):
        BlockStore(path)
    assert path.read_bytes() == content


def test_another_releases_file_is_refused(tmp_path: Path) -> None:
    """Its version is told."""
    store = BlockStore(tmp_path / FILE)
    store._database.execute("PRAGMA user_version=99")
    store.close()
    with pytest.raises(BlockStoreDamaged, match="99"):
        BlockStore(tmp_path / FILE)


# --- the limiter


class Acceptor:
    """What one acceptor has been told, applied as acceptors do."""

    def __init__(self, worker: Worker, name: str) -> None:
        self.mailbox: Mailbox = worker.open(name)
        self.rows: dict[str, tuple[int, bool]] = {}
        self.whole = 0

    def read(self) -> dict[str, tuple[int, bool]]:
        for delivery in self.mailbox.drain():
            message = delivery.message
            if isinstance(message, Blocked):
                if message.first:
                    self.rows = {}
                self.rows.update({key: (until_ms, automatic) for key, until_ms, automatic in message.rows})
                self.whole += message.last
            elif isinstance(message, Unblocked):
                for key in message.keys:
                    self.rows.pop(key, None)
        return self.rows


async def started(worker: Worker, *names: str, **changed: Any) -> list[Acceptor]:
    acceptors = [Acceptor(worker, name) for name in names]
    await worker.start("limiter", limiter.main, **changed)
    for name in names:
        worker.exchange.address("limiter").control(Resync(name, []))
    return acceptors


def offend(worker: Worker, kind: OffenceKind, count: int, *, key: str = KEY, principal: str = "") -> None:
    worker.exchange.address("limiter").control(Offences(A0, [(key, principal, kind, count)]))


async def admit(worker: Worker, session: int, *, key: str = KEY, exempt: bool = False) -> Any:
    return await worker.ask("limiter", Admit(A0, session, "ws", key, exempt))


async def test_all_acceptors_are_told(tmp_path: Path) -> None:
    """Of a block at once, of its end too; one that comes later, or again, is told everything."""
    async with policy_worker(tmp_path, block_duration=1_500) as worker:
        one, other = await started(worker, A0, A1)
        offend(worker, "auth", 3)
        await eventually(lambda: KEY in one.read() and KEY in other.read())
        worker.shut(A1)
        late = Acceptor(worker, A1)
        await eventually(lambda: KEY in late.read())
        assert late.whole == 1
        await eventually(lambda: not one.read() and not late.read())
        assert (await worker.describe("limiter"))["blocks"] == 0


async def test_the_order_is_block_rate_limits(tmp_path: Path) -> None:
    """Who is blocked spends nothing of its connection rate; an exempt address comes in all the same."""
    async with policy_worker(tmp_path, connection_rate_limit=2) as worker:
        await started(worker, A0)
        offend(worker, "auth", 3)
        for session in range(5):
            assert await admit(worker, session) == Refused("block")
        assert isinstance(await admit(worker, 6, exempt=True), Admitted)
        done = await worker.ask("limiter", UnblockClient("192.0.2.7"))
        assert done == Done(True, KEY)
        assert isinstance(await admit(worker, 7), Admitted)
        refused = await admit(worker, 8)
        assert isinstance(refused, Refused)
        assert refused.reason == "rate"


async def test_a_nameless_connection_is_named_later(tmp_path: Path) -> None:
    """Behind a proxy it counts in the totals first, and for its client's address once that is known."""
    async with policy_worker(tmp_path, ws_max_connections=3, max_connections_per_ip=1) as worker:
        await started(worker, A0)
        for session in (1, 2):
            assert isinstance(await admit(worker, session, key=""), Admitted)
        assert isinstance(await admit(worker, 1), Admitted)
        assert await admit(worker, 2) == Refused("limit", 1000, "address")
        assert isinstance(await admit(worker, 2, key="ip:192.0.2.8"), Admitted)
        assert isinstance(await admit(worker, 3, key=""), Admitted)
        assert await admit(worker, 4, key="") == Refused("limit", 1000, "total")


async def test_a_principals_offences_are_its_own(tmp_path: Path) -> None:
    """They block it, and not the address that it came from."""
    async with policy_worker(tmp_path) as worker:
        (acceptor,) = await started(worker, A0)
        offend(worker, "content", 10, principal="eve")
        await eventually(lambda: "principal:eve" in acceptor.read())
        assert KEY not in acceptor.rows
        assert isinstance(await admit(worker, 1), Admitted)


@pytest.mark.parametrize("lost", ["nothing", "the database"])
async def test_a_limiter_that_is_killed_comes_back_with_its_blocks(tmp_path: Path, lost: str) -> None:
    """From the database; or, killed before that was written, from the offences in its journal."""
    async with policy_worker(tmp_path) as worker:
        await started(worker, A0)
        state = tmp_path / "state"
        offend(worker, "probe", 19)
        assert isinstance(await admit(worker, 1), Admitted)
        before = (state / "limiter.journal").read_bytes()
        offend(worker, "probe", 1)
        assert await admit(worker, 2) == Refused("block")
        journal = (state / "limiter.journal").read_bytes()
        assert len(journal) > len(before)
        await worker.kill("limiter")
        if lost == "the database":
            for path in state.glob("blocks.sqlite*"):
                path.unlink()
            (state / "limiter.journal").write_bytes(journal)
        await worker.start("limiter", limiter.main)
        worker.exchange.address("limiter").control(Resync(A0, []))
        assert await admit(worker, 3) == Refused("block")
        listing = await worker.ask("limiter", ListBlocks())
        assert isinstance(listing, BlockListing)
        assert [row[0] for row in listing.rows] == [KEY]


async def test_scores_survive_too(tmp_path: Path) -> None:
    """What was held against a client before the limiter died is still held against it."""
    async with policy_worker(tmp_path) as worker:
        await started(worker, A0)
        offend(worker, "auth", 2)
        assert isinstance(await admit(worker, 1), Admitted)
        await worker.kill("limiter")
        await worker.start("limiter", limiter.main)
        worker.exchange.address("limiter").control(Resync(A0, []))
        offend(worker, "auth", 1)
        assert await admit(worker, 2) == Refused("block")


async def test_a_full_disk_lifts_no_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be written is in force all the same; the operator hears of it; it is written when that works."""
    real = BlockStore.write
    full = True

    def write(self: BlockStore, *arguments: Any) -> None:
        if full:
            raise sqlite3.OperationalError("database or disk is full")
        real(self, *arguments)

    monkeypatch.setattr(BlockStore, "write", write)
    async with policy_worker(tmp_path) as worker:
        (acceptor,) = await started(worker, A0)
        done = await worker.ask("limiter", BlockClient("192.0.2.7"))
        assert isinstance(done, Done)
        assert not done.ok
        assert "full" in done.detail
        assert await admit(worker, 1) == Refused("block")
        await eventually(lambda: KEY in acceptor.read())
        full = False
        with trio.fail_after(5):
            while (await worker.describe("limiter"))["blocks_unwritten"]:
                await trio.sleep(0.01)
        store = BlockStore(tmp_path / "state" / FILE)
        assert [block.key for block in store.load()] == [KEY]
        store.close()


async def test_a_damaged_file_stops_the_limiter(tmp_path: Path) -> None:
    """It does not start without the blocks that it may have had."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / FILE).write_bytes(b"x" * 8192)
    async with policy_worker(tmp_path) as worker:
        await worker.start("limiter", limiter.main)
        ((name, error),) = worker.crashes
        assert name == "limiter"
        assert isinstance(error, BlockStoreDamaged)


@pytest.mark.parametrize("target", ["", "nonsense", "principal:", "10.0.0.0/8", "x" * 10_000])
async def test_operators_are_told_what_is_no_client(tmp_path: Path, target: str) -> None:
    """And nothing is blocked."""
    async with policy_worker(tmp_path) as worker:
        await started(worker, A0)
        for message in (BlockClient(target), UnblockClient(target)):
            done = await worker.ask("limiter", message)
            assert isinstance(done, Done)
            assert not done.ok
        listing = await worker.ask("limiter", ListBlocks())
        assert listing == BlockListing([], 0, False)


async def test_many_blocks_are_listed_in_pages_and_told_in_parts(tmp_path: Path) -> None:
    """Each once; a new acceptor has them all."""
    (tmp_path / "state").mkdir()
    store = BlockStore(tmp_path / "state" / FILE)
    now_ms = time.time_ns() // 1_000_000
    keys = [f"ip:10.0.{n // 250}.{n % 250}" for n in range(1300)]
    store.write([Block(key, now_ms, now_ms + 3_600_000, 1, True, "x") for key in keys], [])
    store.close()
    async with policy_worker(tmp_path) as worker:
        (acceptor,) = await started(worker, A0)
        await eventually(lambda: len(acceptor.read()) == 1300)
        assert acceptor.whole == 1
        found: list[str] = []
        more = True
        while more:
            listing = await worker.ask("limiter", ListBlocks(found[-1] if found else ""))
            assert isinstance(listing, BlockListing)
            assert listing.total == 1300
            found += [row[0] for row in listing.rows]
            more = listing.more
        assert sorted(keys) == found
