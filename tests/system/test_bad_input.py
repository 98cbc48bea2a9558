"""Bad input gets the contract's error with the request's own id, and hurts nobody else."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed
from wire_clients import CLIENTS, TcpClient, WireClient, request, tcp_client, ws_client

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
# All clients here share one address: what one does must not get the others blocked, as it otherwise should.
UNBLOCKED = {"AUTO_BLOCK_ENABLED": "false"}
DEEP = b"[" * 70 + b"]" * 70

# What is sent, the code, and the raw id of the answer.
REFUSED = {
    "not JSON": (b'{"jsonrpc":"2.0","id":1,"method"', -32700, None),
    "byte order mark": (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"m"}', -32700, None),
    "lone surrogate": (rb'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\ud800"}}', -32700, None),
    "raw tab in a string": (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\t"}}', -32700, None),
    "batch": (b'[{"jsonrpc":"2.0","id":1,"method":"m"}]', -32600, None),
    "no object": (b"7", -32600, None),
    "no version": (b'{"id":"x","method":"m"}', -32600, "x"),
    "wrong version": (b'{"jsonrpc":"1.0","id":5,"method":"m"}', -32600, 5),
    "null id": (b'{"jsonrpc":"2.0","id":null,"method":"m"}', -32600, None),
    "fractional id": (b'{"jsonrpc":"2.0","id":1.5,"method":"m"}', -32600, None),
    "boolean id": (b'{"jsonrpc":"2.0","id":true,"method":"m"}', -32600, None),
    "method of a wrong type": (b'{"jsonrpc":"2.0","id":6,"method":7}', -32600, 6),
    "params of a wrong type": (b'{"jsonrpc":"2.0","id":7,"method":"m","params":"p"}', -32600, 7),
    "duplicate method": (b'{"jsonrpc":"2.0","id":8,"method":"ping","method":"m"}', -32600, 8),
    "case variant": (b'{"jsonrpc":"2.0","id":9,"method":"ping","Method":"m"}', -32600, 9),
    "too deep": (b'{"jsonrpc":"2.0","id":10,"method":"m","params":' + DEEP + b"}", -32600, 10),
    "prototype": (b'{"jsonrpc":"2.0","id":11,"method":"m","params":{"a":{"__proto__":1}}}', 422, 11),
    "escaped prototype": (rb'{"jsonrpc":"2.0","id":12,"method":"m","params":{"\u005f_proto__":1}}', 422, 12),
    "constructor": (b'{"jsonrpc":"2.0","id":13,"method":"m","params":{"constructor":{"prototype":1}}}', 422, 13),
    "a notification with an id": (
        b'{"jsonrpc":"2.0","id":14,"method":"notifications/cancelled","params":{"requestId":1}}',
        -32600,
        14,
    ),
}
# What is never answered, and must not reach a server.
SILENT = {
    "a request without an id": b'{"jsonrpc":"2.0","method":"logging/setLevel","params":{"level":"debug"}}',
    "a handshake without an id": b'{"jsonrpc":"2.0","method":"initialize","params":{"protocolVersion":"1"}}',
    "a bad notification": b'{"jsonrpc":"2.0","method":"notifications/x","params":{"__proto__":1}}',
    "a response to nothing": b'{"jsonrpc":"2.0","id":99,"result":{}}',
    "a cancellation of nothing": b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}',
}


@contextlib.asynccontextmanager
async def undisturbed(gateway: Any, server: str = "") -> AsyncIterator[WireClient]:
    """Another client, which must be served before and after."""
    async with tcp_client(gateway, server=server) as other:
        await other.initialize()
        assert "result" in await other.call("tools/list")
        yield other
        assert "result" in await other.call("tools/list")


@pytest.mark.parametrize("transport", list(CLIENTS))
async def test_every_refusal_has_its_code_and_the_own_id(start_gateway: Any, tmp_path: Path, transport: str) -> None:
    """One after the other on one connection, which goes on; and the server has seen nothing of it."""
    record = tmp_path / "record"
    servers = {
        "recorder": {
            "command": sys.executable,
            "args": [str(UPSTREAMS / "recorder.py"), "--record", str(record)],
        }
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=servers, environment=UNBLOCKED))
    async with CLIENTS[transport](gateway) as client:
        for what, (raw, code, id_) in REFUSED.items():
            await client.send(raw)
            answer = json.loads(await client.next())
            assert (answer["error"]["code"], answer["id"]) == (code, id_), what
            if code == 422:
                assert answer["error"]["data"]["rule"]
                assert answer["error"]["data"]["pointer"].startswith("/")
        for raw in SILENT.values():
            await client.send(raw)
        assert await client.nothing_more() == []
    lines = [json.loads(line) for line in record.read_bytes().splitlines()]
    assert [line["method"] for line in lines] == ["ping"]


async def test_bytes_that_are_not_utf8(start_gateway: Any) -> None:
    """−32700 on TCP, where the connection goes on; close 1007 on WebSocket."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=UNBLOCKED))
    async with undisturbed(gateway):
        async with tcp_client(gateway) as client:
            await client.send(b'{"jsonrpc":"2.0","id":1,"method":"m","params":"\xff"}')
            answer = json.loads(await client.next())
            assert (answer["error"]["code"], answer["id"]) == (-32700, None)
            assert "result" in await client.call("ping")
        async with ws_client(gateway) as client:
            stream = client.connection._stream
            payload = b'{"a":"\xff"}'
            await stream.send_all(bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
            with pytest.raises(ConnectionClosed) as closed:
                await client.next()
            assert closed.value.reason.code == 1007


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (bytes([0xC1, 0x80, 0, 0, 0, 0]), 1002),  # a reserved bit
        (bytes([0x81, 0x02]) + b"{}", 1002),  # not masked
        (bytes([0x82, 0x80, 0, 0, 0, 0]), 1003),  # binary
        (bytes([0x80, 0x80, 0, 0, 0, 0]), 1002),  # a continuation of nothing
        (bytes([0x81, 0xFF]) + struct.pack("!Q", 1 << 40) + bytes(4), 1009),  # announces a terabyte
        (bytes([0x89, 0xFE, 0, 126, 0, 0, 0, 0]), 1002),  # a long ping
    ],
)
async def test_malformed_frames_end_their_connection_only(start_gateway: Any, frame: bytes, code: int) -> None:
    """With the close code of RFC 6455 §7.4.1."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=UNBLOCKED))
    async with undisturbed(gateway), ws_client(gateway) as client:
        await client.connection._stream.send_all(frame)
        with pytest.raises(ConnectionClosed) as closed:
            await client.next()
        assert closed.value.reason.code == code


async def test_hostile_handshakes(start_gateway: Any) -> None:
    """Refused with a status, or cut; two hundred of each leave the gateway as it was."""
    environment = {
        "CONNECTION_RATE_LIMIT": "1000000",
        "HANDSHAKE_TIMEOUT_MS": "1000",
        "AUTO_BLOCK_ENABLED": "false",  # so that the bystanders, of the same address, can be asked how they are
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    bad = {
        upgrade + b"X: \xff\r\n\r\n": b"400",
        upgrade + b"Content-Length: 5\r\n\r\nhello": b"400",
        upgrade.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n": b"400",
        upgrade.replace(b"ub25jZQ==", b"ub25jZQ") + b"\r\n": b"400",
        upgrade + b"Host: evil\r\n\r\n": b"400",
        upgrade + b"\r\n": b"401",
        upgrade + b"Authorization: Basic eDp5\r\n\r\n": b"401",
        upgrade + b"Origin: https://evil.example\r\n\r\n": b"403",
        upgrade.replace(b"127.0.0.1", b"evil.example") + b"\r\n": b"403",
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n": b"404",
        b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n": b"405",
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n": b"426",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": b"400",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n": b"431",
    }
    assert len(bad) == 14, "two of them are the same"
    async with undisturbed(gateway):
        for raw, status in bad.items():
            stream = await trio.open_tcp_stream("127.0.0.1", gateway.ws_port)
            async with stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(raw)
                with trio.fail_after(30):
                    answer = await stream.receive_some(4096)
            assert answer.startswith(b"HTTP/1.1 " + status), (raw, answer)
            if status != b"426":
                assert b"application/problem+json" in answer
        for number in range(200):
            port = (gateway.ws_port, gateway.tcp_port)[number % 2]
            sock = socket.create_connection(("127.0.0.1", port))
            sock.send([b"GET / HT", upgrade, b"\r\n\r\n", b'{"jsonrpc"'][number % 4])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close resets
            sock.close()


async def test_a_flood_before_authentication_is_limited(start_gateway: Any) -> None:
    """What the gateway answers to strangers comes out of the budget of their address, reconnecting renews none of it,
    and a connection that only goes on like that is closed."""
    limits = {"RATE_LIMIT_MAX_REQUESTS": "40", "RATE_LIMIT_BURST_REQUESTS": "40"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=UNBLOCKED | limits))
    codes: Counter[int] = Counter()
    for _ in range(2):
        stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
        async with stream:
            client = TcpClient(stream)
            await stream.send_all(b"".join(request("ping", id=b"%d" % n) + b"\n" for n in range(50)))
            with contextlib.suppress(EOFError):
                while True:
                    codes[json.loads(await client.next()).get("error", {}).get("code", 0)] += 1
    assert 32 <= codes[0] <= 40, codes  # the rest of a lease may lie with the other worker
    assert codes[401] == 2, codes
    assert codes[0] + codes[429] == 2 * 32, codes


async def test_what_a_closed_connection_held_is_freed(start_gateway: Any) -> None:
    """Unfinished messages of 9 MB on connections that come and go leave nothing in memory."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=UNBLOCKED | {"WORKERS": "1"}))

    def resident_mib() -> float:
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in gateway.workers()]
        return max(pages) * 4096 / (1 << 20)

    for _ in range(30):
        async with tcp_client(gateway) as client:
            await client.stream.send_all(b'{"jsonrpc":"2.0","id":1,"method":"m","params":"' + b"x" * 9_000_000)
    async with undisturbed(gateway):
        assert resident_mib() < 150


@pytest.mark.parametrize("transport", list(CLIENTS))
async def test_too_large(start_gateway: Any, transport: str) -> None:
    """10 MiB and a byte is refused and closed (413, 1009); 10 MiB less a little passes, through the validator."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=UNBLOCKED))
    async with undisturbed(gateway), CLIENTS[transport](gateway) as client:
        await client.initialize()
        text = "x" * (10 * 1024 * 1024 - 300)
        answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": text}})
        assert answer["result"]["content"][0]["text"] == text
        with contextlib.suppress(trio.BrokenResourceError, ConnectionClosed):
            await client.send(request("tools/call", {"name": "echo", "arguments": {"text": text + "y" * 400}}, id=b"2"))
        if transport == "tcp":
            refusal = json.loads(await client.next())
            assert (refusal["id"], refusal["error"]["code"]) == (2, 413)
        else:
            with pytest.raises(ConnectionClosed) as closed:
                await client.next()
            assert closed.value.reason.code == 1009


async def test_servers_that_misbehave_hurt_only_their_clients(start_gateway: Any) -> None:
    """A binary that doesn't exist, garbage, half a line, a line without end, a death at each call: each client gets
    an error with its own id, and the clients of a sound server notice nothing."""

    def program(name: str, *arguments: str) -> dict[str, Any]:
        return {"command": sys.executable, "args": [str(UPSTREAMS / name), *arguments], "timeoutMs": 2000}

    servers = {
        "sound": {"command": sys.executable, "args": ["-P", "-m", "ops.embedded"]},
        "missing": {"command": "/nonexistent/server"},
        "garbage": program("garbage.py"),
        "half": program("half_line.py"),
        "dies": program("dies.py"),
        "silent": program("silent.py"),
        "deaf": program("deaf.py"),
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=servers, environment=UNBLOCKED))
    async with undisturbed(gateway, "sound"):
        for server in servers:
            if server == "sound":
                continue
            async with tcp_client(gateway, server=server) as client:
                answer = await client.call("tools/call", {"name": "x", "arguments": {}}, id=b"77")
                assert answer["id"] == 77
                assert "result" in answer or answer["error"]["code"] in (502, 503, 504), (server, answer)
                if server not in ("garbage", "deaf"):
                    assert "error" in answer, server
