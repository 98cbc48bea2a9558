"""The admin API for bearers of tokens with the scope ``admin``, and what of an operator's request is written down."""

from __future__ import annotations

from typing import Any

import jwt_forge as forge
import pytest
from admin_bench import ADMIN_TOKEN, Bench, Reply, bench

from actors.admin import targets
from actors.policy.credential_like import is_credential, may_be_one
from ipc.messages import AuthenticateAdmin, BlockClient, Done, Grant, Message, Refused, RevokeTokens

JWT = forge.own(scope="admin")
ROOT = Grant("root", "s", ("admin",), 0, 1)
SESSION, REFRESH = "pcs_" + "Ab3-" * 16, "pcr_" + "Ab3_" * 16
STATIC = "9f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a0"


async def sent(made: Bench, method: str, path: str, token: str = ADMIN_TOKEN, body: bytes = b"") -> Reply:
    return await made.request(method, f"/admin/v1{path}", token=token, body=body)


async def test_auth_is_asked_about_a_signed_token_each_time() -> None:
    """With the scope it opens the API, and the record says who came; refused it is 401, without the scope 403, and
    while nobody can judge it 503. Nothing is remembered."""
    answers: list[Message | None] = [ROOT, Refused("auth"), Refused("forbidden"), Refused("unavailable"), ROOT]
    async with bench() as made:

        def judge(message: Message) -> Message | None:
            return answers.pop(0) if isinstance(message, AuthenticateAdmin) else Done(ok=True)

        made.actors["auth"].answer = judge
        replies = [await sent(made, "DELETE", f"/sessions/{'ab' * 12}", JWT) for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 401, 403, 503, 200]
        assert replies[1].headers["www-authenticate"].endswith('error="invalid_token"')
        assert 'error="insufficient_scope"' in replies[2].headers["www-authenticate"]
        asked = [m for m in made.actors["auth"].received if isinstance(m, AuthenticateAdmin)]
        assert [(m.token, m.peer_ip) for m in asked] == [(JWT, "127.0.0.1")] * 5
        while len(made.actors["audit"].events) < 2:
            await made.actors["audit"].came.wait()
        assert [(e.event, e.principal) for e in made.actors["audit"].events] == [("admin.action", "root")] * 2


async def test_the_admin_token_needs_nobody() -> None:
    """It works while auth is down, where a signed token gets 503; what is neither is refused without asking."""
    async with bench(down=("auth",)) as made:
        assert (await sent(made, "GET", "/connections")).status == 200
        assert (await sent(made, "GET", "/connections", JWT)).status == 503
    async with bench() as made:
        made.actors["auth"].answer = lambda _message: ROOT
        for token in ("x", SESSION, "a.b", JWT + "x" * 9_000):
            assert (await sent(made, "GET", "/connections", token)).status == 401
        assert not any(isinstance(m, AuthenticateAdmin) for m in made.actors["auth"].received)


PASTED: list[tuple[str, str, bytes]] = [
    ("DELETE", f"/sessions/{SESSION}", b""),
    ("DELETE", f"/sessions/{STATIC}", b""),
    ("POST", f"/connections/{JWT}/disconnect", b""),
    ("POST", f"/breakers/{STATIC}/reset", b""),
    ("POST", "/tokens/revoke", b'{"principal": "%s"}' % JWT.encode()),
    ("POST", "/tokens/revoke", b'{"jti": "%s"}' % REFRESH.encode()),
    ("POST", "/tokens/revoke", b'{"principal": "%s"}' % STATIC.encode()),
    ("POST", "/blocks", b'{"principal": "%s"}' % SESSION.encode()),
    ("POST", "/blocks", b'{"principal": "%s"}' % STATIC.encode()),
    ("POST", "/blocks", b'{"ip": "%s"}' % STATIC.encode()),
    ("DELETE", f"/blocks/{JWT}", b""),
    ("DELETE", f"/blocks/principal:{STATIC}", b""),
]


@pytest.mark.parametrize("token", [ADMIN_TOKEN, "wrong"])
async def test_no_credential_is_written_down(token: str) -> None:
    """Wherever an operator pastes one, with the right token or a wrong one."""
    async with bench() as made:
        for name in ("auth", "limiter", "breaker", "acceptor.0", "acceptor.1"):
            made.actors[name].answer = lambda _message: Done(ok=False, detail="nothing of that name")
        for method, path, body in PASTED:
            assert (await sent(made, method, path, token, body)).status in (400, 401, 404, 409)
        passed = [m for name in ("auth", "limiter") for m in made.actors[name].received]
        for message in passed:
            if isinstance(message, RevokeTokens | BlockClient):
                assert not any(secret in repr(message) for secret in (JWT, REFRESH, SESSION))
        good = await sent(made, "DELETE", "/blocks/192.0.2.1")
        assert good.status == 404
        events = made.actors["audit"].events
        while not any(event.detail.get("target") == "192.0.2.1" for event in events):
            await made.actors["audit"].came.wait()
        written = repr(events)
        for secret in (JWT, JWT.split(".")[2], SESSION, REFRESH, STATIC):
            assert secret not in written


@pytest.mark.parametrize(
    ("text", "form", "random"),
    [
        (SESSION, True, True),
        (JWT, True, True),
        (STATIC, False, True),
        ("qL0vN3xT9bZr7mKd2WcY5hJfA8sGpEuX1oViRtBnMaQ", False, True),
        ("alice", False, False),
        ("https://login.example|auth0-5f7c8ec7c33c6c004bbafe82", False, False),
        ("sha256:" + "ab" * 32, False, False),
        ("123e4567-e89b-12d3-a456-426614174000", False, False),
        ("svc-reporting-production-europe-west", False, False),
        ("host.example.com", False, False),
        ("0" * 24 + "-3", False, False),
        ("", False, False),
        ("\u00e9.b.c", False, False),
    ],
)
def test_what_looks_like_a_credential(text: str, form: bool, random: bool) -> None:
    """Names of practice don't: addresses, UUIDs, fingerprints, subjects of other issuers, session handles."""
    assert is_credential(text) is form
    assert may_be_one(text) is random


def test_a_target_is_shown_in_its_form_only() -> None:
    """What hasn't the form that it should have is not shown."""
    shown: list[Any] = [
        targets.session("ab" * 12), targets.session("alice"), targets.connection("1-2f"), targets.connection("x"),
        targets.client("192.0.2.0/24"), targets.client("2001:db8::1"), targets.client("principal:alice"),
        targets.client("alice"), targets.name("time"), targets.path(f"/admin/v1/sessions/{SESSION}"),
    ]  # fmt: skip
    assert shown == [
        "ab" * 12, targets.HIDDEN, "1-2f", targets.HIDDEN, "192.0.2.0/24", "2001:db8::1", "principal:alice",
        targets.HIDDEN, "time", f"/admin/v1/sessions/{targets.HIDDEN}",
    ]  # fmt: skip
