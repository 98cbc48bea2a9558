"""Auth judges no credential of who has failed too often, from the very failure on, and of who is blocked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from policy_worker import Worker, eventually, policy_worker

from actors import auth, limiter
from actors.barred import CAPACITY, Barred
from ipc.messages import (
    Authenticate,
    Blocked,
    Done,
    Grant,
    Message,
    Offences,
    Refused,
    Resync,
    UnblockClient,
    Unblocked,
)
from ipc.settings import Settings

S = 1_000_000_000
TOKEN = "w" * 32
BAD = "192.0.2.7"
KEY = "ip:192.0.2.7"
BLOCKED = Refused("block", detail="too many failed authentications")


def barred(**changed: Any) -> Barred:
    return Barred(Settings(**changed))


def test_failures_count_within_their_window() -> None:
    """The third within ten minutes is the last that is judged; the first is forgotten with time."""
    book = barred()
    for at in (0, 300 * S, 599 * S):
        assert not book.refuses(KEY, at)
        book.failed(KEY, at)
    assert book.refuses(KEY, 599 * S)
    assert not book.refuses(KEY, 601 * S)
    assert not book.refuses("ip:192.0.2.8", 599 * S)


def test_a_block_takes_over_and_its_end_is_one() -> None:
    """Whether it expired or an operator lifted it; also where failures were counted that led to no block."""
    book = barred()
    later = time.time_ns() // 1_000_000 + 60_000
    for _ in range(3):
        book.failed(KEY, 0)
    book.delivered(Blocked([(KEY, later, True)]))
    assert book.refuses(KEY, 0)
    book.delivered(Unblocked([KEY]))
    assert not book.refuses(KEY, 0)
    for _ in range(3):
        book.failed(KEY, 0)
    book.delivered(Unblocked([KEY]))
    assert not book.refuses(KEY, 0)


def test_a_whole_list_takes_the_place_of_what_was_known() -> None:
    """When its last part has come."""
    book = barred()
    later = time.time_ns() // 1_000_000 + 60_000
    book.delivered(Blocked([(KEY, later, True), ("principal:alice", later, True)]))
    book.delivered(Blocked([("ip:192.0.2.8", later, True)], first=True))
    assert book.refuses(KEY, 0)
    book.delivered(Blocked([("principal:bob", 1, True)], last=True))
    assert not book.refuses(KEY, 0)
    assert book.refuses("ip:192.0.2.8", 0)
    assert not book.refuses_principal("alice")
    assert not book.refuses_principal("bob")  # it has ended


def test_nothing_is_held_against_some() -> None:
    """Allow-listed addresses, trusted proxies, and anybody where nobody is blocked automatically; a principal's
    failures are its own."""
    book = barred(ip_allowlist=("192.0.2.0/24",), trusted_proxies=("::1",))
    assert (book.subject(BAD), book.subject("::1"), book.subject("::ffff:192.0.2.9")) == ("", "", "")
    assert book.subject("198.51.100.1") == "ip:198.51.100.1"
    assert book.subject("198.51.100.1", "alice") == "principal:alice"
    lenient = barred(auto_block_enabled=False)
    for _ in range(9):
        lenient.failed(KEY, 0)
    assert not lenient.refuses(KEY, 0)


def test_memory_is_bounded() -> None:
    """However many addresses fail."""
    book = barred()
    for number in range(CAPACITY + 100):
        book.failed(f"ip:{number}", number)
    assert len(book) == CAPACITY


def _ask(credential: str) -> Authenticate:
    return Authenticate("ws", "token", credential, BAD)


async def _judge(worker: Worker, credential: str) -> Message:
    return await worker.ask("auth", _ask(credential))


async def test_an_operators_pardon_works_at_once(tmp_path: Path) -> None:
    """After failures that never came to be a block, and after a block."""
    async with policy_worker(tmp_path, ws_auth_token=(TOKEN,)) as worker:
        worker.open("acceptor.0")
        await worker.start("auth", auth.main)
        await worker.start("limiter", limiter.main)
        worker.exchange.address("limiter").control(Resync("acceptor.0", []))
        for _ in range(2):
            for _ in range(3):
                assert await _judge(worker, "wrong") == Refused("auth")
            assert await _judge(worker, TOKEN) == BLOCKED
            assert isinstance(await worker.ask("limiter", UnblockClient(BAD)), Done)
            assert isinstance(await _judge(worker, TOKEN), Grant)
        worker.exchange.address("limiter").control(Offences("acceptor.0", [(KEY, "", "auth", 3)]))
        answers: list[Message] = []

        async def told() -> None:
            answers.append(await _judge(worker, TOKEN))

        while BLOCKED not in answers:
            await told()
        assert isinstance(await worker.ask("limiter", UnblockClient(BAD)), Done)
        assert isinstance(await _judge(worker, TOKEN), Grant)
        await eventually(lambda: not worker.crashes)
