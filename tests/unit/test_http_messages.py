"""What Streamable HTTP's headers and statuses say."""

from __future__ import annotations

import base64

import pytest

from actors.policy.jsonrpc import parse_client
from actors.upstream.http_messages import error_in, field_value, modern_headers, session_id, verdict

META = '"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("us-west1", b"us-west1"),
        ("Hello, 世界", b"=?base64?SGVsbG8sIOS4lueVjA==?="),
        (" padded ", b"=?base64?IHBhZGRlZCA=?="),
        ("line1\nline2", b"=?base64?bGluZTEKbGluZTI=?="),
        ("=?base64?literal?=", b"=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
        ("a b\tc", b"a b\tc"),
        ("", b"=?base64??="),
        ("a\r\nX: y", b"=?base64?" + base64.b64encode(b"a\r\nX: y") + b"?="),
        ("\x7f", b"=?base64?fw==?="),
    ],
)
def test_the_value_encoding_of_the_specification(text: str, value: bytes) -> None:
    """Its own examples, and what would break a header."""
    assert field_value(text) == value


def test_the_request_metadata() -> None:
    """Version and method for each request of the modern era, the name for three methods; nothing for the legacy one."""
    def of(method: str, params: str) -> dict[bytes, bytes]:
        raw = f'{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{params}}}}}'.encode()
        return dict(modern_headers(parse_client(raw)))

    assert of("tools/list", '"cursor":"x"') == {}
    common = {b"MCP-Protocol-Version": b"2026-07-28"}
    assert of("tools/list", META) == common | {b"Mcp-Method": b"tools/list"}
    assert of("tools/call", f'"name":"x",{META}') == common | {b"Mcp-Method": b"tools/call", b"Mcp-Name": b"x"}
    assert of("prompts/get", f'"name":"x",{META}')[b"Mcp-Name"] == b"x"
    assert of("resources/read", f'"uri":"file:///a b",{META}')[b"Mcp-Name"] == b"file:///a b"
    hostile = META.replace("2026-07-28", "1\\r\\nX: y")
    assert of("tools/list", hostile)[b"MCP-Protocol-Version"] == b"unknown"


@pytest.mark.parametrize(
    ("value", "id_"), [(b"abc", b"abc"), (None, b""), (b"", b""), (b"a b", b""), (b"\xff", b""), (b"x" * 1025, b"")]
)
def test_what_a_session_id_may_be(value: bytes | None, id_: bytes) -> None:
    """Visible ASCII."""
    assert session_id(value) == id_


@pytest.mark.parametrize(
    ("status", "after", "code", "sent", "outcome", "wait"),
    [
        (400, b"", 503, False, "success", 0),
        (401, b"", 503, False, "success", 0),
        (408, b"", 504, True, "success", 0),
        (429, b"2", 503, False, "success", 2000),
        (429, b"soon", 503, False, "success", 0),
        (429, b"9" * 30, 503, False, "success", 0),
        (429, b"9999999", 503, False, "success", 3_600_000),
        (500, b"", 502, True, "success", 0),
        (501, b"", 502, True, "success", 0),
        (502, b"", 502, True, "death", 0),
        (503, b"1", 503, False, "death", 1000),
        (504, b"", 504, True, "death", 0),
        (302, b"", 503, False, "success", 0),
        (202, b"", 502, True, "success", 0),
    ],
)
def test_what_a_status_means(status: int, after: bytes, code: int, sent: bool, outcome: str, wait: int) -> None:
    """The contract's numbers; whether it may have done something; whether the server is in trouble."""
    told = verdict(status, after)
    assert (told.code, told.sent, told.outcome, told.retry_after_ms) == (code, sent, outcome, wait)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"m"}}', b'{"code":-1,"message":"m"}'),
        (b'{"jsonrpc":"2.0","error":{"code":-1,"message":"m"}}', b'{"code":-1,"message":"m"}'),
        (b'{"error":{"code":-1,"message":"m"}}', None),
        (b'{"jsonrpc":"2.0","error":{"code":"a","message":"m"}}', None),
        (b'{"jsonrpc":"2.0","error":"no"}', None),
        (b'{"jsonrpc":"2.0","error":{}}', None),
        (b"[]", None),
        (b"", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_an_error_in_a_body(body: bytes, error: bytes | None) -> None:
    """Only a JSON-RPC error counts as one."""
    assert error_in(body) == error
