"""Who speaks for clients, and who only claims to: proxies are never blocked, everybody else answers for itself."""

from __future__ import annotations

import socket
from typing import Any

import gateway as gateways
import pytest
import trio
from test_blocks import BAD, OTHER, PROXY, TWO, api, blocks, http, start, upgrade, v2
from test_crashes import until
from test_crowding_out import held
from wire_clients import request

HEADER = b"PROXY TCP4 203.0.113.9 127.0.0.1 4000 80\r\n"


@pytest.mark.parametrize("trusted", ["", PROXY])
async def test_silent_peers_take_no_room(start_gateway: Any, trusted: str) -> None:
    """Hundreds of connections that wait for their header, of a peer that is no proxy or of one, keep nobody out."""
    gateway = await start(start_gateway, PROXY_PROTOCOL="required", TRUSTED_PROXIES=trusted, WORKERS="1")
    with held(gateway.ws_port, [trusted or BAD], 700):
        for address in {PROXY, trusted or OTHER}:
            assert await upgrade(gateway, address, before=HEADER) == 101


async def test_an_untrusted_peer_answers_for_what_it_sends(start_gateway: Any) -> None:
    """Rubbish instead of headers blocks who sends it, whomever it claims to be after that; silence blocks nobody; and
    whoever says nothing of a client is a client itself."""
    gateway = await start(start_gateway, PROXY_PROTOCOL="required")
    assert any("TRUSTED_PROXIES is not set" in line for line in gateway.log)
    for _ in range(10):
        await http(gateway, BAD, before=b"PROXY TCP4 nonsense\r\n")
        with held(gateway.ws_port, [OTHER], 1):
            pass
    await until(lambda: BAD in blocks(gateway), gateway)
    with trio.fail_after(30):
        while await upgrade(gateway, BAD, before=HEADER) != 0:
            await trio.sleep(0.05)
    assert await upgrade(gateway, OTHER, before=HEADER) == 101
    for _ in range(3):
        assert await upgrade(gateway, OTHER, "wrong", before=v2("0.0.0.0", command=0x20)) in (401, 403)
    await until(lambda: OTHER in blocks(gateway), gateway)


async def test_no_block_holds_for_a_trusted_proxy(start_gateway: Any) -> None:
    """Not even one of its /64, which an operator can't make; a block from before it was trusted doesn't hold."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    gateway = await start(start_gateway, WORKERS="1")
    assert (await trio.to_thread.run_sync(api, gateway, "POST", "blocks", {"ip": "::2"}))[0] in (200, 201)
    await trio.to_thread.run_sync(gateway.stop)
    environment = TWO | {"TRUSTED_PROXIES": "::1"}
    again = await trio.to_thread.run_sync(lambda: gateways.start(gateway.directory, environment=environment))
    try:
        status, document = await trio.to_thread.run_sync(api, again, "POST", "blocks", {"ip": "::3"})
        assert status == 409, document
        stream = await trio.open_tcp_stream("::1", again.ws_port)
        async with stream:
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.5\r\n\r\n")
            assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 200 ")
        async with await trio.open_tcp_stream("::1", again.tcp_port) as stream:
            await stream.send_all(request("ping", id=b"1") + b"\n")
            assert b"result" in await stream.receive_some(4096)
        await trio.to_thread.run_sync(again.stop)
    finally:
        if again.process.returncode is None:
            again.kill()
