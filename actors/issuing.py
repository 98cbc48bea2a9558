"""What auth does with issued sessions: tokens out of sessions, and answers that wait for the disk.

Everything that is said here has been committed before: a session, a rotation or a revocation that a client or
an operator has heard of survives any crash. The announcement to the acceptors comes with the commit, and whoever
misses it asks again (``Revalidate``) as soon as it meets the next incarnation.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, get_args

import attrs
import jwt
import msgspec

from ipc.context import Context
from ipc.errors import ActorDown, MailboxFull
from ipc.mailbox import Delivery
from ipc.messages import (
    AuditEvent,
    Description,
    Done,
    EndSession,
    Grant,
    IssueSession,
    Lapsed,
    ListSessions,
    Logout,
    Message,
    RefreshSession,
    Refused,
    Revalidate,
    Revoked,
    RevokeToken,
    RevokeTokens,
    SessionsUsed,
    TokenSet,
)

from .audit_ring import AuditRing
from .kept_records import KeptRecords
from .policy.client_key import client_key, limit_keys
from .policy.identity import Identity, digest
from .policy.jws import TokenRefused, parse
from .policy.session_tokens import (
    HANDLE_BYTES,
    SALT_BYTES,
    Presented,
    client_mark,
    jti_id,
    make,
    session_key,
    static_name,
    take_apart,
    token_ids,
)
from .policy.sessions import Ended, Limits, Over, RefusedRefresh, Session, Sessions
from .policy.strict_json import strict_object
from .session_store import Content, SessionStore

log = logging.getLogger("portcullis.auth")

_RETRY_MS: Final = 1000
_TOUCH_MS: Final = 5_000  # how often the times of use are written
_LONGEST_NAME: Final = 1024
_BLOCKED: Final = Refused("block", detail="this principal is blocked")
_NO_KEY: Final = "JWT_SECRET is not set, so the gateway issues no tokens"

_RETURNS: Final = msgspec.json.Encoder()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Issuing:
    """Args:
    verify: whose access token this is, were it not revoked; None for what is no valid one.
    stands: whether the settings still hold what such a ``Identity.standing`` names.
    is_blocked: whether a principal is.
    """

    def __init__(
        self,
        context: Context,
        audit: AuditRing,
        store: SessionStore,
        verify: Callable[[str], Identity | None],
        stands: Callable[[str], bool],
        is_blocked: Callable[[str], bool] = lambda _principal: False,
    ) -> None:
        settings = context.settings
        self.settings = settings
        self._context = context
        self._audit = audit
        self._store = store
        self._verify = verify
        self._stands = stands
        self._is_blocked = is_blocked
        keys = session_key(settings.session_secret, settings.jwt_secret), session_key("", settings.jwt_secret_previous)
        self._keys = [key for key in keys if key]
        self._limits = Limits(
            idle_ms=settings.session_timeout,
            absolute_ms=settings.session_absolute_timeout,
            refresh_ms=settings.jwt_refresh_ttl_ms,
            access_ms=settings.jwt_access_ttl_ms,
            most_each=settings.max_concurrent_sessions,
        )
        self.epoch = 1  # grants of an epoch below the one that was last revoked are over
        self._untold: dict[str, list[Revoked]] = {}
        self._next_touch_ms = 0
        self._next_cleanup_ms = 0
        self._stale = False
        self._kept = KeptRecords(audit)
        self._unwritten_ends: set[str] = set()  # of sessions, told already: the disk did not take them
        self._name_key = b""
        self.sessions = Sessions(self._limits)
        self.reload(store.load())

    def reload(self, content: Content) -> None:
        """Make the book anew from what the disk holds, without what has ended in spite of it."""
        self.sessions = Sessions(self._limits, content.sessions, content.revocations)
        self._kept.adopt(content.records, self.sessions.changes)
        self._name_key = content.name_key
        for handle in self._unwritten_ends:
            self.sessions.end(handle)
        # Whoever took a token out of the configuration wants nobody in by it any more.
        gone = [one for one in self.sessions.all() if one.standing and not self._stands(one.standing)]
        for session in gone:
            self.sessions.end(session.handle)
        self._removed: list[tuple[Session, Ended]] = [(session, "token removed") for session in gone]
        self._stale = False

    def describe(self) -> dict[str, int]:
        return {
            "sessions": len(self.sessions),
            "revocations": self.sessions.revocations,
            "commits": self._store.commits,
            "failed_commits": self._store.failures,
        }

    def serve(self, delivery: Delivery) -> bool:
        """Whether the message was one of these."""
        match delivery.message:
            case RefreshSession() as message:
                self._refresh(delivery, message)
            case RevokeToken() as message:
                self._revoke_token(delivery, message)
            case Logout() as message:
                self._logout(delivery, message)
            case Revalidate() as message:
                self._answer(delivery, Lapsed(self._lapsed(message)))
            case SessionsUsed() as message:
                for family in message.families:
                    self.sessions.touch(family, _wall_ms())
            case RevokeTokens() as message:
                self._revoke_for_operator(delivery, message)
            case EndSession() as message:
                self._end_for_operator(delivery, message)
            case ListSessions():
                self._answer(delivery, Description(self._list()))
            case _:
                return False
        return True

    # --- who bears a session -----------------------------------------------------------------------------------

    def identify(self, credential: str) -> Identity | None:
        """Whose session this is the bearer value of; it counts as a use."""
        presented = take_apart(credential)
        if presented is None or not self._keys:
            return None
        session = self.sessions.bearer(presented, self._keys, _wall_ms())
        if session is None:
            return None
        self.sessions.touch(session.handle, _wall_ms())
        return self._identity(session)

    def is_revoked(self, identity: Identity) -> bool:
        """Whether the credential itself was revoked, or its principal.

        A session ends with its principal's revocation; what is issued after that is good, to the second too that an
        access token can't tell apart.
        """
        principal = "" if identity.family else identity.principal
        return self.sessions.is_revoked(identity.tokens, principal, identity.issued_ms)

    def is_over(self, identity: Identity) -> bool:
        """Whether a credential that was right has been revoked, or its session or its time has ended.

        Using the credential uses the session.
        """
        now = _wall_ms()
        if identity.expires_at_ms and now >= identity.expires_at_ms:
            return True
        if identity.family:
            session = self.sessions.find(identity.family, now)
            # Of another's session: a token that the gateway never issued, whoever signed it.
            if session is None or session.principal != identity.principal or self.is_revoked(identity):
                return True
            self.sessions.touch(identity.family, now)
            return False
        return identity.issued_ms > 0 and self.is_revoked(identity)

    def grant(self, identity: Identity, peer_ip: str) -> Grant:
        """Raises ValueError for a peer that has no IP address."""
        return Grant(
            principal=identity.principal,
            session=identity.family or secrets.token_hex(16),
            scopes=identity.scopes,
            expires_at_ms=identity.expires_at_ms,
            epoch=self.epoch,
            limit_keys=limit_keys(self.settings.rate_limit_key, peer_ip, identity.principal),
            family=identity.family,
            tokens=identity.tokens,
            # By our own clock: the leeway with which the revocation of a principal is compared is not for it.
            issued_ms=(identity.issued_ms or _wall_ms() + self.settings.jwt_leeway_ms) if identity.principal else 0,
            standing=identity.standing,
        )

    def _identity(self, session: Session) -> Identity:
        return Identity(
            principal=session.principal,
            scopes=session.scopes,
            expires_at_ms=self.sessions.latest_ms(session),
            jti="",
            session=session.handle,
            family=session.handle,
            issuer="session",
        )

    # --- tokens ------------------------------------------------------------------------------------------------

    def issue(self, delivery: Delivery, message: IssueSession, identity: Identity) -> None:
        """A session for this holder of a static token or certificate."""
        if not self.settings.jwt_secret or not self._keys:
            self._answer(delivery, Refused("unsupported", detail=_NO_KEY))
            return
        now = _wall_ms()
        principal = identity.principal or self._name_of(identity)
        if self._is_blocked(principal):
            self._answer(delivery, _BLOCKED)
            return
        wanted = Session(
            handle=message.nonce,
            salt=secrets.token_bytes(SALT_BYTES),
            principal=principal,
            scopes=identity.scopes,
            created_ms=now,
            used_ms=now,
            generation=0,
            rotated_ms=now,
            access_ms=self._limits.access_ms,
            client=client_mark(self._keys[0], client_key(message.peer_ip)),
            not_after_ms=identity.expires_at_ms,
            # A token that was made up for one run is in no configuration that it could be taken out of.
            standing="" if "ws" in self.settings.made_up_tokens else identity.standing,
        )
        session = self.sessions.open(wanted, now)
        if isinstance(session, str):
            detail = (
                f"MAX_CONCURRENT_SESSIONS ({self._limits.most_each}) sessions of this principal are live: end one first"
                if session == "too many sessions"
                else "there is no room for more sessions"
            )
            self._record("session.created", message.peer_ip, wanted, reason=session, refused=True)
            self._answer(delivery, Refused("sessions" if session == "too many sessions" else "unavailable", 0, detail))
            return

        def committed() -> None:
            if session is wanted:  # otherwise it was made, and recorded, when this was asked first
                self._record("session.created", message.peer_ip, session)
            self._record("token.issued", message.peer_ip, session)
            self._reply(delivery, self._tokens(session, message.peer_ip))

        self._commit(delivery, committed)

    def _name_of(self, identity: Identity) -> str:
        """A static token has no name; what it gets here tells nothing of it, and stays the same."""
        return static_name(self._name_key, bytes.fromhex(identity.standing.partition(":")[2]))

    def _tokens(self, session: Session, peer_ip: str) -> TokenSet:
        key = self._keys[0]
        issued = session.rotated_ms // 1000
        expires = issued + max(1, session.access_ms // 1000)
        if session.not_after_ms:
            expires = max(issued + 1, min(expires, session.not_after_ms // 1000))
        # From the session alone, so that the same question always gets the same answer.
        jti = f"{session.handle}-{session.generation}"
        claims = {
            "iss": self.settings.jwt_issuer,
            "aud": self.settings.jwt_audience,
            "sub": session.principal,
            "jti": jti,
            "sid": session.handle,
            "iat": issued,
            "exp": expires,
            "scope": " ".join(session.scopes),
        }
        access = jwt.encode(claims, self.settings.jwt_secret, algorithm=self.settings.jwt_algorithms[0])
        identity = attrs.evolve(
            self._identity(session),
            jti=jti,
            issuer="own",
            expires_at_ms=expires * 1000 + self.settings.jwt_leeway_ms,
            issued_ms=issued * 1000,
            tokens=token_ids(access, self.settings.jwt_issuer, jti),
        )
        return TokenSet(
            access_token=access,
            refresh_token=make("refresh", key, session.handle, session.salt, session.generation),
            session=make("session", key, session.handle, session.salt),
            expires_in=expires - issued,
            grant=self.grant(identity, peer_ip),
        )

    def _refresh(self, delivery: Delivery, message: RefreshSession) -> None:
        if not self.settings.jwt_secret or not self._keys:
            self._answer(delivery, Refused("unsupported", detail=_NO_KEY))
            return
        if self._stale:  # what the book says of a rotation that was not written must make a thief of nobody
            self._reply(delivery, Refused("unavailable", _RETRY_MS, "sessions can't be written now"))
            return
        presented = take_apart(message.refresh_token)
        bearer = self.sessions.of_token(presented, self._keys, _wall_ms()) if presented is not None else None
        if bearer is not None and self._is_blocked(bearer.principal):  # before anything is rotated
            self._answer(delivery, _BLOCKED)
            return
        clients = [client_mark(key, client_key(message.peer_ip)) for key in self._keys]
        outcome = (
            self.sessions.refresh(presented, self._keys, clients, _wall_ms())
            if presented is not None
            else RefusedRefresh("unknown")
        )
        if isinstance(outcome, RefusedRefresh):
            refused = Refused("auth", detail="the refresh token is not valid")
            if outcome.session is not None:
                self._reused(delivery, outcome.session, message.peer_ip, refused)
                return

            def unknown() -> None:
                reason = f"refresh token {outcome.reason}"
                self._record("auth.failed", message.peer_ip, None, reason=reason, bad=True)
                self._reply(delivery, refused)

            self._commit(delivery, unknown)
            return
        session = outcome.session

        def committed() -> None:
            reason = "repeated" if outcome.repeated else ""
            self._record("token.refreshed", message.peer_ip, session, reason=reason)
            self._reply(delivery, self._tokens(session, message.peer_ip))

        self._commit(delivery, committed)

    def _reused(self, delivery: Delivery, victim: Session, peer_ip: str, answer: Refused) -> None:
        """A refresh token was used twice: the session is over, whether or not the disk takes it now."""
        reason = "refresh token used twice"
        ended: list[tuple[Session, Ended]] = [(victim, "reuse")]
        events = [self._event("token.reused", peer_ip, victim, reason=reason, bad=True), *self._end_events(ended)]

        def told() -> None:
            self._tell_ended(ended)
            self._reply(delivery, answer)

        def unwritten() -> None:
            self._unwritten_ends.add(victim.handle)
            for event in events:
                self._audit.record(event)
            told()

        self._commit(delivery, told, events, unwritten)

    # --- ends --------------------------------------------------------------------------------------------------

    def _revoke_token(self, delivery: Delivery, message: RevokeToken) -> None:
        """RFC 7009 §2.2: whatever it is that isn't valid needs no revocation, and is no error."""
        presented = take_apart(message.token)
        if presented is not None:
            self._end_of_token(delivery, presented, message.peer_ip)
            return
        identity = self._verify(message.token)
        if identity is None:
            self._commit(delivery, lambda: self._reply(delivery, Done(ok=True)))
            return
        self._revoke_ids(delivery, identity.tokens, identity.expires_at_ms, identity.principal, message.peer_ip)

    def _end_of_token(self, delivery: Delivery, presented: Presented, peer_ip: str) -> None:
        session = self.sessions.of_token(presented, self._keys, _wall_ms())
        if session is not None:
            self.sessions.end(session.handle)

        ended: list[tuple[Session, Ended]] = [(session, "revoked")] if session is not None else []
        events = [self._event("token.revoked", peer_ip, one) for one, _ in ended]

        def committed() -> None:
            self._tell_ended(ended)
            self._reply(delivery, Done(ok=True))

        self._commit(delivery, committed, [*events, *self._end_events(ended)])

    def _revoke_ids(
        self, delivery: Delivery, ids: tuple[str, ...], expires_at_ms: int, principal: str, peer_ip: str
    ) -> None:
        now = _wall_ms()
        until = expires_at_ms + self.settings.jwt_leeway_ms if expires_at_ms else self._longest(now)
        # A token with a jti is known by it; other encodings of the same token (base64url is malleable) go with it.
        stored = ids[-1:]
        if not all(self.sessions.revoke("token", value, now, until) for value in stored):
            self._answer(delivery, Refused("unavailable", _RETRY_MS, "there is no room for more revocations"))
            return

        def committed() -> None:
            self._reply(delivery, Done(ok=True))
            self._tell(Revoked(tokens=stored))

        self._commit(delivery, committed, [self._event("token.revoked", peer_ip, None, principal=principal)])

    def _logout(self, delivery: Delivery, message: Logout) -> None:
        if not message.family and message.tokens:
            self._revoke_ids(delivery, message.tokens, message.expires_at_ms, "", "")
            return
        session = self.sessions.end(message.family) if message.family else None
        ended: list[tuple[Session, Ended]] = [(session, "logout")] if session is not None else []

        def committed() -> None:
            self._reply(delivery, Done(ok=True))  # first, so that the client hears of it before its connection ends
            self._tell_ended(ended)

        self._commit(delivery, committed, self._end_events(ended))

    def _revoke_for_operator(self, delivery: Delivery, message: RevokeTokens) -> None:
        """Of a token that isn't ours to judge its form alone is looked at: an operator may name it before it is valid,
        or while the issuer's keys can't be read."""
        now = _wall_ms()
        until = self._longest(now)
        ended: list[Session] = []
        tokens: list[str] = []
        name = message.jti or message.principal
        if len(name) > _LONGEST_NAME or self._is_static_token(name):
            self._answer(delivery, Done(ok=False, detail="this is no name of a principal or a token"))
            return
        if message.token:
            presented = take_apart(message.token)
            if presented is not None:
                session = self.sessions.of_token(presented, self._keys, now)
                ended += [session] if session is not None else []
            else:
                tokens += _unverified_ids(message.token)
        if message.jti:
            tokens.append(jti_id(self.settings.jwt_issuer, message.jti))
        principals: tuple[tuple[str, int], ...] = ()
        if message.principal:
            # A token that was issued before this moment may say so much later, by its issuer's clock.
            principals = ((message.principal, now + self.settings.jwt_leeway_ms),)
            ended += self.sessions.of_principal(message.principal)
        if not (ended or tokens or principals):
            self._answer(delivery, Done(ok=False, detail="this is neither a live session's nor a signed token"))
            return
        kept = True  # all of them are tried
        for value in tokens:
            kept &= self.sessions.revoke("token", value, now, until, operator=True)
        for principal, at in principals:
            kept &= self.sessions.revoke("principal", principal, at, until, operator=True)
        for session in ended:
            self.sessions.end(session.handle)
        whose = message.principal or (ended[0].principal if ended else "")
        over: list[tuple[Session, Ended]] = [(session, "operator") for session in ended]
        revoked = self._event("token.revoked", "", None, principal=whose, reason="operator")

        def committed() -> None:
            self._tell_ended(over)
            if tokens or principals:
                self._tell(Revoked(tokens=tuple(tokens), principals=principals))
            detail = f"{len(ended)} sessions ended" if kept else "there is no room for more revocations"
            self._reply(delivery, Done(ok=kept, detail=detail))

        self._commit(delivery, committed, [revoked, *self._end_events(over)])

    def _is_static_token(self, text: str) -> bool:
        presented = digest(text)
        return presented is not None and any(self._stands(f"{one}:{presented.hex()}") for one in ("ws", "tcp"))

    def _end_for_operator(self, delivery: Delivery, message: EndSession) -> None:
        session = self.sessions.end(message.session)
        if session is None:
            self._answer(delivery, Done(ok=False, detail="no session has this id"))
            return

        ended: list[tuple[Session, Ended]] = [(session, "operator")]

        def committed() -> None:
            self._tell_ended(ended)
            self._reply(delivery, Done(ok=True))

        self._commit(delivery, committed, self._end_events(ended))

    def _longest(self, now: int) -> int:
        """Until when a token of any time before may be valid."""
        return now + self.settings.jwt_max_ttl_ms + 2 * self.settings.jwt_leeway_ms

    def _lapsed(self, message: Revalidate) -> list[int]:
        now = _wall_ms()
        return [
            connection
            for connection, family, tokens, principal, issued_ms, standing in message.grants
            if (standing and not self._stands(standing))
            or (family and self.sessions.find(family, now) is None)
            or self.sessions.is_revoked(tokens, principal if not family else "", issued_ms)
        ]

    def _end_events(self, ended: Iterable[tuple[Session, Ended]]) -> list[AuditEvent]:
        return [
            self._event("session.expired" if why in get_args(Over) else "session.ended", "", session, reason=why)
            for session, why in ended
        ]

    def _tell_ended(self, ended: Iterable[tuple[Session, Ended]]) -> None:
        """These are over, and the disk knows: say so."""
        handles = tuple(session.handle for session, _ in ended)
        if handles:
            self._tell(Revoked(sessions=handles))

    # --- the clock ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A few times a second: sessions whose time has come end; what acceptors couldn't be told is told again."""
        if self._stale:
            return
        now = _wall_ms()
        over: list[tuple[Session, Ended]] = [*self._removed, *self.sessions.sweep(now)]
        self._removed = []
        self._kept.drop_acknowledged(self.sessions.changes)
        if now >= self._next_touch_ms or self._next_touch_ms - now > _TOUCH_MS:
            self._next_touch_ms = now + min(_TOUCH_MS, max(100, self._limits.idle_ms // 4))
            self.sessions.note_touched()
        cleanup = self.settings.session_cleanup_interval
        if now >= self._next_cleanup_ms or self._next_cleanup_ms - now > cleanup:
            self._next_cleanup_ms = now + cleanup
            self.sessions.forget_revocations(now)
        if self.sessions.changes:
            self._commit(None, lambda: self._tell_ended(over), self._end_events(over))
        for name, untold in list(self._untold.items()):
            del self._untold[name]
            for message in untold:
                self._tell_one(name, message)

    # --- the disk ----------------------------------------------------------------------------------------------

    def _commit(
        self,
        delivery: Delivery | None,
        done: Callable[[], None],
        events: Sequence[AuditEvent] = (),
        unwritten: Callable[[], None] | None = None,
    ) -> None:
        """Have everything that was decided so far on the disk, and the events with it, then record those and say so.

        If it can't be written, nothing of it is said, and the book is made anew from what the disk holds. ``unwritten``
        is for what holds all the same.
        """
        kept = [(self._kept.keep(event, self.sessions.changes), event) for event in events]

        def committed(error: sqlite3.Error | None) -> None:
            if error is None and not self._stale:
                self._unwritten_ends.clear()  # they were among the first changes to the book that was made anew
                for number, event in kept:
                    self._kept.publish(number, event)
                done()
                return
            self._stale = True
            if unwritten is not None:
                unwritten()
            elif delivery is not None:
                self._reply(delivery, Refused("unavailable", _RETRY_MS, "sessions can't be written now"))

        self._store.commit(self.sessions.take_changes(), committed)

    @property
    def is_stale(self) -> bool:
        """A commit failed, and the book has to be made anew.

        Until then nothing is issued or revoked. Who may come in can still be told: the book is ahead of the disk only
        by sessions that nobody has heard of, and by ends.
        """
        return self._stale

    def _answer(self, delivery: Delivery, message: Message) -> None:
        """For what was decided without a change, but maybe on one that isn't on the disk yet."""
        self._commit(delivery, lambda: self._reply(delivery, message))

    def _reply(self, delivery: Delivery, message: Message) -> None:
        if delivery.wants_reply:
            delivery.reply(message)

    # --- telling -----------------------------------------------------------------------------------------------

    def _tell(self, message: Revoked) -> None:
        for name in self._context.peers("acceptor"):
            self._tell_one(name, message)

    def _tell_one(self, name: str, message: Revoked) -> None:
        try:
            self._context.address(name).control(message)
        except MailboxFull:
            self._untold.setdefault(name, []).append(message)
        except ActorDown:
            return  # its next incarnation asks what became of its grants

    def _list(self) -> bytes:
        rows = [
            {
                "id": session.handle,
                "principal": session.principal,
                "scopes": list(session.scopes),
                "created": session.created_ms,
                "used": session.used_ms,
                "expires": self.sessions.expires_ms(session),
                "refreshes": session.generation,
            }
            for session in sorted(self.sessions.all(), key=lambda session: session.created_ms)[:10_000]
        ]
        return _RETURNS.encode({"sessions": rows, "total": len(self.sessions)})

    def show(self, identity: Identity) -> bytes:
        """What ``GET /auth/session`` answers; times are milliseconds since the epoch."""
        document: dict[str, object] = {
            "principal": identity.principal or None,
            "scopes": list(identity.scopes),
            "session": identity.family or None,
            "expires_at": identity.expires_at_ms or None,
        }
        session = self.sessions.find(identity.family, _wall_ms()) if identity.family else None
        if session is not None:
            document |= {"created_at": session.created_ms, "session_expires_at": self.sessions.expires_ms(session)}
        return _RETURNS.encode(document)

    def _record(
        self, event: str, peer_ip: str, session: Session | None, *, reason: str = "", bad: bool = False,
        refused: bool = False,
    ) -> None:  # fmt: skip
        self._audit.record(self._event(event, peer_ip, session, reason=reason, bad=bad, refused=refused))

    def _event(
        self,
        event: str,
        peer_ip: str,
        session: Session | None,
        *,
        reason: str = "",
        principal: str = "",
        bad: bool = False,
        refused: bool = False,
    ) -> AuditEvent:
        outcome: Literal["success", "failure", "refused"] = "refused" if refused else "failure" if bad else "success"
        return AuditEvent(
            event=event,
            severity="warning" if bad or refused else "info",
            outcome=outcome,
            time_ns=time.time_ns(),
            peer_ip=peer_ip,
            principal=session.principal if session is not None else principal,
            reason=reason,
            detail={"session": session.handle} if session is not None else {},
        )


def _unverified_ids(token: str) -> tuple[str, ...]:
    """The names of a token whose signature does not matter; none for what is no token."""
    try:
        claims = strict_object(parse(token).payload)
    except (TokenRefused, ValueError):
        return ()
    issuer, jti = claims.get("iss"), claims.get("jti")
    named = isinstance(issuer, str) and isinstance(jti, str)
    return token_ids(token, str(issuer), str(jti)) if named else token_ids(token, "", "")


def is_nonce(text: str) -> bool:
    """Whether it can be a session's handle."""
    return len(text) == 2 * HANDLE_BYTES and set(text) <= set("0123456789abcdef")
