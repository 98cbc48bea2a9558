"""The contract's section 7 through the real gateway, over TCP and WebSocket: what is refused, and what comes near it
and reaches the server byte for byte."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed
from validation_cases import PASSES, REFUSED, Passes
from wire_clients import CLIENTS, WireClient, request, tcp_client, ws_client

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
OPEN = {"AUTO_BLOCK_ENABLED": "false", "RATE_LIMIT_ENABLED": "false"}


def recording(record: Path) -> dict[str, Any]:
    """An upstream that writes down what it gets."""
    arguments = [str(UPSTREAMS / "transcript.py"), "--record", str(record)]
    return {"transcript": {"command": sys.executable, "args": arguments}}


def forwarded(record: Path) -> list[bytes]:
    """What the server has got, in order; the gateway's own pings don't count."""
    return [line for line in record.read_bytes().splitlines() if b'"method":"ping"' not in line]


def is_forwarded(case: Passes, line: bytes) -> bool:
    """The client's bytes, with an id of the gateway's own in the place of the client's."""
    return (
        line.startswith(case.before)
        and line.endswith(case.after)
        and re.fullmatch(rb"[0-9]+", line[len(case.before) : len(line) - len(case.after)]) is not None
    )


@pytest.mark.parametrize("transport", list(CLIENTS))
async def test_each_rule_and_what_comes_near_it(start_gateway: Any, tmp_path: Path, transport: str) -> None:
    """One after the other on one connection, which goes on. What passes is answered with its id to the byte and reaches
    the server as the client wrote it; of what is refused the server sees nothing."""
    record = tmp_path / "record"
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=recording(record), environment=OPEN))
    async with CLIENTS[transport](gateway) as client:
        for name, case in REFUSED.items():
            await client.send(case.raw)
            answer = json.loads(await client.next())
            assert (answer["error"]["code"], answer["id"]) == (case.code, case.id), name
        for name, near in PASSES.items():
            await client.send(near.raw)
            answer_raw = await client.next()
            assert answer_raw == b'{"jsonrpc":"2.0","id":%b,"result":{}}' % near.id, name
    lines = forwarded(record)
    assert len(lines) == len(PASSES)
    for (name, near), line in zip(PASSES.items(), lines, strict=True):
        assert is_forwarded(near, line), (name, line[:200])


def masked(payload: bytes, first: int = 0x81) -> bytes:
    """One client frame; the key is zero, so that the payload stands in it as it is."""
    size = len(payload)
    head = bytes((first, 0x80 | size)) if size < 126 else bytes((first, 0xFE)) + size.to_bytes(2, "big")
    return head + bytes(4) + payload


BROKEN_UTF8 = {
    "a stray byte": b"\xff",
    "a lone continuation": b"\x80",
    "an overlong slash": b"\xc0\xaf",
    "an overlong NUL": b"\xe0\x80\x80",
    "a surrogate": b"\xed\xa0\x80",
    "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond the last code point": b"\xf4\x90\x80\x80",
    "cut short": b"\xe2\x82",
    "Latin-1": b"caf\xe9",
}


async def test_what_is_not_utf8(start_gateway: Any, tmp_path: Path) -> None:
    """On TCP -32700, and the connection goes on; on WebSocket close 1007. The server sees nothing of it."""
    record = tmp_path / "record"
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=recording(record), environment=OPEN))
    async with tcp_client(gateway) as client:
        for what, data in BROKEN_UTF8.items():
            await client.send(b'{"jsonrpc":"2.0","id":1,"method":"m","params":["%b"]}' % data)
            answer = json.loads(await client.next())
            assert (answer["error"]["code"], answer["id"]) == (-32700, None), what
        assert "result" in await client.call("m/last")
    for what, data in BROKEN_UTF8.items():
        async with ws_client(gateway) as client:
            raw = b'{"jsonrpc":"2.0","id":1,"method":"m","params":["%b"]}' % data
            await client.connection._stream.send_all(masked(raw))
            with pytest.raises(ConnectionClosed) as closed:
                await client.next()
            assert closed.value.reason.code == 1007, what
    assert len(forwarded(record)) == 1


async def test_line_ends(start_gateway: Any, tmp_path: Path) -> None:
    """TCP: CR before LF is stripped, empty lines are skipped, a CR between tokens is a space to the server, a raw line
    break in a string is two broken lines. WebSocket: line breaks between tokens become spaces, one in a string is
    -32700."""
    record = tmp_path / "record"
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=recording(record), environment=OPEN))
    async with tcp_client(gateway) as client:
        await client.stream.send_all(b"\n\r\n\n" + request("m/1", id=b"1") + b"\r\n\n")
        assert (await client.answer_to(b"1"))["result"] == {}
        await client.send(b'{"jsonrpc":"2.0",\r"id":2,"method":"m/2"}\r')
        assert (await client.answer_to(b"2"))["result"] == {}
        await client.send(b'{"jsonrpc":"2.0","id":3,"method":"m","params":["a\nb"]}')
        for _ in range(2):
            answer = json.loads(await client.next())
            assert (answer["error"]["code"], answer["id"]) == (-32700, None)
        await client.send(request("m/3", id=b"3") + b"\r\r")
        assert (await client.answer_to(b"3"))["result"] == {}
    async with ws_client(gateway) as client:
        await client.send(b'\r\n{"jsonrpc":"2.0",\n\t"id":4,\r\n"method":"m/4"}\n')
        assert (await client.answer_to(b"4"))["result"] == {}
        await client.send(b'{"jsonrpc":"2.0","id":5,"method":"m","params":["a\nb"]}')
        answer = json.loads(await client.next())
        assert (answer["error"]["code"], answer["id"]) == (-32700, None)
        await client.send(b"")
        assert json.loads(await client.next())["error"]["code"] == -32700
    spaced = [re.sub(rb'"id": *[0-9]+', b'"id":0', line) for line in record.read_bytes().split(b"\n") if line]
    assert spaced == [
        b'{"jsonrpc":"2.0","id":0,"method":"m/1"}',
        b'{"jsonrpc":"2.0", "id":0,"method":"m/2"}',
        b'{"jsonrpc":"2.0","id":0,"method":"m/3"} ',
        b'  {"jsonrpc":"2.0", \t"id":0,  "method":"m/4"} ',
    ]


async def test_empty_lines_are_metered(start_gateway: Any) -> None:
    """A few hurt nobody; more than MAX_FRAME_RATE in a second end the connection."""
    environment = OPEN | {"MAX_FRAME_RATE": "100"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    async with tcp_client(gateway) as client:
        await client.stream.send_all(b"\n" * 40 + b"\r\n" * 40)
        assert "result" in await client.call("ping")
        await client.stream.send_all(b"\n" * 150)
        answer = json.loads(await client.next())
        assert (answer["error"]["code"], answer["id"]) == (429, None)
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await client.next()


async def test_what_fails_before_the_limit_counts_against_it(start_gateway: Any) -> None:
    """Malformed messages spend the budget like others, on both transports."""
    environment = {
        "AUTO_BLOCK_ENABLED": "false",
        "RATE_LIMIT_MAX_REQUESTS": "12",
        "RATE_LIMIT_BURST_REQUESTS": "12",
        "WORKERS": "1",
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))

    async def codes(client: WireClient) -> list[int]:
        for _ in range(6):
            await client.send(b'{"jsonrpc":"2.0","id":1,"method":"m","params":[01]}')
        return [json.loads(await client.next())["error"]["code"] for _ in range(6)]

    async with tcp_client(gateway) as client:
        assert await codes(client) == [-32700] * 6
    async with ws_client(gateway) as client:  # the upgrade is one of them
        assert await codes(client) == [-32700] * 5 + [429]
