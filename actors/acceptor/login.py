"""Authentication by message: ``authenticate``, and what else a connection may say before it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import msgspec

from actors.policy import eras, jsonrpc
from ipc.address import Reply
from ipc.messages import Done, Envelope, Grant, Logout, Message, RefreshSession, Refused, TokenSet

from .auth_endpoints import answer_of
from .connection import RETRY_MS, Connection, Item, Stage
from .credential import ANONYMOUS, Credential, of_certificate

if TYPE_CHECKING:
    from .hub import Hub

STRANGERS: Final = 8  # messages before authentication that may not be sent then, until the connection is closed
INTRODUCTIONS: Final = 32  # and those that may: a handshake and some pings, not a flood
_ANSWERED: Final = frozenset({"initialize", "server/discover", "ping"})
# Of one connection, that succeed: they cost its budget nothing, but auth and the audit log something. Those that fail
# are held against it as it is, and are told that they failed.
LOGINS_A_SECOND: Final = 10


class _Refresh(msgspec.Struct):
    refresh_token: str


class _RefreshRequest(msgspec.Struct):
    params: _Refresh


_refresh_decoder = msgspec.json.Decoder(_RefreshRequest)


class _Authenticate(msgspec.Struct):
    token: str | None = None  # it may be left out by the bearer of a client certificate, to choose a server
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
        if connection.strangers >= 2:
            self.hub.offence(connection, "auth")
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
        if self._too_many(connection):
            data: dict[str, object] = {"retryAfterMs": RETRY_MS}
            connection.send_message(jsonrpc.error_reply(envelope.id, 429, "too many attempts to authenticate", data))
            self.hub.event(connection, "rate.limited", severity="warning", outcome="refused", reason="authenticate")
            self.hub.offence(connection, "rate")
            return
        try:
            params = _login_decoder.decode(item.raw).params
            credential = Credential("token", params.token) if params.token is not None else of_certificate(connection)
            if credential is ANONYMOUS:
                raise msgspec.ValidationError("neither a token nor a certificate")
        except msgspec.DecodeError:
            connection.send_message(jsonrpc.error_reply(envelope.id, -32602, "params must hold a token"))
            self._stranger(connection)
            return
        connection.login_id = envelope.id
        decided = functools.partial(self._decided, id=envelope.id, server=params.server)
        self.hub.entry.authenticate(connection, credential, decided)

    def _decided(self, connection: Connection, reply: Reply, *, id: bytes, server: str) -> None:  # noqa: A002
        connection.waiting_for = ""
        connection.login_id = b""
        if connection.stage >= Stage.CLOSING:
            return
        connection.second_logins += isinstance(reply, Grant)
        if not isinstance(reply, Grant):
            self.fail(connection, id, reply)
        elif self.hub.blocklist.refuses_principal(reply):
            data: dict[str, object] = {"reason": "block"}
            connection.send_message(jsonrpc.error_reply(id, 403, "this principal is blocked", data))
            self.hub.event(connection, "connection.refused", severity="warning", outcome="refused", reason="block")
            self.hub.close(connection, 3003, "this principal is blocked")
            return
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
                connection.authenticated = connection.presented
                self.hub.budget.join(reply.limit_keys)
                self.hub.entry.granted(connection)
                self.hub.deadlines.arm(connection)
                if server and server != connection.upstream:
                    self.hub.dispatch.change_upstream(connection, server)
            else:
                self.hub.entry.opened(connection, reply, server)
        self.hub.dispatch.resume(connection)

    def _too_many(self, connection: Connection) -> bool:
        if self.hub.now - connection.login_second_ns >= 1_000_000_000:
            connection.login_second_ns = self.hub.now
            connection.second_logins = 0
        return connection.second_logins >= LOGINS_A_SECOND

    def not_forwarded(self, connection: Connection, item: Item, envelope: Envelope) -> None:
        """A method of ours as a notification, or misspelt: it may hold a credential, which is no server's business."""
        if envelope.kind == "request":
            self.hub.dispatch.refuse(connection, item, -32601, "no such method; the gateway's are in lower case")
        self.hub.event(
            connection,
            "message.invalid",
            severity="warning",
            outcome="refused",
            reason="a method of the gateway's own, misspelt" if envelope.kind == "request" else "a request needs an id",
        )

    def session_method(self, connection: Connection, item: Item, envelope: Envelope) -> None:
        """``auth/refresh`` and ``auth/logout``. Later messages wait until it is decided."""
        grant = connection.grant
        assert grant is not None  # noqa: S101 - only an open connection comes here
        if envelope.method == "auth/logout":
            question: Message = Logout(grant.family, grant.tokens, grant.expires_at_ms)
            decided = functools.partial(self._logged_out, id=envelope.id)
        else:
            try:
                token = _refresh_decoder.decode(item.raw).params.refresh_token
            except msgspec.DecodeError:
                detail = "params must hold a refresh_token"
                connection.send_message(jsonrpc.error_reply(envelope.id, -32602, detail))
                return
            question = RefreshSession(token, connection.peer_ip)
            decided = functools.partial(self._refreshed, id=envelope.id)
        connection.login_id = envelope.id
        connection.waiting_for = "auth"
        connection.revocations_seen = self.hub.revocation.seen
        deadline = self.hub.now + self.hub.settings.auth_timeout_ms * 1_000_000
        self.hub.entry.auth.ask(question, deadline, functools.partial(self.hub.step, connection, decided))

    def _refreshed(self, connection: Connection, reply: Reply, *, id: bytes) -> None:  # noqa: A002
        connection.waiting_for = ""
        connection.login_id = b""
        grant = connection.grant
        if connection.stage >= Stage.CLOSING or grant is None:
            return
        if isinstance(reply, TokenSet):
            connection.send_message(jsonrpc.result_reply(id, answer_of(reply)))
            # The connection goes on with the new token's time where it is the same session's.
            if reply.grant.family == grant.family and 0 < grant.expires_at_ms < reply.grant.expires_at_ms:
                self.hub.budget.leave(grant.limit_keys)
                connection.grant = reply.grant
                self.hub.budget.join(reply.grant.limit_keys)
                self.hub.entry.granted(connection)
                self.hub.deadlines.arm(connection)
        else:
            if isinstance(reply, Refused) and reply.reason == "auth":
                self.hub.offence(connection, "auth")
            self._refuse(connection, id, reply)
        self.hub.dispatch.resume(connection)

    def _logged_out(self, connection: Connection, reply: Reply, *, id: bytes) -> None:  # noqa: A002
        connection.waiting_for = ""
        connection.login_id = b""
        if connection.stage >= Stage.CLOSING:
            return
        if isinstance(reply, Done):
            connection.send_message(jsonrpc.result_reply(id, {"loggedOut": True}))
            self.hub.close(connection, 3000, "logged out")
            return
        self._refuse(connection, id, reply)
        self.hub.dispatch.resume(connection)

    def _refuse(self, connection: Connection, request_id: bytes, reply: Reply) -> None:
        """Answer a question about a session that auth refused or could not answer."""
        refused = reply if isinstance(reply, Refused) else Refused("policy actor down")
        code = {"auth": 401, "block": 403, "unsupported": 501}.get(refused.reason, 503)
        data: dict[str, object] = {"reason": refused.reason}
        if code == 503:
            data["retryAfterMs"] = refused.retry_after_ms or RETRY_MS
        message = refused.detail or "sessions are not available"
        connection.send_message(jsonrpc.error_reply(request_id, code, message, data))

    def fail(self, connection: Connection, request_id: bytes, reply: Reply) -> None:
        """Answer an ``authenticate`` that brought no grant."""
        connection.login_id = b""
        if not isinstance(reply, Refused) or reply.reason == "unavailable":
            known = isinstance(reply, Refused) and bool(reply.detail)
            reason = "keys unavailable" if known else "policy actor down"
            data: dict[str, object] = {"reason": reason, "retryAfterMs": RETRY_MS}
            connection.send_message(jsonrpc.error_reply(request_id, 503, "authentication is not available", data))
            return
        if reply.reason == "block":
            said: dict[str, object] = {"reason": "block"}
            connection.send_message(jsonrpc.error_reply(request_id, 403, reply.detail, said))
            self.hub.event(connection, "connection.refused", severity="warning", outcome="refused", reason="block")
            self.hub.close(connection, 3003, reply.detail)
            return
        connection.failed_logins += 1
        if reply.reason == "auth":
            self.hub.offence(connection, "auth")
        connection.send_message(jsonrpc.error_reply(request_id, 401, "authentication failed"))
        # What nobody has to authenticate for is not for those who tried and failed: they are not anonymous.
        nameless = connection.stage is Stage.OPEN and not connection.authenticated
        if nameless or connection.failed_logins >= self.hub.settings.max_failed_attempts:
            self.hub.close(connection, 3000, "authentication failed")
