"""JSON-RPC 2.0 as this server speaks it: one message a line, ids kept as the bytes in which they came."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

NULL = msgspec.Raw(b"null")

# MCP: an id is a string or an integer, never null (2026-07-28 basic §Requests); so is a progress token.
_TOKEN = re.compile(rb'\s*(?:"(?s:.*)"|-?[0-9]{1,64})\s*', re.ASCII)


class RpcError(Exception):
    """An error that is the answer to a request."""

    def __init__(self, code: int, message: str, data: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Malformed(Exception):
    """Not a JSON-RPC message. ``answer`` is the line to send, or None where a notification or response was meant."""

    def __init__(self, answer: bytes | None) -> None:
        super().__init__("not a JSON-RPC message")
        self.answer = answer


class Incoming(msgspec.Struct, frozen=True):
    """A request (``id`` set) or a notification; ``params`` is empty where it was left out."""

    method: str
    id: msgspec.Raw | None
    params: dict[str, Any]
    progress_token: msgspec.Raw | None
    target: msgspec.Raw | None  # notifications/cancelled: the raw params.requestId


class _RawMeta(msgspec.Struct):
    progressToken: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815 - MCP's name


class _RawParams(msgspec.Struct):
    requestId: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815 - MCP's name
    meta: _RawMeta | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="_meta")


class _Wire(msgspec.Struct):
    jsonrpc: Literal["2.0"]
    method: str | msgspec.UnsetType = msgspec.UNSET
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_wire = msgspec.json.Decoder(_Wire)
_raw_params = msgspec.json.Decoder(_RawParams)
_object = msgspec.json.Decoder(dict[str, Any])
_anything = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


def parse(line: bytes) -> Incoming | None:
    """Read one line. None for a response: this server asks its client nothing, so nothing waits for it.

    Raises Malformed.
    """
    try:
        line.decode()
        wire = _wire.decode(line)
    except (msgspec.ValidationError, RecursionError):
        raise Malformed(error(NULL, INVALID_REQUEST, "not a JSON-RPC 2.0 message")) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed(error(NULL, PARSE_ERROR, "not JSON")) from None
    if wire.method is msgspec.UNSET:
        if wire.result is not msgspec.UNSET or wire.error is not msgspec.UNSET:
            return None
        raise Malformed(error(NULL, INVALID_REQUEST, "neither a request nor a notification"))
    identity = None if wire.id is msgspec.UNSET else wire.id
    if identity is not None and not _TOKEN.fullmatch(identity):
        raise Malformed(error(NULL, INVALID_REQUEST, "an id is a string or an integer"))
    params: dict[str, Any] = {}
    named = _RawParams()
    if wire.params is not msgspec.UNSET:
        try:
            params = _object.decode(wire.params)
            named = _raw_params.decode(wire.params)
        except (msgspec.DecodeError, RecursionError):
            raise Malformed(_refuse_params(identity, wire.params)) from None
    token = None
    if named.meta is not msgspec.UNSET and named.meta.progressToken is not msgspec.UNSET:
        token = named.meta.progressToken
        if not _TOKEN.fullmatch(token):
            raise Malformed(identity and error(identity, INVALID_PARAMS, "a progress token is a string or an integer"))
    target = None if named.requestId is msgspec.UNSET else named.requestId
    return Incoming(wire.method, identity, params, token, target)


def _refuse_params(identity: msgspec.Raw | None, params: msgspec.Raw) -> bytes | None:
    if identity is None:
        return None
    try:
        _anything.decode(params)
    except RecursionError:
        return error(identity, INVALID_REQUEST, "nested too deeply")
    except msgspec.DecodeError:
        return error(NULL, PARSE_ERROR, "not JSON")
    return error(identity, INVALID_PARAMS, "params is an object")


def result(identity: msgspec.Raw, value: Mapping[str, object]) -> bytes:
    """The answer to a request, without a newline."""
    return _encoder.encode({"jsonrpc": "2.0", "id": identity, "result": value})


def error(identity: msgspec.Raw, code: int, message: str, data: Mapping[str, object] | None = None) -> bytes:
    """The refusal of a request, without a newline."""
    body: dict[str, object] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return _encoder.encode({"jsonrpc": "2.0", "id": identity, "error": body})


def notification(method: str, params: Mapping[str, object]) -> bytes:
    """A one-way message, without a newline."""
    return _encoder.encode({"jsonrpc": "2.0", "method": method, "params": params})
