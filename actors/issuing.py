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
from collections.abc import Callable, Iterable
from typing import Final, Literal

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
from .policy.client_key import client_key, limit_keys
from .policy.identity import LONGEST_CREDENTIAL, Identity
from .policy.session_tokens import (
    HANDLE_BYTES,
    SALT_BYTES,
    Presented,
    client_mark,
    make,
    session_key,
    take_apart,
    token_id,
)
from .policy.sessions import Ended, Limits, RefusedRefresh, Session, Sessions
from .session_store import Content, SessionStore

log = logging.getLogger("portcullis.auth")

_RETRY_MS: Final = 1000
_TOUCH_MS: Final = 5_000  # how often the times of use are written
_LONGEST_NAME: Final = 512
_BLOCKED: Final = Refused("block", detail="this principal is blocked")
_NO_KEY: Final = "JWT_SECRET is not set, so the gateway issues no tokens"

_RETURNS: Final = msgspec.json.Encoder()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Issuing:
    """Args:
    verify: whose access token this is, were it not revoked; None for what is no valid one.
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
        self.sessions = Sessions(self._limits)
        self.reload(store.load())

    def reload(self, content: Content) -> None:
        """Make the book anew from what the disk holds."""
        self.sessions = Sessions(self._limits, content.sessions, content.revocations)
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

    def is_revoked(self, jti: str, digest: str, sub: str, iat: float, /) -> bool:
        """Whether a JWT was revoked; ``digest`` is its SHA-256 in hexadecimal, ``iat`` seconds since the epoch."""
        ids = [f"token:{digest}", *([token_id("jti", jti)] if jti else [])]
        return self.sessions.is_revoked(ids, sub, round(iat * 1000))

    def is_over(self, identity: Identity) -> bool:
        """Whether a credential that was right has been revoked, or its session or its time has ended.

        Using the credential uses the session.
        """
        now = _wall_ms()
        if identity.expires_at_ms and now >= identity.expires_at_ms:
            return True
        if identity.family:
            self.sessions.touch(identity.family, now)
            return self.sessions.find(identity.family, now) is None
        return identity.issued_ms > 0 and self.sessions.is_revoked(
            identity.tokens, identity.principal, identity.issued_ms
        )

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
            issued_ms=(identity.issued_ms or _wall_ms()) if identity.principal else 0,
            standing=identity.standing,
        )

    def _identity(self, session: Session) -> Identity:
        return Identity(
            principal=session.principal,
            scopes=session.scopes,
            expires_at_ms=session.created_ms + self._limits.absolute_ms,
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
        principal = identity.principal or self._name_of(message.credential)
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

    def _name_of(self, credential: str) -> str:
        """A static token has no name; what it gets here tells nothing of it, and stays the same."""
        return f"static-{client_mark(self._keys[0], 'static ' + credential).hex()[:12]}"

    def _tokens(self, session: Session, peer_ip: str) -> TokenSet:
        key = self._keys[0]
        issued = session.rotated_ms // 1000
        expires = issued + max(1, session.access_ms // 1000)
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
            tokens=token_ids(jti, access),
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
            victim = outcome.session

            def refused() -> None:
                if victim is not None:
                    self._record("token.reused", message.peer_ip, victim, reason="refresh token used twice", bad=True)
                    self._ended([(victim, "reuse")])
                else:
                    reason = f"refresh token {outcome.reason}"
                    self._record("auth.failed", message.peer_ip, None, reason=reason, bad=True)
                self._reply(delivery, Refused("auth", detail="the refresh token is not valid"))

            self._commit(delivery, refused)
            return
        session = outcome.session

        def committed() -> None:
            reason = "repeated" if outcome.repeated else ""
            self._record("token.refreshed", message.peer_ip, session, reason=reason)
            self._reply(delivery, self._tokens(session, message.peer_ip))

        self._commit(delivery, committed)

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

        def committed() -> None:
            if session is not None:
                self._record("token.revoked", peer_ip, session)
                self._ended([(session, "revoked")])
            self._reply(delivery, Done(ok=True))

        self._commit(delivery, committed)

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
            self._record("token.revoked", peer_ip, None, principal=principal)
            self._reply(delivery, Done(ok=True))
            self._tell(Revoked(tokens=stored))

        self._commit(delivery, committed)

    def _logout(self, delivery: Delivery, message: Logout) -> None:
        if not message.family and message.tokens:
            self._revoke_ids(delivery, message.tokens, message.expires_at_ms, "", "")
            return
        session = self.sessions.end(message.family) if message.family else None

        def committed() -> None:
            self._reply(delivery, Done(ok=True))  # first, so that the client hears of it before its connection ends
            if session is not None:
                self._ended([(session, "logout")])

        self._commit(delivery, committed)

    def _revoke_for_operator(self, delivery: Delivery, message: RevokeTokens) -> None:
        now = _wall_ms()
        until = self._longest(now)
        ended: list[Session] = []
        tokens: list[str] = []
        if message.token:
            presented = take_apart(message.token)
            if presented is not None:
                session = self.sessions.of_token(presented, self._keys, now)
                ended += [session] if session is not None else []
            elif len(message.token) <= LONGEST_CREDENTIAL and message.token.count(".") == 2:
                tokens.append(token_id("token", message.token))
                jti = _unverified_jti(message.token)
                tokens += [token_id("jti", jti)] if jti else []
        if message.jti:
            tokens.append(token_id("jti", message.jti))
        principals: tuple[tuple[str, int], ...] = ()
        if message.principal:
            principals = ((message.principal[:_LONGEST_NAME], now),)
            ended += self.sessions.of_principal(message.principal)
        if not (ended or tokens or principals):
            self._answer(delivery, Done(ok=False, detail="this is neither a live session's nor a signed token"))
            return
        kept = True  # all of them are tried
        for value in tokens:
            kept &= self.sessions.revoke("token", value, now, until)
        for name, at in principals:
            kept &= self.sessions.revoke("principal", name, at, until)
        for session in ended:
            self.sessions.end(session.handle)

        def committed() -> None:
            name = message.principal or (ended[0].principal if ended else "")
            self._record("token.revoked", "", None, principal=name, reason="operator")
            self._ended([(session, "operator") for session in ended])
            if tokens or principals:
                self._tell(Revoked(tokens=tuple(tokens), principals=principals))
            detail = f"{len(ended)} sessions ended" if kept else "there is no room for more revocations"
            self._reply(delivery, Done(ok=kept, detail=detail))

        self._commit(delivery, committed)

    def _end_for_operator(self, delivery: Delivery, message: EndSession) -> None:
        session = self.sessions.end(message.session)
        if session is None:
            self._answer(delivery, Done(ok=False, detail="no session has this id"))
            return

        def committed() -> None:
            self._ended([(session, "operator")])
            self._reply(delivery, Done(ok=True))

        self._commit(delivery, committed)

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

    def _ended(self, ended: Iterable[tuple[Session, Ended]]) -> None:
        """These are over, and the disk knows: say so."""
        handles = []
        for session, why in ended:
            event = "session.expired" if why in ("idle", "absolute") else "session.ended"
            self._record(event, "", session, reason=why)
            handles.append(session.handle)
        if handles:
            self._tell(Revoked(sessions=tuple(handles)))

    # --- the clock ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A few times a second: sessions whose time has come end; what acceptors couldn't be told is told again."""
        if self._stale:
            return
        now = _wall_ms()
        over = self.sessions.sweep(now)
        if now >= self._next_touch_ms or self._next_touch_ms - now > _TOUCH_MS:
            self._next_touch_ms = now + min(_TOUCH_MS, max(100, self._limits.idle_ms // 4))
            self.sessions.note_touched()
        cleanup = self.settings.session_cleanup_interval
        if now >= self._next_cleanup_ms or self._next_cleanup_ms - now > cleanup:
            self._next_cleanup_ms = now + cleanup
            self.sessions.forget_revocations(now)
        if self.sessions.changes:
            self._commit(None, lambda: self._ended(over))
        for name, untold in list(self._untold.items()):
            del self._untold[name]
            for message in untold:
                self._tell_one(name, message)

    # --- the disk ----------------------------------------------------------------------------------------------

    def _commit(self, delivery: Delivery | None, done: Callable[[], None]) -> None:
        """Have everything that was decided so far on the disk, then say so.

        If it can't be written, nothing of it is said, and the book is made anew from what the disk holds.
        """

        def committed(error: sqlite3.Error | None) -> None:
            if error is None and not self._stale:
                done()
                return
            self._stale = True
            if delivery is not None:
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
        self,
        event: str,
        peer_ip: str,
        session: Session | None,
        *,
        reason: str = "",
        principal: str = "",
        bad: bool = False,
        refused: bool = False,
    ) -> None:
        outcome: Literal["success", "failure", "refused"] = "refused" if refused else "failure" if bad else "success"
        self._audit.record(
            AuditEvent(
                event=event,
                severity="warning" if bad or refused else "info",
                outcome=outcome,
                time_ns=time.time_ns(),
                peer_ip=peer_ip,
                principal=session.principal if session is not None else principal,
                reason=reason,
                detail={"session": session.handle} if session is not None else {},
            )
        )


def _unverified_jti(token: str) -> str:
    """An operator names a token to be refused: whether it is a valid one does not matter."""
    try:
        claims = jwt.decode_complete(token, options={"verify_signature": False})["payload"]
    except (jwt.PyJWTError, ValueError, RecursionError):
        return ""
    jti = claims.get("jti")
    return jti if isinstance(jti, str) else ""


def token_ids(jti: str, token: str) -> tuple[str, ...]:
    """The names under which a JWT can be revoked, the one that says most at the end."""
    return (token_id("token", token), *((token_id("jti", jti),) if jti else ()))


def is_nonce(text: str) -> bool:
    """Whether it can be a session's handle."""
    return len(text) == 2 * HANDLE_BYTES and set(text) <= set("0123456789abcdef")
