"""The client's side of a WebSocket to a gateway, and how an upgrade that was refused is explained."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

import attrs
import h11
import msgspec
import trio
import trio_websocket
import wsproto.utilities

from .failure import ClientFailure, LinkClosed, Refused, Unreachable, UsageError
from .link import CLOSE_GRACE, MAX_MESSAGE
from .trust import alerted, secure

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


class _EarlyEnd(ConnectionError):
    """The peer hung up before the handshake was done."""


@attrs.define(eq=False)
class _Handshaking(trio.abc.Stream):
    """The stream below a WebSocket, which says so when it ends during the handshake.

    trio-websocket only waits for the handshake's end; a peer that hangs up instead would be waited for in vain.
    """

    _stream: trio.abc.Stream
    done: bool = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError as error:
            if self.done:
                raise
            raise _EarlyEnd(f"the connection ended during the handshake{alerted(error)}") from None
        if not data and not self.done:
            raise _EarlyEnd("the connection ended during the handshake")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            if self.done:
                raise
            raise _EarlyEnd("the connection ended during the handshake") from None

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


@asynccontextmanager
async def open_ws(
    url: str, token: str = "", *, within: float = 10.0, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[WebSocketLink]:
    """Connect and upgrade; ``within`` in seconds is for both together.

    Raises Refused when the gateway answers the upgrade with anything but a switch of protocols, and Unreachable when
    it doesn't answer it at all. ClientFailure of the body comes through as it is, not in a group.
    """
    peer = shown(url)
    failure: ClientFailure | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(within):
                    connection = await _upgrade(nursery, urlsplit(url), token, ssl_context)
            except trio.TooSlowError:
                failure = Unreachable(f"{peer}: no WebSocket handshake within {within:g} s")
            except OSError as error:
                failure = Unreachable(f"{peer}: {error.strerror or error}")
            else:
                try:
                    yield WebSocketLink(peer, connection)
                except ClientFailure as error:
                    failure = error
                with trio.move_on_after(CLOSE_GRACE):
                    await connection.aclose()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # From the library's reading task. ValueError: a handshake that isn't ASCII makes it raise UnicodeDecodeError.
        wire_errors = (h11.ProtocolError, wsproto.utilities.ProtocolError, ValueError, _EarlyEnd)
        of_the_peer, others = group.split((trio_websocket.ConnectionRejected, *wire_errors))
        if of_the_peer is None or others is not None:
            raise
        raise _whose_fault(peer, of_the_peer) from None
    if failure is not None:
        raise failure


async def _upgrade(
    nursery: trio.Nursery, url: SplitResult, token: str, ssl_context: ssl.SSLContext | None
) -> trio_websocket.WebSocketConnection:
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "wss" else 80)
    stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
    if url.scheme == "wss":
        stream = await secure(stream, ssl_context or ssl.create_default_context(), host)
    watched = _Handshaking(stream)
    connection = await trio_websocket.wrap_client_stream(
        nursery,
        cast("trio.SocketStream", watched),  # all that it uses of one is trio.abc.Stream
        url.netloc,
        urlunsplit(("", "", url.path or "/", url.query, "")),
        subprotocols=[SUBPROTOCOL],
        extra_headers=[(b"authorization", b"Bearer " + token.encode("ascii"))] if token else [],
        # Some room, so that a slow reader of answers doesn't keep pings waiting.
        message_queue_size=64,
        max_message_size=MAX_MESSAGE,
        receive_buffer_size=65536,
    )
    watched.done = True
    return connection


def _whose_fault(peer: str, group: BaseExceptionGroup[BaseException]) -> ClientFailure:
    cause = group.exceptions[0]
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, trio_websocket.ConnectionRejected):
        return Refused(f"{peer}: {_refusal(cause)}")
    if isinstance(cause, _EarlyEnd):
        return Unreachable(f"{peer}: {cause}")
    return Unreachable(f"{peer}: it does not speak WebSocket")


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
