"""What every HTTP request pays and every answer says, whatever becomes of the request."""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path
from typing import Any

import gateway as gateways
import pytest
import trio
from http_exchange import exchange, head, only_answer, until_end, upgrade
from test_blocks import audited, blocks, connected
from test_blocks import http as status_of
from test_crashes import until
from tls_clients import Authority, start_tls

ONE = {"WORKERS": "1", "CONNECTION_RATE_LIMIT": "100000"}
LENIENT = {"AUTO_BLOCK_ENABLED": "false"}
FEW = {"RATE_LIMIT_MAX_REQUESTS": "5", "RATE_LIMIT_BURST_REQUESTS": "5"}
APP = "https://app.example"
CORS = {"CORS_ALLOWED_ORIGINS": APP}
PREFLIGHT = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")
HEALTH = head("GET", "/health")
BAD = "127.0.0.2"


async def start(start_gateway: Any, *environments: dict[str, str]) -> Any:
    environment = {name: value for each in (ONE, *environments) for name, value in each.items()}
    return await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))


REFUSED = {
    b"GET /health HTTP/1.1\r\n\r\n": 400,
    b"nonsense\r\n": 400,
    upgrade(host="evil.example"): 403,
    upgrade("Origin: https://evil.example"): 403,
    upgrade(version="1.0"): 400,
    upgrade("Authorization: Bearer TOKEN", path="/ws/nosuch"): 404,
    upgrade(): 401,
}


async def test_a_refused_request_costs_as_others(start_gateway: Any) -> None:
    """Five of them use up a window of five, whatever they are refused for: another request is over it."""
    gateway = await start(start_gateway, LENIENT, FEW)

    async def status(ip: str, request: bytes) -> int:
        async with connected(gateway.ws_port, ip) as stream:
            await stream.send_all(request.replace(b"TOKEN", gateway.ws_token.encode()))
            with trio.fail_after(30):
                return int((await stream.receive_some(65536)).split()[1])

    for number, (request, refusal) in enumerate(REFUSED.items()):
        ip = f"127.0.0.{10 + number}"
        for _ in range(5):
            assert await status(ip, request) == refusal
        with trio.fail_after(30):  # a refusal is not held up until it is charged
            while await status(ip, HEALTH) != 429:
                pass


async def test_every_answer_tells_of_the_limits(start_gateway: Any) -> None:
    """The policy always, and what is left as soon as that is known: on 101, on refused upgrades and requests, and on
    the refusal of too many connections. So do Vary and Date."""
    gateway = await start(start_gateway, LENIENT, CORS, {"CONNECTION_RATE_LIMIT": "8"})
    requests = {
        HEALTH: 200,
        upgrade(): 401,
        upgrade("Origin: https://evil.example"): 403,
        head("GET", "/ws"): 426,
        b"GET / HTTP/1.1\r\n\r\n": 400,
        head("GET", "/nothing"): 404,
    }
    for request_, status in requests.items():
        answer = await exchange(gateway.ws_port, request_)
        assert answer.status == status
        _check(answer.get("ratelimit"), answer.get("ratelimit-policy"), answer.get("vary"), answer.get("date"))
        if status == 426:
            assert answer.get("connection") == "Upgrade, close"
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.ws_port)
    async with stream:
        await stream.send_all(upgrade(f"Authorization: Bearer {gateway.ws_token}"))
        with trio.fail_after(30):
            lines = (await stream.receive_some(65536)).partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
    assert lines[0].startswith("http/1.1 101")
    fields = dict(line.split(": ", 1) for line in lines[1:])
    _check(fields.get("ratelimit"), fields.get("ratelimit-policy"), fields.get("vary"), fields.get("date"))
    for _ in range(2):
        refused = await exchange(gateway.ws_port, HEALTH)
    assert refused.status == 429
    _check(refused.get("ratelimit"), refused.get("ratelimit-policy"), refused.get("vary"), refused.get("date"))


def _check(left: str | None, policy: str | None, vary: str | None, date: str | None) -> None:
    assert re.fullmatch(r'"(default|burst)";r=\d+;t=\d+', str(left))
    assert re.fullmatch(r'"default";q=\d+;w=60, "burst";q=\d+;w=1', str(policy))
    assert str(vary).lower() == "origin"
    assert date


async def test_plain_http_on_a_tls_port_gets_a_whole_answer(start_gateway: Any, tmp_path: Path) -> None:
    """With Date, Vary and the policy, and without HSTS."""
    gateway = await start_tls(start_gateway, Authority(tmp_path).server())
    answer = await exchange(gateway.ws_port, HEALTH)
    assert answer.status == 400
    assert (answer.get("vary"), answer.get("strict-transport-security")) == ("Origin", None)
    assert answer.get("date")
    assert answer.get("ratelimit-policy")


@pytest.mark.parametrize("path", ["/", "/ws", "/ws/embedded", "/nothing", "/health", "/auth/token"])
async def test_preflights_are_answered_whatever_the_path(shared: Any, path: str) -> None:
    """204 for what the lists allow, 403 otherwise; an OPTIONS that is no preflight is judged by its path as ever."""
    answer = await exchange(shared.ws_port, head("OPTIONS", path, f"Origin: {APP}", *PREFLIGHT))
    assert (answer.status, answer.get("access-control-allow-origin")) == (204, APP)
    other_method = PREFLIGHT[0].replace("POST", "X")
    for refused in (("Origin: https://evil.example", *PREFLIGHT), (f"Origin: {APP}", other_method)):
        answer = await exchange(shared.ws_port, head("OPTIONS", path, *refused))
        assert (answer.status, answer.get("access-control-allow-origin")) == (403, None)
    plain = await exchange(shared.ws_port, head("OPTIONS", path, f"Origin: {APP}"))
    assert plain.status == (204 if path in ("/health", "/auth/token") else 404 if path == "/nothing" else 405)


async def test_an_upgrade_by_http_1_0_without_a_host(shared: Any) -> None:
    """400 for the version, whether the Host is missing, which 1.0 allows, or wrong."""
    for host in ("", "evil.example", "localhost"):
        assert (await exchange(shared.ws_port, upgrade(version="1.0", host=host))).status == 400


async def test_who_has_said_all_is_answered(shared: Any) -> None:
    """A whole request followed by FIN; but not half of one, or an upgrade, which leads nowhere."""
    for say, status in ((HEALTH, 200), (b"\r\n" + HEALTH, 200), (HEALTH[:-4], 0), (upgrade(), 401)):
        for _ in range(4):
            stream = await trio.open_tcp_stream("127.0.0.1", shared.ws_port)
            async with stream:
                await stream.send_all(say)
                await stream.send_eof()
                with trio.fail_after(30):
                    data = await until_end(stream)
            if status == 401 and not data:
                continue  # the end was noticed first
            assert (only_answer(data).status if data else 0) == status


@pytest.fixture(scope="module")
def shared(tmp_path_factory: Any) -> Any:
    environment = {**ONE, **LENIENT, **CORS, "RATE_LIMIT_BURST_REQUESTS": "100000", "RATE_LIMIT_MAX_REQUESTS": "100000"}
    found = gateways.start(tmp_path_factory.mktemp("dues"), environment=environment)
    try:
        yield found
        found.stop()
    finally:
        if found.process.returncode is None:
            found.kill()


def _hang_up(port: int, say: bytes, *, reset: bool) -> None:
    with socket.socket() as sock:
        sock.bind((BAD, 0))
        sock.connect(("127.0.0.1", port))
        if say:
            sock.sendall(say)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("reset", [False, True])
async def test_half_heads_are_on_record_and_block(start_gateway: Any, reset: bool) -> None:
    """Whoever begins requests and hangs up, again and again, abuses the handshake; who says nothing does not."""
    gateway = await start(start_gateway)
    for _ in range(30):
        await trio.to_thread.run_sync(lambda: _hang_up(gateway.ws_port, b"", reset=reset))
    with trio.fail_after(60):
        while BAD not in await trio.to_thread.run_sync(blocks, gateway):
            await trio.to_thread.run_sync(lambda: _hang_up(gateway.ws_port, b"GET / HTTP/1.1\r\nHost", reset=reset))
            await trio.sleep(0.02)  # reset at once, a connection may be gone before it is accepted
    await until(lambda: any(r["reason"] == "handshake" for r in audited(gateway, "connection.refused")), gateway)


async def test_silence_is_no_abuse(start_gateway: Any) -> None:
    """Connections that time out without a byte block nobody, on neither listener; those that began to speak do."""
    gateway = await start(start_gateway, {"HANDSHAKE_TIMEOUT_MS": "300", "AUTH_TIMEOUT_MS": "300"})
    for say in (b"", b"G"):
        socks = []
        for number in range(24):
            sock = socket.socket()
            sock.bind((BAD, 0))
            sock.connect(("127.0.0.1", (gateway.ws_port, gateway.tcp_port)[number % 2]))
            sock.sendall(say)
            sock.settimeout(30)
            socks.append(sock)
        for sock in socks:
            while True:
                try:
                    if not await trio.to_thread.run_sync(sock.recv, 4096):
                        break
                except ConnectionError:
                    break
            sock.close()
        if not say:
            assert await status_of(gateway, BAD, head="GET /health HTTP/1.1\r\nHost: localhost\r\n") == 200
            assert await trio.to_thread.run_sync(blocks, gateway) == {}
    await until(lambda: BAD in blocks(gateway), gateway)


async def test_a_violated_connection_rate_scores(start_gateway: Any) -> None:
    """Two points each: whoever goes on and on is blocked."""
    gateway = await start(start_gateway, {"CONNECTION_RATE_LIMIT": "3"})
    seen = set()
    with trio.fail_after(60):
        while 403 not in seen:
            seen.add(await status_of(gateway, BAD, head="GET /health HTTP/1.1\r\nHost: localhost\r\n"))
    assert 429 in seen
    (block,) = (await trio.to_thread.run_sync(blocks, gateway)).values()
    assert block["reason"] == "threat score"


async def test_asking_without_a_credential_is_no_failure(start_gateway: Any) -> None:
    """Whatever subprotocols are offered, as long as none of them is a credential; one that is, and empty, is one."""
    gateway = await start(start_gateway)
    for _ in range(5):
        for offered in ("json", "mcp, v2", "bearer", "ticketing.v1"):
            assert await status_of(gateway, BAD, f"Sec-WebSocket-Protocol: {offered}") == 401
    assert await trio.to_thread.run_sync(blocks, gateway) == {}
    for _ in range(3):
        assert await status_of(gateway, BAD, "Sec-WebSocket-Protocol: mcp, bearer.") == 401
    await until(lambda: BAD in blocks(gateway), gateway)
