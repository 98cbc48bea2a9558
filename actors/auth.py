"""The actor ``auth``: says once for each connection who it is; the acceptor keeps the answer.

A present credential is either right or refused: it never falls back to anonymous. Nothing of a credential is logged.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import Literal

import attrs
import msgspec
import trio

from ipc.context import Context
from ipc.mailbox import Delivery
from ipc.messages import (
    AuditEvent,
    Authenticate,
    Describe,
    Description,
    Drain,
    Grant,
    IssueTicket,
    Message,
    Refused,
    Ticket,
)

from .alarm import Alarm
from .audit_ring import AuditRing
from .policy.client_key import limit_keys
from .policy.identity import StaticTokens, Tickets, digest

log = logging.getLogger("portcullis.auth")

# What every holder of a static token may do, and whoever is let in without one.
_SCOPES = ("mcp:call", "mcp:read")
_RETRY_MS = 1000

Failure = Literal["missing", "too long", "unknown token", "unknown ticket", "not a ticket's listener", "bad address"]


@attrs.define
class Counters:
    granted: int = 0
    anonymous: int = 0
    failed: int = 0
    tickets_issued: int = 0
    tickets_redeemed: int = 0
    tickets_refused: int = 0


class Auth:
    """The decisions; the trio part is in ``main``."""

    def __init__(self, context: Context, audit: AuditRing) -> None:
        settings = context.settings
        self.settings = settings
        self.audit = audit
        self.tokens = {"ws": StaticTokens(settings.ws_auth_token), "tcp": StaticTokens(settings.tcp_auth_token)}
        self.required = {"ws": settings.ws_auth_enabled, "tcp": settings.tcp_auth_enabled}
        self.tickets = Tickets()
        self.counters = Counters()
        # Grants of an epoch below the one that was last revoked are over.
        self.epoch = 1
        self.draining = False

    def serve(self, delivery: Delivery) -> None:
        message = delivery.message
        if isinstance(message, Authenticate):
            self._reply(delivery, self._authenticate(message, time.monotonic_ns()))
        elif isinstance(message, IssueTicket):
            self._reply(delivery, self._issue(message, time.monotonic_ns()))
        elif isinstance(message, Describe):
            self._reply(delivery, Description(self.describe()))
        elif isinstance(message, Drain):
            self.draining = True
        else:
            log.warning("unexpected %s from %s", type(message).__name__, delivery.sender)

    def describe(self) -> bytes:
        return msgspec.json.encode(
            {
                **attrs.asdict(self.counters),
                "epoch": self.epoch,
                "tickets": len(self.tickets),
                "static_tokens": {listener: len(tokens) for listener, tokens in self.tokens.items()},
                "audit": attrs.asdict(self.audit.statistics()),
            }
        )

    def _authenticate(self, message: Authenticate, now: int) -> Grant | Refused:
        failure = self._failure(message, now)
        if failure is not None:
            return self._fail(message.listener, message.peer_ip, failure)
        try:
            keys = limit_keys(self.settings.rate_limit_key, message.peer_ip, "")
        except ValueError:
            return self._fail(message.listener, message.peer_ip, "bad address")
        session = secrets.token_hex(16)
        self.counters.granted += 1
        self.counters.anonymous += message.scheme == "anonymous"
        self._record("auth.ok", message.listener, message.peer_ip, {"scheme": message.scheme, "session": session})
        return Grant(
            principal="",
            session=session,
            scopes=_SCOPES,
            expires_at_ms=0,
            epoch=self.epoch,
            limit_keys=keys,
        )

    def _failure(self, message: Authenticate, now: int) -> Failure | None:
        """Why this is nobody we know; None when it is somebody."""
        if message.scheme == "anonymous" and not message.credential:
            return "missing" if self.required[message.listener] else None
        if not message.credential:
            return "missing"
        presented = digest(message.credential)
        if presented is None:
            return "too long"
        if message.scheme == "ticket":
            if message.listener != "ws":
                return "not a ticket's listener"
            if not self.tickets.redeem(presented, now):
                return "unknown ticket"
            self.counters.tickets_redeemed += 1
            return None
        return None if self.tokens[message.listener].matches(presented) else "unknown token"

    def _issue(self, message: IssueTicket, now: int) -> Ticket | Refused:
        """Where authentication is off, whoever shows nothing may have a ticket for what he may do anyway."""
        asker = Authenticate(
            listener="ws",
            scheme="token" if message.credential else "anonymous",
            credential=message.credential,
            peer_ip=message.peer_ip,
        )
        failure = self._failure(asker, now)
        if failure is not None:
            return self._fail("ws", message.peer_ip, failure)
        ticket = secrets.token_urlsafe(32)
        if not self.tickets.issue(ticket, now):
            self.counters.tickets_refused += 1
            return Refused("unavailable", _RETRY_MS, "too many tickets")
        self.counters.tickets_issued += 1
        return Ticket(ticket, self.tickets.life_ns // 1_000_000_000)

    def _fail(self, listener: str, peer_ip: str, failure: Failure) -> Refused:
        self.counters.failed += 1
        self._record("auth.failed", listener, peer_ip, {}, failure)
        return Refused("auth")

    def _record(
        self, event: str, listener: str, peer_ip: str, detail: dict[str, str | int | float | bool], failure: str = ""
    ) -> None:
        self.audit.record(
            AuditEvent(
                event=event,
                severity="warning" if failure else "info",
                outcome="failure" if failure else "success",
                time_ns=time.time_ns(),
                transport=listener,
                peer_ip=peer_ip,
                reason=failure,
                detail=detail,
            )
        )

    def _reply(self, delivery: Delivery, answer: Message) -> None:
        if delivery.wants_reply:
            delivery.reply(answer)


async def main(context: Context) -> None:
    """The actor ``auth``."""
    ring = AuditRing(context.address("audit"), context.name, policy=context.settings.audit_on_full)
    auth = Auth(context, ring)

    alarm = Alarm()

    async def flush_on() -> None:
        while True:
            alarm.at(ring.next_due_ns)
            await alarm.wait()
            ring.flush()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush_on)
        context.ready()
        while not auth.draining:
            for delivery in await context.mailbox.receive():
                auth.serve(delivery)
            ring.flush()
            alarm.at(ring.next_due_ns)
        await ring.settled()
        nursery.cancel_scope.cancel()
