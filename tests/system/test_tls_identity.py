"""Client certificates as identities, and certificates that change under a running gateway."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from test_crashes import kill, tree, until
from tls_clients import TLS_CLIENTS, Authority, connect, start_tls, tls_tcp_client, tls_ws_client
from trio_websocket import ConnectionRejected
from wire_clients import TcpClient

SABOTAGED = str(Path(__file__).parent / "sabotaged_gateway.py")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def echo(client: Any, text: str) -> None:
    answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": text}})
    assert answer["result"]["content"][0]["text"] == text


def audited(gateway: Any) -> list[dict[str, Any]]:
    lines = "".join(path.read_text() for path in sorted(gateway.audit_dir.glob("security-*.log")))
    return [json.loads(line.removeprefix("SECURITY ")) for line in lines.splitlines()]


def principals(gateway: Any) -> set[str]:
    return {e["principal"] for e in audited(gateway) if e["event"] == "connection.opened" and e.get("principal")}


async def refused_at_handshake(port: int, context: ssl.SSLContext) -> str:
    """What TLS says to a client that may not in; with TLS 1.3 it is told with its first read."""
    with pytest.raises(trio.BrokenResourceError) as broken, trio.fail_after(30):
        async with await connect(port, context) as stream:
            assert await stream.receive_some(1) == b"let in"
    return str(broken.value.__cause__)


@pytest.mark.parametrize("transport", ["ws", "tcp"])
async def test_a_certificate_is_an_identity(start_gateway: Any, authority: Authority, transport: str) -> None:
    """Without any other credential the certificate's bearer is in, under the name in it; who has none needs a token,
    and a wrong token is not made good by a certificate."""
    gateway = await start_tls(start_gateway, authority.server(), authority.client_auth("optional"))
    named = authority.client(common_name="agent-7")
    async with TLS_CLIENTS[transport](gateway, named, token="") as client:
        await client.initialize()
        await echo(client, "by certificate")
    nameless = authority.client(identities=("robot@example.org",))
    async with TLS_CLIENTS[transport](gateway, nameless, token="") as client:
        await client.initialize()
    await until(lambda: principals(gateway) == {"agent-7", "robot@example.org"}, gateway)
    async with TLS_CLIENTS[transport](gateway, authority.client()) as client:  # a token still does
        await client.initialize()
    if transport == "ws":
        for context, token in ((authority.client(), ""), (named, "wrong")):
            with pytest.raises((ConnectionRejected, BaseExceptionGroup)) as rejected:
                async with tls_ws_client(gateway, context, token=token):
                    raise AssertionError("let in")
            assert "401" in repr(rejected.value)
    else:
        async with tls_tcp_client(gateway, authority.client(), token="") as client:
            assert (await client.call("tools/list"))["error"]["code"] == 401
        async with tls_tcp_client(gateway, named, token="") as client:
            assert (await client.call("authenticate", {"token": "wrong"}))["error"]["code"] == 401
            answer = await client.call("authenticate", {"server": "no such"})
            assert answer["error"]["code"] == -32602
            assert (await client.call("authenticate", {}))["result"]["principal"] == "agent-7"


async def test_required_means_nobody_without(start_gateway: Any, authority: Authority) -> None:
    """No certificate, one of another authority, and one that has expired are refused in the handshake, each with its
    reason in the audit log, a good one is not; with ``optional`` a bad one is as bad."""
    stranger = trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for mode in ("required", "optional"):
        gateway = await start_tls(start_gateway, authority.server(), authority.client_auth(mode))
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            bad = [authority.client(by=stranger), authority.client(not_after=yesterday)]
            bad += [authority.client()] if mode == "required" else []
            for context in bad:
                context.maximum_version = version
                for port in (gateway.ws_port, gateway.tcp_port):
                    assert "alert" in (await refused_at_handshake(port, context)).lower()
        wanted = ["certificate has expired", "unable to get local issuer certificate"]
        wanted += ["did not return a certificate"] if mode == "required" else []

        def all_there(gateway: Any = gateway, wanted: list[str] = wanted) -> bool:
            rules = {e["rule"] for e in audited(gateway) if e["event"] == "connection.refused"}
            return len(rules) == len(wanted) and all(any(text in rule for rule in rules) for text in wanted)

        await until(all_there, gateway)
        async with tls_tcp_client(gateway, authority.client(common_name="good"), token="") as client:
            await client.initialize()


async def test_a_live_connection_ends_with_its_certificate(start_gateway: Any, authority: Authority) -> None:
    """A certificate is a credential with an end, also for whoever came in before that."""
    gateway = await start_tls(start_gateway, authority.server(), authority.client_auth("required"))
    soon = datetime.now(UTC) + timedelta(seconds=8)
    async with tls_tcp_client(gateway, authority.client(not_after=soon, common_name="brief"), token="") as client:
        await client.initialize()
        with trio.fail_after(30):
            while True:
                try:
                    await client.receive()
                except (EOFError, trio.BrokenResourceError):
                    break
    assert datetime.now(UTC) >= soon  # and not before
    await until(lambda: any(e["event"] == "session.expired" for e in audited(gateway)), gateway)


async def test_certificates_are_replaced_under_live_connections(start_gateway: Any, authority: Authority) -> None:
    """SIGHUP: new handshakes get the new certificate, old connections go on. A pair that doesn't fit is refused, with
    the reason, and the one before it stays in use; a worker restarted later comes up with what is on disk."""
    gateway = await start_tls(start_gateway, authority.server(name="localhost"), {"WORKERS": "2"})
    context = authority.client()

    async def served() -> bytes:
        async with await connect(gateway.tcp_port, context) as stream:
            return bytes(stream.getpeercert(binary_form=True))

    def count(event: str) -> int:
        return sum(e["event"] == event for e in audited(gateway))

    async def all_serve(wanted: bytes) -> None:
        with trio.fail_after(30):
            for _ in range(20):  # of both workers
                while await served() != wanted:
                    await trio.sleep(0.05)

    first = await served()
    async with tls_ws_client(gateway, context) as ws, tls_tcp_client(gateway, context) as tcp:
        await ws.initialize()
        await tcp.initialize()
        authority.server(name="localhost")
        second = ssl.PEM_cert_to_DER_cert((authority.directory / "server.pem").read_text())
        assert second != first
        os.kill(gateway.pid, signal.SIGHUP)
        await until(lambda: count("config.reloaded") == 1, gateway)
        await all_serve(second)
        key = (authority.directory / "server.key").read_bytes()
        (authority.directory / "server.key").write_bytes(trustme.CA().private_key_pem.bytes())
        os.kill(gateway.pid, signal.SIGHUP)
        await until(lambda: count("config.refused") == 1, gateway)
        [refused] = [e for e in audited(gateway) if e["event"] == "config.refused"]
        assert "SSL_KEY_PATH" in refused["reason"]
        await all_serve(second)
        (authority.directory / "server.key").write_bytes(key)
        for client in (ws, tcp):
            await echo(client, "all along")
    assert key.splitlines()[1].decode() not in gateway.tail()
    await kill(gateway, "edge")
    await until(lambda: all(w["state"] == "up" for w in tree(gateway)["workers"]), gateway)
    await all_serve(second)


async def test_a_worker_needs_no_key_file(start_gateway: Any, authority: Authority) -> None:
    """One that is killed comes back and serves its listener with what was good, though the key file is empty by now."""
    gateway = await start_tls(start_gateway, authority.server(), {"WORKERS": "2"})
    (authority.directory / "server.key").write_bytes(b"")
    victim = next(w for w in tree(gateway)["workers"] if w["name"] == "edge.0")
    assert victim["pid"]
    os.kill(victim["pid"], signal.SIGKILL)

    def is_back() -> bool:
        now = next(w for w in tree(gateway)["workers"] if w["name"] == "edge.0")
        return now["state"] == "up" and now["pid"] not in (0, victim["pid"])

    await until(is_back, gateway)
    for _ in range(10):
        with trio.fail_after(30):
            async with tls_tcp_client(gateway, authority.client()) as client:
                await client.initialize()


async def test_kill_minus_nine_of_an_edge_worker(start_gateway: Any, authority: Authority) -> None:
    """Its TLS connections end, the port doesn't: the next ones are served, and those of the other worker go on."""
    gateway = await start_tls(start_gateway, authority.server(), {"WORKERS": "2"})
    context = authority.client()
    clients = []
    async with trio.open_nursery() as nursery:

        async def hold(number: int) -> None:
            ended = False
            async with TLS_CLIENTS["tcp"](gateway, context) as client:
                await client.initialize()
                clients.append(client)
                try:
                    await client.receive()
                except (EOFError, trio.BrokenResourceError):
                    ended = True
                    clients.remove(client)
            assert ended

        for number in range(16):
            nursery.start_soon(hold, number)
        while len(clients) < 16:
            await trio.sleep(0.01)
        pid = next(w["pid"] for w in (await trio.to_thread.run_sync(tree, gateway))["workers"] if w["name"] == "edge.1")
        assert pid
        os.kill(pid, signal.SIGKILL)
        for transport in ("ws", "tcp") * 5:
            with trio.fail_after(30):
                async with TLS_CLIENTS[transport](gateway, context) as client:
                    await client.initialize()
                    await echo(client, transport)
        assert 0 < len(clients) < 16
        nursery.cancel_scope.cancel()


async def test_an_acceptor_that_raises_keeps_its_tls_connections(start_gateway: Any, authority: Authority) -> None:
    """What is encrypted outlives the hub task too, and handshakes in the middle go on."""
    gateway = await start_tls(start_gateway, authority.server(), {"WORKERS": "1"}, program=(SABOTAGED,))
    fuses = gateway.state_dir.parent / "sabotage"
    fuses.mkdir()
    context = authority.client()
    async with tls_ws_client(gateway, context) as ws, tls_tcp_client(gateway, context) as tcp:
        await ws.initialize()
        await tcp.initialize()
        halfway = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
        (fuses / "acceptor.0").touch()
        await until(lambda: not (fuses / "acceptor.0").exists(), gateway)
        await until(lambda: tree(gateway)["workers"][-1]["actors"][0]["restarts"] == 1, gateway)
        for client in (ws, tcp):
            await echo(client, "still here")
        stream = trio.SSLStream(halfway, context, server_hostname="localhost", https_compatible=True)
        async with stream:
            with trio.fail_after(30):
                answer = await TcpClient(stream).call("authenticate", {"token": gateway.tcp_token})  # type: ignore[arg-type]
            assert answer["result"]["authenticated"] is True


# --- the client of the project


def run_client(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_TOKEN")}
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.client", *arguments],
        capture_output=True, text=True, timeout=60, env=variables | (environment or {}), check=False,
    )  # fmt: skip


def test_the_client_over_tls(start_gateway: Any, authority: Authority, tmp_path: Path) -> None:
    """Over both transports: with the authority it works, without it the certificate is not trusted, and a certificate
    of its own takes the place of a token."""
    environment = authority.server() | authority.client_auth("optional")
    gateway = start_gateway(environment=environment)
    own = tmp_path / "client.pem"
    authority.ca.issue_cert("cli@example.org").private_key_and_cert_chain_pem.write_to_path(str(own))
    ways = {
        "ws": (["ws", "--url", f"wss://localhost:{gateway.ws_port}"], gateway.ws_token),
        "tcp": (["tcp", "--tls", "--host", "localhost", "--port", str(gateway.tcp_port)], gateway.tcp_token),
    }
    for arguments, token in ways.values():
        call = [*arguments, "--json", "--call", "echo", '{"text": "hi"}']
        trusting = ["--ca-file", str(authority.ca_path)]
        done = run_client(*call, *trusting, environment={"WS_AUTH_TOKEN": token, "TCP_AUTH_TOKEN": token})
        assert done.returncode == 0, done.stderr
        done = run_client(*call, *trusting, "--client-cert", str(own))
        assert done.returncode == 0, done.stderr
        done = run_client(*call, environment={"WS_AUTH_TOKEN": token, "TCP_AUTH_TOKEN": token})
        assert done.returncode == 4
        assert "certificate" in done.stderr.lower()
    assert run_client("tcp", "--ca-file", str(authority.ca_path)).returncode == 2
