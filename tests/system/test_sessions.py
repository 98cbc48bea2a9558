"""Sessions end to end: issued, used, rotated, revoked and ended, with real workers, sockets and kills."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import trio
from session_clients import Answer, admin, ask, post, post_form, refresh, session
from test_crashes import kill
from trio_websocket import ConnectionClosed, open_websocket_url
from wire_clients import TcpClient, WsClient, tcp_client

FREE = {
    "WORKERS": "2",
    "RATE_LIMIT_BURST_REQUESTS": "100000",
    "RATE_LIMIT_MAX_REQUESTS": "100000",
    "CONNECTION_RATE_LIMIT": "100000",
    "AUTO_BLOCK_ENABLED": "false",
}
ENDS_WITHIN_S = 20.0  # far above what is promised: a loaded machine must not fail a test


async def started(start_gateway: Any, **environment: str) -> Any:
    return await trio.to_thread.run_sync(lambda: start_gateway(environment=FREE | environment))


def ws_with(gateway: Any, token: str) -> Any:
    headers = [(b"Authorization", b"Bearer " + token.encode())]
    return open_websocket_url(gateway.ws_url(), extra_headers=headers, subprotocols=["mcp"])


async def ended(client: Any) -> None:
    """The gateway ends this connection."""
    with trio.fail_after(ENDS_WITHIN_S):
        while True:
            try:
                await client.receive()
            except (EOFError, trio.BrokenResourceError, ConnectionClosed):
                return


async def admits(gateway: Any, token: str) -> bool:
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
    async with stream:
        answer = await TcpClient(stream).call("authenticate", {"token": token})
        return "result" in answer


async def test_tokens_are_issued_used_and_rotated(start_gateway: Any) -> None:
    """A static token gives a session; its access token and its session id open both listeners; JSON and form bodies
    are understood; a rotation gives new tokens and keeps the session."""
    gateway = await started(start_gateway)
    first = await session(gateway)
    assert set(first) == {"access_token", "token_type", "expires_in", "refresh_token", "session"}
    assert first["expires_in"] == 900
    for token in (first["access_token"], first["session"]):
        async with tcp_client(gateway, token=token) as client:
            assert "result" in await client.call("ping")
        async with ws_with(gateway, token) as connection:
            assert "result" in await WsClient(connection).call("ping")
        shown = await ask(gateway, "GET", "/auth/session", Authorization=f"Bearer {token}")
        assert shown.status == 200
        assert shown.document["principal"].startswith("static-")
        assert shown.headers["cache-control"] == "no-store"
    second = await refresh(gateway, first["refresh_token"])
    assert second.status == 200
    assert second.document["refresh_token"] != first["refresh_token"]
    assert second.document["session"] == first["session"]
    third = await post_form(gateway, "/auth/refresh", {"refresh_token": second.document["refresh_token"]})
    assert third.status == 200
    assert await admits(gateway, third.document["access_token"])
    ticket = await post(gateway, "/auth/ticket", token=third.document["access_token"])
    async with open_websocket_url(f"{gateway.ws_url()}?ticket={ticket.document['ticket']}") as connection:
        assert "result" in await WsClient(connection).call("ping")
    stored = b"".join(path.read_bytes() for path in gateway.state_dir.glob("sessions.sqlite*"))
    audit = b"".join(path.read_bytes() for path in gateway.audit_dir.glob("*"))
    for secret in (*first.values(), *third.document.values(), gateway.ws_token):
        if isinstance(secret, str) and secret != "Bearer":
            assert secret.encode() not in stored + audit
            assert secret[-20:].encode() not in stored + audit


JSON, FORM = {"Content_Type": "application/json"}, {"Content_Type": "application/x-www-form-urlencoded"}
REFUSED: list[tuple[str, bytes | None, dict[str, str], int]] = [
    ("/auth/token", None, {}, 401),
    ("/auth/token", b"{}", JSON | {"Authorization": "Bearer wrong"}, 401),
    ("/auth/token", b'{"token": 5}', JSON, 400),
    ("/auth/token", b'{"token": "x"}', JSON | {"Authorization": "Bearer x"}, 400),
    ("/auth/token", b'{"token": "\xff"}', JSON, 400),
    ("/auth/token", b'{"other": "\xff"}', JSON, 400),
    ("/auth/token", b"[" * 60_000, JSON, 400),
    ("/auth/token", b"token=x", {"Content_Type": "text/plain"}, 415),
    ("/auth/token", b"token=x", {}, 415),
    ("/auth/token", b"{}", {"Content_Type": "application/json; charset=utf-16"}, 415),
    ("/auth/token", b"token=x&token=y", FORM, 400),
    ("/auth/token", b"a=b&" * 5_000, FORM, 400),
    ("/auth/token", b"x" * 65_537, JSON, 413),
    ("/auth/refresh", None, {}, 400),
    ("/auth/refresh", b"refresh_token=pcr_x", FORM, 401),
    ("/auth/revoke", None, {}, 400),
    ("/auth/revoke", b'{"token": "unknown"}', JSON, 200),
]


async def test_bad_requests_are_refused(start_gateway: Any) -> None:
    """Each wrong body, type or credential gets its own status and a problem document, and ends nothing else."""
    gateway = await started(start_gateway)
    for path, body, headers, status in REFUSED:
        answer = await ask(gateway, "POST", path, body, **headers)
        assert answer.status == status, (path, body, answer)
        assert status == 200 or answer.document["status"] == status
    assert (await ask(gateway, "GET", "/auth/session")).status == 401
    assert (await session(gateway))["access_token"]


async def test_a_body_may_come_late_and_in_pieces(gateway: Any) -> None:
    """``Expect: 100-continue`` is answered before the body; a body byte by byte is one body."""
    body = json.dumps({"token": gateway.ws_token}).encode()
    head = (
        f"POST /auth/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.ws_port)
    async with stream:
        with trio.fail_after(ENDS_WITHIN_S):
            await stream.send_all(head.encode())
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 100 ")
            for byte in body:
                await stream.send_all(bytes([byte]))
            answer = b""
            while chunk := await stream.receive_some(65536):
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["refresh_token"]


async def test_a_reused_refresh_token_ends_the_whole_family(start_gateway: Any) -> None:
    """A repeat at once gets the same answer to the byte; an older token ends the session, every live connection of it
    on every worker, and its newest tokens; other sessions of the same holder go on."""
    gateway = await started(start_gateway)
    first, other = await session(gateway), await session(gateway)
    second = await refresh(gateway, first["refresh_token"])
    again = await refresh(gateway, first["refresh_token"])
    assert again.document == second.document
    third = (await refresh(gateway, second.document["refresh_token"])).document
    async with AsyncExitStack() as stack:
        clients: list[Any] = []
        for number in range(8):
            if number % 2:
                connection = await stack.enter_async_context(ws_with(gateway, third["access_token"]))
                clients.append(WsClient(connection))
            else:
                clients.append(await stack.enter_async_context(tcp_client(gateway, token=third["session"])))
        bystander = await stack.enter_async_context(tcp_client(gateway, token=other["access_token"]))
        assert (await refresh(gateway, first["refresh_token"])).status == 401
        for client in clients:
            await ended(client)
        assert "result" in await bystander.call("ping")
    assert (await refresh(gateway, third["refresh_token"])).status == 401
    assert not await admits(gateway, third["access_token"])
    assert not await admits(gateway, third["session"])
    assert await admits(gateway, other["session"])
    assert "token.reused" in "".join(path.read_text() for path in gateway.audit_dir.glob("*.log"))


async def test_revocation_ends_what_it_names(start_gateway: Any) -> None:
    """An access token is revoked alone; a refresh token or session id ends the session; both end live connections."""
    gateway = await started(start_gateway)
    tokens = await session(gateway)
    newer = (await refresh(gateway, tokens["refresh_token"])).document
    async with (
        tcp_client(gateway, token=tokens["access_token"]) as old,
        tcp_client(gateway, token=newer["access_token"]) as new,
    ):
        assert (await post(gateway, "/auth/revoke", {"token": tokens["access_token"]})).status == 200
        await ended(old)
        assert not await admits(gateway, tokens["access_token"])
        assert "result" in await new.call("ping")
        assert (await post_form(gateway, "/auth/revoke", {"refresh_token": newer["refresh_token"]})).status == 200
        await ended(new)
    for token in (newer["access_token"], newer["session"]):
        assert not await admits(gateway, token)


async def test_refresh_and_logout_on_a_connection(start_gateway: Any) -> None:
    """``auth/refresh`` keeps the connection alive past its first token's end; ``auth/logout`` is answered and then ends
    every connection of the session; without a refresh the end comes by itself."""
    gateway = await started(start_gateway, JWT_ACCESS_TTL_MS="2000", JWT_LEEWAY_MS="0")
    tokens = await session(gateway)
    async with AsyncExitStack() as stack:
        kept = await stack.enter_async_context(tcp_client(gateway, token=tokens["access_token"]))
        left = await stack.enter_async_context(ws_with(gateway, tokens["access_token"]))
        answer = await kept.call("auth/refresh", {"refresh_token": "pcr_unknown"})
        assert answer["error"]["code"] == 401
        assert (await kept.call("auth/refresh", {}))["error"]["code"] == -32602
        begun = time.time()
        refresh_token = tokens["refresh_token"]
        while time.time() < begun + 5:
            result = (await kept.call("auth/refresh", {"refresh_token": refresh_token}))["result"]
            refresh_token = result["refresh_token"]
            await trio.sleep(0.5)
        await ended(WsClient(left))
        assert left.closed.code == 3000
        assert "result" in await kept.call("ping")
        sibling = await stack.enter_async_context(tcp_client(gateway, token=tokens["session"]))
        assert (await kept.call("auth/logout"))["result"] == {"loggedOut": True}
        await ended(kept)
        await ended(sibling)
    assert (await refresh(gateway, refresh_token)).status == 401


async def test_idle_sessions_end_and_used_ones_do_not(start_gateway: Any) -> None:
    """Messages on a connection keep its session; without them it ends, and its connections with it."""
    gateway = await started(start_gateway, SESSION_TIMEOUT="1500")
    used, unused = await session(gateway), await session(gateway)
    async with tcp_client(gateway, token=used["session"]) as busy, tcp_client(gateway, token=unused["session"]) as idle:
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                while True:
                    assert "result" in await busy.call("ping")
                    await trio.sleep(0.1)

            nursery.start_soon(work)
            await ended(idle)
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
        assert await admits(gateway, used["session"])
    assert not await admits(gateway, unused["session"])
    assert "session.expired" in "".join(path.read_text() for path in gateway.audit_dir.glob("*.log"))


async def test_sessions_of_one_principal_are_limited(start_gateway: Any) -> None:
    """One more than MAX_CONCURRENT_SESSIONS is refused by name, none is ended for it, and a place that is given up is
    free again."""
    gateway = await started(start_gateway, MAX_CONCURRENT_SESSIONS="2")
    one, _ = await session(gateway), await session(gateway)
    refused = await post(gateway, "/auth/token", token=gateway.ws_token)
    assert refused.status == 429
    assert "MAX_CONCURRENT_SESSIONS" in refused.document["detail"]
    assert await admits(gateway, one["session"])
    await post(gateway, "/auth/revoke", {"token": one["session"]})
    await session(gateway)


async def test_a_session_buys_no_other_session(gateway: Any) -> None:
    """What expires can't be exchanged for what lasts longer."""
    tokens = await session(gateway)
    for token in (tokens["access_token"], tokens["session"]):
        assert (await post(gateway, "/auth/token", token=token)).status == 403
    assert (await post(gateway, "/auth/token", token=tokens["refresh_token"])).status == 401


async def test_established_connections_outlive_auth_and_hear_of_revocations(start_gateway: Any) -> None:
    """While the policy worker is killed again and again, connections go on; what was revoked in between ends them."""
    gateway = await started(start_gateway)
    kept, gone = await session(gateway), await session(gateway)
    async with (
        tcp_client(gateway, token=kept["access_token"]) as one,
        tcp_client(gateway, token=gone["access_token"]) as two,
    ):
        await kill(gateway, "policy")
        await goes_on(one)
        assert (await until_answered(gateway, gone["refresh_token"])).status == 200
        await kill(gateway, "policy")
        await goes_on(one)
        await ended(two)
    assert await admits(gateway, kept["session"])


async def goes_on(client: Any) -> None:
    """The connection is open; limits that can't be checked for a moment may refuse single messages."""
    with trio.fail_after(ENDS_WITHIN_S):
        while "result" not in (answer := await client.call("ping")):
            assert answer["error"]["code"] == 503, answer
            await trio.sleep(0.1)


async def until_answered(gateway: Any, token: str) -> Answer:
    with trio.fail_after(ENDS_WITHIN_S):
        while True:
            answer = await post(gateway, "/auth/revoke", {"token": token})
            if answer.status != 503:
                return answer


async def test_a_restarted_gateway_knows_its_sessions_and_revocations(start_gateway: Any) -> None:
    """With the same STATE_DIR nothing is forgotten: live sessions go on, what was revoked or used stays so."""
    gateway = await started(start_gateway)
    live, revoked, rotated = await session(gateway), await session(gateway), await session(gateway)
    await post(gateway, "/auth/revoke", {"token": revoked["access_token"]})
    newer = (await refresh(gateway, rotated["refresh_token"])).document
    newest = (await refresh(gateway, newer["refresh_token"])).document
    await trio.to_thread.run_sync(gateway.stop)
    state = {"STATE_DIR": str(gateway.state_dir), "WS_AUTH_TOKEN": gateway.ws_token}
    again = await started(start_gateway, **state)
    assert await admits(again, live["session"])
    assert await admits(again, live["access_token"])
    assert (await refresh(again, live["refresh_token"])).status == 200
    assert not await admits(again, revoked["access_token"])
    assert await admits(again, newest["access_token"])
    assert (await refresh(again, rotated["refresh_token"])).status == 401
    assert not await admits(again, newest["access_token"])


async def test_a_damaged_database_is_not_replaced(start_gateway: Any) -> None:
    """The start fails and names the file, which stays as it is."""
    gateway = await started(start_gateway)
    await session(gateway)
    await trio.to_thread.run_sync(gateway.stop)
    path = gateway.state_dir / "sessions.sqlite"
    assert path.stat().st_mode & 0o777 == 0o600
    damaged = b"not a database" + path.read_bytes()[14:]
    path.write_bytes(damaged)
    environment = FREE | {"STATE_DIR": str(gateway.state_dir)}
    broken = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment, wait=False))
    assert await trio.to_thread.run_sync(broken.process.wait) == 1
    broken.await_line("sessions.sqlite")
    assert path.read_bytes() == damaged


async def test_in_production_nothing_is_signed_without_a_secret(start_gateway: Any) -> None:
    """Without JWT_SECRET production issues no tokens and says so; no key is made up."""
    environment = FREE | {
        "SECURITY_PROFILE": "production",
        "SSL_ENABLED": "false",
        "RATE_LIMIT_MAX_REQUESTS": "1000",
        "RATE_LIMIT_BURST_REQUESTS": "1000",
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    answer = await post(gateway, "/auth/token", token=gateway.ws_token)
    assert answer.status == 501
    assert "JWT_SECRET" in answer.document["detail"]
    assert not (gateway.state_dir / "jwt.secret").exists()


async def test_operators_list_end_and_revoke(start_gateway: Any) -> None:
    """The admin API lists and ends sessions; ``mcp-token revoke`` ends a token's live connections and refuses it; both
    are refused without the admin token."""
    gateway = await started(start_gateway)
    first, second = await session(gateway), await session(gateway)
    rows = (await admin(gateway, "GET", "/sessions")).document["sessions"]
    assert len(rows) == 2
    async with (
        tcp_client(gateway, token=first["session"]) as one,
        tcp_client(gateway, token=second["access_token"]) as two,
    ):
        assert (await admin(gateway, "DELETE", f"/sessions/{rows[0]['id']}")).status == 200
        await ended(one)
        assert (await admin(gateway, "DELETE", f"/sessions/{rows[0]['id']}")).status == 404
        command = [sys.executable, "-m", "ops.cli.token", "revoke", "-", "--state-dir", str(gateway.state_dir)]
        command += ["--url", f"http://127.0.0.1:{gateway.health_port}"]
        run = await trio.to_thread.run_sync(
            lambda: subprocess.run(
                command, input=second["access_token"].encode(), capture_output=True, cwd=gateway.directory, timeout=60
            )
        )
        assert run.returncode == 0, run.stderr
        await ended(two)
    assert not await admits(gateway, second["access_token"])
    assert await admits(gateway, second["session"])
    for document in ({}, {"jti": "x", "principal": "y"}, {"token": "x", "more": 1}, {"token": 5}):
        assert (await admin(gateway, "POST", "/tokens/revoke", document)).status == 400
    assert (await admin(gateway, "POST", "/tokens/revoke", {"token": "x"})).status == 404
    assert second["access_token"] not in "".join(path.read_text() for path in gateway.audit_dir.glob("*.log"))
