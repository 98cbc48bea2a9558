"""A revocation that was acknowledged reaches every worker, whatever happens meanwhile."""

from __future__ import annotations

import itertools
import json
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import jwt_forge as forge
import trio
from session_clients import Answer, admin, post, session
from test_reload import written
from test_sessions import FREE, admits, ended, started, ws_with
from wire_clients import TcpClient, WsClient, tcp_client


async def on_every_worker(gateway: Any, stack: AsyncExitStack, token: str, principal: str) -> list[Any]:
    """Connections of both transports, by each of the workers one at least."""
    clients: list[Any] = []
    for number in range(40):  # each lands on either of two workers
        if number % 2:
            clients.append(WsClient(await stack.enter_async_context(ws_with(gateway, token))))
        else:
            clients.append(await stack.enter_async_context(tcp_client(gateway, token=token)))
        rows = (await admin(gateway, "GET", "/connections")).document["connections"]
        if number >= 5 and len({row["worker"] for row in rows if row["principal"] == principal}) == 2:
            return clients
    raise AssertionError("all on one worker")


async def test_a_revocation_ends_connections_on_every_worker(start_gateway: Any) -> None:
    """The token's connections, of both transports and of all workers, end after the revocation was answered; another's
    is not meant: its connections go on everywhere."""
    gateway = await started(start_gateway, JWT_SECRET=forge.SECRET)
    gone, kept = (forge.own(sub=sub, jti=sub) for sub in ("gone", "kept"))
    async with AsyncExitStack() as stack:
        others = await on_every_worker(gateway, stack, kept, "kept")
        clients = await on_every_worker(gateway, stack, gone, "gone")
        for client in (*clients, *others):
            assert "result" in await client.call("ping")
        assert (await post(gateway, "/auth/revoke", {"token": gone})).status == 200
        assert not await admits(gateway, gone)  # from the answer on
        for client in clients:
            await ended(client)
        for client in others:
            assert "result" in await client.call("ping")
    assert await admits(gateway, kept)


def records(gateway: Any, event: str) -> list[dict[str, Any]]:
    lines = [line for path in gateway.audit_dir.glob("*.log") for line in path.read_text().splitlines()]
    found = [json.loads(line.removeprefix("SECURITY ")) for line in lines]
    return [record for record in found if record["event"] == event]


async def test_no_revocation_is_lost_while_auth_is_renewed(start_gateway: Any, tmp_path: Path) -> None:
    """Reload after reload, clients and operators revoke tokens: whatever was acknowledged is refused from then on, its
    live connections end, and each has its record."""
    rig = await written(start_gateway, tmp_path, **FREE, JWT_SECRET=forge.SECRET, MAX_CONCURRENT_SESSIONS="50")
    gateway = rig.gateway
    tokens = [forge.own(sub=f"user-{number}", jti=f"j-{number}") for number in range(12)]
    sessions = [(await session(gateway))["session"] for _ in range(6)]

    async def revoked(number: int, token: str) -> None:
        with trio.fail_after(60):
            while True:
                answer: Answer = await (
                    post(gateway, "/auth/revoke", {"token": token})
                    if number % 2
                    else admin(gateway, "POST", "/tokens/revoke", {"token": token})
                )
                # 404: an operator hears that a session is no more, for instance since his first attempt.
                if answer.status in (200, 404):
                    return
                assert answer.status == 503, answer

    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:

        async def reload_on() -> None:
            for number in itertools.count():
                rig.write(JWT_ACCESS_TTL_MS=str(600_000 + number))
                await rig.reload()

        clients = [await stack.enter_async_context(tcp_client(gateway, token=token)) for token in tokens[:4]]
        nursery.start_soon(reload_on)
        for number, token in enumerate((*tokens, *sessions)):
            await revoked(number, token)
            assert not await judged(gateway, token), number
        for client in clients:
            await ended(client)
        nursery.cancel_scope.cancel()
    with trio.move_on_after(30):
        while len(records(gateway, "token.revoked")) < 18:
            await trio.sleep(0.05)
    named = {record["principal"] for record in records(gateway, "token.revoked") if record.get("reason") != "operator"}
    assert {f"user-{number}" for number in range(1, 12, 2)} <= named
    assert len(records(gateway, "token.revoked")) >= 18
    assert len({record["detail"]["session"] for record in records(gateway, "session.ended")}) == 6


async def judged(gateway: Any, token: str) -> bool:
    """Whether it is let in, once auth is there to say so."""
    with trio.fail_after(60):
        while True:
            stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
            async with stream:
                answer = await TcpClient(stream).call("authenticate", {"token": token})
            if "result" in answer:
                return True
            if answer["error"]["code"] == 401:
                return False


async def test_a_static_token_that_is_taken_away_ends_its_sessions(start_gateway: Any, tmp_path: Path) -> None:
    """By a reload: live connections of its sessions end, and neither session id nor tokens open anything any more; a
    session of the token that stays goes on."""
    rig = await written(start_gateway, tmp_path, **FREE, JWT_SECRET=forge.SECRET)
    gateway = rig.gateway
    old, new = gateway.ws_token, "5" + gateway.ws_token[1:]
    rig.write(WS_AUTH_TOKEN=f"{old},{new}")
    await rig.reload()
    gone = await session(gateway)
    gateway.ws_token = new
    with trio.fail_after(30):
        while (answer := await post(gateway, "/auth/token", token=new)).status != 200:
            await trio.sleep(0.05)
    kept = answer.document
    async with tcp_client(gateway, token=gone["session"]) as one, tcp_client(gateway, token=kept["session"]) as other:
        rig.write(WS_AUTH_TOKEN=new)
        gateway.process.send_signal(signal.SIGHUP)
        await ended(one)
        assert not await judged(gateway, gone["access_token"])
        assert not await judged(gateway, gone["session"])
        assert await judged(gateway, kept["session"])
        assert "result" in await other.call("ping")
