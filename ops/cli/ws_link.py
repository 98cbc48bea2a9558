"""The client's side of a WebSocket to a gateway, and how an upgrade that was refused is explained."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

import attrs
import msgspec
import trio
import trio_websocket
import wsproto.utilities

from .failure import LinkClosed, Refused, Unreachable, UsageError
from .link import CLOSE_GRACE, MAX_MESSAGE

SUBPROTOCOL: Final = "mcp"


def websocket_url(url: str, server: str = "") -> str:
    """The URL to connect to; ``server`` chooses one of the gateway's servers by its path (``/ws/NAME``).

    Raises UsageError for what is not a WebSocket URL, or names a server twice.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--url: {error}") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise UsageError("--url: a WebSocket URL is needed, like ws://127.0.0.1:3002")
    if parts.username is not None or parts.fragment:
        raise UsageError("--url: neither a user name nor a fragment can be part of it; the token has its own option")
    if port == 0:
        raise UsageError("--url: port 0 is no port to connect to")
    path = parts.path or "/"
    if server:
        if path.rstrip("/") not in ("", "/ws"):
            raise UsageError("--server: the URL's path already names a server")
        path = f"/ws/{quote(server, safe='')}"
    return urlunsplit(parts._replace(path=path))


def shown(url: str) -> str:
    """The URL without its query, which may hold a ticket."""
    parts: SplitResult = urlsplit(url)
    return urlunsplit(parts._replace(query="", fragment=""))


@attrs.frozen
class WebSocketLink:
    peer: str
    _connection: trio_websocket.WebSocketConnection

    async def send(self, message: bytes) -> None:
        try:
            await self._connection.send_message(message.decode())
        except trio_websocket.ConnectionClosed as closed:
            raise _explained(closed.reason) from None

    async def receive(self) -> bytes:
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as closed:
            raise _explained(closed.reason) from None
        if isinstance(message, bytes):
            raise LinkClosed(1003, "a binary message came, which no JSON-RPC peer sends")
        return message.encode()


@asynccontextmanager
async def open_ws(
    url: str, token: str = "", *, within: float = 10.0, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[WebSocketLink]:
    """Connect and upgrade; ``within`` in seconds is for both together.

    Raises Refused when the gateway answers the upgrade with anything but a switch of protocols, and Unreachable when
    it doesn't answer it at all.
    """
    peer = shown(url)
    headers = [(b"authorization", b"Bearer " + token.encode("ascii"))] if token else []
    opening = trio_websocket.open_websocket_url(
        url,
        ssl_context,
        subprotocols=[SUBPROTOCOL],
        extra_headers=headers,
        # Some room, so that a slow reader of answers doesn't keep pings waiting.
        message_queue_size=64,
        max_message_size=MAX_MESSAGE,
        receive_buffer_size=65536,
        connect_timeout=within,
        disconnect_timeout=CLOSE_GRACE,
    )
    try:
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(opening)
            except trio_websocket.ConnectionRejected as rejection:
                raise Refused(f"{peer}: {_refusal(rejection)}") from None
            except trio_websocket.ConnectionTimeout:
                raise Unreachable(f"{peer}: no WebSocket handshake within {within:g} s") from None
            except trio_websocket.HandshakeError as error:
                raise Unreachable(f"{peer}: {error.__cause__ or error or 'the handshake failed'}") from None
            except (OSError, ValueError, wsproto.utilities.ProtocolError, trio.BrokenResourceError) as error:
                # ValueError: an answer that isn't ASCII makes the library raise UnicodeDecodeError.
                raise Unreachable(f"{peer}: {error or 'it does not answer like a WebSocket server'}") from None
            if connection.closed is not None:
                raise Unreachable(f"{peer}: the connection ended during the handshake")
            yield WebSocketLink(peer, connection)
    except trio_websocket.DisconnectionTimeout:
        return  # CLOSE_GRACE: everything that was asked for has been done


def _explained(reason: trio_websocket.CloseReason | None) -> LinkClosed:
    if reason is None:
        return LinkClosed(1006, "the connection broke")
    if reason.code == 1006:
        return LinkClosed(1006, "the connection broke without a closing handshake")
    return LinkClosed(reason.code, reason.reason or reason.name.replace("_", " ").lower())


def _refusal(rejection: trio_websocket.ConnectionRejected) -> str:
    """What an HTTP answer to the upgrade means, in words; problem documents (RFC 9457) speak for themselves."""
    words = {
        401: "unauthenticated: a token is needed, or the one given is not valid",
        403: "forbidden: this address or origin is not welcome",
        404: "not found: there is no such server",
        429: "rate limited",
        503: "unavailable",
    }.get(rejection.status_code, "the upgrade to WebSocket was refused")
    retry = dict(rejection.headers).get(b"retry-after", b"")
    try:
        problem = msgspec.json.decode(rejection.body or b"{}", type=_Problem)
    except (msgspec.DecodeError, RecursionError):
        problem = _Problem()
    detail = problem.detail or problem.title
    return (
        f"HTTP {rejection.status_code}, {words}"
        + (f" ({detail[:200]})" if detail else "")
        + (f"; try again in {retry.decode()} s" if retry.isdigit() else "")
    )


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""
