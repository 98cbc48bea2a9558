"""Certificates that were judged good are served on, whatever becomes of their files, until a reload takes others."""

from __future__ import annotations

import os
import signal
import ssl
from pathlib import Path
from typing import Any

import trio
from test_crashes import kill
from test_tls import audited, until
from tls_clients import Authority, connect, start_tls, tls_tcp_client


async def certificate(gateway: Any, context: ssl.SSLContext) -> bytes:
    """What is served on both ports."""
    found: set[bytes] = set()
    for port in (gateway.ws_port, gateway.tcp_port):
        async with await connect(port, context) as stream:
            served = stream.getpeercert(binary_form=True)
            assert served is not None
            found.add(served)
    (one,) = found
    return one


async def test_edge_workers_that_die_after_a_refused_reload_come_back(start_gateway: Any, tmp_path: Path) -> None:
    """With the certificate that was good, however broken the files are by now, on both ports; and no key gets into
    the log."""
    authority = Authority(tmp_path)
    environment = authority.server() | authority.client_auth("optional") | {"WORKERS": "2"}
    gateway = await start_tls(start_gateway, environment)
    context = authority.client()
    before = await certificate(gateway, context)
    key = (tmp_path / "server.key").read_text()
    for name in ("server.pem", "server.key", "ca.pem"):
        (tmp_path / name).write_text("junk")
    os.kill(gateway.pid, signal.SIGHUP)
    await until(lambda: any(e["event"] == "config.refused" for e in audited(gateway)), gateway)
    with trio.fail_after(60):
        await kill(gateway, "edge")
        assert await certificate(gateway, context) == before
        async with tls_tcp_client(gateway, context) as client:
            assert "result" in await client.call("ping")
    secret = key.splitlines()[1]
    assert not any(secret in line for line in gateway.log)


async def test_a_new_pair_is_served_after_a_reload_by_all(start_gateway: Any, tmp_path: Path) -> None:
    """Not before, though a worker was started in between; and then by those that start later, too."""
    authority = Authority(tmp_path)
    gateway = await start_tls(start_gateway, authority.server() | {"WORKERS": "2"})
    context = authority.client()
    before = await certificate(gateway, context)
    authority.server()
    with trio.fail_after(60):
        await kill(gateway, "edge")
        assert await certificate(gateway, context) == before
        os.kill(gateway.pid, signal.SIGHUP)
        while (after := await certificate_or_none(gateway, context)) in (None, before):
            await trio.sleep(0.05)
        await kill(gateway, "edge")
        assert await certificate(gateway, context) == after


async def certificate_or_none(gateway: Any, context: ssl.SSLContext) -> bytes | None:
    """None while the two workers, or ports, serve different ones."""
    found = {await certificate_of(port, context) for port in (gateway.ws_port, gateway.tcp_port) for _ in range(4)}
    return found.pop() if len(found) == 1 else None


async def certificate_of(port: int, context: ssl.SSLContext) -> bytes | None:
    async with await connect(port, context) as stream:
        return stream.getpeercert(binary_form=True)
