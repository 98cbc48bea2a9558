"""The JSON parsing test suite through the real gateway: over TCP and WebSocket, as whole messages and in params."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway import ROOT, Gateway
from requirement import need
from test_jsontestsuite import DATA, FILES, TOO_DEEP, well_formed
from trio_websocket import ConnectionClosed
from wire_clients import WireClient, tcp_client, ws_client

OPEN = {"AUTO_BLOCK_ENABLED": "false", "RATE_LIMIT_ENABLED": "false", "CONNECTION_RATE_LIMIT": "100000"}
TEXTS = {path.name: path.read_bytes() for path in FILES}
CLOSED = "close 1007"
Verdict = int | str  # 0: forwarded; the error's code; or CLOSED


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def wrapped(raw: bytes, number: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"method":"m","params":{"a":%b}}' % (number, raw)


async def verdicts(client: WireClient, texts: dict[str, bytes]) -> dict[str, Verdict]:
    """One after the other on one connection."""
    found: dict[str, Verdict] = {}
    for name, raw in texts.items():
        await client.send(raw)
        answer = json.loads(await client.next())
        found[name] = answer["error"]["code"] if "error" in answer else 0
    return found


async def closes(gateway: Gateway, raw: bytes) -> Verdict:
    """What a WebSocket says of a message that isn't UTF-8."""
    size = len(raw)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    async with ws_client(gateway) as client:
        await client.connection._stream.send_all(head + bytes(4) + raw)
        with pytest.raises(ConnectionClosed) as closed:
            await client.next()
        return CLOSED if closed.value.reason.code == 1007 else closed.value.reason.code


async def test_every_text_on_both_transports(start_gateway: Any, tmp_path: Path) -> None:
    """y_ passes and reaches the server byte for byte; n_ is refused with -32700, whole or in params; what isn't UTF-8
    is close 1007 on WebSocket; and of what RFC 8259 leaves open both transports say the same, which is that of the
    parser itself."""
    need(FILES, f"no JSONTestSuite in {DATA}: set CONFORMANCE_DATA to the folder that holds jsontestsuite/")
    record = tmp_path / "record"
    program = [str(ROOT / "tests" / "upstreams" / "transcript.py"), "--record", str(record)]
    servers = {"transcript": {"command": sys.executable, "args": program}}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=servers, environment=OPEN))

    # A line can't hold a line break: on TCP such a text would be more than one message.
    lines = {name: raw for name, raw in TEXTS.items() if b"\n" not in raw and raw.strip(b"\r")}
    text = {name: raw for name, raw in TEXTS.items() if is_utf8(raw)}
    assert len(lines) > 300
    async with tcp_client(gateway) as client:
        whole_tcp = await verdicts(client, lines)
        params_tcp = await verdicts(
            client, {name: wrapped(raw, n) for n, (name, raw) in enumerate(TEXTS.items()) if b"\n" not in raw}
        )
    async with ws_client(gateway) as client:
        whole_ws = await verdicts(client, text)
        params_ws = await verdicts(
            client, {name: wrapped(raw, n) for n, (name, raw) in enumerate(TEXTS.items()) if name in text}
        )
    got = record.read_bytes().splitlines()
    for name in TEXTS.keys() - text.keys():
        whole_ws[name] = await closes(gateway, TEXTS[name])
        params_ws[name] = await closes(gateway, wrapped(TEXTS[name], 1))
    assert record.read_bytes().splitlines() == got  # nothing of those has reached the server

    for name, raw in TEXTS.items():
        deep = name in TOO_DEEP
        whole = -32600 if well_formed(name) or deep else -32700
        inside = 0 if well_formed(name) else -32600 if name.startswith("i_") and deep else -32700
        assert whole_ws[name] == (whole if is_utf8(raw) else CLOSED), name
        assert params_ws[name] in ((inside, -32600) if deep else (inside if is_utf8(raw) else CLOSED,)), name
        if name in whole_tcp:
            assert whole_tcp[name] == whole, name
        if name in params_tcp:
            assert params_tcp[name] in ((inside, -32600) if deep else (inside,)), name

    passed_tcp = [name for name in params_tcp if well_formed(name)]
    passed_ws = [name for name in TEXTS if name in text and well_formed(name)]
    assert len(got) == len(passed_tcp) + len(passed_ws)
    for name, line in zip(passed_tcp + passed_ws, got, strict=True):
        value = TEXTS[name].replace(b"\n", b" ").replace(b"\r", b" ")
        assert line.startswith(b'{"jsonrpc":"2.0","id":'), name
        assert line.endswith(b',"method":"m","params":{"a":%b}}' % value), name
