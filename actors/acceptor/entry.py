"""Who may come in: a connection's way from accepted to open.

    accepted → admitted by the limiter → (WebSocket) HTTP head → credential → granted by auth → open

Every question to a policy actor waits while that actor is down, up to the connection's own deadline; then the
connection is refused. It is never let in without an answer.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from actors.policy import jsonrpc
from actors.policy.origin import host_allowed, origin_allowed
from ipc.address import Reply
from ipc.errors import ActorDown
from ipc.messages import (
    Admit,
    Admitted,
    Authenticate,
    Grant,
    IssueTicket,
    Message,
    Refused,
    Released,
    Resync,
    Revoked,
    Ticket,
)

from . import http
from .connection import RETRY_MS, Connection, Stage, line
from .credential import ANONYMOUS, Credential, bearer, of_upgrade
from .http import Handshake, HttpError, Request
from .lines import LineReader
from .patience import Patience
from .ws import WsReceiver, encode_text

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

STATUS: Final = {
    "block": 403,
    "rate": 429,
    "limit": 503,
    "auth": 401,
    "unavailable": 503,
    "timeout": 408,
    "draining": 503,
}
"""The HTTP status, or the JSON-RPC code on TCP, of each reason to refuse a connection."""
REALM: Final = 'Bearer realm="portcullis"'


class Entry:
    """The part of the hub that lets connections in. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.settings = hub.settings
        self.limiter = Patience(hub.limiter, hub.post)
        self.auth = Patience(hub.context.address("auth"), hub.post)
        self.released: list[int] = []
        self.security = http.security_headers(hub.settings)
        # Beyond what all listeners may hold together, a connection isn't even kept waiting for an answer.
        self.most = hub.settings.ws_max_connections + hub.settings.tcp_max_connections + 256

    def start(self) -> None:
        self.limiter.start(on_up=self._resync)
        self.auth.start()

    def stop(self) -> None:
        self.limiter.stop()
        self.auth.stop()

    # --- admission -------------------------------------------------------------------------------------------

    def begin(self, connection: Connection, now: int) -> None:
        """A connection was accepted: ask the limiter for a place, and read its handshake meanwhile."""
        settings = self.settings
        if connection.listener == "tcp":
            connection.transport = "tcp"
            connection.encode = line
            connection.waiting_for = "limiter"
            connection.entry_deadline_ns = now + settings.auth_timeout_ms * 1_000_000
        else:
            connection.entry_deadline_ns = now + settings.handshake_timeout_ms * 1_000_000
        self.hub.deadlines.arm(connection)
        if self.hub.draining_until_ns:
            self.refuse(connection, Refused(reason="draining", retry_after_ms=RETRY_MS))
            return
        if len(self.hub.connections) > self.most:
            self.refuse(connection, Refused(reason="limit", retry_after_ms=RETRY_MS))
            return
        self._ask_admission(connection)

    def _ask_admission(self, connection: Connection) -> None:
        self.limiter.ask(
            Admit(self.hub.name, connection.session, connection.listener, connection.key),
            connection.entry_deadline_ns,
            functools.partial(self.hub.step, connection, self._admitted),
        )

    def recover(self, connection: Connection) -> None:
        """After a hub that crashed: ask again what it had asked for this connection. Its deadline stands."""
        waited, connection.waiting_for = connection.waiting_for, ""
        self.hub.deadlines.arm(connection)
        if connection.admitted is None:
            connection.waiting_for = "limiter" if connection.listener == "tcp" else ""
            self._ask_admission(connection)
        elif connection.login_id:
            self.hub.login.fail(connection, connection.login_id, ActorDown("auth", "acceptor restarted"))
        elif connection.transport == "http" and connection.request is not None:
            self._routed(connection, connection.request)
        elif waited and connection.stage is Stage.ENTRY:
            self._open_tcp(connection)

    def _admitted(self, connection: Connection, reply: Reply) -> None:
        admitted = isinstance(reply, Admitted)
        if connection.stage >= Stage.CLOSING:
            if admitted:
                self.released.append(connection.session)
            return
        if not admitted:
            self.refuse(connection, reply if isinstance(reply, Refused) else Refused(reason="unavailable"))
            return
        connection.admitted = True
        if connection.waiting_for == "limiter":
            connection.waiting_for = ""
        if connection.listener == "tcp":
            self._open_tcp(connection)
        elif connection.request is not None:
            self._routed(connection, connection.request)
        self.hub.dirty[connection.fd] = connection

    def _resync(self) -> None:
        """A new limiter must know every connection that it counts before it admits another one."""
        self.released.clear()
        live = [(c.session, c.listener, c.key) for c in self.hub.connections.values() if c.admitted]
        with contextlib.suppress(ActorDown):  # its next incarnation brings us here again
            self.hub.limiter.control(Resync(self.hub.name, live))

    def report(self, now: int) -> None:
        """Tell the limiter which connections ended, and answer questions that waited too long."""
        if self.released:
            released, self.released = self.released, []
            with contextlib.suppress(ActorDown):  # a new limiter is told by Resync, which no longer names them
                self.hub.limiter.control(Released(self.hub.name, released))
        self.hub.budget.report(now)
        self.limiter.expire(now)
        self.auth.expire(now)

    # --- refusals --------------------------------------------------------------------------------------------

    def refuse(self, connection: Connection, refused: Refused) -> None:
        """Answer in the language of the listener, and close."""
        status = STATUS.get(refused.reason, 503)
        self.hub.refused += 1
        self.hub.event(connection, "connection.refused", severity="warning", outcome="refused", reason=refused.reason)
        retry_ms = refused.retry_after_ms or (RETRY_MS if status in (429, 503) else 0)
        if connection.transport == "http":
            headers = [("WWW-Authenticate", REALM)] if status == 401 else []
            if retry_ms:
                headers.append(("Retry-After", str(-(-retry_ms // 1000))))
            self._problem(connection, status, _detail(refused), headers)
            return
        data: dict[str, object] = {"reason": _reason(refused)}
        if retry_ms:
            data["retryAfterMs"] = retry_ms
        connection.send_message(jsonrpc.error_reply(b"null", status, _detail(refused), data))
        self.hub.close(connection, {401: 3000, 403: 3003, 429: 1013, 503: 1013}.get(status, 1008), refused.reason)

    def _problem(
        self, connection: Connection, status: int, detail: str, headers: list[tuple[str, str]] | None = None
    ) -> None:
        connection.write(http.problem(status, detail, headers=[*self.security, *(headers or [])]))
        self.hub.finish(connection, f"http {status}")

    def timed_out(self, connection: Connection) -> None:
        """The connection's time to handshake or to authenticate is over."""
        if connection.waiting_for in ("limiter", "auth") or connection.admitted is None:
            self.refuse(connection, Refused(reason="unavailable", detail="policy actor down"))
        elif connection.transport == "http":
            self.refuse(connection, Refused(reason="timeout"))
        else:
            self.hub.event(connection, "connection.refused", severity="warning", outcome="refused", reason="timeout")
            connection.send_message(
                jsonrpc.error_reply(b"null", 401, "not authenticated in time", {"reason": "timeout"})
            )
            self.hub.close(connection, 3000, "not authenticated in time")

    # --- HTTP ------------------------------------------------------------------------------------------------

    def received(self, connection: Connection, data: bytes, _now: int) -> None:
        """Bytes on a connection that is not a WebSocket yet."""
        if connection.request is not None:
            # Only a client that doesn't wait for the 101 sends more. Keep it for the codec, within bounds.
            request = connection.request
            if len(request.rest) + len(data) > self.settings.max_preauth_size:
                self._problem(connection, 413, "too much data before the handshake was answered")
                return
            connection.request = http.with_rest(request, request.rest + data)
            return
        reader = connection.codec
        assert isinstance(reader, http.HeadReader)  # noqa: S101 - what transport "http" means
        try:
            request_ = reader.receive(data)
        except HttpError as error:
            self._bad_request(connection, error)
            return
        if request_ is not None:
            connection.request = request_
            if connection.admitted:
                self._routed(connection, request_)

    def _bad_request(self, connection: Connection, error: HttpError) -> None:
        self.hub.refused += 1
        reason = "auth" if error.status == 401 else "handshake"
        self.hub.event(
            connection,
            "auth.failed" if error.status == 401 else "connection.refused",
            severity="warning",
            outcome="refused",
            reason=reason,
            detail={"status": error.status},
        )
        headers = list(error.headers)
        if error.status == 401:
            headers.append(("WWW-Authenticate", REALM))
        self._problem(connection, error.status, error.detail, headers)

    def _routed(self, connection: Connection, request: Request) -> None:
        try:
            self._route(connection, request)
        except HttpError as error:
            self._bad_request(connection, error)

    def _route(self, connection: Connection, request: Request) -> None:
        if not host_allowed(request.get("host"), self.settings.allowed_hosts, self.settings.ws_host):
            self._forbidden(connection, "host", "this Host is not served here")
            return
        origin = request.get("origin")
        if origin is not None and not origin_allowed(origin, self.settings):
            self._forbidden(connection, "origin", "this Origin may not connect")
            return
        path = request.path
        if path in ("/", "/ws") or path.startswith("/ws/"):
            if request.method != "GET":
                raise HttpError(405, "a WebSocket begins with GET", headers=(("Allow", "GET"),))
            self._upgrade(connection, request)
        elif path == "/health":
            self._health(connection, request)
        elif path == "/auth/ticket":
            if request.method != "POST":
                raise HttpError(405, "a ticket is issued by POST", headers=(("Allow", "POST"),))
            self._ticket(connection, request)
        else:
            raise HttpError(404, "nothing is served at this path")

    def _forbidden(self, connection: Connection, reason: str, detail: str) -> None:
        self.hub.refused += 1
        self.hub.event(connection, "connection.refused", severity="warning", outcome="refused", reason=reason)
        self._problem(connection, 403, detail)

    def _health(self, connection: Connection, request: Request) -> None:
        if request.method not in ("GET", "HEAD"):
            raise HttpError(405, "health is read by GET", headers=(("Allow", "GET, HEAD"),))
        status = self.hub.status
        healthy = status.healthy if status is not None else "unhealthy"
        body = b'{"status":"%s"}' % healthy.encode()
        connection.write(
            http.response(
                503 if healthy == "unhealthy" else 200,
                [("Content-Type", "application/json"), *self.security],
                body,
                close=True,
                head_only=request.method == "HEAD",
            )
        )
        self.hub.finish(connection, "http")

    def _ticket(self, connection: Connection, request: Request) -> None:
        credential = bearer(request)
        if credential is ANONYMOUS and self.settings.ws_auth_enabled:
            raise HttpError(401, "a ticket is issued for a token")
        connection.waiting_for = "auth"
        self.auth.ask(
            IssueTicket(credential.value, connection.peer_ip),
            connection.entry_deadline_ns,
            functools.partial(self.hub.step, connection, self._ticket_issued),
        )

    def _ticket_issued(self, connection: Connection, reply: Reply) -> None:
        connection.waiting_for = ""
        if connection.stage >= Stage.CLOSING:
            return
        if not isinstance(reply, Ticket):
            self._not_granted(connection, reply)
            return
        body = b'{"ticket":"%s","expires_in":%d}' % (reply.ticket.encode(), reply.expires_in)
        connection.write(http.response(200, [("Content-Type", "application/json"), *self.security], body, close=True))
        self.hub.finish(connection, "http")

    # --- the upgrade -----------------------------------------------------------------------------------------

    def _upgrade(self, connection: Connection, request: Request) -> None:
        if not http.is_upgrade(request):
            raise HttpError(
                426, "this path is a WebSocket", headers=(("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
            )
        handshake = http.websocket_handshake(request)
        credential, subprotocol = of_upgrade(request, handshake)
        connection.subprotocol = subprotocol
        settings = self.settings
        if credential is ANONYMOUS and settings.ws_auth_enabled:
            if not settings.ws_first_message_auth:
                raise HttpError(401, "authentication is required")
            self._switch(connection, handshake)
            connection.stage = Stage.LOGIN
            self._await_login(connection)
            self._feed_rest(connection, request)
            return
        connection.entry_deadline_ns = self.hub.now + settings.auth_timeout_ms * 1_000_000
        self.authenticate(connection, credential, functools.partial(self._upgrade_decided, handshake=handshake))

    def _upgrade_decided(self, connection: Connection, reply: Reply, *, handshake: Handshake) -> None:
        connection.waiting_for = ""
        if connection.stage >= Stage.CLOSING:
            return
        if not isinstance(reply, Grant):
            self._not_granted(connection, reply)
            return
        request = connection.request
        assert request is not None  # noqa: S101 - it asked for the upgrade
        upstream = _upstream_of(request.path)
        if upstream and upstream not in self.hub.routes.names:
            self._problem(connection, 404, "no such server")
            return
        self._switch(connection, handshake)
        self.opened(connection, reply, upstream)
        self._feed_rest(connection, request)

    def _switch(self, connection: Connection, handshake: Handshake) -> None:
        connection.write(http.switching_protocols(handshake, connection.subprotocol))
        connection.transport = "ws"
        connection.encode = encode_text
        connection.codec = WsReceiver(max_message=self.settings.max_preauth_size)

    def _feed_rest(self, connection: Connection, request: Request) -> None:
        connection.request = None
        if request.rest and connection.stage < Stage.CLOSING:
            self.hub.dispatch.received(connection, request.rest, self.hub.now)

    # --- TCP -------------------------------------------------------------------------------------------------

    def _open_tcp(self, connection: Connection) -> None:
        if self.settings.tcp_auth_enabled:
            connection.stage = Stage.LOGIN
            return
        self.authenticate(connection, ANONYMOUS, self._anonymous_decided)

    def _anonymous_decided(self, connection: Connection, reply: Reply) -> None:
        connection.waiting_for = ""
        if connection.stage >= Stage.CLOSING:
            return
        if isinstance(reply, Grant):
            self.opened(connection, reply, "")
        else:
            self._not_granted(connection, reply)

    # --- authentication --------------------------------------------------------------------------------------

    def _await_login(self, connection: Connection) -> None:
        connection.entry_deadline_ns = self.hub.now + self.settings.auth_timeout_ms * 1_000_000
        self.hub.deadlines.by(connection, connection.entry_deadline_ns)

    def authenticate(self, connection: Connection, credential: Credential, decided: _Decided) -> None:
        """Ask auth; ``decided`` gets its answer. The connection takes no message meanwhile."""
        connection.waiting_for = "auth"
        deadline = max(connection.entry_deadline_ns, self.hub.now + self.settings.handshake_timeout_ms * 1_000_000)
        self.auth.ask(
            Authenticate(
                listener=connection.listener,
                scheme=credential.scheme,
                credential=credential.value,
                peer_ip=connection.peer_ip,
                session=connection.session,
            ),
            deadline,
            functools.partial(self.hub.step, connection, decided),
        )

    def _not_granted(self, connection: Connection, reply: Reply) -> None:
        self.refuse(connection, reply if isinstance(reply, Refused) else Refused(reason="unavailable"))

    def opened(self, connection: Connection, grant: Grant, upstream: str) -> None:
        """The connection bears a grant from now on."""
        connection.stage = Stage.OPEN
        connection.grant = grant
        self.hub.budget.join(grant.limit_keys)
        connection.entry_deadline_ns = 0
        connection.idle_since_ns = self.hub.now
        if isinstance(connection.codec, WsReceiver):
            connection.codec.max_message = self.settings.max_request_size
        elif isinstance(connection.codec, LineReader):
            connection.codec.max_line = self.settings.max_request_size
        self.hub.dispatch.attach(connection, upstream or self.hub.routes.default)
        self.hub.event(connection, "connection.opened")
        self.hub.deadlines.arm(connection)
        self.hub.dirty[connection.fd] = connection

    def delivered(self, message: Message) -> bool:
        """Revocations: the connections that bear such a grant end now."""
        if not isinstance(message, Revoked):
            return False
        over = set(message.sessions)
        for connection in list(self.hub.connections.values()):
            grant = connection.grant
            if grant is not None and (grant.session in over or grant.epoch < message.epoch):
                self.hub.step(connection, self.hub.close, 3000, "revoked")
        return True

    def expired(self, connection: Connection) -> bool:
        """Whether the connection's grant has run out (the leeway included, as auth computed it)."""
        grant = connection.grant
        return grant is not None and bool(grant.expires_at_ms) and time.time() * 1000 >= grant.expires_at_ms


def _reason(refused: Refused) -> str:
    return "policy actor down" if refused.reason == "unavailable" else refused.reason


def _detail(refused: Refused) -> str:
    return refused.detail or {
        "block": "this address is blocked",
        "rate": "too many connections in a short time",
        "limit": "too many connections",
        "auth": "authentication failed",
        "timeout": "the request did not arrive in time",
        "draining": "the gateway is shutting down",
    }.get(refused.reason, "not available now")


def _upstream_of(path: str) -> str:
    """``/ws/NAME`` (percent-encoded, RFC 3986 §2.1) chooses a server; ``/`` and ``/ws`` take the default one."""
    return unquote(path.removeprefix("/ws/")) if path.startswith("/ws/") else ""


if TYPE_CHECKING:
    from collections.abc import Callable

    _Decided = Callable[[Connection, Reply], None]
