"""Blocks on the real gateway: by whom, on which worker, through which deaths, and behind which proxies.

The test's clients have addresses of their own in 127.0.0.0/8, so that a block never hits the test itself.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import gateway as gateways
import pytest
import trio
from test_crashes import kill, tree, until
from tls_clients import Authority
from wire_clients import TcpClient, request

from ops.cli import admin

TWO = {"WORKERS": "2", "CONNECTION_RATE_LIMIT": "100000"}
BAD, OTHER, PROXY = "127.0.0.2", "127.0.0.3", "127.0.0.9"
UPGRADE = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


@asynccontextmanager
async def connected(port: int, ip: str) -> AsyncIterator[trio.SocketStream]:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    await sock.bind((ip, 0))
    await sock.connect(("127.0.0.1", port))
    async with trio.SocketStream(sock) as stream:
        yield stream


async def to_the_end(stream: trio.SocketStream) -> bytes:
    data = b""
    with trio.fail_after(30):
        try:
            while part := await stream.receive_some(65536):
                data += part
        except trio.BrokenResourceError:
            pass
    return data


async def http(gateway: Any, ip: str, *lines: str, head: str = "", before: bytes = b"") -> int:
    """The status of an upgrade's answer (or another request's head), 0 for none."""
    async with connected(gateway.ws_port, ip) as stream:
        text = (head or UPGRADE) + "".join(f"{line}\r\n" for line in lines) + "\r\n"
        data = b""
        try:
            await stream.send_all(before + text.encode())
            with trio.fail_after(30):
                while b"\r\n" not in data and (part := await stream.receive_some(65536)):
                    data += part
        except trio.BrokenResourceError:
            pass  # refused before it was read
        return int(data.split()[1]) if data else 0


async def upgrade(gateway: Any, ip: str, token: str | None = None, *lines: str, before: bytes = b"") -> int:
    bearer = f"Authorization: Bearer {gateway.ws_token if token is None else token}"
    return await http(gateway, ip, bearer, *lines, before=before)


async def tcp_refusal(gateway: Any, ip: str) -> dict[str, Any] | None:
    """What a TCP client hears unasked; None when it may speak."""
    async with connected(gateway.tcp_port, ip) as stream:
        client = TcpClient(stream)
        with suppress(trio.BrokenResourceError):  # refused before it was read
            await client.send(request("ping", id=b'"x"'))
        answer = json.loads(await client.next())
        return None if "result" in answer else answer["error"]


def api(gateway: Any, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{gateway.health_port}/admin/v1/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {gateway.admin_token}"},
    )
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def blocks(gateway: Any) -> dict[str, Any]:
    _, document = api(gateway, "GET", "blocks")
    return {row.get("ip") or "principal:" + row["principal"]: row for row in document["blocks"]}


async def fail_three_times(gateway: Any, ip: str = BAD) -> None:
    for _ in range(3):
        assert await upgrade(gateway, ip, "wrong") == 401
    await until(lambda: ip in blocks(gateway), gateway)


async def refused_everywhere(gateway: Any, ip: str, times: int = 12) -> None:
    """Enough connections that both workers had some: none comes in, on neither listener."""
    for _ in range(times):
        assert await upgrade(gateway, ip) == 403
        refusal = await tcp_refusal(gateway, ip)
        assert refusal is not None
        assert refusal["code"] == 403


async def eventually_refused(gateway: Any, ip: str) -> None:
    with trio.fail_after(30):
        while await upgrade(gateway, ip) != 403:
            await trio.sleep(0.02)


async def start(start_gateway: Callable[..., Any], **environment: str) -> Any:
    return await trio.to_thread.run_sync(lambda: start_gateway(environment=TWO | environment))


def are_back(gateway: Any, role: str, killed: list[int]) -> bool:
    now = [worker for worker in tree(gateway)["workers"] if worker["role"] == role]
    return all(worker["state"] == "up" and worker["pid"] not in killed for worker in now)


def audited(gateway: Any, event: str) -> list[dict[str, Any]]:
    lines = "".join(path.read_text() for path in sorted(gateway.audit_dir.glob("security-*.log"))).splitlines()
    records = [json.loads(line.removeprefix("SECURITY ")) for line in lines]
    return [record for record in records if record["event"] == event]


async def test_the_third_failed_authentication_blocks_on_all_workers(start_gateway: Any) -> None:
    """The right token doesn't help any more, on either listener and worker; other addresses notice nothing; refused
    retries prolong nothing; and it is audited."""
    gateway = await start(start_gateway)
    await fail_three_times(gateway)
    before = (await trio.to_thread.run_sync(blocks, gateway))[BAD]
    assert before["automatic"]
    assert before["strikes"] == 1
    await refused_everywhere(gateway, BAD)
    assert (await trio.to_thread.run_sync(blocks, gateway))[BAD]["until_ms"] == before["until_ms"]
    assert await upgrade(gateway, OTHER) == 101
    assert await tcp_refusal(gateway, OTHER) is None
    await until(lambda: bool(audited(gateway, "ip.blocked")), gateway)
    (record,) = audited(gateway, "ip.blocked")
    assert record["peer_ip"] == BAD
    await until(lambda: any(r.get("reason") == "block" for r in audited(gateway, "connection.refused")), gateway)


async def test_live_connections_of_a_blocked_address_end(start_gateway: Any) -> None:
    """Those on both workers, authenticated ones too; with an error on TCP and 1008 on WebSocket."""
    gateway = await start(start_gateway)
    async with AsyncExitStack() as stack:
        tcp = []
        ws = []
        for _ in range(6):
            client = TcpClient(await stack.enter_async_context(connected(gateway.tcp_port, BAD)))
            assert "result" in await client.call("authenticate", {"token": gateway.tcp_token})
            tcp.append(client)
            stream = await stack.enter_async_context(connected(gateway.ws_port, BAD))
            await stream.send_all(f"{UPGRADE}Authorization: Bearer {gateway.ws_token}\r\n\r\n".encode())
            answer = await stream.receive_some(65536)
            assert answer.startswith(b"HTTP/1.1 101")
            ws.append(stream)
        spared = TcpClient(await stack.enter_async_context(connected(gateway.tcp_port, OTHER)))
        assert "result" in await spared.call("authenticate", {"token": gateway.tcp_token})
        await fail_three_times(gateway)
        for client in tcp:
            last = json.loads(await client.next())
            assert (last["id"], last["error"]["code"]) == (None, 403)
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await client.next()
        for stream in ws:
            data = await to_the_end(stream)
            assert data[:1] == b"\x88"
            assert struct.unpack("!H", data[2:4])[0] == 1008
        assert "result" in await spared.call("ping")


async def test_a_block_survives_every_death(start_gateway: Any) -> None:
    """kill -9 of the policy worker, of all edge workers, and a restart of the gateway: never let in for a moment."""
    gateway = await start(start_gateway)
    await fail_three_times(gateway)
    seen: set[int] = set()
    going = True

    async def knock() -> None:
        while going:
            try:
                seen.add(await upgrade(gateway, BAD))
            except OSError:
                seen.add(-1)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(knock)
        for role in ("policy", "edge", "policy"):
            killed = await kill(gateway, role)
            await until(lambda role=role, killed=killed: are_back(gateway, role, killed), gateway)
            await eventually_refused(gateway, BAD)
        going = False
    assert 403 in seen
    assert not seen & {101, 401}, seen
    until_ms = (await trio.to_thread.run_sync(blocks, gateway))[BAD]["until_ms"]
    directory = gateway.directory
    await trio.to_thread.run_sync(gateway.stop)
    again = await trio.to_thread.run_sync(lambda: gateways.start(directory, environment=TWO))
    try:
        await refused_everywhere(again, BAD, 4)
        assert (await trio.to_thread.run_sync(blocks, again))[BAD]["until_ms"] == until_ms
        await trio.to_thread.run_sync(again.stop)
    finally:
        if again.process.returncode is None:
            again.kill()


async def test_operators_block_and_pardon(start_gateway: Any, capsys: Any, monkeypatch: Any) -> None:
    """By command: blocked for as long as they say, listed, lifted; allow-listed addresses too, proxies never."""
    gateway = await start(start_gateway, IP_ALLOWLIST=OTHER, TRUSTED_PROXIES=PROXY)
    monkeypatch.setenv("ADMIN_TOKEN", gateway.admin_token)
    url = f"http://127.0.0.1:{gateway.health_port}"

    async def command(*arguments: str) -> int:
        return await trio.to_thread.run_sync(admin.main, [*arguments, "--url", url])

    assert await command("block", OTHER, "--for", "1h") == 0
    await eventually_refused(gateway, OTHER)
    capsys.readouterr()
    assert await command("blocks", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["blocks"]
    assert row["ip"] == OTHER
    assert 3500 < row["left_s"] <= 3600
    assert await command("unblock", OTHER) == 0
    with trio.fail_after(30):
        while await upgrade(gateway, OTHER) != 101:
            await trio.sleep(0.02)
    assert await command("unblock", OTHER) == 1
    assert await command("block", PROXY) == 1
    assert await command("block", "nonsense") == 1
    await until(lambda: len(audited(gateway, "admin.action")) == 5, gateway)


async def test_lists_of_addresses(start_gateway: Any) -> None:
    """IP_BLOCKLIST is refused from the start; what IP_ALLOWLIST holds is never blocked by itself; and with
    AUTO_BLOCK_ENABLED=false nobody is."""
    gateway = await start(start_gateway, IP_BLOCKLIST="127.0.1.0/24", IP_ALLOWLIST=f"{OTHER}/32")
    assert await upgrade(gateway, "127.0.1.7") == 403
    refusal = await tcp_refusal(gateway, "127.0.1.200")
    assert refusal is not None
    assert refusal["code"] == 403
    for _ in range(8):
        assert await upgrade(gateway, OTHER, "wrong") == 401
    await fail_three_times(gateway)
    assert set(await trio.to_thread.run_sync(blocks, gateway)) == {BAD}
    assert await upgrade(gateway, OTHER) == 101
    lenient = await start(start_gateway, AUTO_BLOCK_ENABLED="false")
    for _ in range(8):
        assert await upgrade(lenient, BAD, "wrong") == 401
    assert await upgrade(lenient, BAD) == 101


async def test_forwarded_addresses_count_only_from_trusted_proxies(start_gateway: Any) -> None:
    """Behind one it is the client that is blocked, read from the right, never the proxy; from anybody else the header
    is a claim, and blocks whoever makes it."""
    gateway = await start(start_gateway, TRUSTED_PROXIES=f"{PROXY},10.0.0.0/8")
    for _ in range(3):
        assert await upgrade(gateway, PROXY, "wrong", "X-Forwarded-For: 198.51.100.1, 203.0.113.5, 10.1.1.1") == 401
    await until(lambda: "203.0.113.5" in blocks(gateway), gateway)
    assert set(await trio.to_thread.run_sync(blocks, gateway)) == {"203.0.113.5"}
    assert await upgrade(gateway, PROXY, None, "X-Forwarded-For: 203.0.113.5") == 403
    assert await upgrade(gateway, PROXY, None, "X-Forwarded-For: 198.51.100.1") == 101
    assert await upgrade(gateway, PROXY) == 101
    for _ in range(3):
        assert await upgrade(gateway, BAD, "wrong", "X-Forwarded-For: 192.0.2.77") == 401
    await until(lambda: BAD in blocks(gateway), gateway)
    assert "192.0.2.77" not in await trio.to_thread.run_sync(blocks, gateway)
    assert await upgrade(gateway, BAD, None, "X-Forwarded-For: 198.51.100.1") == 403


def v2(ip: str, *, command: int = 0x21) -> bytes:
    rest = socket.inet_aton(ip) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 40000, 443)
    return SIGNATURE + struct.pack("!BBH", command, 0x11, len(rest)) + rest


async def test_the_proxy_protocol_names_the_client(start_gateway: Any) -> None:
    """Version 1 and 2, on both listeners, in pieces; without it, malformed, or from another peer: closed at once."""
    gateway = await start(
        start_gateway, PROXY_PROTOCOL="required", TRUSTED_PROXIES=PROXY, HANDSHAKE_TIMEOUT_MS="1500"
    )
    assert await upgrade(gateway, PROXY, before=b"PROXY TCP4 203.0.113.9 127.0.0.1 4000 80\r\n") == 101
    assert await upgrade(gateway, PROXY, before=v2("203.0.113.9")) == 101
    assert await upgrade(gateway, PROXY, before=v2("203.0.113.9", command=0x20)) == 101
    async with connected(gateway.tcp_port, PROXY) as stream:
        for byte in v2("203.0.113.10") + request("ping", id=b"1") + b"\n":
            await stream.send_all(bytes([byte]))
        assert json.loads(await TcpClient(stream).next())["result"] == {}
    for _ in range(3):
        assert await upgrade(gateway, PROXY, "wrong", before=v2("203.0.113.11")) == 401
    await until(lambda: "203.0.113.11" in blocks(gateway), gateway)
    assert await upgrade(gateway, PROXY, before=b"PROXY TCP4 203.0.113.11 127.0.0.1 4000 80\r\n") == 403
    for wrong in (b"", b"PROXY TCP4 nonsense\r\n", SIGNATURE + b"\x21\x11\xff\xff"):
        assert await upgrade(gateway, PROXY, before=wrong) == 0
    assert await upgrade(gateway, OTHER, before=v2("203.0.113.9")) == 0
    async with connected(gateway.tcp_port, PROXY) as stream:
        await stream.send_all(b"PROXY TCP4 ")
        assert await to_the_end(stream) == b""
    assert set(await trio.to_thread.run_sync(blocks, gateway)) == {"203.0.113.11"}


async def test_messages_before_authentication_and_probes_score(start_gateway: Any) -> None:
    """Unknown paths from one address add up to a block. Offences travel in batches, so a fast client sees the last
    few of its probes answered before the block is there."""
    gateway = await start(start_gateway)
    codes = []
    with trio.fail_after(30):
        while 403 not in codes:
            head = f"GET /wp-{len(codes)} HTTP/1.1\r\nHost: localhost\r\n"
            codes.append(await http(gateway, BAD, head=head))
    assert set(codes) == {404, 403}
    assert codes.index(403) >= 19
    assert set(await trio.to_thread.run_sync(blocks, gateway)) == {BAD}


async def test_what_a_token_holder_does_blocks_no_address(start_gateway: Any) -> None:
    """A static token's holder who sends rubbish is answered and limited; its address may be a whole office."""
    gateway = await start(start_gateway)
    async with connected(gateway.tcp_port, BAD) as stream:
        client = TcpClient(stream)
        assert "result" in await client.call("authenticate", {"token": gateway.tcp_token})
        for _ in range(60):
            await client.send(b"{rubbish")
        for _ in range(60):
            assert json.loads(await client.next())["error"]["code"] == -32700
        assert "result" in await client.call("ping")
    assert await trio.to_thread.run_sync(blocks, gateway) == {}


async def test_a_damaged_file_of_blocks_lets_nobody_in(start_gateway: Any) -> None:
    """The gateway doesn't start without its blocks, and says which file it is."""
    gateway = await start(start_gateway)
    await fail_three_times(gateway)
    directory = gateway.directory
    await trio.to_thread.run_sync(gateway.stop)
    (directory / "state" / "blocks.sqlite").write_bytes(os.urandom(8192))
    broken = await trio.to_thread.run_sync(lambda: gateways.start(directory, environment=TWO, wait=False))
    try:
        code = await trio.to_thread.run_sync(lambda: broken.process.wait(60))
        broken._end_reading()
        assert code == 1, broken.tail()
        assert any("blocks.sqlite" in line for line in broken.log)
    finally:
        if broken.process.returncode is None:
            broken.kill()


async def test_a_request_costs_a_message(start_gateway: Any) -> None:
    """HTTP requests come out of the address's window, and past it get 429; a method may cost more, or nothing."""
    gateway = await start(
        start_gateway,
        WORKERS="1",
        RATE_LIMIT_MAX_REQUESTS="10",
        RATE_LIMIT_BURST_REQUESTS="10",
        RATE_LIMIT_METHOD_COSTS="tools/list=4,ping=0",
    )
    health = "GET /health HTTP/1.1\r\nHost: localhost\r\n"
    codes = [await http(gateway, BAD, head=health) for _ in range(13)]
    assert codes.count(429) == 3, codes
    async with connected(gateway.tcp_port, OTHER) as stream:
        client = TcpClient(stream)
        assert "result" in await client.call("authenticate", {"token": gateway.tcp_token})
        await client.initialize()  # two messages
        for _ in range(30):
            assert "result" in await client.call("ping")
        outcomes = [(await client.call("tools/list")).get("error", {}).get("code", 0) for _ in range(4)]
        assert outcomes == [0, 0, 429, 429]



@asynccontextmanager
async def over_tls(port: int, ip: str, before: bytes, context: ssl.SSLContext) -> AsyncIterator[trio.SSLStream[Any]]:
    async with connected(port, ip) as stream:
        await stream.send_all(before)
        tls = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
        with trio.fail_after(30):
            await tls.do_handshake()
        yield tls


async def tls_upgrade(port: int, ip: str, context: ssl.SSLContext, *lines: str, before: bytes = b"") -> int:
    """The status of an upgrade's answer; 0 when it does not come to a handshake."""
    try:
        async with over_tls(port, ip, before, context) as tls:
            await tls.send_all((UPGRADE + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode())
            with trio.fail_after(30):
                return int((await tls.receive_some(65536)).split()[1])
    except trio.BrokenResourceError:
        return 0


async def test_proxies_in_front_of_tls(start_gateway: Any, tmp_path: Path) -> None:
    """The PROXY header precedes the TLS handshake, of which not a byte is lost, even in one piece with it; behind a
    proxy that forwards, a client is known by the request. Who is blocked does not even get a handshake."""
    certificates = Authority(tmp_path)
    context = certificates.client()
    gateway = await start(
        start_gateway, PROXY_PROTOCOL="required", TRUSTED_PROXIES=PROXY, **certificates.server()
    )
    right = f"Authorization: Bearer {gateway.ws_token}"
    wrong = "Authorization: Bearer wrong"
    assert await tls_upgrade(gateway.ws_port, PROXY, context, right, before=v2("203.0.113.1")) == 101
    async with over_tls(gateway.tcp_port, PROXY, v2("203.0.113.1"), context) as tls:
        client = TcpClient(tls)  # type: ignore[arg-type]
        assert "result" in await client.call("ping")
    for _ in range(3):
        assert await tls_upgrade(gateway.ws_port, PROXY, context, wrong, before=v2("203.0.113.2")) == 401
    await until(lambda: "203.0.113.2" in blocks(gateway), gateway)
    assert await tls_upgrade(gateway.ws_port, PROXY, context, right, before=v2("203.0.113.2")) == 0
    assert await tls_upgrade(gateway.ws_port, PROXY, context, right, before=v2("203.0.113.1")) == 101
    other = await start(start_gateway, TRUSTED_PROXIES=PROXY, **certificates.server())
    right = f"Authorization: Bearer {other.ws_token}"
    for _ in range(3):
        assert await tls_upgrade(other.ws_port, PROXY, context, wrong, "X-Forwarded-For: 203.0.113.2") == 401
    await until(lambda: "203.0.113.2" in blocks(other), other)
    assert await tls_upgrade(other.ws_port, PROXY, context, right, "X-Forwarded-For: 203.0.113.2") == 403
    assert await tls_upgrade(other.ws_port, PROXY, context, right, "X-Forwarded-For: 203.0.113.1") == 101
