"""What MCP's Streamable HTTP says of one message and of one answer, in both eras. No input or output here."""

from __future__ import annotations

import base64
import re
from typing import Final, Literal

import attrs
import msgspec

from actors.policy.members import decode_object, is_utf8
from ipc.messages import Envelope

ACCEPT: Final = b"application/json, text/event-stream"
JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"
MAX_ERROR_BODY: Final = 1 << 20
MAX_RETRY_MS: Final = 3_600_000

_NAMED: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
# RFC 9110 §5.5, without the obsolete bytes: what stands between the ends may be spaces and tabs.
_PLAIN: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?\Z")
_SESSION_ID: Final = re.compile(rb"[\x21-\x7e]{1,1024}\Z")
_VERSION: Final = re.compile(r"[0-9A-Za-z.-]{1,32}\Z")

Outcome = Literal["", "success", "death"]


def field_value(text: str) -> bytes:
    """A text as a header field's value, encoded where it can't stand there as it is (2026-07-28, "Value Encoding")."""
    sentinel = text.startswith("=?base64?") and text.endswith("?=")
    if _PLAIN.match(text) and not sentinel:
        return text.encode("ascii")
    return b"=?base64?" + base64.b64encode(text.encode("utf-8", "surrogatepass")) + b"?="


def modern_headers(envelope: Envelope) -> list[tuple[bytes, bytes]]:
    """The request metadata headers of 2026-07-28; none for a message that names no version of that era."""
    if not envelope.era:
        return []
    # A version that no header could hold is one that no server knows: it says so itself, by the body.
    version = envelope.era.encode() if _VERSION.match(envelope.era) else b"unknown"
    headers = [(b"MCP-Protocol-Version", version), (b"Mcp-Method", field_value(envelope.method))]
    source = _NAMED.get(envelope.method)
    if source is not None:
        headers.append((b"Mcp-Name", field_value(envelope.name if source == "name" else envelope.uri)))
    return headers


def session_id(value: bytes | None) -> bytes:
    """A server's ``Mcp-Session-Id``; b"" when it gives none, or none that may be one (2025-11-25, sessions)."""
    return value if value is not None and _SESSION_ID.match(value) else b""


@attrs.frozen
class Verdict:
    """What an HTTP answer without a JSON-RPC message means for the call that it answers."""

    code: Literal[502, 503, 504]
    reason: str
    sent: bool
    outcome: Outcome
    retry_after_ms: int = 0


def verdict(status: int, retry_after: bytes = b"") -> Verdict:
    """For a status that carries no answer.

    4xx says that the request was refused, so it has done nothing; of 5xx only 503 says so. What a proxy in front of
    the server says of it (502, 503, 504 and above) is as bad for the breaker as if it could not be reached; 500 and
    501 are what the server itself says of one request, as with an error of the application.
    """
    if status in (408, 504):
        return Verdict(504, f"upstream timeout: HTTP {status}", True, "death" if status == 504 else "success")
    if status in (429, 503):
        wait = min(int(retry_after) * 1000, MAX_RETRY_MS) if retry_after.isdigit() and len(retry_after) < 8 else 0
        return Verdict(503, f"the server is unavailable: HTTP {status}", False, "death" if status == 503 else "success",
                       wait)
    if status >= 500:
        return Verdict(502, f"the server failed: HTTP {status}", True, "death" if status >= 502 else "success")
    if status >= 400:
        return Verdict(503, f"the server refused the request: HTTP {status}", False, "success")
    if status >= 300:
        return Verdict(503, f"the server redirects to where the gateway does not go: HTTP {status}", False, "success")
    return Verdict(502, f"the server gave no answer: HTTP {status}", True, "success")


def error_in(body: bytes) -> bytes | None:
    """The ``error`` object of a JSON-RPC error response; None when the body is none."""
    if not is_utf8(body):
        return None
    try:
        members = decode_object(body)
        error = members["error"]
        if "jsonrpc" not in members or "method" in members:
            return None
        content = decode_object(error)
        msgspec.json.decode(content["code"], type=int)
        msgspec.json.decode(content["message"], type=str)
    except (KeyError, msgspec.DecodeError, RecursionError):
        return None
    return bytes(error)


def code_of(error: bytes) -> int:
    """Of an ``error`` object that ``error_in`` has found."""
    return int(msgspec.json.decode(error)["code"])


def error_answer(id: bytes, error: bytes) -> bytes:  # noqa: A002
    """That error under the raw id of the request that it is about: servers often answer with another, or none."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (id, error)
