"""WebSocket upstreams, as the bridge holds them: the official SDK's server, and the gateway itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sdk_servers
import trio
import trustme
from bridge_rig import rig

from ipc.messages import CallFailed
from ipc.settings import Upstream


def ws(server: sdk_servers.SdkServer, **options: Any) -> Upstream:
    return Upstream(name="ws", kind="ws", url=server.url, **options)


def text(result: Any) -> str:
    assert not isinstance(result, CallFailed), result
    assert "content" in result, result
    return str(result["content"][0]["text"])


async def test_two_clients_over_one_websocket(tmp_path: Path) -> None:
    """The SDK's server has one session a connection: two clients share it, with the same ids, and are isolated. What
    is too large fails alone. A death fails what is in flight at once; the next server on that port is found."""
    with sdk_servers.running(tmp_path, "sdk1", "websocket") as server:
        async with rig(ws(server), max_response_size=100_000) as this:
            clients = [this.client("ws", number) for number in (1, 2)]
            for client in clients:
                assert (await client.initialize())["serverInfo"]["name"] == "sdk"
            slow = []
            for client in clients:
                arguments = {"name": "sleep", "arguments": {"seconds": 0.3, "steps": 2 + client.number}}
                slow.append(client.request("tools/call", arguments | {"_meta": {"progressToken": 1}}, id=8))
            big = await clients[0].call("tools/call", {"name": "big", "arguments": {"size": 300_000}}, id=2)
            assert big["code"] == 502
            assert big["data"]["reason"] == "response_too_large"
            for client, call in zip(clients, slow, strict=True):
                answer = await client.outcome(call)
                assert isinstance(answer, dict)
                assert text(answer["result"]) == "slept"
                assert len(client.partial[call]) == 2 + client.number
            assert (await this.describe())["links"] == 1

            hanging = [
                client.request("tools/call", {"name": "sleep", "arguments": {"seconds": 60, "steps": 0}}, id=9)
                for client in clients
            ]
            await clients[0].call("ping", id="after")
            server.kill()
            for client, call in zip(clients, hanging, strict=True):
                answer = await client.outcome(call)
                assert isinstance(answer, CallFailed)
                assert (answer.code, answer.sent) == (502, True)
            another = await trio.to_thread.run_sync(server.again)
            try:
                await this.until_described(lambda found: found["upstreams"]["ws"]["state"] == "up")
                assert text(await clients[0].call("tools/call", {"name": "pid", "arguments": {}})) == str(
                    another.process.pid
                )
            finally:
                another.kill()
            await this.drain()


@pytest.mark.parametrize("kind", ["ws", "http"])
async def test_tls_is_verified(tmp_path: Path, kind: str) -> None:
    """With ``UPSTREAM_CA_PATH`` the server's certificate is checked against it alone, its name too; without, it is not
    trusted."""
    authority = trustme.CA()
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(str(ca))
    leaf = authority.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(str(key))
    cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    options = (f"cert={cert}", f"key={key}", *(["websocket"] if kind == "ws" else []))
    with sdk_servers.running(tmp_path, "sdk1", *options) as server:
        assert server.url.startswith("wss:" if kind == "ws" else "https:")
        for ca_path, url, trusted in (
            (str(ca), server.url, True),
            (str(other), server.url, False),
            ("", server.url, False),
            (str(ca), server.url.replace("localhost", "127.0.0.1"), False),
        ):
            upstream = Upstream(name="tls", kind=kind, url=url)  # type: ignore[arg-type]
            async with rig(upstream, upstream_ca_path=ca_path) as this:
                client = this.client("tls", 1)
                answer = await client.call("initialize", {
                    "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"},
                })  # fmt: skip
                if trusted:
                    assert answer["serverInfo"]["name"] == "sdk"
                else:
                    assert isinstance(answer, CallFailed)
                    assert answer.code == 503
                    assert "certificate" in answer.reason
                await this.drain()


async def test_a_gateway_as_the_upstream_of_another(tmp_path: Path, start_gateway: Any) -> None:
    """ws:// with a credential of its own: the outer gateway's servers are used through the inner one."""
    inner = await trio.to_thread.run_sync(start_gateway)
    upstream = Upstream(
        name="inner", kind="ws", url=inner.ws_url(), headers={"Authorization": f"Bearer {inner.ws_token}"}
    )
    async with rig(upstream) as this:
        client = this.client("inner", 1)
        await client.initialize()
        assert text(await client.call("tools/call", {"name": "echo", "arguments": {"text": "far"}})) == "far"
        await this.drain()
    async with rig(Upstream(name="inner", kind="ws", url=inner.ws_url())) as this:
        client = this.client("inner", 1)
        answer = await client.call("ping")
        assert isinstance(answer, CallFailed)
        assert (answer.code, answer.sent) == (503, False)
        assert "HTTP 401" in answer.reason
        await this.drain()
