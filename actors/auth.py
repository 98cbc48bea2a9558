"""The actor ``auth``: says once for each connection who it is; the acceptor keeps the answer.

A present credential is either right or refused: it never falls back to anonymous. Nothing of a credential is logged.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Final, Literal

import attrs
import msgspec
import trio

from ipc.context import Context
from ipc.mailbox import Delivery
from ipc.messages import (
    AuditEvent,
    Authenticate,
    AuthenticateAdmin,
    Describe,
    Description,
    Drain,
    Grant,
    IssueSession,
    IssueTicket,
    Message,
    RefreshSession,
    Refused,
    SettingsChanged,
    ShowSession,
    Ticket,
)

from .alarm import Alarm
from .audit_ring import AuditRing
from .barred import Barred
from .issuing import Issuing, is_nonce
from .key_source import key_source
from .policy import certificate
from .policy.identity import STATIC, Identity, StaticTokens, Tickets, digest
from .policy.jwt_tokens import KeyUnknown, OutsideIssuer, OwnIssuer, Times, TokenRefused, Verifier, looks_like_one
from .session_store import SessionStore, StoreUnusable

log = logging.getLogger("portcullis.auth")

_RETRY_MS = 1000
_TICK_S: Final = 0.25
_RELOAD_S: Final = 1.0
_NOBODY: Final = "-"  # stands for no credential
ADMIN: Final = "admin"  # the scope that opens the admin API
_BLOCKED: Final = Refused("block", detail="this principal is blocked")
_MOST_PARKED: Final = 1024  # questions that wait for the keys of the outside issuer

Detail = dict[str, str | int | float | bool]
Scheme = Literal["token", "ticket", "anonymous", "certificate"]


class _Failure(Exception):
    """This is nobody we know; the message says why, and holds nothing of what was presented."""


class _KeysAwaited(Exception):
    """The outside issuer's keys are being read; ask again when they are there."""


class _KeysMissing(Exception):
    """Without the outside issuer's keys it can't be told."""


@attrs.define
class Counters:
    granted: int = 0
    anonymous: int = 0
    failed: int = 0
    unjudged: int = 0
    tickets_issued: int = 0
    tickets_redeemed: int = 0
    tickets_refused: int = 0


class Auth:
    """The decisions; the trio part is in ``main``."""

    def __init__(self, context: Context, audit: AuditRing, store: SessionStore) -> None:
        settings = context.settings
        self._context = context
        self.settings = settings
        self.audit = audit
        self.tokens = {"ws": StaticTokens(settings.ws_auth_token), "tcp": StaticTokens(settings.tcp_auth_token)}
        self.required = {"ws": settings.ws_auth_enabled, "tcp": settings.tcp_auth_enabled}
        self.tickets = Tickets()
        self.counters = Counters()
        self.barred = Barred(settings)
        self.issuing = Issuing(context, audit, store, self._verified, self._stands, self.barred.refuses_principal)
        self.verifier = _verifier(context, self.issuing)
        self.keys = key_source(settings, audit, self.verifier.use_keys, self._keys_read)
        self._parked: list[Delivery] = []
        self.draining = False

    def serve(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            if self.barred.delivered(message):
                return
            if self._is_barred(message):
                self.counters.unjudged += 1
                self._reply(delivery, Refused("block", detail="too many failed authentications"))
            elif isinstance(message, Authenticate):
                self._reply(delivery, self._authenticate(message))
            elif isinstance(message, AuthenticateAdmin):
                self._reply(delivery, self._authenticate_admin(message))
            elif isinstance(message, IssueTicket):
                self._reply(delivery, self._issue_ticket(message))
            elif isinstance(message, IssueSession):
                self._issue_session(delivery, message)
            elif isinstance(message, ShowSession):
                self._reply(delivery, self._show(message))
            elif isinstance(message, Describe):
                self._reply(delivery, Description(self.describe()))
            elif isinstance(message, SettingsChanged):
                self._context.renew()
            elif isinstance(message, Drain):
                self.draining = True
            elif not self.issuing.serve(delivery):
                log.warning("unexpected %s from %s", type(message).__name__, delivery.sender)
        except _KeysAwaited:
            if len(self._parked) < _MOST_PARKED:
                self._parked.append(delivery)
            else:
                self._reply(delivery, Refused("unavailable", _RETRY_MS, "too many wait for keys"))
        except _KeysMissing:
            self._reply(delivery, Refused("unavailable", _RETRY_MS, "the keys of the issuer can't be read now"))

    def describe(self) -> bytes:
        return msgspec.json.encode(
            {
                **attrs.asdict(self.counters),
                **self.issuing.describe(),
                "epoch": self.issuing.epoch,
                "tickets": len(self.tickets),
                "static_tokens": {listener: len(tokens) for listener, tokens in self.tokens.items()},
                "jwt": attrs.asdict(self.verifier.statistics()),
                "keys": attrs.asdict(self.keys.statistics()) if self.keys is not None else None,
                "audit": attrs.asdict(self.audit.statistics()),
            }
        )

    def _is_barred(self, message: Message) -> bool:
        """Whether a credential is presented by somebody whose credentials aren't judged now."""
        if isinstance(message, Authenticate):
            if not message.credential:
                return False
            subject = self.barred.subject(message.peer_ip, message.principal)
        elif isinstance(message, IssueTicket | IssueSession | ShowSession | RefreshSession):
            subject = self.barred.subject(message.peer_ip)
        else:
            return False
        return self.barred.refuses(subject, time.monotonic_ns())

    # --- who it is -----------------------------------------------------------------------------------------------

    def _authenticate(self, message: Authenticate) -> Grant | Refused:
        try:
            identity = self._identify(message.listener, message.scheme, message.credential)
            grant = self.issuing.grant(identity, message.peer_ip)
        except _Failure as failure:
            return self._fail(message.listener, message.peer_ip, str(failure), message)
        except ValueError:
            return self._fail(message.listener, message.peer_ip, "bad address", message)
        self.counters.granted += 1
        self.counters.anonymous += message.scheme == "anonymous"
        # The public id: nothing can be presented that is made of it.
        detail: Detail = {"scheme": message.scheme, "session": grant.session}
        if message.again:
            detail = {"scheme": message.scheme, "again": True}  # counted, not listed: see policy.coalescing
        self._record("auth.ok", message.listener, message.peer_ip, detail, principal=grant.principal, asked=message)
        return grant

    def _authenticate_admin(self, message: AuthenticateAdmin) -> Grant | Refused:
        """A JWT with the scope ``admin``. Static tokens and sessions have other scopes, so they are not looked at."""
        if not looks_like_one(message.token):
            return self._fail("admin", message.peer_ip, "unknown token")
        try:
            grant = self.issuing.grant(self._of_jwt(message.token), message.peer_ip)
        except _Failure as failure:
            return self._fail("admin", message.peer_ip, str(failure))
        except ValueError:
            return self._fail("admin", message.peer_ip, "bad address")
        if self.barred.refuses_principal(grant.principal):
            return _BLOCKED
        if ADMIN not in grant.scopes:
            self._record("authz.denied", "admin", message.peer_ip, {}, f"scope:{ADMIN}", principal=grant.principal)
            return Refused("forbidden", detail=f"the token has no scope {ADMIN}")
        return grant

    def _identify(self, listener: Literal["ws", "tcp"], scheme: Scheme, credential: str) -> Identity:
        """Raises _Failure, _KeysAwaited, _KeysMissing."""
        if scheme == "anonymous" and not credential:
            if self.required[listener]:
                raise _Failure("missing")
            return attrs.evolve(STATIC, standing=f"{listener}:{_NOBODY}")
        if not credential:
            raise _Failure("missing")
        presented = digest(credential)
        if presented is None:
            raise _Failure("too long")
        if scheme == "ticket":
            return self._of_ticket(listener, presented)
        if scheme == "certificate":
            return self._of_certificate(credential)
        if self.tokens[listener].matches(presented):
            return attrs.evolve(STATIC, standing=f"{listener}:{presented.hex()}")
        identity = self.issuing.identify(credential)
        if identity is not None:
            return identity
        if looks_like_one(credential):
            return self._of_jwt(credential)
        raise _Failure("unknown token")

    def _of_ticket(self, listener: str, presented: bytes) -> Identity:
        if listener != "ws":
            raise _Failure("not a ticket's listener")
        identity = self.tickets.redeem(presented, time.monotonic_ns())
        if identity is None:
            raise _Failure("unknown ticket")
        self.counters.tickets_redeemed += 1
        if self.issuing.is_over(identity):
            raise _Failure("the ticket's credential is over")
        return identity

    def _of_certificate(self, credential: str) -> Identity:
        try:
            identity = certificate.identify(credential, time.time_ns() // 1_000_000)
        except ValueError:
            raise _Failure("malformed certificate") from None
        if identity is None:
            raise _Failure("certificate expired")
        return identity

    def _of_jwt(self, credential: str) -> Identity:
        try:
            identity = self.verifier.verify(credential, time.time_ns() // 1_000_000)
        except KeyUnknown as unknown:
            if self.keys is None:
                raise _Failure(unknown.reason) from None
            if self.keys.want():
                raise _KeysAwaited from None
            if not self.keys.is_current:
                raise _KeysMissing from None
            raise _Failure(unknown.reason) from None
        except TokenRefused as refused:
            raise _Failure(refused.reason) from None
        if self.issuing.is_over(identity):
            raise _Failure("session over")
        return identity

    def _stands(self, standing: str) -> bool:
        """Whether the settings still know what let a connection in."""
        listener, _, presented = standing.partition(":")
        if listener not in ("ws", "tcp"):
            return False
        if presented == _NOBODY:
            return not self.required[listener]
        return self.tokens[listener].matches(bytes.fromhex(presented))

    def _verified(self, credential: str) -> Identity | None:
        """Of a JWT that would be accepted now. Raises _KeysAwaited, _KeysMissing."""
        if not looks_like_one(credential):
            return None
        try:
            return self._of_jwt(credential)
        except _Failure:
            return None

    def _keys_read(self) -> None:
        """The outside issuer's keys were read, or could not be: whoever waited for that is answered now."""
        parked, self._parked = self._parked, []
        for delivery in parked:
            self.serve(delivery)

    # --- what is issued ------------------------------------------------------------------------------------------

    def _issue_ticket(self, message: IssueTicket) -> Ticket | Refused:
        """Where authentication is off, whoever shows nothing may have a ticket for what he may do anyway."""
        try:
            identity = self._identify("ws", message.scheme if message.credential else "anonymous", message.credential)
        except _Failure as failure:
            return self._fail("ws", message.peer_ip, str(failure))
        if self.barred.refuses_principal(identity.principal):
            return _BLOCKED
        ticket = secrets.token_urlsafe(32)
        if not self.tickets.issue(ticket, time.monotonic_ns(), identity):
            self.counters.tickets_refused += 1
            return Refused("unavailable", _RETRY_MS, "too many tickets")
        self.counters.tickets_issued += 1
        return Ticket(ticket, self.tickets.life_ns // 1_000_000_000)

    def _issue_session(self, delivery: Delivery, message: IssueSession) -> None:
        """Only what lasts is exchanged for a session: otherwise a token's time could be stretched with itself."""
        if not message.credential or not is_nonce(message.nonce):
            self._reply(delivery, self._fail("ws", message.peer_ip, "missing"))
            return
        try:
            identity = self._identify("ws", message.scheme, message.credential)
        except _Failure as failure:
            self._reply(delivery, self._fail("ws", message.peer_ip, str(failure)))
            return
        if identity.issuer not in ("static", "certificate"):
            detail = "a session is issued for a static token or a client certificate"
            self._reply(delivery, Refused("forbidden", detail=detail))
            return
        if self.barred.refuses_principal(identity.principal):
            self._reply(delivery, _BLOCKED)
            return
        self.issuing.issue(delivery, message, identity)

    def _show(self, message: ShowSession) -> Description | Refused:
        try:
            identity = self._identify("ws", message.scheme, message.credential)
        except _Failure as failure:
            return self._fail("ws", message.peer_ip, str(failure))
        if self.barred.refuses_principal(identity.principal):
            return _BLOCKED
        return Description(self.issuing.show(identity))

    def _fail(self, listener: str, peer_ip: str, failure: str, asked: Authenticate | None = None) -> Refused:
        self.counters.failed += 1
        if listener != "admin":  # whose clients are blocked on no other listener for what they do there
            subject = self.barred.subject(peer_ip, asked.principal if asked is not None else "")
            self.barred.failed(subject, time.monotonic_ns())
        self._record("auth.failed", listener, peer_ip, {}, failure, asked=asked)
        return Refused("auth")

    def _record(
        self,
        event: str,
        listener: str,
        peer_ip: str,
        detail: Detail,
        failure: str = "",
        principal: str = "",
        asked: Authenticate | None = None,
    ) -> None:
        self.audit.record(
            AuditEvent(
                event=event,
                severity="warning" if failure else "info",
                outcome="failure" if failure else "success",
                time_ns=time.time_ns(),
                connection=asked.connection if asked is not None else "",
                transport=listener,
                peer_ip=peer_ip,
                peer_port=asked.peer_port if asked is not None else 0,
                principal=principal,
                reason=failure,
                detail=detail,
            )
        )

    def _reply(self, delivery: Delivery, answer: Message) -> None:
        if delivery.wants_reply:
            delivery.reply(answer)


def _verifier(context: Context, issuing: Issuing) -> Verifier:
    settings = context.settings
    secrets_ = [secret for secret in (settings.jwt_secret, settings.jwt_secret_previous) if secret]
    own = OwnIssuer.of(settings.jwt_issuer, settings.jwt_audience, secrets_, settings.jwt_algorithms)
    outside = OutsideIssuer(
        issuer=settings.jwt_jwks_issuer,
        audience=settings.jwt_jwks_audience,
        algorithms=frozenset(settings.jwt_jwks_algorithms),
    )
    return Verifier(
        own=own if secrets_ else None,
        outside=outside if settings.jwt_jwks_url or settings.jwt_jwks_file else None,
        times=Times(leeway_ms=settings.jwt_leeway_ms, max_ttl_ms=settings.jwt_max_ttl_ms),
        is_revoked=issuing.is_revoked,
    )


@attrs.define
class _Posted:
    """Calls from the store's thread, run by a task of the actor: what they raise ends the actor, not the process."""

    ran: trio.Event = attrs.field(factory=trio.Event, init=False)  # set after the next ones, then replaced
    _calls: list[Callable[[], None]] = attrs.field(factory=list, init=False)
    _there: trio.Event = attrs.field(factory=trio.Event, init=False)

    def add(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        self._there.set()

    async def run(self) -> None:
        await self._there.wait()
        self._there = trio.Event()
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        ran, self.ran = self.ran, trio.Event()
        ran.set()


async def main(context: Context) -> None:
    """The actor ``auth``. Raises StoreUnusable when sessions and revocations can't be read."""
    ring = AuditRing.kept(
        context.keep, context.address("audit"), context.name, policy=context.settings.audit_on_full
    )
    posted = _Posted()
    loop = trio.lowlevel.current_trio_token()
    store = SessionStore(context.settings.state_dir, lambda call: loop.run_sync_soon(posted.add, call))
    auth = Auth(context, ring, store)
    store.start()
    alarm = Alarm()

    def flush() -> None:
        ring.flush()
        alarm.at(ring.next_due_ns)

    async def flush_on() -> None:
        while True:
            alarm.at(ring.next_due_ns)
            await alarm.wait()
            ring.flush()

    async def answer_on() -> None:
        while True:
            await posted.run()
            flush()

    async def tick_on() -> None:
        while True:
            await trio.sleep(_TICK_S)
            if auth.issuing.is_stale and not store.waiting:
                await _recover(auth.issuing, store)
            auth.issuing.tick()
            flush()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush_on)
            nursery.start_soon(answer_on)
            nursery.start_soon(tick_on)
            if auth.keys is not None:
                nursery.start_soon(auth.keys.run)
            context.ready()
            while not auth.draining:
                for delivery in await context.mailbox.receive():
                    auth.serve(delivery)
                flush()
            while store.waiting:  # what was asked before the Drain is still answered
                await posted.ran.wait()
            flush()
            await ring.settled()
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def _recover(issuing: Issuing, store: SessionStore) -> None:
    """The disk did not take what it was given: begin again from what it holds, as soon as it can be read."""
    try:
        content = await trio.to_thread.run_sync(store.load)
    except StoreUnusable as error:
        log.error("%s", error)  # noqa: TRY400 - it says all
        await trio.sleep(_RELOAD_S)
        return
    issuing.reload(content)
    log.info("sessions were read again from %s", store.path)
