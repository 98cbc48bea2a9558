"""A blocked principal is blocked everywhere, and guesses made in parallel are not more than guesses in a row."""

from __future__ import annotations

import socket
import struct
import time
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import jwt
import trio
from session_clients import ask, post, refresh, session
from test_blocks import BAD, OTHER, UPGRADE, api, audited, blocks, connected, start, to_the_end, upgrade
from test_crashes import until
from wire_clients import TcpClient

SECRET = "5fbc8a4e2d63917f0ab85c7de1430962" * 2


def token(subject: str) -> str:
    now = int(time.time())
    claims = {"iss": "portcullis", "aud": "portcullis", "sub": subject, "jti": uuid.uuid4().hex, "iat": now}
    return jwt.encode({**claims, "exp": now + 600, "scope": "mcp:call mcp:read"}, SECRET, "HS256")


async def block(gateway: Any, principal: str) -> None:
    answer = await trio.to_thread.run_sync(api, gateway, "POST", "blocks", {"principal": principal})
    assert answer[0] in (200, 201), answer


async def test_live_connections_of_a_blocked_principal_end(start_gateway: Any) -> None:
    """Those on both workers, whatever their address: with an error line 403 on TCP, close 3003 on WebSocket; another
    principal of the same address stays."""
    gateway = await start(start_gateway, JWT_SECRET=SECRET)
    alice = token("alice")
    async with AsyncExitStack() as stack:
        tcp, ws = [], []
        for number in range(6):
            client = TcpClient(await stack.enter_async_context(connected(gateway.tcp_port, (BAD, OTHER)[number % 2])))
            assert "result" in await client.call("authenticate", {"token": alice})
            tcp.append(client)
            stream = await stack.enter_async_context(connected(gateway.ws_port, BAD))
            await stream.send_all(f"{UPGRADE}Authorization: Bearer {alice}\r\n\r\n".encode())
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 101")
            ws.append(stream)
        bob = TcpClient(await stack.enter_async_context(connected(gateway.tcp_port, BAD)))
        assert "result" in await bob.call("authenticate", {"token": token("bob")})
        await block(gateway, "alice")
        for client in tcp:
            last = await client.next()
            assert b'"id":null' in last
            assert b'"code":403' in last
        for stream in ws:
            data = await to_the_end(stream)
            assert struct.unpack("!H", data[2:4])[0] == 3003
        assert "result" in await bob.call("ping")
        assert await upgrade(gateway, OTHER, alice) == 403


async def test_a_blocked_principal_gets_nothing_from_auth(start_gateway: Any) -> None:
    """No ticket, no view of its session, no new tokens: 403, and the refresh token is not used up by that. It may
    still end what it has."""
    gateway = await start(start_gateway, JWT_SECRET=SECRET)
    tokens = await session(gateway)
    access = tokens["access_token"]
    name = (await ask(gateway, "GET", "/auth/session", Authorization=f"Bearer {access}")).document["principal"]
    async with connected(gateway.tcp_port, OTHER) as stream:
        await block(gateway, name)
        await until(lambda: f"principal:{name}" in blocks(gateway), gateway)
        assert (await refresh(gateway, tokens["refresh_token"])).status == 403
        assert (await post(gateway, "/auth/ticket", token=access)).status == 403
        assert (await ask(gateway, "GET", "/auth/session", Authorization=f"Bearer {access}")).status == 403
        assert (await post(gateway, "/auth/token", token=gateway.ws_token)).status == 403
        client = TcpClient(stream)
        assert (await client.call("authenticate", {"token": access}))["error"]["code"] == 403
    status, _ = await trio.to_thread.run_sync(api, gateway, "DELETE", f"blocks/principal:{name}")
    assert status == 200
    again = await refresh(gateway, tokens["refresh_token"])
    assert again.status == 200
    await block(gateway, name)
    assert (await post(gateway, "/auth/revoke", {"token": again.document["refresh_token"]})).status == 200
    assert any(record["event"] == "token.revoked" for record in audited(gateway, "token.revoked"))


async def test_guesses_in_parallel_are_judged_three_times(start_gateway: Any) -> None:
    """However many connections of one address present theirs at the same moment, over both listeners and workers: not
    one more is told that it was wrong. An operator's pardon holds at once."""
    gateway = await start(start_gateway)
    told: Counter[int] = Counter()
    socks = []
    for _ in range(60):
        sock = socket.socket()
        sock.bind((BAD, 0))
        sock.connect(("127.0.0.1", gateway.ws_port))
        socks.append(sock)
    for number, sock in enumerate(socks):
        sock.sendall(f"{UPGRADE}Authorization: Bearer guess{number}\r\n\r\n".encode())
    for sock in socks:
        sock.settimeout(30)
        try:
            data = await trio.to_thread.run_sync(sock.recv, 65536)
        except ConnectionError:
            data = b""
        told[int(data.split()[1]) if data else 0] += 1
        sock.close()
    assert told[401] == 3, told
    assert set(told) <= {401, 403, 0}
    await until(lambda: BAD in blocks(gateway), gateway)
    status, _ = await trio.to_thread.run_sync(api, gateway, "DELETE", f"blocks/{BAD}")
    assert status == 200
    with trio.fail_after(30):  # the acceptors are told at the same time as the operator
        while await upgrade(gateway, BAD) != 101:
            await trio.sleep(0.02)
