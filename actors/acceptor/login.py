"""Authentication by message: ``authenticate``, and what else a connection may say before it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import msgspec

from actors.policy import eras, jsonrpc
from ipc.address import Reply
from ipc.messages import Envelope, Grant, Refused

from .connection import RETRY_MS, Connection, Item, Stage
from .credential import Credential

if TYPE_CHECKING:
    from .hub import Hub

STRANGERS: Final = 8  # messages before authentication that may not be sent then, until the connection is closed
INTRODUCTIONS: Final = 32  # and those that may: a handshake and some pings, not a flood
_ANSWERED: Final = frozenset({"initialize", "server/discover", "ping"})


class _Authenticate(msgspec.Struct):
    token: str
    server: str = ""


class _Login(msgspec.Struct):
    params: _Authenticate


_login_decoder = msgspec.json.Decoder(_Login)


class Login:
    """The part of the hub that lets a connection authenticate by message. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def turned_away(self, connection: Connection) -> bool:
        """Whether a connection that isn't authenticated has said too much; it is closed then."""
        if connection.introductions <= INTRODUCTIONS:
            return False
        connection.send_message(jsonrpc.error_reply(b"null", 401, "authenticate first"))
        self.hub.close(connection, 3000, "not authenticated")
        return True

    def before(self, connection: Connection, item: Item) -> None:
        """A message of a connection that is not authenticated."""
        envelope = item.envelope
        if envelope is None:
            self.hub.dispatch.invalid(connection, item)
            self._stranger(connection)
            return
        if envelope.kind == "request":
            if envelope.method == "authenticate":
                self.authenticate(connection, item, envelope)
            elif envelope.method in _ANSWERED:
                self._introduce(connection, envelope)
            else:
                connection.send_message(jsonrpc.error_reply(envelope.id, 401, "authenticate first"))
                self._stranger(connection)
        elif not (envelope.kind == "notification" and envelope.method == "notifications/initialized"):
            self._stranger(connection)

    def _stranger(self, connection: Connection) -> None:
        """Once may be a mistake; a connection that goes on is noted, and closed in the end."""
        connection.strangers += 1
        if connection.strangers == 2:
            self.hub.event(connection, "auth.failed", severity="warning", outcome="refused", reason="not authenticated")
        if connection.strangers >= STRANGERS:
            self.hub.close(connection, 3000, "not authenticated")

    def _introduce(self, connection: Connection, envelope: Envelope) -> None:
        """The gateway's own minimal answers: they say nothing of the servers behind it."""
        if envelope.method == "ping":
            result: dict[str, object] = {}
        elif envelope.method == "initialize":
            connection.early_version = eras.legacy_version(envelope.version)
            result = eras.own_initialize_result(connection.early_version)
        else:
            result = eras.own_discover_result()
        connection.send_message(jsonrpc.result_reply(envelope.id, result))

    def authenticate(self, connection: Connection, item: Item, envelope: Envelope) -> None:
        """The method ``authenticate``, on an open connection too. Later messages wait until it is decided."""
        try:
            params = _login_decoder.decode(item.raw).params
        except msgspec.DecodeError:
            connection.send_message(jsonrpc.error_reply(envelope.id, -32602, "params must hold a token"))
            self._stranger(connection)
            return
        connection.login_id = envelope.id
        decided = functools.partial(self._decided, id=envelope.id, server=params.server)
        self.hub.entry.authenticate(connection, Credential("token", params.token), decided)

    def _decided(self, connection: Connection, reply: Reply, *, id: bytes, server: str) -> None:  # noqa: A002
        connection.waiting_for = ""
        connection.login_id = b""
        if connection.stage >= Stage.CLOSING:
            return
        if not isinstance(reply, Grant):
            self.fail(connection, id, reply)
        elif server and server not in self.hub.routes.names:
            connection.send_message(jsonrpc.error_reply(id, -32602, "no such server", {"server": server[:128]}))
        elif server and connection.forwarded and server != connection.upstream:
            connection.send_message(jsonrpc.error_reply(id, -32602, "this connection uses another server already"))
        else:
            result: dict[str, object] = {
                "authenticated": True,
                "principal": reply.principal or None,
                "session": reply.session,
                "expiresAt": reply.expires_at_ms or None,
            }
            connection.send_message(jsonrpc.result_reply(id, result))
            if connection.stage is Stage.OPEN:
                if connection.grant is not None:
                    self.hub.budget.leave(connection.grant.limit_keys)
                connection.grant = reply
                self.hub.budget.join(reply.limit_keys)
                if server and server != connection.upstream:
                    self.hub.dispatch.change_upstream(connection, server)
            else:
                self.hub.entry.opened(connection, reply, server)
        self.hub.dispatch.resume(connection)

    def fail(self, connection: Connection, request_id: bytes, reply: Reply) -> None:
        """Answer an ``authenticate`` that brought no grant."""
        connection.login_id = b""
        if not isinstance(reply, Refused):
            data: dict[str, object] = {"reason": "policy actor down", "retryAfterMs": RETRY_MS}
            connection.send_message(jsonrpc.error_reply(request_id, 503, "authentication is not available", data))
            return
        connection.failed_logins += 1
        connection.send_message(jsonrpc.error_reply(request_id, 401, "authentication failed"))
        if connection.failed_logins >= self.hub.settings.max_failed_attempts:
            self.hub.close(connection, 3000, "authentication failed")
