"""Issued sessions, the rotation of their refresh tokens, and revocations: every rule, and no clock or disk.

All times are wall-clock milliseconds, because sessions outlive reboots. A decision changes the book at once and
leaves in ``changes`` what has to be on the disk before anyone is told of it. If that fails, the book is
thrown away and made anew from the disk.

- A session ends after ``idle_ms`` without use, at the latest ``absolute_ms`` after it was made, and never after the
  certificate that it was issued for; its refresh tokens end with it, and each of them ``refresh_ms`` after it was
  issued.
- Of a principal at most ``most_each`` sessions live at once; one more is refused, none is ended for it.
- A refresh token works once (RFC 9700 §4.14.2). An older one ends the session: either it or its successor
  was stolen. Only the last one, presented again by the same client within ``REPEAT_MS`` and before its successor was
  used, is a lost answer: it changes nothing, and the answer is the same.
- A session that has ended is forgotten: whatever names it is refused from then on.
- A revocation is kept until the token that it names has expired by itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import attrs

from ipc.messages import AuditEvent

from .session_tokens import MOST_GENERATIONS, Presented, is_ours

REPEAT_MS: Final = 10_000
"""How long a lost answer of a refresh may be asked for again."""

MOST_SESSIONS: Final = 100_000
"""Of all principals: some 500 bytes each."""

MOST_REVOCATIONS: Final = 200_000
"""Beyond it only an operator's are taken; a client may end its session instead, which costs nothing to remember."""

MOST_OF_OPERATORS: Final = 100_000
"""Taken beyond that from operators."""

Over = Literal["idle", "absolute", "certificate"]
Ended = Literal[Over, "refresh expired", "logout", "revoked", "reuse", "operator", "token removed"]
RevocationKind = Literal["token", "principal"]
REFUSALS = Literal["unknown", "expired", "reused", "too many sessions", "full"]


@attrs.frozen
class Session:
    """One issued session. ``rotated_ms`` is when its access and refresh token of ``generation`` were issued,
    ``access_ms`` how long that access token lives, ``client`` who asked for them. ``not_after_ms`` is the end of the
    certificate that it was issued for (0: none), ``standing`` the static token (``Identity.standing``; empty: none, or
    one that no configuration could hold)."""

    handle: str
    salt: bytes = attrs.field(repr=False)
    principal: str
    scopes: tuple[str, ...]
    created_ms: int
    used_ms: int
    generation: int
    rotated_ms: int
    access_ms: int
    client: bytes = attrs.field(repr=False)
    not_after_ms: int = 0
    standing: str = attrs.field(default="", repr=False)


@attrs.frozen
class Revocation:
    """``value`` is a token's id, or a principal's name: then all that was issued to it up to ``at_ms`` is over."""

    kind: RevocationKind
    value: str
    at_ms: int
    until_ms: int


@attrs.frozen
class Limits:
    idle_ms: int
    absolute_ms: int
    refresh_ms: int
    access_ms: int
    most_each: int


@attrs.define
class Changes:
    """What the disk has to learn, by key, the last word on each."""

    sessions: dict[str, Session | None] = attrs.field(factory=dict)  # None: it has ended
    revocations: dict[tuple[RevocationKind, str], Revocation | None] = attrs.field(factory=dict)
    records: dict[int, AuditEvent | None] = attrs.field(factory=dict)  # of these; None: the audit log has it

    def __bool__(self) -> bool:
        return bool(self.sessions or self.revocations or self.records)


@attrs.frozen
class Refreshed:
    """``repeated``: this was the same question again."""

    session: Session
    repeated: bool


@attrs.frozen
class RefusedRefresh:
    """``session`` is the one that was ended because of it."""

    reason: REFUSALS
    session: Session | None = None


class Sessions:
    """The book. ``changes`` collects until it is taken."""

    def __init__(
        self, limits: Limits, sessions: Iterable[Session] = (), revocations: Iterable[Revocation] = ()
    ) -> None:
        self.limits = limits
        self.changes = Changes()
        self._live: dict[str, Session] = {}
        self._by_principal: dict[str, set[str]] = {}
        self._due: list[tuple[int, str]] = []  # a heap of (not after, handle); an entry may be out of date
        self._touched: set[str] = set()  # used since the last ``take_touched``
        self._revoked: dict[tuple[RevocationKind, str], Revocation] = {}
        for session in sessions:
            self._add(session)
        for revocation in revocations:
            self._revoked[revocation.kind, revocation.value] = revocation

    def __len__(self) -> int:
        return len(self._live)

    @property
    def revocations(self) -> int:
        return len(self._revoked)

    def all(self) -> list[Session]:
        return list(self._live.values())

    def take_changes(self) -> Changes:
        changes, self.changes = self.changes, Changes()
        return changes

    # --- the life of a session ---------------------------------------------------------------------------------

    def open(self, session: Session, now: int) -> Session | Literal["too many sessions", "full"]:
        """Take a new session in. The same handle of the same principal again is the same question again."""
        known = self.find(session.handle, now)
        if known is not None:
            return known if known.principal == session.principal and not known.generation else "full"
        handles = list(self._by_principal.get(session.principal, ()))
        if sum(self.find(handle, now) is not None for handle in handles) >= self.limits.most_each:
            return "too many sessions"
        if len(self._live) >= MOST_SESSIONS:
            return "full"
        self._add(session)
        self.changes.sessions[session.handle] = session
        return session

    def find(self, handle: str, now: int) -> Session | None:
        """The session, if it lives at this moment."""
        session = self._live.get(handle)
        return session if session is not None and self.over(session, now) is None else None

    def bearer(self, presented: Presented, keys: Sequence[bytes], now: int) -> Session | None:
        """Whose bearer value this is."""
        session = self.find(presented.handle, now) if presented.kind == "session" else None
        return session if session is not None and is_ours(presented, keys, session.salt) else None

    def of_token(self, presented: Presented, keys: Sequence[bytes], now: int) -> Session | None:
        """Whose bearer value, or refresh token of any generation, this is."""
        session = self.find(presented.handle, now)
        if session is None or presented.generation > session.generation:
            return None
        return session if is_ours(presented, keys, session.salt) else None

    def touch(self, handle: str, now: int) -> None:
        """The session was used."""
        session = self.find(handle, now)
        if session is not None and now > session.used_ms:
            self._live[handle] = attrs.evolve(session, used_ms=now)
            self._touched.add(handle)

    def note_touched(self) -> None:
        """Have the disk learn when sessions were used last. What it doesn't learn only ends them sooner."""
        touched, self._touched = self._touched, set()
        for handle in touched:
            if handle in self._live:
                self.changes.sessions[handle] = self._live[handle]

    def refresh(
        self, presented: Presented, keys: Sequence[bytes], clients: Sequence[bytes], now: int
    ) -> Refreshed | RefusedRefresh:
        """Rotate. ``clients`` is who asks, marked with each of the keys; the first one is noted."""
        session = self.of_token(presented, keys, now) if presented.kind == "refresh" else None
        if session is None:
            return RefusedRefresh("unknown")
        if presented.generation == session.generation:
            if now - session.rotated_ms >= self.limits.refresh_ms or session.generation >= MOST_GENERATIONS:
                return RefusedRefresh("expired")
            session = attrs.evolve(
                session,
                generation=session.generation + 1,
                rotated_ms=now,
                used_ms=max(now, session.used_ms),
                access_ms=self.limits.access_ms,
                client=clients[0],
            )
            self._live[session.handle] = session
            self.changes.sessions[session.handle] = session
            return Refreshed(session, repeated=False)
        # A clock that was set back a little must not make a thief of a client whose answer was lost.
        in_time = abs(now - session.rotated_ms) <= REPEAT_MS
        if presented.generation == session.generation - 1 and in_time and session.client in clients:
            return Refreshed(session, repeated=True)
        self.end(session.handle)
        return RefusedRefresh("reused", session)

    def end(self, handle: str) -> Session | None:
        """End a session and forget it. None: it had ended before."""
        session = self._live.pop(handle, None)
        if session is None:
            return None
        others = self._by_principal[session.principal]
        others.discard(handle)
        if not others:
            del self._by_principal[session.principal]
        self._touched.discard(handle)
        self.changes.sessions[handle] = None
        return session

    def of_principal(self, principal: str) -> list[Session]:
        return [self._live[handle] for handle in self._by_principal.get(principal, ())]

    def expires_ms(self, session: Session) -> int:
        """When it ends if it isn't used any more."""
        return min(session.used_ms + self.limits.idle_ms, self.latest_ms(session))

    def latest_ms(self, session: Session) -> int:
        """When it ends however much it is used."""
        absolute_ms = session.created_ms + self.limits.absolute_ms
        return min(absolute_ms, session.not_after_ms) if session.not_after_ms else absolute_ms

    def over(self, session: Session, now: int) -> Over | None:
        if now >= session.created_ms + self.limits.absolute_ms:
            return "absolute"
        if session.not_after_ms and now >= session.not_after_ms:
            return "certificate"
        return "idle" if now >= session.used_ms + self.limits.idle_ms else None

    def sweep(self, now: int) -> list[tuple[Session, Over]]:
        """End every session whose time has come."""
        ended: list[tuple[Session, Over]] = []
        while self._due and self._due[0][0] <= now:
            _, handle = heapq.heappop(self._due)
            session = self._live.get(handle)
            if session is None:
                continue
            why = self.over(session, now)
            if why is None:
                heapq.heappush(self._due, (self.expires_ms(session), handle))
                continue
            self.end(handle)
            ended.append((session, why))
        return ended

    def _add(self, session: Session) -> None:
        self._live[session.handle] = session
        self._by_principal.setdefault(session.principal, set()).add(session.handle)
        heapq.heappush(self._due, (self.expires_ms(session), session.handle))

    # --- revocations -------------------------------------------------------------------------------------------

    def revoke(self, kind: RevocationKind, value: str, now: int, until_ms: int, *, operator: bool = False) -> bool:
        """Remember it until then. False: there is no room for more."""
        key = kind, value
        known = self._revoked.get(key)
        most = MOST_REVOCATIONS + (MOST_OF_OPERATORS if operator else 0)
        if known is None and len(self._revoked) >= most:
            return False
        if known is not None:
            now, until_ms = max(now, known.at_ms), max(until_ms, known.until_ms)
        self._revoked[key] = self.changes.revocations[key] = Revocation(kind, value, now, until_ms)
        return True

    def is_revoked(self, tokens: Iterable[str], principal: str, issued_ms: int) -> bool:
        """Whether a credential with one of these ids, or issued to that principal at that time, was revoked."""
        if any(("token", token) in self._revoked for token in tokens):
            return True
        of_principal = self._revoked.get(("principal", principal)) if principal else None
        return of_principal is not None and issued_ms <= of_principal.at_ms

    def forget_revocations(self, now: int) -> int:
        """Drop those that name nothing any more that would be accepted."""
        over = [key for key, revocation in self._revoked.items() if revocation.until_ms <= now]
        for key in over:
            del self._revoked[key]
            self.changes.revocations[key] = None
        return len(over)
