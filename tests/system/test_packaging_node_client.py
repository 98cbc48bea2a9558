"""``secure-client-example.js`` with real Node and the real gateway: what it prints, and what its exit code says."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway import ROOT, Gateway
from requirement import need
from tls_clients import Authority

SCRIPT = ROOT / "ops" / "container" / "secure-client-example.js"
UPSTREAMS = ROOT / "tests" / "upstreams"


@pytest.fixture(autouse=True)
def node() -> str:
    found = shutil.which("node")
    need(found, "node is not installed (Debian: apt-get install nodejs)")
    version = subprocess.run([str(found), "--version"], capture_output=True, text=True, check=True).stdout
    need(int(version[1:].split(".")[0]) >= 20, f"Node 20 or newer is needed, this is {version.strip()}")
    return str(found)


def client(*words: str, node_options: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", *node_options, str(SCRIPT), *words],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def reach(gateway: Gateway) -> dict[str, str]:
    return {
        "WS_PORT": str(gateway.ws_port),
        "TCP_PORT": str(gateway.tcp_port),
        "WS_AUTH_TOKEN": gateway.ws_token,
        "TCP_AUTH_TOKEN": gateway.tcp_token,
    }


# Node 22 and newer have a WebSocket of their own, Node 20 behind a switch; without it our own RFC 6455 speaks.
WAYS = {
    "tcp": ("tcp", ()),
    "own WebSocket": ("ws", ("--no-experimental-websocket",)),
    "Node's WebSocket": ("ws", ("--experimental-websocket",)),
}


def test_it_authenticates_lists_and_calls(gateway: Gateway) -> None:
    """Every way: the embedded server's tools and an answer; a token from a file; a big argument there and back."""
    file = gateway.directory / "token"
    ports = {name: value for name, value in reach(gateway).items() if name.endswith("PORT")}
    text = "é" * 40_000
    for transport, options in WAYS.values():
        done = client(transport, node_options=options, **reach(gateway))
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"connected to {transport}://127.0.0.1:")
        assert "MCP 2025-11-25" in lines[1]
        assert any(line.startswith("  echo  ") for line in lines)
        assert lines[-2:] == ['echo({"text":"hello"}):', "hello"]

        file.write_text(f"{gateway.tcp_token if transport == 'tcp' else gateway.ws_token}\n")
        call = ("--token-file", str(file), "--call", "echo", f'{{"text":"{text}"}}')
        done = client(transport, *call, node_options=options, **ports)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == text


def test_exit_codes_say_whose_fault_it_is(start_gateway: Callable[..., Gateway]) -> None:
    """1 the call failed, 3 refused (nothing of the token is shown), 4 unreachable; every way."""
    gateway = start_gateway(environment={"MAX_FAILED_ATTEMPTS": "100"})
    there = reach(gateway)
    wrong = "wrong-token-that-nobody-may-see"
    for transport, options in WAYS.values():
        done = client(transport, "--call", "no-such-tool", node_options=options, **there)
        assert done.returncode == 1
        assert "no-such-tool" in done.stderr
        done = client(transport, node_options=options, **{**there, "WS_AUTH_TOKEN": wrong, "TCP_AUTH_TOKEN": wrong})
        assert done.returncode == 3, done.stderr
        assert wrong not in done.stdout + done.stderr
        with closed_port() as port:
            done = client(transport, node_options=options, **{**there, "WS_PORT": port, "TCP_PORT": port})
        assert done.returncode == 4
        assert "ECONNREFUSED" in done.stderr


def test_usage_is_exit_code_2() -> None:
    """Before anything is sent, and without a stack trace."""
    for words in (
        ("http",), (), ("ws", "--url", "http://x"), ("ws", "--nonsense"), ("tcp", "--port", "0"),
        ("tcp", "--timeout", "0"),
        ("ws", "--call", "echo", "[]"), ("ws", "--call", "echo", "{"), ("ws", "--list", "--call", "echo"),
        ("ws", "--token-file", "/nonexistent"), ("ws", "--url", "ws://user@h/"), ("ws", "extra"),
    ):  # fmt: skip
        done = client(*words)
        assert done.returncode == 2, (words, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert client("--help").stdout.startswith("usage: ")


def test_it_chooses_a_server(start_gateway: Callable[..., Gateway]) -> None:
    """--server goes by the path on WebSocket, by ``authenticate`` on TCP; an unknown one is refused."""
    servers = {name: {"command": "python3", "args": [str(UPSTREAMS / "two_era.py")]} for name in ("one", "two")}
    gateway = start_gateway(servers=servers)
    for transport in ("ws", "tcp"):
        done = client(transport, "--server", "two", "--list", **reach(gateway))
        assert done.returncode == 0, done.stderr
        assert transport == "tcp" or "/ws/two" in done.stdout
        assert client(transport, "--server", "three", **reach(gateway)).returncode in (1, 3)


def test_tls_is_checked(start_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """wss:// and --tls work with the authority in NODE_EXTRA_CA_CERTS, and with nobody's word otherwise."""
    authority = Authority(tmp_path)
    gateway = start_gateway(environment=authority.server())
    trusting = {**reach(gateway), "NODE_EXTRA_CA_CERTS": str(authority.ca_path)}
    for transport, options in WAYS.values():
        where = ("--tls",) if transport == "tcp" else ("--url", f"wss://127.0.0.1:{gateway.ws_port}")
        done = client(transport, *where, node_options=options, **trusting)
        assert done.returncode == 0, done.stderr
        done = client(transport, *where, node_options=options, **reach(gateway))
        assert done.returncode != 0
        assert done.stdout == ""


@contextmanager
def closed_port() -> Iterator[str]:
    """A port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield str(taken.getsockname()[1])


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A peer that treats one connection so; the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                answer(peer)
                while peer.recv(65536):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield str(listener.getsockname()[1])
        thread.join(60)


HOSTILE_LINES = [
    *(b"not json\n", b"null\n", b"1\n"),
    b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"\\u001b[31m"}}\n',
]


@pytest.mark.parametrize("line", HOSTILE_LINES, ids=range(len(HOSTILE_LINES)))
def test_a_hostile_tcp_peer_is_an_error_in_one_line(line: bytes) -> None:
    """Whatever comes: an exit code, one line without control characters, no stack trace."""
    with serving(lambda peer: peer.sendall(line)) as port:
        done = client("tcp", "--port", port, "--timeout", "20")
    assert done.returncode in (1, 3, 4)
    assert re.fullmatch(r"secure-client-example: [^\x00-\x1f]+\n", done.stderr), done.stderr


HOSTILE_HEADS = [
    b"garbage\r\n\r\n",
    b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b'HTTP/1.1 503 x\r\nRetry-After: 7\r\nContent-Length: 22\r\n\r\n{"detail": "\x1b[31mred"} ',
]


@pytest.mark.parametrize("head", HOSTILE_HEADS, ids=range(len(HOSTILE_HEADS)))
def test_a_hostile_http_peer_is_an_error_in_one_line(head: bytes) -> None:
    """As above, for the upgrade."""
    with serving(lambda peer: (peer.recv(65536), peer.sendall(head))) as port:  # type: ignore[arg-type,return-value]
        done = client("ws", "--timeout", "20", node_options=("--no-experimental-websocket",), WS_PORT=port)
    assert done.returncode in (3, 4)
    assert re.fullmatch(r"secure-client-example: [^\x00-\x1f]+\n", done.stderr), done.stderr


def upgraded(frames: bytes) -> Callable[[socket.socket], None]:
    def answer(peer: socket.socket) -> None:
        request = peer.recv(65536).decode()
        key = re.search(r"(?i)sec-websocket-key: (\S+)", request)
        assert key is not None
        digest = hashlib.sha1(f"{key[1]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        accept = base64.b64encode(digest).decode()
        head = f"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        peer.sendall(head.encode() + frames)  # in one piece: the first frames come with the head

    return answer


HOSTILE_FRAMES: dict[str, Any] = {
    "masked": b"\x81\x81\x00\x00\x00\x00x",
    "reserved bit": b"\xc1\x01x",
    "too long": b"\x81\x7f\x00\x00\x00\x01\x00\x00\x00\x00",
    "binary": b"\x82\x01x",
    "not JSON": b"\x81\x01x",
    "closed": b"\x88\x02\x0b\xb8",
    "cut": b"\x88\x00",
}


@pytest.mark.parametrize("frames", HOSTILE_FRAMES.values(), ids=HOSTILE_FRAMES)
def test_a_hostile_websocket_peer_is_an_error_in_one_line(frames: bytes) -> None:
    """As above, for frames that no server sends; nothing is waited for."""
    with serving(upgraded(frames)) as port:
        done = client("ws", "--timeout", "20", node_options=("--no-experimental-websocket",), WS_PORT=port)
    assert done.returncode in (1, 3, 4)
    assert "no answer within" not in done.stderr
    assert re.fullmatch(r"secure-client-example: [^\x00-\x1f]+\n", done.stderr), done.stderr
