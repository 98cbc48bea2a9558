"""A large message is read once: what is known of it goes with it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from pool_rig import PoolRig

from actors.policy.jsonrpc import parse_client
from actors.upstream import http_link
from actors.upstream.http_link import HttpLink
from actors.upstream.link import LinkSettings
from actors.upstream.tool_headers import ToolHeaders
from ipc.inflight import LARGE
from ipc.messages import Envelope
from ipc.settings import Settings, Upstream

META = b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}'
FIELDS = ("kind", "id", "method", "name", "uri", "era", "target")


@pytest.mark.parametrize("instance", ["shared", "per-session"])
@pytest.mark.parametrize(
    "message",
    [
        b'{"jsonrpc":"2.0","id":"mine","method":"tools/call","params":{%s,"name":"t","arguments":{"x":"@"}}}' % META,
        b'{"jsonrpc":"2.0","id":"mine","method":"anything","params":{"x":"@"}}',
        b'{"jsonrpc":"2.0","method":"notifications/anything","params":{"x":"@"}}',
    ],
    ids=["modern", "plain", "notification"],
)
def test_what_is_known_is_true_of_what_is_sent(
    instance: Any, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what reading the sent bytes again would find, and an HTTP link does not read them again."""
    upstream = Upstream(name="s", kind="http", url="http://127.0.0.1:1/", instance=instance)
    rig = PoolRig((upstream,))
    taken: list[tuple[bytes, Envelope | None]] = []
    rig.pool.attach("a", "s")
    warm = b'{"jsonrpc":"2.0","id":0,"method":"warm"}'
    rig.pool.forward("a", 1, parse_client(warm), warm, rig.now)
    [wire] = rig.wires
    monkeypatch.setattr(type(wire), "send", lambda _self, raw, about=None: taken.append((raw, about)) or True)
    raw = message.replace(b"@", b"x" * LARGE)
    call = 2 if b'"id"' in raw else 0
    rig.pool.forward("a", call, parse_client(raw), raw, rig.now)
    [(sent, about)] = taken
    assert about is not None
    again = parse_client(sent)
    assert [getattr(about, field) for field in FIELDS] == [getattr(again, field) for field in FIELDS]

    def unwanted(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("a large message was read again")

    monkeypatch.setattr(http_link, "parse_client", unwanted)
    settings = LinkSettings.of(Settings(), LARGE * 4, lambda: None)  # type: ignore[arg-type, return-value]
    link = HttpLink(upstream, wire.instance, None, settings)  # type: ignore[arg-type]
    assert link.send(sent, about)


def test_headers_are_found_without_decoding_the_rest() -> None:
    """Nested arguments, and values that no header holds, in a message of many others."""
    tools = ToolHeaders()
    leaf = {"type": "string", "x-mcp-header": "A"}
    deep = {"type": "object", "properties": {"b": leaf | {"x-mcp-header": "B"}}}
    tool = {"name": "t", "inputSchema": {"type": "object", "properties": {"a": leaf, "n": deep}}}
    tools.learn(msgspec.json.encode({"result": {"tools": [tool]}}))
    for arguments, found in (
        ({"a": "1", "n": {"b": "2"}}, [b"1", b"2"]),
        ({"a": "x" * 10_000, "n": {"b": "2"}}, [b"2"]),
        ({"a": {"b": ["x"] * 100_000}, "n": []}, []),
        ({"a": "1", "n": None}, [b"1"]),
    ):
        message = msgspec.json.encode({"params": {"arguments": arguments}})
        assert [value for _, value in tools.of_call("t", message)] == found
    for params in (b"{}", b'{"params":[]}', b'{"params":{"arguments":[]}}'):
        assert tools.of_call("t", params) == []
