"""The end of grants: by the clock, by a revocation, and what auth is told and asked for that.

A revocation is broadcast by auth; nothing is lost with an acceptor or an auth that is down meanwhile, because every
new acceptor, and every acceptor at each new incarnation of auth, asks which of its grants are still good. A grant
that a revocation may have overtaken on its way is asked about by itself. While auth is down, grants go on until they
expire.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from actors.policy import jsonrpc
from ipc.address import Reply
from ipc.errors import ActorDown, MailboxFull
from ipc.messages import Grant, Lapsed, Message, Revalidate, Revoked, SessionsUsed

from .connection import Connection, Stage

if TYPE_CHECKING:
    from .hub import Hub

_ANSWER_NS: Final = 5_000_000_000
_GRANTS_A_QUESTION: Final = 2_000
_LONGEST_INTERVAL_NS: Final = 5_000_000_000


class Revocation:
    """The part of the hub that ends connections whose grant is over. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.seen = 0  # revocations heard of: a grant asked for before the last one may be over already
        self._unsure: dict[int, Connection] = {}  # to be asked about
        self._asked_until_ns = 0  # a question is under way
        self._reported_ns = hub.now
        self._messages: dict[int, int] = {}  # of each connection with a session, at the last report

    # --- the clock -----------------------------------------------------------------------------------------------

    def remaining_ns(self, connection: Connection) -> int | None:
        """Until the grant expires, the leeway included, as the wall clock stands now; None: it does not."""
        grant = connection.grant
        if grant is None or not grant.expires_at_ms:
            return None
        return grant.expires_at_ms * 1_000_000 - time.time_ns()

    def expired(self, connection: Connection) -> bool:
        remaining = self.remaining_ns(connection)
        return remaining is not None and remaining <= 0

    def expire(self, connection: Connection) -> None:
        """The credential has run out: the connection ends."""
        self._hub.event(connection, "session.expired", severity="warning", outcome="refused")
        self.end(connection, "the credential has expired")

    def end(self, connection: Connection, reason: str) -> None:
        if connection.stage >= Stage.CLOSING:
            return
        if connection.transport == "tcp":
            connection.send_message(jsonrpc.error_reply(b"null", 401, reason, {"reason": reason}))
        self._hub.close(connection, 3000, reason)

    # --- auth ----------------------------------------------------------------------------------------------------

    def auth_is_up(self) -> None:
        """A new incarnation of auth: what was revoked before, and not heard of here, it knows."""
        self._asked_until_ns = 0
        self.doubt(self._hub.connections.values())

    def doubt(self, connections: Iterable[Connection]) -> None:
        """Ask whether their grants are still good."""
        for connection in connections:
            if connection.stage is Stage.OPEN and connection.grant is not None and _revocable(connection.grant):
                self._unsure[connection.session] = connection
        self._ask()

    def delivered(self, message: Message) -> bool:
        """Auth's broadcast: the connections that bear such a grant end now."""
        if not isinstance(message, Revoked):
            return False
        self.seen += 1
        sessions, tokens, principals = set(message.sessions), set(message.tokens), dict(message.principals)
        for connection in list(self._hub.connections.values()):
            grant = connection.grant
            if grant is not None and (
                grant.session in sessions
                or grant.epoch < message.epoch
                or not tokens.isdisjoint(grant.tokens)
                # A session of the principal is named by itself, if it is over.
                or (not grant.family and grant.issued_ms <= principals.get(grant.principal, -1))
            ):
                self._hub.step(connection, self.end, message.reason)
        return True

    def tick(self, now: int) -> None:
        """Ask again what wasn't answered, and report which sessions were in use."""
        self._ask()
        # Reports come often enough that a session in use doesn't look idle in between.
        interval_ns = min(_LONGEST_INTERVAL_NS, self._hub.settings.session_timeout * 1_000_000 // 4)
        if now - self._reported_ns < interval_ns:
            return
        self._reported_ns = now
        before, self._messages = self._messages, {}
        used: set[str] = set()
        for connection in self._hub.connections.values():
            if connection.stage is Stage.OPEN and connection.grant is not None and connection.grant.family:
                self._messages[connection.session] = connection.messages_in
                if connection.calls or connection.messages_in != before.get(connection.session, -1):
                    used.add(connection.grant.family)
        if used:
            with contextlib.suppress(ActorDown, MailboxFull):  # a session that goes unreported ends sooner, not later
                self._hub.entry.auth_address.control(SessionsUsed(sorted(used)))

    def _ask(self) -> None:
        if not self._unsure or self._asked_until_ns > self._hub.now:
            return
        asked = [c for c in list(self._unsure.values())[:_GRANTS_A_QUESTION] if c.stage is Stage.OPEN]
        grants = [
            (c.session, c.grant.family, c.grant.tokens, c.grant.principal, c.grant.issued_ms, c.grant.standing)
            for c in asked
            if c.grant is not None
        ]
        self._unsure = dict(list(self._unsure.items())[_GRANTS_A_QUESTION:])
        if not grants:
            return
        self._asked_until_ns = self._hub.now + _ANSWER_NS
        self._hub.entry.auth.ask(
            Revalidate(self._hub.name, grants), self._asked_until_ns, functools.partial(self._answered, asked)
        )

    def _answered(self, asked: list[Connection], reply: Reply) -> None:
        self._asked_until_ns = 0
        if not isinstance(reply, Lapsed):
            for connection in asked:
                self._unsure.setdefault(connection.session, connection)
            self._asked_until_ns = self._hub.now + 1  # not before the next tick
            return
        for session in reply.sessions:
            connection_ = self._hub.connections.get(session)
            if connection_ is not None:
                self._hub.step(connection_, self.end, "revoked")
        self._ask()


def _revocable(grant: Grant) -> bool:
    return bool(grant.family or grant.tokens or grant.principal or grant.standing)
