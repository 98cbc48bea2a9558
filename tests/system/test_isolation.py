"""Many clients on one server: each gets exactly what is its own, and the server sees exactly what was sent."""

from __future__ import annotations

import itertools
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from wire_clients import CLIENTS, WireClient, request, tcp_client, ws_client

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
SAME_IDS = (b"0", b"1", b'"1"', b"-7", b"9007199254740991")
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "wire", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def program(name: str, *arguments: str) -> dict[str, Any]:
    return {"command": sys.executable, "args": [str(UPSTREAMS / name), *arguments]}


async def test_the_same_ids_at_the_same_time(start_gateway: Any) -> None:
    """24 clients, two transports, two workers, the same five ids and progress tokens in flight at once: every answer
    and every progress notification reaches the one that asked, with the id and token as it wrote them."""
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(environment={"WORKERS": "2", "RATE_LIMIT_BURST_REQUESTS": "1000"})
    )

    async def one(number: int, transport: str) -> None:
        async with CLIENTS[transport](gateway) as client:
            await client.initialize(("2025-06-18", "2025-11-25")[number % 2])
            for raw_id in SAME_IDS:
                arguments = {"text": f"{number}/{raw_id.decode()}"}
                await client.send(request("tools/call", {"name": "echo", "arguments": arguments}, id=raw_id))
            for raw_id in SAME_IDS:
                answer = await client.answer_to(raw_id)
                assert answer["result"]["content"][0]["text"] == f"{number}/{raw_id.decode()}"
            for raw_id, token in ((b"1", 1), (b'"1"', "1")):
                params = {
                    "name": "sleep",
                    "arguments": {"seconds": 0.2, "steps": 3 + number % 4},
                    "_meta": {"progressToken": token},
                }
                await client.send(request("tools/call", params, id=raw_id))
            for raw_id in (b"1", b'"1"'):
                answer = await client.answer_to(raw_id)
                assert "result" in answer
            progress = [json.loads(raw) for raw in await client.nothing_more()]
            assert {message["method"] for message in progress} == {"notifications/progress"}
            for token in (1, "1"):
                mine = [
                    m["params"]["progress"]
                    for m in progress
                    if m["params"]["progressToken"] == token and type(m["params"]["progressToken"]) is type(token)
                ]
                assert len(mine) == 3 + number % 4
                assert mine == sorted(mine)

    async with trio.open_nursery() as nursery:
        for number, transport in zip(range(24), itertools.cycle(CLIENTS), strict=False):
            nursery.start_soon(one, number, transport)


@pytest.mark.parametrize("transport", list(CLIENTS))
@pytest.mark.parametrize("kind", ["stdio", "tcp"])
async def test_params_reach_the_server_byte_for_byte(
    start_gateway: Any, tmp_path: Path, transport: str, kind: str
) -> None:
    """Only the id and the progress token are replaced, a newline between tokens becomes a space, and nothing else is
    touched: not whitespace, escapes, number forms, member order or members that nobody knows."""
    record = tmp_path / "record"
    port_file = tmp_path / "port"
    if kind == "tcp":
        arguments = ["--record", str(record), "--tcp", str(port_file)]
        process = await trio.lowlevel.open_process([sys.executable, str(UPSTREAMS / "recorder.py"), *arguments])
        while not port_file.exists():
            await trio.sleep(0.01)
        servers = {"recorder": {"url": f"tcp://127.0.0.1:{port_file.read_text().strip()}"}}
    else:
        process = None
        servers = {"recorder": program("recorder.py", "--record", str(record))}
    try:
        gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=servers))
        cases = [
            (b'{"jsonrpc":"2.0","id":%s,"method":"a/b","params":{"x":1.50,"y":-0,"z":1E+2,"big":%s}}', b"7"),
            (
                b' {\t"params" : {"\\u0061":"\\/\\ud83d\\ude00 \xe2\x80\xa8\xf0\x9f\x98\x80" , "a b":[ ]},"method":"m",'
                b'"extra":{"id":9},"jsonrpc":"2.0","id":%s } ',
                b'"\\u0031"',
            ),
            (b'{"id":%s,"jsonrpc":"2.0","method":"n","params":[1,{"id":2,"method":"x"},"id"]}', b"-1"),
            (b'{"jsonrpc":"2.0","method":"no-params","id":%s}', b"0"),
            (b'{"jsonrpc":"2.0","id":%s,"method":"long","params":{"t":"' + b"\\n" * 5000 + b'"}}', b"1"),
        ]
        sent = []
        async with CLIENTS[transport](gateway) as client:
            for template, raw_id in cases:
                text = template.replace(b'"big":%s', b'"big":' + b"9" * 60)
                await client.send(text.replace(b"%s", raw_id))
                sent.append((text.replace(b"%s", b"%d"), raw_id))
                raw = await client.next()
                answer = json.loads(raw)
                assert "result" in answer, answer
                assert raw.count(raw_id) >= 1
            if transport == "ws":
                spread = b'{"jsonrpc":"2.0",\n"id":%s,\r\n"method":"spread",\n"params":{"a":\n1}}'
                await client.send(spread.replace(b"%s", b"5"))
                await client.answer_to(b"5")
                sent.append((spread.replace(b"%s", b"%d").replace(b"\n", b" ").replace(b"\r", b" "), b"5"))
            tokens = request("t", {"_meta": {"progressToken": "mine", "k": [1, 2]}, "b": "2"}, id=b"6")
            await client.send(tokens)
            await client.answer_to(b"6")
        lines = [line for line in record.read_bytes().split(b"\n") if line]
        assert len(lines) == len(sent) + 1
        for line, (template, _) in zip(lines, sent, strict=False):
            head, _, tail = template.partition(b"%d")
            assert line.startswith(head)
            assert line.endswith(tail)
            assert line[len(head) : len(line) - len(tail)].isdigit()
        last = json.loads(lines[-1])
        minted = last["params"]["_meta"]["progressToken"]
        assert isinstance(minted, int)
        assert tokens.replace(b'"id":6', b'"id":%d' % last["id"]).replace(b'"mine"', b"%d" % minted) == lines[-1]
    finally:
        if process is not None:
            process.kill()
            await process.wait()


async def test_subscriptions_versions_and_levels_share_one_server(start_gateway: Any) -> None:
    """Five open listen requests with one id, two clients at different protocol versions and one that sets a log
    level: each gets its own notifications, and nobody another's."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers={"two": program("two_era.py")}))
    async with AsyncExitStack() as stack:
        listeners: list[WireClient] = []
        for number in range(5):
            client = await stack.enter_async_context((ws_client, tcp_client)[number % 2](gateway))
            params = {"_meta": MODERN, "notifications": {"resourceSubscriptions": [f"file:///{number}"]}}
            await client.send(request("subscriptions/listen", params, id=b'"same"'))
            acknowledged = json.loads(await client.next())
            assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
            assert acknowledged["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "same"
            listeners.append(client)

        old = await stack.enter_async_context(tcp_client(gateway))
        new = await stack.enter_async_context(ws_client(gateway))
        assert (await old.initialize("2025-06-18"))["result"]["protocolVersion"] == "2025-06-18"
        assert (await new.initialize("2025-11-25"))["result"]["protocolVersion"] == "2025-11-25"

        quiet = await stack.enter_async_context(tcp_client(gateway))
        await quiet.initialize("2025-11-25")
        assert (await new.call("logging/setLevel", {"level": "debug"}))["result"] == {}
        assert (await quiet.call("logging/setLevel", {"level": "error"}))["result"] == {}
        await new.call("test/log", {"level": "debug", "data": "for new"})
        await quiet.call("test/log", {"level": "debug", "data": "too detailed for quiet"})
        await quiet.call("test/log", {"level": "critical", "data": "for quiet"})

        for number in (3, 0):
            modern = {"_meta": MODERN, "uri": f"file:///{number}"}
            await listeners[4].call("test/updated", modern)
            updated = json.loads(await listeners[number].next())
            assert updated["method"] == "notifications/resources/updated"
            assert updated["params"]["uri"] == f"file:///{number}"
            assert updated["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "same"

        assert [json.loads(raw)["params"]["data"] for raw in await new.nothing_more()] == ["for new"]
        assert [json.loads(raw)["params"]["data"] for raw in await quiet.nothing_more()] == ["for quiet"]
        assert await old.nothing_more() == []
        for client in listeners:
            await client.send(request("ping", {"_meta": MODERN}, id=b'"end"'))
            await client.answer_to(b'"end"')
            assert client.inbox == []


async def test_a_tcp_server_is_shared_like_any_other(start_gateway: Any, tmp_path: Path) -> None:
    """The second client of a worker is answered from what the server said to the first, and at once; when the server
    goes away its calls are answered with an error, and it is used again when it is back."""
    port_file = tmp_path / "port"
    arguments = [sys.executable, str(UPSTREAMS / "two_era.py"), "--tcp", str(port_file)]
    process = await trio.lowlevel.open_process(arguments)
    try:
        while not port_file.exists():
            await trio.sleep(0.01)
        servers = {"two": {"url": f"tcp://127.0.0.1:{port_file.read_text().strip()}"}}
        gateway = await trio.to_thread.run_sync(
            lambda: start_gateway(servers=servers, environment={"WORKERS": "1", "CIRCUITBREAKER_TIMEOUT": "20000"})
        )
        async with tcp_client(gateway) as one, ws_client(gateway) as two, tcp_client(gateway) as three:
            for client in (one, two, three):
                assert (await client.initialize("2025-06-18"))["result"]["protocolVersion"] == "2025-06-18"
            for client in (one, two, three):
                await client.send(request("test/hold", {"name": "x"}, id=b'"held"'))
                assert "result" in await client.call("test/state")
            process.kill()
            for client in (one, two, three):
                answer = await client.answer_to(b'"held"')
                assert (answer["error"]["code"], answer["error"]["data"]["sent"]) == (502, True)
            down = await one.call("tools/list")
            assert down["error"]["code"] in (502, 503)
    finally:
        process.kill()
        await process.wait()


async def test_a_server_name_may_hold_spaces(start_gateway: Any) -> None:
    """As the files of MCP hosts have them: percent-encoded in the path, as it is in ``authenticate``."""
    servers = {
        "first": program("silent.py"),
        "My Server": {"command": sys.executable, "args": ["-P", "-m", "ops.embedded"]},
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=servers))
    async with tcp_client(gateway, server="My Server") as one, ws_client(gateway, server="My%20Server") as two:
        for client in (one, two):
            await client.initialize()
            answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": "x"}})
            assert answer["result"]["content"][0]["text"] == "x"
