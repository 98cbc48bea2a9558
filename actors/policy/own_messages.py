"""Messages that the gateway itself sends to an upstream, as one line each."""

from __future__ import annotations

import msgspec

from .eras import (
    GATEWAY_INFO,
    META_CLIENT_CAPABILITIES,
    META_CLIENT_INFO,
    META_VERSION,
    MODERN_VERSION,
)

_META: dict[str, object] = {
    META_VERSION: MODERN_VERSION,
    META_CLIENT_INFO: GATEWAY_INFO,
    META_CLIENT_CAPABILITIES: {},
}
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


def _request(id: bytes, method: str, params: dict[str, object] | None = None) -> bytes:  # noqa: A002
    tail = b"" if params is None else b',"params":' + msgspec.json.encode(params)
    return b'{"jsonrpc":"2.0","id":%b,"method":"%b"%b}' % (id, method.encode(), tail)


def initialize(id: bytes, version: str) -> bytes:  # noqa: A002
    """The handshake of a shared instance. Sampling, elicitation and roots could not be routed: not declared."""
    params: dict[str, object] = {"protocolVersion": version, "capabilities": {}, "clientInfo": GATEWAY_INFO}
    return _request(id, "initialize", params)


def probe(id: bytes, *, legacy: bool) -> bytes:  # noqa: A002
    """A request that any server answers at once, if only with an error."""
    if legacy:
        return _request(id, "ping")
    return _request(id, "server/discover", {"_meta": _META})


def list_tools(id: bytes) -> bytes:  # noqa: A002
    """The first page of a modern server's tools."""
    return _request(id, "tools/list", {"_meta": _META})


def cancelled(request_id: bytes, reason: str) -> bytes:
    """Nobody waits any more for the request of that raw id."""
    return b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%b,"reason":%b}}' % (
        request_id,
        msgspec.json.encode(reason),
    )


def set_level(id: bytes, level: str) -> bytes:  # noqa: A002
    return _request(id, "logging/setLevel", {"level": level})


def subscribe(id: bytes, uri: str) -> bytes:  # noqa: A002
    return _request(id, "resources/subscribe", {"uri": uri})


def unsubscribe(id: bytes, uri: str) -> bytes:  # noqa: A002
    return _request(id, "resources/unsubscribe", {"uri": uri})
