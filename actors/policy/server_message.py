"""Messages of an upstream: what a multiplexer needs to know of them, and nothing more.

An upstream is as hostile as a client, but its messages are delivered to one client at most, unchanged; so the check
is only that each is one well-formed message whose id and tokens can be read in one way.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from .eras import META_SUBSCRIPTION
from .members import DuplicateKey, Span, decode_object, is_error_object, is_utf8, locate, text_of

_RAW = msgspec.json.Decoder(msgspec.Raw)
_PLAIN_ID = rb'(-?(?:0|[1-9][0-9]{0,18})|"[A-Za-z0-9_.:/+=-]{0,128}")'
_ID_FIRST = re.compile(rb'\{"jsonrpc": ?"2\.0", ?"id": ?' + _PLAIN_ID + rb', ?"(result|error)": ?')
_BODY_FIRST = re.compile(rb'\{"(result|error)": ?')
_ID_LAST = re.compile(rb', ?"jsonrpc": ?"2\.0", ?"id": ?' + _PLAIN_ID + rb"\}\Z")
_SUBSCRIPTION = META_SUBSCRIPTION.encode()
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*+)\Z")


class UpstreamMessage(msgspec.Struct, frozen=True, gc=False):
    """Raw JSON bytes of values, ``b""`` when absent, and where each starts in the message, -1 when absent."""

    kind: Literal["response", "request", "notification"]
    id: bytes = b""
    id_at: int = -1
    method: str = ""
    error: bool = False  # a response that is an error
    progress: bytes = b""  # notifications/progress: params.progressToken
    progress_at: int = -1
    subscription: bytes = b""  # _meta's subscription id, of params or of a result
    subscription_at: int = -1
    target: bytes = b""  # notifications/cancelled: params.requestId
    target_at: int = -1
    uri: str = ""  # notifications/resources/updated
    level: str = ""  # notifications/message


def parse_upstream(raw: bytes) -> UpstreamMessage:
    """Read one message of an upstream.

    Raises:
        ValueError: it isn't one well-formed JSON-RPC message.
    """
    if not is_utf8(raw):
        raise ValueError("not UTF-8")
    try:
        return _plain_response(raw) or _any_message(raw)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except DuplicateKey:
        raise ValueError("a member comes twice") from None


def _plain_response(raw: bytes) -> UpstreamMessage | None:
    """A response in one of the usual layouts; None: look closer. Its body fills all that the patterns leave."""
    head = _ID_FIRST.match(raw)
    if head is not None:
        id_raw, body = head.groups()
        id_at = head.start(1)
        end = len(raw) - 1
        if raw[end] != 0x7D:
            return None
    else:
        head = _BODY_FIRST.match(raw)
        if head is None:
            return None
        end = raw.rfind(b'"jsonrpc"') - 1
        if end > 0 and raw[end] == 0x20:
            end -= 1
        tail = _ID_LAST.match(raw, end) if end > 0 else None
        if tail is None:
            return None
        body = head[1]
        id_raw = tail[1]
        id_at = tail.start(1)
    if _SUBSCRIPTION in raw:
        return None
    value = memoryview(raw)[head.end() : end]
    try:
        _RAW.decode(value)
        if body == b"error" and not is_error_object(value):
            return None
    except msgspec.DecodeError:
        return None
    return UpstreamMessage("response", id_raw, id_at, error=body == b"error")


def _any_message(raw: bytes) -> UpstreamMessage:
    members = decode_object(raw)
    spans = locate(raw, 0, len(raw), members)
    if "jsonrpc" not in members or text_of(members["jsonrpc"]) != "2.0":
        raise ValueError("not JSON-RPC 2.0")
    id_raw = bytes(members["id"]) if "id" in members else b""
    id_at = spans["id"][0] if "id" in members else -1
    if "method" not in members:
        error = "error" in members
        if not id_raw or error == ("result" in members):
            raise ValueError("neither a request nor a response")
        if error and not is_error_object(members["error"]):
            raise ValueError("its error is no error object")
        subscription, subscription_at = _subscription(raw, spans.get("result"))
        return UpstreamMessage(
            "response", id_raw, id_at, error=error, subscription=subscription, subscription_at=subscription_at
        )
    method = text_of(members["method"])
    if method is None:
        raise ValueError("the method is no string")
    if id_raw:
        if id_raw[:1] != b'"' and _INTEGER.match(id_raw) is None:
            raise ValueError("a request whose id is neither a string nor an integer")
        return UpstreamMessage("request", id_raw, id_at, method)
    return _notification(raw, method, spans.get("params"))


def _notification(raw: bytes, method: str, span: Span | None) -> UpstreamMessage:
    if span is None or raw[span[0]] != 0x7B:
        return UpstreamMessage("notification", method=method)
    at, end = span
    params = decode_object(memoryview(raw)[at:end])
    spans = locate(raw, at, end, params)
    progress = target = b""
    progress_at = target_at = -1
    uri = level = ""
    if method == "notifications/progress" and "progressToken" in params:
        progress = bytes(params["progressToken"])
        progress_at = spans["progressToken"][0]
    elif method == "notifications/cancelled" and "requestId" in params:
        target = bytes(params["requestId"])
        target_at = spans["requestId"][0]
    elif method == "notifications/resources/updated" and "uri" in params:
        uri = text_of(params["uri"]) or ""
    elif method == "notifications/message" and "level" in params:
        level = text_of(params["level"]) or ""
    subscription, subscription_at = _subscription_in(raw, spans.get("_meta"))
    return UpstreamMessage(
        "notification",
        method=method,
        progress=progress,
        progress_at=progress_at,
        subscription=subscription,
        subscription_at=subscription_at,
        target=target,
        target_at=target_at,
        uri=uri,
        level=level,
    )


def _subscription(raw: bytes, result: Span | None) -> tuple[bytes, int]:
    """The subscription id of a result. Only its plain spelling is looked for: a result may be large."""
    if result is None or raw[result[0]] != 0x7B or raw.find(_SUBSCRIPTION, *result) < 0:
        return b"", -1
    at, end = result
    return _subscription_in(raw, locate(raw, at, end, decode_object(memoryview(raw)[at:end])).get("_meta"))


def _subscription_in(raw: bytes, meta: Span | None) -> tuple[bytes, int]:
    if meta is None or raw[meta[0]] != 0x7B:
        return b"", -1
    at, end = meta
    entries = decode_object(memoryview(raw)[at:end])
    if META_SUBSCRIPTION not in entries:
        return b"", -1
    return bytes(entries[META_SUBSCRIPTION]), locate(raw, at, end, entries)[META_SUBSCRIPTION][0]


def negotiated_version(raw: bytes) -> str | None:
    """The protocol version in a well-formed answer to ``initialize``; None when it names none."""
    try:
        result = decode_object(decode_object(raw)["result"])
        return text_of(result["protocolVersion"])
    except (KeyError, msgspec.ValidationError):
        return None
