"""The actor auth: static tokens, anonymous clients, one-time tickets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from policy_worker import Worker, eventually, policy_worker

from actors import audit, auth
from actors.policy.identity import LONGEST_CREDENTIAL, StaticTokens, Tickets, digest
from ipc.messages import Authenticate, Grant, IssueTicket, Refused, Ticket

WS, TCP = "w" * 32, "t" * 32


def _authenticate(listener: Any, scheme: Any, credential: str) -> Authenticate:
    return Authenticate(listener=listener, scheme=scheme, credential=credential, peer_ip="192.0.2.7", connection="0-1f")


def _log(tmp_path: Path) -> str:
    return (tmp_path / "log" / "security-audit.log").read_text()


@pytest.mark.parametrize(
    ("listener", "scheme", "credential", "granted"),
    [
        ("ws", "token", WS, True),
        ("ws", "token", "second", True),
        ("tcp", "token", TCP, True),
        ("tcp", "token", WS, False),  # each listener has tokens of its own
        ("ws", "token", TCP, False),
        ("ws", "token", WS + "x", False),
        ("ws", "token", WS[:-1], False),
        ("ws", "token", "", False),
        ("ws", "anonymous", "", False),
        ("ws", "anonymous", WS, True),  # a right credential is right whatever it is called
        ("ws", "ticket", WS, False),
        ("ws", "token", "x" * (LONGEST_CREDENTIAL + 1), False),
        ("ws", "token", "ж" * (LONGEST_CREDENTIAL // 2 + 1), False),
        ("ws", "token", "\x00", False),
    ],
)
async def test_a_credential_opens_exactly_its_own_listener(
    tmp_path: Path, listener: str, scheme: str, credential: str, granted: bool
) -> None:
    """Only a token of that listener is granted; everything else is refused as `auth`."""
    async with policy_worker(tmp_path, ws_auth_token=(WS, "second"), tcp_auth_token=(TCP,)) as worker:
        await worker.start("auth", auth.main)
        answer = await worker.ask("auth", _authenticate(listener, scheme, credential))
        if granted:
            assert isinstance(answer, Grant)
            assert answer.limit_keys == ("ip:192.0.2.7",)
            assert answer.scopes == ("mcp:call", "mcp:read")
            assert len(answer.session) == 32
        else:
            assert answer == Refused("auth")


async def test_without_authentication_a_wrong_credential_still_fails(tmp_path: Path) -> None:
    """Authentication off lets in who shows nothing, never who shows something wrong."""
    async with policy_worker(tmp_path, ws_auth_enabled=False, ws_auth_token=(WS,)) as worker:
        await worker.start("auth", auth.main)
        assert isinstance(await worker.ask("auth", _authenticate("ws", "anonymous", "")), Grant)
        assert isinstance(await worker.ask("auth", _authenticate("ws", "token", WS)), Grant)
        assert isinstance(await worker.ask("auth", _authenticate("ws", "token", "wrong")), Refused)
        assert isinstance(await worker.ask("auth", _authenticate("ws", "anonymous", "wrong")), Refused)
        assert isinstance(await worker.ask("auth", _authenticate("tcp", "anonymous", "")), Refused)


async def test_sessions_differ(tmp_path: Path) -> None:
    """Two grants for one token never share a public session id."""
    async with policy_worker(tmp_path, ws_auth_token=(WS,)) as worker:
        await worker.start("auth", auth.main)
        grants = [await worker.ask("auth", _authenticate("ws", "token", WS)) for _ in range(20)]
        assert len({grant.session for grant in grants if isinstance(grant, Grant)}) == 20


async def _ticket(worker: Worker) -> str:
    answer = await worker.ask("auth", IssueTicket(WS, "192.0.2.7"))
    assert isinstance(answer, Ticket)
    assert answer.expires_in == 30
    return answer.ticket


async def test_a_ticket_is_redeemed_exactly_once_however_many_try(tmp_path: Path) -> None:
    """Of fifty redemptions of one ticket at the same time, one is granted."""
    async with policy_worker(tmp_path, ws_auth_token=(WS,)) as worker:
        await worker.start("auth", auth.main)
        ticket = await _ticket(worker)
        answers: list[object] = []

        async def redeem() -> None:
            answers.append(await worker.ask("auth", _authenticate("ws", "ticket", ticket)))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(redeem)
        assert sum(isinstance(answer, Grant) for answer in answers) == 1


async def test_a_ticket_is_no_token_and_not_for_tcp(tmp_path: Path) -> None:
    """A ticket is taken as a ticket on WebSocket only; a wrong token gets none."""
    async with policy_worker(tmp_path, ws_auth_token=(WS,), tcp_auth_token=(TCP,)) as worker:
        await worker.start("auth", auth.main)
        ticket = await _ticket(worker)
        assert isinstance(await worker.ask("auth", _authenticate("tcp", "ticket", ticket)), Refused)
        assert isinstance(await worker.ask("auth", _authenticate("ws", "token", ticket)), Refused)
        assert isinstance(await worker.ask("auth", IssueTicket("wrong", "192.0.2.7")), Refused)
        assert isinstance(await worker.ask("auth", IssueTicket("", "192.0.2.7")), Refused)
        assert isinstance(await worker.ask("auth", IssueTicket(TCP, "192.0.2.7")), Refused)


async def test_tickets_die_with_auth(tmp_path: Path) -> None:
    """After a restart no ticket of before is good: what isn't known is refused."""
    async with policy_worker(tmp_path, ws_auth_token=(WS,)) as worker:
        await worker.start("auth", auth.main)
        ticket = await _ticket(worker)
        await worker.kill("auth")
        await worker.start("auth", auth.main)
        assert isinstance(await worker.ask("auth", _authenticate("ws", "ticket", ticket)), Refused)


async def test_success_and_failure_are_audited_without_the_credential(tmp_path: Path) -> None:
    """auth.ok and auth.failed name the connection, the address and the reason, never what was presented."""
    async with policy_worker(tmp_path, ws_auth_token=(WS,)) as worker:
        await worker.start("audit", audit.main)
        await worker.start("auth", auth.main)
        await worker.ask("auth", _authenticate("ws", "token", WS))
        await worker.ask("auth", _authenticate("ws", "token", "guessed-secret"))
        await eventually(lambda: "auth.failed" in _log(tmp_path))
        text = _log(tmp_path)
        assert "auth.ok" in text
        assert text.count('"connection":"0-1f"') == 2
        assert '"peer_ip":"192.0.2.7"' in text
        assert '"reason":"unknown token"' in text
        assert WS not in text
        assert "guessed-secret" not in text


async def test_a_crash_loses_no_record(tmp_path: Path) -> None:
    """What auth had not handed over when it crashed, its next incarnation hands over."""
    async with policy_worker(tmp_path, ws_auth_token=(WS,)) as worker:
        await worker.start("auth", auth.main)
        await worker.ask("auth", _authenticate("ws", "token", "wrong"))
        await worker.kill("auth")
        await worker.start("audit", audit.main)
        await worker.start("auth", auth.main)
        await eventually(lambda: "auth.failed" in _log(tmp_path))


async def test_auth_drains(tmp_path: Path) -> None:
    """Drain ends it in order, with its events in the log."""
    async with policy_worker(tmp_path, ws_auth_token=(WS,)) as worker:
        await worker.start("audit", audit.main)
        await worker.start("auth", auth.main)
        await worker.ask("auth", _authenticate("ws", "token", "wrong"))
        assert (await worker.describe("auth"))["failed"] == 1
        await worker.drain("auth")
        assert "auth.failed" in _log(tmp_path)
        assert not worker.crashes


def test_every_token_is_compared_whichever_fits() -> None:
    """Each configured token opens; an empty list opens for nobody."""
    tokens = StaticTokens(["a" * 16, "b" * 16])
    for token, right in (("a" * 16, True), ("b" * 16, True), ("c" * 16, False)):
        presented = digest(token)
        assert presented is not None
        assert tokens.matches(presented) is right
        assert not StaticTokens([]).matches(presented)


def test_tickets_expire_and_are_bounded() -> None:
    """A ticket lives exactly its time; past the bound none is issued until one goes."""
    tickets = Tickets(capacity=2, life_ns=100)
    assert tickets.issue("one", 0)
    assert tickets.issue("two", 50)
    assert not tickets.issue("three", 99)
    assert tickets.issue("three", 100)
    two, three = digest("two"), digest("three")
    assert two is not None
    assert three is not None
    assert not tickets.redeem(two, 150)  # its time was over
    assert tickets.redeem(three, 199)
    assert not tickets.redeem(three, 199)
    assert len(tickets) == 0
