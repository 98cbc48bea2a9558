"""Who may come in: a connection's way from accepted to open.

    accepted → admitted by the limiter → (WebSocket) HTTP head → credential → granted by auth → open

Every question to a policy actor waits while that actor is down, up to the connection's own deadline; then the
connection is refused. It is never let in without an answer.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from actors.policy import jsonrpc
from actors.policy.client_key import client_key
from actors.policy.origin import host_allowed, origin_allowed
from actors.policy.rate_headers import Quota, retry_after
from ipc.address import Reply
from ipc.errors import ActorDown, MailboxFull
from ipc.messages import (
    Admit,
    Admitted,
    Authenticate,
    Established,
    Grant,
    OffenceKind,
    Refused,
    Released,
    Resync,
)
from ipc.settings import Settings

from . import auth_endpoints, endpoints, http, http_answers
from .auth_endpoints import AuthEndpoints
from .connection import RETRY_MS, Connection, Stage, line
from .credential import ANONYMOUS, Credential, bearer, of_certificate, of_upgrade
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
    "forbidden": 403,
    "sessions": 429,
    "unsupported": 501,
    "draining": 503,
}
"""The HTTP status, or the JSON-RPC code on TCP, of each reason to refuse a connection."""
_OFFENCES: Final[dict[int, OffenceKind]] = {
    400: "handshake",
    401: "auth",
    404: "probe",
    414: "handshake",
    431: "handshake",
    501: "handshake",
    505: "handshake",
}
"""What a refused request says of its sender. Asking without any credential is how clients learn that they need one."""
REALM: Final = 'Bearer realm="portcullis"'


class Entry:
    """The part of the hub that lets connections in. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.limiter = Patience(hub.limiter, hub.post)
        self.auth_address = hub.context.address("auth")
        self.auth = Patience(self.auth_address, hub.post)
        self.endpoints = AuthEndpoints(hub)
        self.released: list[int] = []
        self.established: list[int] = []

    @property
    def settings(self) -> Settings:
        return self.hub.settings

    @property
    def most(self) -> int:
        """Beyond what all listeners may hold together, a connection isn't even kept waiting for an answer."""
        return self.settings.ws_max_connections + self.settings.tcp_max_connections + 256

    def start(self) -> None:
        self.limiter.start(on_up=self._resync)
        self.auth.start(on_up=self.hub.revocation.auth_is_up)

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
        if connection.tls is not None:
            connection.waiting_for = "limiter"  # nothing is read, and no key used, for who may not come in
            connection.entry_deadline_ns = now + settings.handshake_timeout_ms * 1_000_000
        self.hub.deadlines.arm(connection)
        if self.hub.draining_until_ns:
            self.refuse(connection, Refused(reason="draining", retry_after_ms=RETRY_MS))
            return
        # Those that linger, and those whose client isn't known yet, have bounds of their own.
        if len(self.hub.connections) - len(self.hub.farewells) - len(self.hub.prefaces) > self.most:
            self.refuse(connection, Refused(reason="limit", retry_after_ms=RETRY_MS))
            return
        self.hub.arrivals.begin(connection)

    def ask_admission(self, connection: Connection) -> None:
        """Its address is known as far as can be: ask the limiter for a place."""
        now = self.hub.now
        connection.ripe_ns = connection.ripe_ns or now + (connection.entry_deadline_ns - now) // 2
        self.limiter.ask(
            Admit(
                self.hub.name,
                connection.session,
                connection.listener,
                connection.key,
                connection.exempt,
                self.hub.blocklist.is_trusted(connection.peer_ip),
                connection.ripe_ns,
            ),
            connection.entry_deadline_ns,
            functools.partial(self.hub.step, connection, self._admitted),
        )

    def recover(self, connection: Connection) -> None:
        """After a hub that crashed: ask again what it had asked for this connection. Its deadline stands."""
        waited, connection.waiting_for = connection.waiting_for, ""
        self.hub.deadlines.arm(connection)
        if self.hub.arrivals.recover(connection):
            pass
        elif connection.tls is not None and connection.tls.handshaking:
            self.hub.handshakes.begin(connection)
        elif connection.login_id:
            self.hub.login.fail(connection, connection.login_id, ActorDown("auth", "acceptor restarted"))
        elif connection.transport == "http" and connection.request is not None:
            self._requested(connection)
        elif waited and connection.stage is Stage.ENTRY:
            self._open_tcp(connection)

    def _admitted(self, connection: Connection, reply: Reply) -> None:
        admitted = isinstance(reply, Admitted)
        if connection.stage >= Stage.CLOSING:
            if admitted:
                self.released.append(connection.session)
            return
        if not admitted:
            if isinstance(reply, Refused) and reply.reason == "rate":
                self.hub.offence(connection, "rate")
            self.refuse(connection, reply if isinstance(reply, Refused) else Refused(reason="unavailable"))
            return
        connection.admitted = True
        if connection.hop == "asked":
            connection.hop = ""
        if connection.waiting_for == "limiter":
            connection.waiting_for = ""
        if connection.tls is not None and connection.tls.handshaking:
            self.hub.handshakes.begin(connection)
        elif connection.listener == "tcp":
            self._open_tcp(connection)
        elif connection.request is not None:
            self._requested(connection)
        self.hub.dirty[connection.fd] = connection

    def secured(self, connection: Connection) -> None:
        """TLS is established; on the WebSocket port the same deadline is for the HTTP request too."""
        if connection.listener == "tcp":
            self._await_login(connection)
            self._open_tcp(connection)

    def _resync(self) -> None:
        """A new limiter must know every connection that it counts before it admits another one."""
        self.released.clear()
        self.established.clear()
        live = [(c.session, c.listener, c.key, c.ripe_ns) for c in self.hub.connections.values() if c.admitted]
        with contextlib.suppress(ActorDown):  # its next incarnation brings us here again
            self.hub.limiter.control(Resync(self.hub.name, live))

    def vacate(self, connection: Connection) -> None:
        """It needs its place no more: it has ended, or only lingers."""
        if connection.admitted:
            connection.admitted = False
            self.released.append(connection.session)

    def report(self, now: int) -> None:
        """Tell the limiter which connections ended, and answer questions that waited too long."""
        self.released = self._told(Released, self.released)
        self.established = self._told(Established, self.established)
        self.hub.budget.report(now)
        self.limiter.expire(now)
        self.auth.expire(now)

    def evict(self, sessions: Iterable[int]) -> None:
        """The limiter needs places for others. Who has authenticated meanwhile keeps its own, and it has been told."""
        for session in sessions:
            connection = self.hub.connections.get(session)
            if connection is not None and connection.stage < Stage.OPEN:
                self.hub.step(connection, self.refuse, Refused("limit", RETRY_MS, "room"))

    def _told(self, what: type[Released | Established], sessions: list[int]) -> list[int]:
        """Tell the limiter of these; returns those that it has still to be told of, because it is busy."""
        if not sessions:
            return sessions
        try:
            self.hub.limiter.control(what(self.hub.name, sessions))
        except MailboxFull:
            return sessions
        except ActorDown:
            pass  # a new limiter is told by Resync how it stands
        return []

    # --- refusals --------------------------------------------------------------------------------------------

    def refuse(self, connection: Connection, refused: Refused) -> None:
        """Answer in the language of the listener, and close."""
        status = STATUS.get(refused.reason, 503)
        self.hub.refused += 1
        self.hub.event(connection, "connection.refused", severity="warning", outcome="refused", reason=refused.reason)
        retry_ms = refused.retry_after_ms or (RETRY_MS if status in (429, 503) else 0)
        if connection.tls is not None and connection.tls.handshaking:
            self.hub.handshakes.refused(connection, refused.reason)
            return
        if connection.transport == "http":
            headers = [("WWW-Authenticate", REALM)] if status == 401 else []
            if retry_ms:
                headers.append(retry_after(retry_ms))
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
        http_answers.problem(self.hub, connection, connection.request, status, detail, headers or ())

    def timed_out(self, connection: Connection) -> None:
        """The connection's time to handshake or to authenticate is over."""
        if connection.preface is not None:
            self.hub.prefaces.timed_out(connection)
        elif connection.waiting_for in ("limiter", "auth") or connection.admitted is None:
            self.refuse(connection, Refused(reason="unavailable", detail="policy actor down"))
        elif connection.tls is not None and connection.tls.handshaking:
            self.hub.handshakes.timed_out(connection)
        elif connection.transport == "http":
            self._abused(connection)
            self.refuse(connection, Refused(reason="timeout"))
        else:
            self._abused(connection)
            self.hub.event(connection, "connection.refused", severity="warning", outcome="refused", reason="timeout")
            connection.send_message(
                jsonrpc.error_reply(b"null", 401, "not authenticated in time", {"reason": "timeout"})
            )
            self.hub.close(connection, 3000, "not authenticated in time")

    def _abused(self, connection: Connection) -> None:
        """Whoever has said nothing at all is a scanner or a health check, and does nothing wrong."""
        if connection.bytes_in > (connection.tls.seen if connection.tls is not None else 0):
            self.hub.offence(connection, "handshake")

    def ended(self, connection: Connection) -> None:
        """The client has sent its last byte before it was open; who has asked for something still gets its answer."""
        request = connection.request
        if request is None or _is_upgrade(request) or _is_partial(connection):
            self.gone(connection)
            self.hub.close_now(connection, "closed")

    def gone(self, connection: Connection) -> None:
        """The client is gone before it was open. In the middle of a request that is no end of a conversation."""
        if connection.transport == "http" and connection.stage is Stage.ENTRY and _is_partial(connection):
            self.hub.refused += 1
            self.hub.offence(connection, "handshake")
            self.hub.event(
                connection,
                "connection.refused",
                severity="warning",
                outcome="refused",
                reason="handshake",
                rule="the client went away",
            )

    # --- HTTP ------------------------------------------------------------------------------------------------

    def received(self, connection: Connection, data: bytes, _now: int) -> None:
        """Bytes on a connection that is not a WebSocket yet."""
        if connection.request is not None:
            # Only a client that doesn't wait for the 101 sends more. Keep it for the codec, within bounds.
            request = connection.request
            if connection.body is not None:
                self._take_body(connection, request, data)
                return
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
            self._charge_address(connection)
            self._bad_request(connection, error)
            return
        if request_ is not None:
            connection.request = request_
            if connection.admitted:
                self._requested(connection)

    def _bad_request(self, connection: Connection, error: HttpError) -> None:
        self.hub.refused += 1
        offence = _OFFENCES.get(error.status)
        if offence is not None and (error.status != 401 or _shows_credential(connection)):
            self.hub.offence(connection, offence)
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

    def _take_body(self, connection: Connection, request: Request, data: bytes) -> None:
        try:
            self.endpoints.received(connection, request, data)
        except HttpError as error:
            self._bad_request(connection, error)

    def _requested(self, connection: Connection) -> None:
        """The request is there and the connection has its place: it costs one message, then it is served.

        An upgrade is charged to the client that it turns out to be; everything else to its address.
        """
        request = connection.request
        if request is None or not self.hub.arrivals.requested(connection):
            return
        if _is_upgrade(request):
            self._routed(connection, request)
        else:
            self._charge(connection, _address_keys(connection), self._serve)

    def _serve(self, connection: Connection) -> None:
        if connection.request is not None:
            self._routed(connection, connection.request)

    def _charge(self, connection: Connection, keys: tuple[str, ...], then: Callable[[Connection], None]) -> None:
        """One message's unit for an HTTP request or an upgrade; without it, it is refused here."""

        def charged(connection: Connection, quota: Quota | None, over_ms: int) -> None:
            connection.waiting_for = ""
            connection.quota = quota
            if over_ms:
                self.hub.event(connection, "rate.limited", severity="warning", outcome="refused", reason="rate")
                self.hub.offence(connection, "rate")
                self.refuse(connection, Refused("rate", over_ms, "too many messages in a short time"))
            elif quota is None:
                self.refuse(connection, Refused(reason="unavailable"))
            else:
                then(connection)

        connection.waiting_for = "limiter"
        self.hub.budget.enter(connection, keys, charged)

    def _routed(self, connection: Connection, request: Request) -> None:
        try:
            self._route(connection, request)
        except HttpError as error:
            if _is_upgrade(request):  # it was to be charged to whom it is granted
                self._charge_address(connection)
            self._bad_request(connection, error)

    def _charge_address(self, connection: Connection) -> None:
        """For a request that is refused whether there is a unit for it or not. Behind a trusted proxy whose client
        isn't known there is nobody to charge: not the proxy."""
        if connection.key:
            self.hub.budget.charge(_address_keys(connection), self.hub.now)

    def _route(self, connection: Connection, request: Request) -> None:
        if _is_upgrade(request) and request.version != "1.1":  # which may come without a Host
            raise HttpError(400, "a WebSocket needs HTTP/1.1")
        if not host_allowed(request.get("host"), self.settings.allowed_hosts, self.settings.ws_host):
            self._forbidden(connection, "host", "this Host is not served here")
            return
        origin = request.get("origin")
        if origin is not None and not origin_allowed(origin, self.settings):
            self._forbidden(connection, "origin", "this Origin may not connect")
            return
        if http_answers.is_preflight(self.hub, request):
            # The browser asks for its page whether a request would be let in, not what would come of it.
            http_answers.preflight(self.hub, connection, request)
            return
        path = request.path
        if endpoints.is_websocket(path):
            if request.method != "GET":
                raise HttpError(405, "a WebSocket begins with GET", headers=(("Allow", "GET"),))
            self._upgrade(connection, request)
            return
        methods = endpoints.METHODS.get(path)
        if methods is None:
            raise HttpError(404, "nothing is served at this path")
        if request.method not in methods:
            raise HttpError(405, "this path does not take that method", headers=(("Allow", endpoints.allow(path)),))
        if request.method == "OPTIONS":
            http_answers.answer(self.hub, connection, request, 204, [("Allow", endpoints.allow(path))])
        elif path == "/health":
            self._health(connection, request)
        elif path in auth_endpoints.PATHS:
            self.endpoints.begin(connection, request)
        else:
            raise HttpError(404, "nothing is served at this path")

    def _forbidden(self, connection: Connection, reason: str, detail: str) -> None:
        self.hub.refused += 1
        self.hub.event(connection, "connection.refused", severity="warning", outcome="refused", reason=reason)
        if connection.request is not None and _is_upgrade(connection.request):
            self._charge_address(connection)
        self._problem(connection, 403, detail)

    def _health(self, connection: Connection, request: Request) -> None:
        """One word for everybody, all of it for who shows a credential, which has to be good. Raises HttpError."""
        credential = bearer(request)
        if credential is ANONYMOUS:
            self._tell_health(connection, details=False)
            return
        connection.entry_deadline_ns = self.hub.now + self.settings.auth_timeout_ms * 1_000_000
        self.hub.deadlines.by(connection, connection.entry_deadline_ns)
        self.authenticate(connection, credential, self._health_decided)

    def _health_decided(self, connection: Connection, reply: Reply) -> None:
        connection.waiting_for = ""
        if connection.stage >= Stage.CLOSING:
            return
        if not isinstance(reply, Grant):
            self.not_granted(connection, reply)
        elif not self._refused_principal(connection, reply):
            self._tell_health(connection, details=True)

    def _tell_health(self, connection: Connection, *, details: bool) -> None:
        status = self.hub.status
        healthy = status.healthy if status is not None else "unhealthy"
        body = status.body if details and status is not None else b'{"status":"%s"}' % healthy.encode()
        status_code = 503 if healthy == "unhealthy" else 200
        http_answers.answer(self.hub, connection, connection.request, status_code, http_answers.JSON, body)

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
        if credential is ANONYMOUS:
            credential = of_certificate(connection)
        if credential is ANONYMOUS and settings.ws_auth_enabled:
            if not settings.ws_first_message_auth:
                raise HttpError(401, "authentication is required")
            self._charge(connection, _address_keys(connection), functools.partial(self._to_login, handshake=handshake))
            return
        connection.entry_deadline_ns = self.hub.now + settings.auth_timeout_ms * 1_000_000
        self.authenticate(connection, credential, functools.partial(self._upgrade_decided, handshake=handshake))

    def _to_login(self, connection: Connection, *, handshake: Handshake) -> None:
        request = connection.request
        assert request is not None  # noqa: S101 - it asked for the upgrade
        self._switch(connection, handshake)
        connection.stage = Stage.LOGIN
        self._await_login(connection)
        self._feed_rest(connection, request)

    def _upgrade_decided(self, connection: Connection, reply: Reply, *, handshake: Handshake) -> None:
        connection.waiting_for = ""
        if connection.stage >= Stage.CLOSING:
            return
        if not isinstance(reply, Grant):
            self._charge_address(connection)
            self.not_granted(connection, reply)
            return
        request = connection.request
        assert request is not None  # noqa: S101 - it asked for the upgrade
        upstream = _upstream_of(request.path)
        if upstream and upstream not in self.hub.routes.names:
            self.hub.misdeeds.note(connection, "probe", reply)
            self.hub.budget.charge(reply.limit_keys, self.hub.now)
            connection.quota = self.hub.budget.quota(reply.limit_keys)
            self._problem(connection, 404, "no such server")
            return
        self._charge(connection, reply.limit_keys, functools.partial(self._upgraded, handshake=handshake, grant=reply))

    def _upgraded(self, connection: Connection, *, handshake: Handshake, grant: Grant) -> None:
        request = connection.request
        assert request is not None  # noqa: S101 - it asked for the upgrade
        if self._refused_principal(connection, grant):
            return
        self._switch(connection, handshake)
        self.opened(connection, grant, _upstream_of(request.path))
        self._feed_rest(connection, request)

    def _switch(self, connection: Connection, handshake: Handshake) -> None:
        fields = http_answers.upgrade_fields(self.hub, connection)
        connection.write(http.switching_protocols(handshake, connection.subprotocol, fields))
        connection.transport = "ws"
        connection.encode = encode_text
        connection.codec = WsReceiver(max_message=self.settings.max_preauth_size)

    def _feed_rest(self, connection: Connection, request: Request) -> None:
        connection.request = None
        if request.rest and connection.stage < Stage.CLOSING:
            self.hub.dispatch.received(connection, request.rest, self.hub.now)

    # --- TCP -------------------------------------------------------------------------------------------------

    def _open_tcp(self, connection: Connection) -> None:
        credential = of_certificate(connection)
        if credential is ANONYMOUS and self.settings.tcp_auth_enabled:
            connection.stage = Stage.LOGIN
            return
        self.authenticate(connection, credential, self._anonymous_decided)

    def _anonymous_decided(self, connection: Connection, reply: Reply) -> None:
        connection.waiting_for = ""
        if connection.stage >= Stage.CLOSING:
            return
        if isinstance(reply, Grant):
            if not self._refused_principal(connection, reply):
                self.opened(connection, reply, "")
                self.hub.dispatch.resume(connection)  # what came right behind its TLS handshake
        else:
            self.not_granted(connection, reply)

    # --- authentication --------------------------------------------------------------------------------------

    def _await_login(self, connection: Connection) -> None:
        connection.entry_deadline_ns = self.hub.now + self.settings.auth_timeout_ms * 1_000_000
        self.hub.deadlines.by(connection, connection.entry_deadline_ns)

    def authenticate(self, connection: Connection, credential: Credential, decided: _Decided) -> None:
        """Ask auth; ``decided`` gets its answer. The connection takes no message meanwhile."""
        connection.waiting_for = "auth"
        connection.presented = credential is not ANONYMOUS
        connection.revocations_seen = self.hub.revocation.seen
        bears = connection.grant if connection.authenticated else None
        deadline = max(connection.entry_deadline_ns, self.hub.now + self.settings.handshake_timeout_ms * 1_000_000)
        self.auth.ask(
            Authenticate(
                listener=connection.listener,
                scheme=credential.scheme,
                credential=credential.value,
                peer_ip=connection.peer_ip,
                peer_port=connection.peer_port,
                connection=self.hub.public_id(connection),
                again=connection.grant is not None,
                principal=bears.principal if bears is not None else "",
            ),
            deadline,
            functools.partial(self.hub.step, connection, decided),
        )

    def _refused_principal(self, connection: Connection, grant: Grant) -> bool:
        if not self.hub.blocklist.refuses_principal(grant):
            return False
        self.refuse(connection, Refused(reason="block", detail="this principal is blocked"))
        return True

    def not_granted(self, connection: Connection, reply: Reply) -> None:
        """Auth's answer is no grant: refuse the connection with it."""
        if isinstance(reply, Refused) and reply.reason == "auth":
            self.hub.offence(connection, "auth")
        self.refuse(connection, reply if isinstance(reply, Refused) else Refused(reason="unavailable"))

    def granted(self, connection: Connection) -> None:
        """The connection has got a grant, which a revocation may have overtaken on its way here."""
        if connection.revocations_seen != self.hub.revocation.seen:
            self.hub.revocation.doubt((connection,))

    def opened(self, connection: Connection, grant: Grant, upstream: str) -> None:
        """The connection bears a grant from now on."""
        connection.stage = Stage.OPEN
        connection.ripe_ns = 0
        self.established.append(connection.session)
        connection.grant = grant
        connection.authenticated = connection.presented
        self.hub.budget.join(grant.limit_keys)
        connection.entry_deadline_ns = 0
        connection.idle_since_ns = self.hub.now
        self.size_up(connection)
        self.hub.dispatch.attach(connection, upstream or self.hub.routes.default)
        self.hub.event(connection, "connection.opened")
        self.hub.meter.opened(connection)
        self.granted(connection)
        self.hub.deadlines.arm(connection)
        self.hub.dirty[connection.fd] = connection


    def size_up(self, connection: Connection) -> None:
        """How long a message of an open connection may be."""
        if isinstance(connection.codec, WsReceiver):
            connection.codec.max_message = self.settings.max_request_size
        elif isinstance(connection.codec, LineReader):
            connection.codec.max_line = self.settings.max_request_size


def _is_upgrade(request: Request) -> bool:
    return http.is_upgrade(request) and endpoints.is_websocket(request.path)


def _is_partial(connection: Connection) -> bool:
    """Whether some of a request is there, and some of it isn't."""
    request = connection.request
    if request is None:
        return isinstance(connection.codec, http.HeadReader) and connection.codec.pending > 0
    return connection.body is not None and len(connection.body) < request.content_length


def _shows_credential(connection: Connection) -> bool:
    request = connection.request
    if request is None:
        return False
    offered = b",".join(request.get_all("sec-websocket-protocol")).split(b",")
    return (
        request.get("authorization") is not None
        or any(name.strip(b" \t").startswith((b"bearer.", b"bearer64.", b"ticket.")) for name in offered)
        or any(pair.partition("=")[0] == "ticket" for pair in request.query.split("&"))
    )


def _address_keys(connection: Connection) -> tuple[str, ...]:
    """What is charged for who is nobody yet."""
    return (client_key(connection.peer_ip),)


def _reason(refused: Refused) -> str:
    return "policy actor down" if refused.reason == "unavailable" else refused.reason


def _detail(refused: Refused) -> str:
    if refused.reason == "limit":  # whose detail says which limit
        if refused.detail == "room":
            return "too many connections, and this one has not authenticated for a while"
        return f"too many connections{' from this address' if refused.detail == 'address' else ''}"
    return refused.detail or {
        "block": "this address is blocked",
        "rate": "too many connections in a short time",
        "auth": "authentication failed",
        "timeout": "the request did not arrive in time",
        "draining": "the gateway is shutting down",
    }.get(refused.reason, "not available now")


def _upstream_of(path: str) -> str:
    """``/ws/NAME`` (percent-encoded, RFC 3986 §2.1) chooses a server; ``/`` and ``/ws`` take the default one."""
    return unquote(path.removeprefix("/ws/")) if path.startswith("/ws/") else ""


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    _Decided = Callable[[Connection, Reply], None]
