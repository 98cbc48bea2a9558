"""Nobody is shut out by connections that come to nothing: refused ones, slow ones, silent ones."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import trio
from test_blocks import BAD, OTHER, TWO, connected, fail_three_times, tcp_refusal, upgrade
from wire_clients import TcpClient, request

SLOW = [f"127.0.0.{number}" for number in range(66, 70)]  # they are blocked for it in the end
SILENT = [f"127.0.0.{number}" for number in range(70, 74)]


@contextlib.contextmanager
def held(port: int, addresses: list[str], count: int, say: bytes = b"") -> Iterator[list[socket.socket]]:
    """That many connections from these addresses, each of which says this and nothing more."""
    with contextlib.ExitStack() as stack:
        socks = []
        for number in range(count):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(30)
            sock.bind((addresses[number % len(addresses)], 0))
            sock.connect(("127.0.0.1", port))
            with contextlib.suppress(OSError):
                sock.sendall(say)
            socks.append(sock)
        yield socks


def still_open(socks: list[socket.socket]) -> int:
    """How many were neither told anything nor closed."""
    count = 0
    for sock in socks:
        sock.setblocking(False)
        try:
            sock.recv(65536, socket.MSG_PEEK)
        except BlockingIOError:
            count += 1
        except OSError:
            continue
    return count


async def test_who_is_refused_takes_no_room(start_gateway: Any) -> None:
    """Four hundred connections of a blocked address that linger leave room for everybody else, on both listeners."""
    environment = TWO | {"WORKERS": "1", "WS_MAX_CONNECTIONS": "9", "TCP_MAX_CONNECTIONS": "9"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    await fail_three_times(gateway)
    for _ in range(2):
        ports = gateway.ws_port, gateway.tcp_port
        for port in ports:
            with held(port, [BAD], 400):
                assert await upgrade(gateway, OTHER) == 101
                assert await tcp_refusal(gateway, OTHER) is None
                assert await upgrade(gateway, BAD) in (403, 0)


async def test_slow_handshakes_make_room_for_others(start_gateway: Any) -> None:
    """The default limits, all of which 150 slow handshakes and 50 silent TCP connections take: a good client gets in
    and is served while most of them are still there, and they were let in to the last place."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment={"WORKERS": "2"}))
    with held(gateway.tcp_port, SILENT, 50) as silent, held(gateway.ws_port, SLOW, 150, b"GET / HT") as slow:
        with trio.fail_after(60):
            while await upgrade(gateway, OTHER) != 101:
                await trio.sleep(0.05)
        assert still_open(slow) >= 50
        with trio.fail_after(60):
            while True:
                async with connected(gateway.tcp_port, OTHER) as stream:
                    client = TcpClient(stream)
                    await client.send(request("authenticate", {"token": gateway.tcp_token}, id=b"1"))
                    if "result" in json.loads(await client.next()):
                        assert "result" in await client.call("ping")
                        break
                await trio.sleep(0.05)
        assert still_open(silent) >= 40
