"""What the actor auth does with sessions: exactly-once issue, answers behind the disk, and who is told of an end."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
from policy_worker import Worker, eventually, policy_worker

from actors import auth, session_store
from actors.session_store import FILE, StoreUnusable
from ipc.mailbox import Mailbox
from ipc.messages import (
    Authenticate,
    Done,
    EndSession,
    Grant,
    IssueSession,
    IssueTicket,
    Lapsed,
    Logout,
    Message,
    RefreshSession,
    Refused,
    Revalidate,
    Revoked,
    RevokeToken,
    RevokeTokens,
    Ticket,
    TokenSet,
)

WS = "w" * 32
SETTINGS: dict[str, Any] = {"ws_auth_token": (WS,), "jwt_secret": "k" * 64, "jwt_secret_previous": ""}
IP = "192.0.2.7"


async def issue(worker: Worker, nonce: str = "ab" * 12) -> TokenSet:
    answer = await worker.ask("auth", IssueSession("token", WS, IP, nonce))
    assert isinstance(answer, TokenSet), answer
    return answer


async def admits(worker: Worker, token: str) -> bool:
    return isinstance(await worker.ask("auth", Authenticate("tcp", "token", token, IP)), Grant)


def told(mailbox: Mailbox) -> list[Message]:
    return [delivery.message for delivery in mailbox.drain()]


async def test_the_same_question_gives_the_same_session(tmp_path: Path) -> None:
    """Asked again with its nonce, after a death of auth too, an issue makes no second session and gives the same
    tokens; another principal can't have it."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        first = await issue(worker)
        await worker.kill("auth")
        await worker.start("auth", auth.main)
        assert await issue(worker) == first
        assert (await worker.describe("auth"))["sessions"] == 1
        assert isinstance(await worker.ask("auth", IssueSession("token", WS, IP, "no nonce")), Refused)


async def test_a_lost_answer_is_given_again_after_a_crash(tmp_path: Path) -> None:
    """The repeat of a rotation gets the same tokens to the byte from the next incarnation; from another client it ends
    the session."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        tokens = await issue(worker)
        rotated = await worker.ask("auth", RefreshSession(tokens.refresh_token, IP))
        assert isinstance(rotated, TokenSet)
        await worker.kill("auth")
        await worker.start("auth", auth.main)
        assert await worker.ask("auth", RefreshSession(tokens.refresh_token, IP)) == rotated
        assert isinstance(await worker.ask("auth", RefreshSession(tokens.refresh_token, "192.0.2.8")), Refused)
        assert not await admits(worker, rotated.access_token)


async def test_acceptors_hear_of_an_end_and_may_ask(tmp_path: Path) -> None:
    """An operator's end is broadcast to every acceptor; who missed it learns it from its question, for exactly the
    grants that are over."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        mailboxes = [worker.open(f"acceptor.{number}") for number in range(2)]
        await worker.start("auth", auth.main)
        gone, kept, single = [await issue(worker, f"{n:024x}") for n in range(3)]
        assert await worker.ask("auth", EndSession(gone.grant.session)) == Done(ok=True)
        for mailbox in mailboxes:
            assert told(mailbox) == [Revoked(sessions=(gone.grant.session,))]
        assert await worker.ask("auth", RevokeToken(single.access_token, IP)) == Done(ok=True)
        await worker.kill("auth")
        await worker.start("auth", auth.main)
        grants = [gone.grant, kept.grant, single.grant]
        question = Revalidate(
            "acceptor.0", [(n, g.family, g.tokens, g.principal, g.issued_ms, g.standing) for n, g in enumerate(grants)]
        )
        assert await worker.ask("auth", question) == Lapsed([0, 2])


async def test_a_principal_is_revoked_up_to_now(tmp_path: Path) -> None:
    """Everything issued so far to a name is over, sessions included; what is issued later is good."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        acceptor = worker.open("acceptor.0")
        await worker.start("auth", auth.main)
        tokens = await issue(worker)
        principal = tokens.grant.principal
        done = await worker.ask("auth", RevokeTokens(principal=principal))
        assert isinstance(done, Done)
        assert done.ok
        assert not await admits(worker, tokens.access_token)
        assert not await admits(worker, tokens.session)
        (ended, named) = told(acceptor)
        assert isinstance(ended, Revoked)
        assert isinstance(named, Revoked)
        assert ended.sessions == (tokens.grant.session,)
        assert [name for name, _ in named.principals] == [principal]
        assert await admits(worker, (await issue(worker, "cd" * 12)).session)


async def test_a_ticket_ends_with_the_session_that_it_was_issued_for(tmp_path: Path) -> None:
    """A ticket is worth what its credential is worth when it is redeemed."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        tokens = await issue(worker)
        tickets = [await worker.ask("auth", IssueTicket(tokens.access_token, IP)) for _ in range(2)]
        one, two = [ticket.ticket for ticket in tickets if isinstance(ticket, Ticket)]
        grant = await worker.ask("auth", Authenticate("ws", "ticket", one, IP))
        assert isinstance(grant, Grant)
        assert (grant.principal, grant.family) == (tokens.grant.principal, tokens.grant.family)
        await worker.ask("auth", Logout(tokens.grant.family, (), 0))
        assert isinstance(await worker.ask("auth", Authenticate("ws", "ticket", two, IP)), Refused)


async def test_a_new_secret_keeps_sessions_while_the_old_one_verifies(tmp_path: Path) -> None:
    """With JWT_SECRET_PREVIOUS a rotation of the secret ends nothing; without it, everything of before is unknown."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        tokens = await issue(worker)
        await worker.kill("auth")
        await worker.start("auth", auth.main, jwt_secret="n" * 64, jwt_secret_previous=SETTINGS["jwt_secret"])
        assert await admits(worker, tokens.session)
        assert await admits(worker, tokens.access_token)
        newer = await worker.ask("auth", RefreshSession(tokens.refresh_token, IP))
        assert isinstance(newer, TokenSet)
        await worker.kill("auth")
        await worker.start("auth", auth.main, jwt_secret="n" * 64)
        assert not await admits(worker, tokens.session)
        assert await admits(worker, newer.session)
        assert await admits(worker, newer.access_token)
        assert not await admits(worker, tokens.access_token)


async def test_what_cant_be_written_is_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk takes nothing, sessions are refused as unavailable and none is made; then all goes on from what
    the disk holds."""
    write = session_store._write
    broken = [True]

    def failing(*arguments: Any) -> None:
        if broken[0]:
            raise sqlite3.OperationalError("database or disk is full")
        write(*arguments)

    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        before = await issue(worker)
        monkeypatch.setattr(session_store, "_write", failing)
        for message in (
            IssueSession("token", WS, IP, "cd" * 12),
            RefreshSession(before.refresh_token, IP),
            RevokeToken(before.access_token, IP),
        ):
            answer = await worker.ask("auth", message)
            assert isinstance(answer, Refused)
            assert answer.reason == "unavailable"
        broken[0] = False

        answers: list[Message] = []

        async def again() -> None:
            answers.append(await worker.ask("auth", RefreshSession(before.refresh_token, IP)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(again)
        await eventually(lambda: bool(answers))
        with trio.fail_after(10):
            while not isinstance(answers[-1], TokenSet):
                await again()
        assert (await worker.describe("auth"))["sessions"] == 1
        assert not worker.crashes


async def test_a_damaged_database_lets_nobody_in(tmp_path: Path) -> None:
    """Auth does not start without what was revoked, and leaves the file as it is."""
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / FILE
    path.write_bytes(b"x" * 4096)
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        ((name, error),) = worker.crashes
        assert name == "auth"
        assert isinstance(error, StoreUnusable)
        assert str(path) in str(error)
    assert path.read_bytes() == b"x" * 4096
