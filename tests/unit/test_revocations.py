"""What a revocation reaches: every form of a token, every token of a principal, and nothing that has another name."""

from __future__ import annotations

import base64
import sqlite3
import time
from pathlib import Path
from typing import Any

import attrs
import jwt_forge as forge
import msgspec
import pytest
import trio
from jwt_attacks import EC_KID, RSA_KID, served_keys
from jwt_forge import ec_key, rsa_key
from policy_worker import Worker, eventually, policy_worker

from actors import audit, auth, session_store
from actors.policy import certificate, sessions
from actors.policy.session_tokens import jti_id, signed_id, static_name
from actors.policy.sessions import Limits, Session, Sessions
from actors.session_store import FILE
from ipc.messages import (
    Authenticate,
    Done,
    Grant,
    IssueSession,
    IssueTicket,
    Lapsed,
    RefreshSession,
    Refused,
    Revalidate,
    Revoked,
    RevokeToken,
    RevokeTokens,
    Ticket,
    TokenSet,
)

WS, OTHER = "w" * 32, "v" * 32
IP = "192.0.2.7"
LEEWAY_MS = 5_000
SETTINGS: dict[str, Any] = {
    "ws_auth_token": (WS, OTHER), "tcp_auth_token": ("t" * 32,), "jwt_secret": forge.SECRET,
    "jwt_leeway_ms": LEEWAY_MS,
}  # fmt: skip
ORDER_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def outside_issuer(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "keys.json"
    path.write_bytes(served_keys())
    return {"jwt_jwks_file": str(path), "jwt_jwks_issuer": forge.ISSUER, "jwt_jwks_audience": forge.AUDIENCE}


def malleated(token: str) -> str:
    """The same ES256 token with the other signature that everybody can make of it: (r, n - s)."""
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    other = ORDER_P256 - int.from_bytes(raw[32:])
    return f"{signed}.{forge.b64(raw[:32] + other.to_bytes(32))}"


async def granted(worker: Worker, token: str, scheme: Any = "token") -> Grant | None:
    answer = await worker.ask("auth", Authenticate("ws", scheme, token, IP))
    assert isinstance(answer, Grant | Refused)
    return answer if isinstance(answer, Grant) else None


async def issued(worker: Worker, credential: str = WS, scheme: Any = "token", nonce: str = "ab" * 12) -> TokenSet:
    answer = await worker.ask("auth", IssueSession(scheme, credential, IP, nonce))
    assert isinstance(answer, TokenSet), answer
    return answer


def audited(tmp_path: Path) -> list[dict[str, Any]]:
    lines = [line for path in (tmp_path / "log").glob("*.log") for line in path.read_text().splitlines()]
    return [msgspec.json.decode(line.removeprefix("SECURITY ")) for line in lines]


def the_end(tmp_path: Path, event: str) -> list[dict[str, Any]]:
    return [record for record in audited(tmp_path) if record["event"] == event]


@pytest.mark.parametrize("by_operator", [False, True])
async def test_a_token_is_revoked_with_either_of_its_signatures(tmp_path: Path, by_operator: bool) -> None:
    """An ES256 token without a jti is known by what is signed: (r, n - s) makes no other token of it."""
    token = forge.outside(ec_key("served"), EC_KID)
    async with policy_worker(tmp_path, **SETTINGS, **outside_issuer(tmp_path)) as worker:
        await worker.start("auth", auth.main)
        assert await granted(worker, malleated(token))
        question = RevokeTokens(token=token) if by_operator else RevokeToken(token, IP)
        assert await worker.ask("auth", question) == Done(ok=True, detail="0 sessions ended" if by_operator else "")
        assert await granted(worker, token) is None
        assert await granted(worker, malleated(token)) is None


async def test_a_jti_is_its_issuers_own(tmp_path: Path) -> None:
    """The revocation of an outside token by its jti leaves the gateway's own token of the same jti alone, and the
    reverse; an operator's jti is one of the gateway's own."""
    async with policy_worker(tmp_path, **SETTINGS, **outside_issuer(tmp_path)) as worker:
        await worker.start("auth", auth.main)
        own, outside = forge.own(jti="same"), forge.outside(rsa_key("served"), RSA_KID, jti="same")
        assert await worker.ask("auth", RevokeToken(outside, IP)) == Done(ok=True)
        assert await granted(worker, outside) is None
        assert await granted(worker, own)
        other = forge.outside(rsa_key("served"), RSA_KID, jti="second")
        await worker.ask("auth", RevokeTokens(jti="second"))
        assert await granted(worker, other)
        assert await granted(worker, forge.own(jti="second")) is None


def test_no_jti_takes_anothers_name() -> None:
    """Issuer and jti are told apart, whatever stands where."""
    assert jti_id("a", "b") != jti_id("ab", "")
    assert signed_id("h.p.s") == signed_id("h.p.t") != signed_id("h.q.s")


async def test_a_principals_revocation_reaches_tokens_of_a_clock_that_is_ahead(tmp_path: Path) -> None:
    """A token whose iat lies ahead by less than the leeway was there before the revocation: it is over, on live
    connections too. What is issued by the gateway right after it is good, and stays so."""
    ahead = int(time.time()) + LEEWAY_MS // 1000 - 1
    token = forge.own(sub="alice", iat=ahead, exp=ahead + 600)
    line = certificate.credential({"subject": ((("commonName", "carl"),),)}, bytes(32), int(time.time() + 900) * 1000)
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        acceptor = worker.open("acceptor.0")
        await worker.start("auth", auth.main)
        live = await granted(worker, token)
        assert live is not None
        await worker.ask("auth", RevokeTokens(principal="alice"))
        (told,) = [delivery.message for delivery in acceptor.drain()]
        assert isinstance(told, Revoked)
        assert dict(told.principals)["alice"] >= live.issued_ms
        assert await granted(worker, token) is None
        question = Revalidate("acceptor.0", [(1, "", live.tokens, "alice", live.issued_ms, "")])
        assert await worker.ask("auth", question) == Lapsed([1])

        tokens = await issued(worker, line, "certificate")
        await worker.ask("auth", RevokeTokens(principal="carl"))
        assert await granted(worker, tokens.access_token) is None
        again = await issued(worker, line, "certificate", "cd" * 12)
        assert await granted(worker, again.access_token)
        fresh = await granted(worker, line, "certificate")
        assert fresh is not None
        while time.time_ns() // 1_000_000 + LEEWAY_MS <= fresh.issued_ms:
            await trio.sleep(0.001)
        later = await granted(worker, line, "certificate")
        assert later is not None
        question = Revalidate("acceptor.0", [(1, "", (), "carl", later.issued_ms, "")])
        assert await worker.ask("auth", question) == Lapsed([])


async def test_a_ticket_ends_with_its_access_token(tmp_path: Path) -> None:
    """A ticket for an access token that is revoked alone is over, although its session lives."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        tokens = await issued(worker)
        ticket = await worker.ask("auth", IssueTicket(tokens.access_token, IP))
        assert isinstance(ticket, Ticket)
        assert await worker.ask("auth", RevokeToken(tokens.access_token, IP)) == Done(ok=True)
        assert await granted(worker, ticket.ticket, "ticket") is None
        assert await granted(worker, tokens.session)


async def test_a_session_is_its_principals_alone(tmp_path: Path) -> None:
    """A signed token that names somebody else's session is refused, under the name of a static token's holder too."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        tokens = await issued(worker)
        sid, name = tokens.grant.session, tokens.grant.principal
        assert await granted(worker, forge.own(sub=name, sid=sid))
        assert await granted(worker, forge.own(sub="mallory", sid=sid)) is None
        assert await granted(worker, forge.own(sub=name)) is None
        assert await granted(worker, forge.own(sub="static")) is None


async def test_a_session_ends_with_its_certificate(tmp_path: Path) -> None:
    """What is issued for a certificate ends with it: the session id, the access token, whatever comes of a refresh."""
    end_ms = int(time.time() + 2) * 1000
    line = certificate.credential({"subject": ((("commonName", "carl"),),)}, bytes(32), end_ms)
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("audit", audit.main)
        await worker.start("auth", auth.main)
        tokens = await issued(worker, line, "certificate")
        assert tokens.grant.expires_at_ms <= end_ms + LEEWAY_MS
        assert tokens.expires_in <= 2
        by_id = await granted(worker, tokens.session)
        assert by_id is not None
        assert by_id.expires_at_ms == end_ms
        await eventually(lambda: bool(the_end(tmp_path, "session.expired")), within_s=20)
        assert the_end(tmp_path, "session.expired")[0]["reason"] == "certificate"
        assert await granted(worker, tokens.session) is None
        assert await granted(worker, tokens.access_token) is None
        assert isinstance(await worker.ask("auth", RefreshSession(tokens.refresh_token, IP)), Refused)


def test_the_end_of_the_certificate_bounds_every_time() -> None:
    """Neither use nor the absolute timeout takes a session past it."""
    limits = Limits(idle_ms=1_000, absolute_ms=10_000, refresh_ms=10_000, access_ms=1, most_each=1)
    session = Session("ab" * 12, b"s", "carl", (), 0, 0, 0, 0, 1, b"c", not_after_ms=500)
    book = Sessions(limits, [session])
    assert book.latest_ms(session) == book.expires_ms(session) == 500
    assert book.find(session.handle, 499)
    assert book.find(session.handle, 500) is None
    assert book.sweep(500) == [(session, "certificate")]
    assert book.latest_ms(attrs.evolve(session, not_after_ms=0)) == 10_000


async def test_a_removed_static_token_takes_its_sessions_along(tmp_path: Path) -> None:
    """Sessions issued for a token that is configured no more end, and acceptors hear of it; those of another token go
    on, and so do those of a token that was only made up for one run."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("audit", audit.main)
        await worker.start("auth", auth.main)
        gone, kept = await issued(worker, WS, nonce="ab" * 12), await issued(worker, OTHER, nonce="cd" * 12)
        await worker.kill("auth")
        acceptor = worker.open("acceptor.0")
        await worker.start("auth", auth.main, ws_auth_token=(OTHER,))
        assert await granted(worker, gone.session) is None
        assert await granted(worker, gone.access_token) is None
        assert await granted(worker, kept.session)
        await eventually(lambda: bool(the_end(tmp_path, "session.ended")), within_s=20)
        assert [r["reason"] for r in the_end(tmp_path, "session.ended")] == ["token removed"]
        assert [d.message for d in acceptor.drain()] == [Revoked(sessions=(gone.grant.session,))]
        await worker.kill("auth")
        await worker.start("auth", auth.main)
        assert await granted(worker, gone.session) is None

        await worker.kill("auth")
        await worker.start("auth", auth.main, ws_auth_token=("m" * 32,), made_up_tokens=("ws",))
        made_up = await issued(worker, "m" * 32, nonce="ef" * 12)
        await worker.kill("auth")
        await worker.start("auth", auth.main, ws_auth_token=("n" * 32,), made_up_tokens=("ws",))
        assert await granted(worker, made_up.session)


async def test_a_static_tokens_holder_keeps_his_name(tmp_path: Path) -> None:
    """A new JWT_SECRET gives nobody another name; two tokens have two names; the name is no digest of the token."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        name = (await issued(worker)).grant.principal
        other = (await issued(worker, OTHER, nonce="cd" * 12)).grant.principal
        await worker.kill("auth")
        await worker.start("auth", auth.main, jwt_secret="n" * 64)
        assert (await issued(worker, nonce="ef" * 12)).grant.principal == name != other
    assert static_name(b"k" * 32, b"d") != static_name(b"l" * 32, b"d")


@pytest.mark.parametrize("what", ["token", "session", "principal"])
async def test_the_record_of_a_revocation_survives_what_its_answer_did(tmp_path: Path, what: str) -> None:
    """Acknowledged while nobody could write the audit log, then everything dies: the record is there in the end, once
    for each incarnation that could not know better, marked as recovered."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        tokens = await issued(worker)
        question: Any = {
            "token": RevokeToken(tokens.access_token, IP),
            "session": RevokeToken(tokens.session, IP),
            "principal": RevokeTokens(principal=tokens.grant.principal),
        }[what]
        done = await worker.ask("auth", question)
        assert isinstance(done, Done)
        assert done.ok
        await worker.kill_process("auth")
        await worker.start("audit", audit.main)
        await worker.start("auth", auth.main)
        wanted = {"token.revoked"} | ({"session.ended"} if what != "token" else set())
        await eventually(lambda: wanted <= {record["event"] for record in audited(tmp_path)}, within_s=20)
        assert all(the_end(tmp_path, event)[0]["detail"]["recovered"] for event in wanted)

        def kept() -> int:
            with sqlite3.connect(f"file:{tmp_path / 'state' / FILE}?mode=ro", uri=True) as database:
                return int(database.execute("SELECT count(*) FROM records").fetchone()[0])

        await eventually(lambda: kept() == 0, within_s=20)
        await worker.kill_process("auth")
        await worker.start("auth", auth.main)
        await worker.describe("auth")
        assert {event: len(the_end(tmp_path, event)) for event in wanted} == dict.fromkeys(wanted, 1)


async def test_a_reuse_ends_the_session_whatever_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be written, the reuse of a refresh token is answered, recorded and told to the acceptors, and
    the session doesn't come back with what the disk holds; once it can be written, it is."""
    write = session_store._write
    broken = [False]

    def failing(*arguments: Any) -> None:
        if broken[0]:
            raise sqlite3.OperationalError("database or disk is full")
        write(*arguments)

    monkeypatch.setattr(session_store, "_write", failing)
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("audit", audit.main)
        acceptor = worker.open("acceptor.0")
        await worker.start("auth", auth.main)
        first = await issued(worker)
        newest = first
        for _ in range(2):
            answer = await worker.ask("auth", RefreshSession(newest.refresh_token, IP))
            assert isinstance(answer, TokenSet)
            newest = answer
        broken[0] = True
        refused = await worker.ask("auth", RefreshSession(first.refresh_token, IP))
        assert isinstance(refused, Refused)
        assert refused.reason == "auth"
        await eventually(lambda: bool(the_end(tmp_path, "token.reused")), within_s=20)
        assert [d.message for d in acceptor.drain()] == [Revoked(sessions=(first.grant.session,))]
        failures = (await worker.describe("auth"))["failed_commits"]
        with trio.fail_after(20):  # it was read again, and tried again
            while (await worker.describe("auth"))["failed_commits"] <= failures:
                await trio.sleep(0.01)
        assert await granted(worker, newest.session) is None
        broken[0] = False
        with trio.fail_after(20):
            while isinstance(await worker.ask("auth", RevokeToken("pcs_x", IP)), Refused):
                await trio.sleep(0.01)
        await worker.kill("auth")
        await worker.start("auth", auth.main)
        assert await granted(worker, newest.session) is None
        assert await granted(worker, newest.access_token) is None


async def test_what_is_no_token_is_not_revoked(tmp_path: Path) -> None:
    """An operator hears that there was nothing to revoke; a static token is not taken for a name."""
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        for nonsense in (
            RevokeTokens(token="a.b.c"),
            RevokeTokens(token="x"),
            RevokeTokens(token=WS),
            RevokeTokens(principal=WS),
            RevokeTokens(jti="t" * 32),
            RevokeTokens(principal="x" * 2_000),
        ):
            answer = await worker.ask("auth", nonsense)
            assert isinstance(answer, Done)
            assert not answer.ok
        assert (await worker.describe("auth"))["revocations"] == 0


def test_operators_may_revoke_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients can't fill the book so that operators have no room; operators have a bound of their own."""
    monkeypatch.setattr(sessions, "MOST_REVOCATIONS", 1)
    monkeypatch.setattr(sessions, "MOST_OF_OPERATORS", 1)
    book = Sessions(Limits(1, 1, 1, 1, 1))
    assert book.revoke("token", "one", 0, 1)
    assert not book.revoke("token", "two", 0, 1)
    assert book.revoke("token", "two", 0, 1, operator=True)
    assert not book.revoke("token", "three", 0, 1, operator=True)


async def test_a_certificate_gets_a_ticket(tmp_path: Path) -> None:
    """As it gets a session; the ticket is worth what the certificate is, for as long."""
    end_ms = int(time.time() + 900) * 1000
    line = certificate.credential({"subject": ((("commonName", "carl"),),)}, bytes(32), end_ms)
    async with policy_worker(tmp_path, **SETTINGS) as worker:
        await worker.start("auth", auth.main)
        ticket = await worker.ask("auth", IssueTicket(line, IP, "certificate"))
        assert isinstance(ticket, Ticket)
        grant = await granted(worker, ticket.ticket, "ticket")
        assert grant is not None
        assert (grant.principal, grant.expires_at_ms) == ("carl", end_ms)


def test_a_database_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    """Its sessions and revocations are there, without an end of a certificate or a token; nothing has to be done."""
    path = tmp_path / FILE
    with sqlite3.connect(path) as database:
        database.executescript(
            "CREATE TABLE sessions (handle TEXT PRIMARY KEY, salt BLOB NOT NULL, principal TEXT NOT NULL, scopes TEXT"
            " NOT NULL, created_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL, generation INTEGER NOT NULL, rotated_ms"
            " INTEGER NOT NULL, access_ms INTEGER NOT NULL, client BLOB NOT NULL) STRICT, WITHOUT ROWID;"
            "CREATE TABLE revocations (kind TEXT NOT NULL, value TEXT NOT NULL, at_ms INTEGER NOT NULL, until_ms"
            " INTEGER NOT NULL, PRIMARY KEY (kind, value)) STRICT, WITHOUT ROWID;"
            f"PRAGMA application_id={session_store._APPLICATION}; PRAGMA user_version=1;"
            "INSERT INTO sessions VALUES ('ab', x'00', 'alice', 'mcp:call mcp:read', 1, 2, 3, 4, 5, x'01');"
            "INSERT INTO revocations VALUES ('token', 'jti:1', 6, 7);"
        )
    database.close()
    store = session_store.SessionStore(str(tmp_path), lambda call: call())
    content = store.load()
    assert content.sessions == [Session("ab", b"\0", "alice", ("mcp:call", "mcp:read"), 1, 2, 3, 4, 5, b"\x01")]
    assert len(content.revocations) == 1
    assert content.records == {}
    assert len(content.name_key) == 32
    assert store.load() == content
