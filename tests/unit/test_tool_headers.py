"""Arguments that a server wants to see in headers: which definitions count, and what is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.upstream.tool_headers import ToolHeaders


def headers(schema: Any, arguments: Any) -> dict[bytes, bytes]:
    tools = ToolHeaders()
    listed = {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "t", "inputSchema": schema}]}}
    tools.learn(json.dumps(listed).encode())
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "t", "arguments": arguments}}
    return dict(tools.of_call("t", json.dumps(call).encode()))


def schema(kind: str = "string", header: Any = "A") -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": kind, "x-mcp-header": header}}}


@pytest.mark.parametrize(
    ("kind", "value", "sent"),
    [
        ("string", "x", b"x"),
        ("string", "a\r\nB: c", b"=?base64?YQ0KQjogYw==?="),
        ("integer", -7, b"-7"),
        ("boolean", True, b"true"),
        ("boolean", False, b"false"),
        ("string", None, None),
        ("string", {}, None),
        ("integer", 2**53, None),
        ("string", "x" * 9000, None),
    ],
)
def test_what_is_sent(kind: str, value: Any, sent: bytes | None) -> None:
    """Strings as they are or encoded, numbers in decimal, booleans in lower case; nothing for null."""
    assert headers(schema(kind), {"a": value}) == ({} if sent is None else {b"Mcp-Param-A": sent})


@pytest.mark.parametrize(
    "bad",
    [schema(header=""), schema(header="a b"), schema(header="a\r\n"), schema(header=5), schema("number"), None, []],
)
def test_a_definition_that_breaks_the_rules_teaches_nothing(bad: Any) -> None:
    """Least of all header names."""
    assert headers(bad, {"a": "x"}) == {}


def test_nested_properties_and_missing_values() -> None:
    """The exact path, and nothing when it does not lead anywhere; two spellings of one name are a broken rule."""
    inner = {"type": "object", "properties": {"o": schema()}}
    assert headers(inner, {"o": {"a": "x"}}) == {b"Mcp-Param-A": b"x"}
    assert headers(inner, {"a": "x"}) == {}
    assert headers(inner, [1]) == {}
    twice = {"properties": {"a": {"type": "string", "x-mcp-header": "A"}, "b": {"type": "string", "x-mcp-header": "a"}}}
    assert headers(twice, {"a": "x"}) == {}


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"result":5}', b'{"result":{"tools":5}}', b"[" * 99_999])
def test_what_is_no_list_teaches_nothing(answer: bytes) -> None:
    """An upstream is hostile, too."""
    tools = ToolHeaders()
    tools.learn(b'"x-mcp-header"' + answer)
    tools.learn(answer.replace(b"5", b'"x-mcp-header"') + b" " * 9)
    assert tools.of_call("t", b"{}") == []
