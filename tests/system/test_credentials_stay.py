"""A credential is for the gateway alone, and one that fails fails: over real sockets, on every listener."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import jwt_forge as forge
import pytest
import trio
from gateway import ROOT
from session_clients import admin, ask, request_now, session
from test_sessions import FREE, ended, started, ws_with
from wire_clients import TcpClient, WsClient, request, tcp_client, ws_client

UPSTREAMS = ROOT / "tests" / "upstreams"
CLIENTS: dict[str, Any] = {"tcp": tcp_client, "ws": ws_client}
SIGNED = {"JWT_SECRET": forge.SECRET}
BLOCKS = {"AUTO_BLOCK_ENABLED": "true", "MAX_FAILED_ATTEMPTS": "3"}


def audited(gateway: Any, event: str) -> list[dict[str, Any]]:
    lines = [line for path in gateway.audit_dir.glob("*.log") for line in path.read_text().splitlines()]
    records = [json.loads(line.removeprefix("SECURITY ")) for line in lines]
    return [record for record in records if record["event"] == event]


async def recorded(gateway: Any, event: str, least: int = 1) -> list[dict[str, Any]]:
    with trio.move_on_after(30):
        while len(audited(gateway, event)) < least:
            await trio.sleep(0.02)
    assert len(audited(gateway, event)) >= least, gateway.tail()
    return audited(gateway, event)


@pytest.mark.parametrize("transport", ["tcp", "ws"])
async def test_no_credential_is_forwarded(start_gateway: Any, tmp_path: Path, transport: str) -> None:
    """The gateway's own methods as notifications, misspelt, or both, reach no server: a request gets -32601, a
    notification nothing; both leave a record, and the connection goes on."""
    record = tmp_path / "record"
    server = {"command": sys.executable, "args": [str(UPSTREAMS / "recorder.py"), "--record", str(record)]}
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(servers={"rec": server}, environment=FREE | {"WORKERS": "1"})
    )
    secret = "do-not-tell-" + "x" * 32
    spellings = ("Authenticate", " authenticate", "auth/Refresh", "AUTH/LOGOUT", "auth/refresh\t", "authenticate\0")
    own = ("authenticate", "auth/refresh", "auth/logout")
    async with CLIENTS[transport](gateway) as client:
        await client.initialize()
        for method in (*own, *spellings):
            params = json.dumps({"token": secret, "refresh_token": secret})
            name = json.dumps(method)
            await client.send(f'{{"jsonrpc":"2.0","method":{name},"params":{params}}}'.encode())
        for method in spellings:
            answer = await client.call(method, {"token": secret, "refresh_token": secret})
            assert answer["error"]["code"] == -32601, method
        assert (await client.call("notes/add", {"text": "seen"}))["result"]["method"] == "notes/add"
        assert await client.nothing_more() == []
    assert b"notes/add" in record.read_bytes()
    assert secret.encode() not in record.read_bytes()
    assert b"auth" not in record.read_bytes().lower()
    reasons = {event.get("reason") for event in await recorded(gateway, "message.invalid", 2)}
    assert reasons >= {"a request needs an id", "a method of the gateway's own, misspelt"}


async def test_authenticating_over_and_over_is_bounded(start_gateway: Any) -> None:
    """It costs the budget of messages nothing, but one connection may do it a few times a second only; what is beyond
    is 429, and the audit log counts what it doesn't list."""
    limits = {"RATE_LIMIT_MAX_REQUESTS": "50", "RATE_LIMIT_BURST_REQUESTS": "50", "WORKERS": "1"}
    gateway = await started(start_gateway, **limits)
    many = 600
    async with tcp_client(gateway) as client:
        await client.stream.send_all(
            b"".join(request("authenticate", {"token": gateway.tcp_token}, id=b"%d" % n) + b"\n" for n in range(many))
        )
        answers = [json.loads(await client.next()) for _ in range(many)]
        accepted = sum("result" in answer for answer in answers)
        refused = [answer["error"] for answer in answers if "error" in answer]
        assert 9 <= accepted < many / 2
        assert {error["code"] for error in refused} == {429}
        assert all(error["data"]["retryAfterMs"] > 0 for error in refused)
        assert "result" in await client.call("ping")
    gateway.stop()
    again = [record for record in audited(gateway, "auth.ok") if record["detail"].get("again")]
    assert sum(record["detail"].get("count", 1) for record in again) == accepted
    assert len({record["connection"] for record in again}) == 1
    assert audited(gateway, "rate.limited")


async def test_failed_refreshes_on_a_connection_score(start_gateway: Any) -> None:
    """Who tries refresh tokens on a connection that is open is blocked for it, by name."""
    gateway = await started(start_gateway, **SIGNED, **BLOCKS)
    token = forge.own(sub="bob")
    async with tcp_client(gateway, token=token) as client:
        for number in range(3):
            await client.send(request("auth/refresh", {"refresh_token": f"pcr_{number}"}, id=b"%d" % number))
        await ended(client)
    (block,) = (await admin(gateway, "GET", "/blocks")).document["blocks"]
    assert block["principal"] == "bob"


async def test_a_token_that_is_too_long_has_failed_like_any_other(start_gateway: Any) -> None:
    """By header, subprotocol, request and message alike: 401 and ``auth.failed``."""
    gateway = await started(start_gateway, WORKERS="1")
    long = "x" * 9_000
    headers = {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    encoded = base64.urlsafe_b64encode(long.encode()).rstrip(b"=").decode()
    shown = (
        {"Authorization": f"Bearer {long}"},
        {"Sec_WebSocket_Protocol": f"mcp, bearer.{long}"},
        {"Sec_WebSocket_Protocol": f"mcp, bearer64.{encoded}"},
    )
    for credential in shown:
        assert (await ask(gateway, "GET", "/", **headers, **credential)).status == 401
    answer = await ask(gateway, "POST", "/auth/token", Authorization=f"Bearer {long}")
    assert answer.status == 401
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
    async with stream:
        assert (await TcpClient(stream).call("authenticate", {"token": long}))["error"]["code"] == 401
    await recorded(gateway, "auth.failed", 5)
    assert not [r for r in audited(gateway, "connection.refused") if r.get("reason") == "handshake"]


async def test_who_failed_to_authenticate_is_not_anonymous(start_gateway: Any) -> None:
    """Where authentication is off, a credential that is wrong ends the connection, and nothing behind it is served; a
    right one does not, and a wrong one after it leaves its bearer who he was."""
    gateway = await started(start_gateway, TCP_AUTH_ENABLED="false", **SIGNED)
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
    async with stream:
        client = TcpClient(stream)
        assert "result" in await client.call("ping")
        await client.send(request("authenticate", {"token": "wrong"}, id=b"1") + b"\n" + request("ping", None, id=b"2"))
        assert (await client.answer_to(b"1"))["error"]["code"] == 401
        await ended(client)
        assert client.inbox == []
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
    async with stream:
        client = TcpClient(stream)
        right = await client.call("authenticate", {"token": forge.own(sub="alice")})
        assert right["result"]["principal"] == "alice"
        assert (await client.call("authenticate", {"token": "wrong"}))["error"]["code"] == 401
        assert "result" in await client.call("ping")


async def test_the_scope_admin_opens_the_admin_api(start_gateway: Any) -> None:
    """For as long as the token is good, and the record says who it was. Without the scope it is 403; revoked, expired
    or signed by somebody else 401, as a session's or a static token is."""
    gateway = await started(start_gateway, **SIGNED, JWT_LEEWAY_MS="0")

    async def status(token: str, path: str = "/connections") -> int:
        answer = await trio.to_thread.run_sync(lambda: _admin_as(gateway, token, path))
        return int(answer.status)

    root = forge.own(sub="root", scope="admin", jti="r-1")
    assert await status(root) == 200
    assert await status(forge.own(sub="alice", jti="a-1")) == 403
    assert await status(forge.own(secret="x" * 64, scope="admin")) == 401
    past = forge.own_claims()["iat"] - 100
    assert await status(forge.own(scope="admin", iat=past, exp=past + 50)) == 401
    assert await status((await session(gateway))["session"]) == 401
    assert await status(gateway.ws_token) == 401
    block = await trio.to_thread.run_sync(lambda: _admin_as(gateway, root, "/blocks", "POST", b'{"ip":"192.0.2.1"}'))
    assert block.status == 200
    assert [r.get("principal") for r in await recorded(gateway, "admin.action")] == ["root"]
    assert (await admin(gateway, "POST", "/tokens/revoke", {"token": root})).status == 200
    assert await status(root) == 401
    assert (await admin(gateway, "GET", "/connections")).status == 200


def _admin_as(gateway: Any, token: str, path: str, method: str = "GET", body: bytes | None = None) -> Any:
    return request_now(gateway.health_port, method, f"/admin/v1{path}", body, Authorization=f"Bearer {token}")


async def test_a_session_follows_the_rules_of_its_static_token(start_gateway: Any, tmp_path: Path) -> None:
    """What a static token may not do, the session that was issued for it may not either."""
    policy = tmp_path / "policy.json"
    rule = {"name": "no-echo", "effect": "deny", "principal": "static", "tool": "echo"}
    policy.write_text(json.dumps({"rules": [rule]}))
    gateway = await started(start_gateway, AUTHORIZATION_POLICY=str(policy))
    tokens = await session(gateway)
    for token in (gateway.ws_token, tokens["session"], tokens["access_token"]):
        async with ws_with(gateway, token) as connection:
            client = WsClient(connection)
            await client.initialize()
            answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": "x"}})
            assert answer["error"]["data"]["rule"] == "no-echo"
