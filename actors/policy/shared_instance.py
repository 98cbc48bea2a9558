"""One instance of a shared upstream: many clients, which to the server are one, and must never notice each other.

What keeps them apart, in one place:

- Every request gets an id minted here, never used twice; it serves as its progress token and subscription id too. An
  answer, progress or subscription notification goes to the session whose call has that id, with the client's own
  bytes put back, or nowhere.
- A client can cancel only what its own session has in flight.
- What a server says to nobody in particular is given to a session only when it can't be meant for another one;
  otherwise it goes to the gateway's log. Nothing is broadcast but ``list_changed``, which says nothing of anybody.
- What a server keeps once for all its clients (legacy: the handshake, the log level, resource subscriptions) is kept
  here for each session, and the server is told what serves them all.

A request of the server can't be routed, since all clients are one to it: it gets an error (``ping`` an answer).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from enum import Enum

import attrs

from ipc.messages import Envelope

from . import own_messages
from .answer_id import invalid_answer
from .effects import (
    DEATH,
    SILENT,
    SLOW,
    SUCCESS,
    CallLost,
    Counted,
    Effect,
    HandshakeFailed,
    Negotiated,
    Outcome,
    ToClient,
    ToUpstream,
    log_line,
    pass_on,
)
from .eras import BATCHING_VERSION, NO_HANDSHAKE, is_open_ended
from .ghosts import Ghosts
from .jsonrpc import METHOD_NOT_FOUND, error_reply, flatten, id_key, result_reply, splice
from .log_levels import LogLevels, is_level, reaches
from .server_message import UpstreamMessage, negotiated_version, parse_upstream
from .silence import Silence
from .subscriptions import Subscriptions

LIST_CHANGED = frozenset(
    {
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
    }
)
# Of clients, about exchanges that a shared instance doesn't have: its handshake is its own, it declares no roots, and
# sends clients no requests that could make progress.
_MEANINGLESS = frozenset(
    {"notifications/initialized", "notifications/progress", "notifications/roots/list_changed"}
)
_MAX_OWN = 256  # requests of our own whose answers are still to come; beyond, the oldest are taken for lost
_TOO_MANY = 429
_PROBES = ("probe", "check")
_LATE = "late "


class _Unclear(Enum):
    NOBODY = "nobody"
    SEVERAL = "several"


def _only(sessions: Iterable[Hashable]) -> Hashable:
    """The one session among them, however often it comes."""
    found: Hashable = _Unclear.NOBODY
    for session in sessions:
        if found is _Unclear.NOBODY:
            found = session
        elif found != session:
            return _Unclear.SEVERAL
    return found


@attrs.define(eq=False)
class Call:
    """A client's request that the upstream has been sent."""

    session: Hashable
    number: int
    id: bytes  # the client's own
    progress: bytes  # the client's own token; b"" when it gave none
    method: str
    level: str  # from which on the request itself asks for log messages (2026-07-28); "" when it doesn't
    sent_ns: int
    heard: int  # how many messages had come from the upstream by then
    open_ended: bool
    new_uri: str = ""  # resources/subscribe: to be forgotten if it fails
    levels_before: tuple[str, str] | None = None  # logging/setLevel: the session's and the upstream's


@attrs.define(eq=False)
class Session:
    calls: dict[int, bytes] = attrs.field(factory=dict)  # in flight: the minted id, by call
    initialised: bool = False


@attrs.frozen
class Held:
    """A message that waits for the handshake."""

    session: Hashable
    call: int
    envelope: Envelope
    raw: bytes


@attrs.frozen
class Greeting:
    """The upstream's answer to ``initialize``, for every client in turn."""

    raw: bytes
    id_at: int
    id_end: int

    def to(self, id_raw: bytes) -> bytes:
        return self.raw[: self.id_at] + id_raw + self.raw[self.id_end :]


class SharedInstance:
    """See the module; the interface is Mux's."""

    def __init__(
        self,
        version: str,
        *,
        probe_timeout_ns: int,
        handshake_timeout_ns: int,
        slow_call_ns: int,
        slow_tool_calls: bool,
        max_held: int,
        max_held_bytes: int,
        max_calls: int,
    ) -> None:
        self._version = version
        self._legacy = version != NO_HANDSHAKE
        self._handshake_timeout_ns = handshake_timeout_ns
        self._slow_call_ns = slow_call_ns
        self._never_slow = () if slow_tool_calls else ("tools/call",)
        self._max_held = max_held
        self._max_held_bytes = max_held_bytes
        self._max_calls = max_calls
        # Whether messages pass; "waiting" for start or the handshake they are held, "down" they fail.
        self._state = "waiting" if self._legacy else "ready"
        self._handshake_deadline_ns = 0
        self._greeting: Greeting | None = None
        self._sessions: dict[Hashable, Session] = {}
        self._calls: dict[bytes, Call] = {}  # by minted id; the session's table has each of them too
        self._own: dict[bytes, str] = {}  # requests of our own: what for
        self._held: deque[Held] = deque()
        self._held_bytes = 0
        self._minted = 0
        self._now = 0  # the latest that was seen
        self._ghosts = Ghosts()
        self._silence = Silence(probe_timeout_ns)
        self._subscriptions = Subscriptions()
        self._levels = LogLevels()

    # --- facts --------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self._calls) + sum(held.call != 0 and held.envelope.kind == "request" for held in self._held)

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def ready(self) -> bool:
        return self._state == "ready"

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    @property
    def table_sizes(self) -> dict[str, int]:
        return {
            "sessions": len(self._sessions),
            "calls": len(self._calls),
            "session_calls": sum(len(session.calls) for session in self._sessions.values()),
            "held": len(self._held),
            "held_bytes": self._held_bytes,
            "own": len(self._own),
            "uris": len(self._subscriptions.by_uri) + len(self._subscriptions.by_session),
            "levels": len(self._levels.wanted),
        }

    # --- the instance's life ------------------------------------------------------------------------------------

    def start(self, now: int) -> list[Effect]:
        if not self._legacy:
            self._state = "ready"
            return []
        self._state = "waiting"
        self._greeting = None
        self._handshake_deadline_ns = now + self._handshake_timeout_ns
        return [ToUpstream(own_messages.initialize(self._own_id("initialize"), self._version))]

    def closed(self, reason: str) -> list[Effect]:
        effects: list[Effect] = []
        for call in self._calls.values():
            effects.append(CallLost(call.session, call.number, 502, reason, True))
            self._undo(call)
        self._calls.clear()
        for session in self._sessions.values():
            session.calls.clear()
        effects += self._fail_held(reason)
        self._own.clear()
        self._silence.forget()
        self._levels.upstream = ""
        self._greeting = None
        self._state = "down"
        return effects

    def tick(self, now: int) -> list[Effect]:
        if self._handshake_deadline_ns and now >= self._handshake_deadline_ns:
            return self._handshake_failed("no answer to initialize in time")
        silent = self._silence.expire(now)
        if silent:
            for minted, purpose in self._own.items():
                if purpose in _PROBES:
                    self._own[minted] = _LATE + purpose  # an answer says that it lives, but nobody waits for it
        return [SILENT] * silent

    def _handshake_failed(self, reason: str) -> list[Effect]:
        self._handshake_deadline_ns = 0
        self._state = "down"
        return [*self._fail_held(reason), HandshakeFailed(reason)]

    def _greeted(self, message: UpstreamMessage, raw: bytes, now: int) -> list[Effect]:
        if self._state != "waiting":  # too late
            return [Counted("unknown_answer")]
        self._handshake_deadline_ns = 0
        self._greeting = Greeting(raw, message.id_at, message.id_at + len(message.id))
        if message.error:
            effects: list[Effect] = []
            for held in self._held:
                if held.envelope.method == "initialize" and held.envelope.kind == "request":
                    answer = self._greeting.to(held.envelope.id)
                    effects.append(ToClient(held.session, held.call, True, answer))
            self._drop_held(lambda held: held.envelope.method == "initialize")
            return effects + self._handshake_failed("the server answered initialize with an error")
        version = negotiated_version(raw)
        if version is None:
            self._greeting = None
            return self._handshake_failed("the answer to initialize names no protocol version")
        if version == BATCHING_VERSION:
            self._state = "down"
            return [*self._fail_held("the server speaks an unsupported protocol version"), Negotiated(version)]
        self._state = "ready"
        effects = [ToUpstream(own_messages.INITIALIZED), *self._restore(), Negotiated(version)]
        held_back, self._held, self._held_bytes = self._held, deque(), 0
        for held in held_back:
            effects += self.from_client(held.session, held.call, held.envelope, held.raw, now)
        return effects

    def _restore(self) -> list[Effect]:
        """Tell a restarted upstream what its predecessor knew of the sessions that are still here."""
        effects: list[Effect] = []
        level = self._levels.change()
        if level:
            effects.append(self._tell_level(level))
        effects += [
            ToUpstream(own_messages.subscribe(self._own_id("subscribe"), uri)) for uri in self._subscriptions.by_uri
        ]
        return effects

    # --- sessions -----------------------------------------------------------------------------------------------

    def attach(self, session: Hashable) -> list[Effect]:
        self._sessions.setdefault(session, Session())
        return []

    def detach(self, session: Hashable) -> list[Effect]:
        known = self._sessions.pop(session, None)
        if known is None:
            return []
        self._drop_held(lambda held: held.session == session)
        effects: list[Effect] = []
        self._ghosts.left(session, self._now)
        for minted in known.calls.values():
            self._give_up(self._calls.pop(minted))
            effects.append(ToUpstream(own_messages.cancelled(minted, "the client has gone")))
        uris = self._subscriptions.forget(session)
        level = self._levels.forget(session)
        if self._legacy and self.ready:
            effects += [ToUpstream(own_messages.unsubscribe(self._own_id("unsubscribe"), uri)) for uri in uris]
            if level:
                effects.append(self._tell_level(level))
        return effects

    # --- from clients -------------------------------------------------------------------------------------------

    def from_client(self, session: Hashable, call: int, envelope: Envelope, raw: bytes, now: int) -> list[Effect]:
        self._now = now
        known = self._sessions.get(session)
        if known is None:
            return self._unserved(session, call, envelope, "the session is not attached")
        if envelope.kind == "response":
            return [Counted("unknown_response")]
        if self._state != "ready":
            return self._hold(session, known, call, envelope, raw)
        if envelope.kind == "notification":
            return self._notify(known, call, envelope, raw)
        if self._legacy:
            method = envelope.method
            if method == "initialize":
                return self._introduce(session, call, envelope)
            known.initialised = True
            if method == "resources/subscribe" and envelope.uri:
                return self._subscribe(session, known, call, envelope, raw, now)
            if method == "resources/unsubscribe" and envelope.uri:
                return self._unsubscribe(session, known, call, envelope, raw, now)
            if method == "logging/setLevel" and is_level(envelope.level):
                return self._set_level(session, known, call, envelope, raw, now)
        return self._send(session, known, call, envelope, raw, now)[0]

    def _send(
        self, session: Hashable, known: Session, call: int, envelope: Envelope, raw: bytes, now: int
    ) -> tuple[list[Effect], Call | None]:
        if len(self._calls) >= self._max_calls or call in known.calls:
            return self._unserved(session, call, envelope, "overloaded"), None
        minted = self._mint()
        edits = [(envelope.id_at, envelope.id_at + len(envelope.id), minted)]
        if envelope.progress:
            edits.append((envelope.progress_at, envelope.progress_at + len(envelope.progress), minted))
            edits.sort()
        sent = Call(
            session,
            call,
            envelope.id,
            envelope.progress,
            envelope.method,
            "" if envelope.method == "logging/setLevel" else envelope.level,
            now,
            self._silence.heard,
            is_open_ended(envelope.method),
        )
        self._calls[minted] = sent
        known.calls[call] = minted
        return [pass_on(flatten(splice(raw, edits)), envelope, id=minted)], sent

    def _unserved(self, session: Hashable, call: int, envelope: Envelope, reason: str) -> list[Effect]:
        if envelope.kind == "request":
            return [CallLost(session, call, 503, reason, False)]
        return [Counted("unserved_notification")]

    def _introduce(self, session: Hashable, call: int, envelope: Envelope) -> list[Effect]:
        assert self._greeting is not None  # noqa: S101 - a legacy instance is ready only after it
        return [ToClient(session, call, True, self._greeting.to(envelope.id))]

    def _notify(self, known: Session, call: int, envelope: Envelope, raw: bytes) -> list[Effect]:
        method = envelope.method
        if method == "notifications/cancelled":
            return self._cancel(known, call, envelope, raw)
        if method in _MEANINGLESS:
            if method != "notifications/initialized":
                return [Counted("meaningless_notification")]
            known.initialised = True
            return []
        if envelope.progress:
            # A token that nobody waits for, so that it can't be one that somebody does wait for.
            raw = splice(raw, [(envelope.progress_at, envelope.progress_at + len(envelope.progress), self._mint())])
        return [pass_on(flatten(raw), envelope)]

    def _cancel(self, known: Session, call: int, envelope: Envelope, raw: bytes) -> list[Effect]:
        if not envelope.target:
            return [Counted("unknown_cancellation")]
        if not call:
            key = id_key(envelope.target)
            call = next((n for n, minted in known.calls.items() if id_key(self._calls[minted].id) == key), 0)
        minted = known.calls.pop(call, None)
        if minted is None:
            return [Counted("unknown_cancellation")]
        self._give_up(self._calls.pop(minted))
        at = envelope.target_at
        return [pass_on(flatten(splice(raw, [(at, at + len(envelope.target), minted)])), envelope, target=minted)]

    def _subscribe(
        self, session: Hashable, known: Session, call: int, envelope: Envelope, raw: bytes, now: int
    ) -> list[Effect]:
        uri = envelope.uri
        if not self._subscriptions.has_room(session, uri):
            return [ToClient(session, call, True, error_reply(envelope.id, _TOO_MANY, "too many subscriptions"))]
        effects, sent = self._send(session, known, call, envelope, raw, now)
        if sent is not None and self._subscriptions.add(session, uri):
            sent.new_uri = uri
        return effects

    def _unsubscribe(
        self, session: Hashable, known: Session, call: int, envelope: Envelope, raw: bytes, now: int
    ) -> list[Effect]:
        if self._subscriptions.remove(session, envelope.uri):
            return self._send(session, known, call, envelope, raw, now)[0]
        return [ToClient(session, call, True, result_reply(envelope.id, b"{}"))]

    def _set_level(
        self, session: Hashable, known: Session, call: int, envelope: Envelope, raw: bytes, now: int
    ) -> list[Effect]:
        before = (self._levels.wanted.get(session, ""), self._levels.upstream)
        level = self._levels.want(session, envelope.level)
        if level == envelope.level:
            effects, sent = self._send(session, known, call, envelope, raw, now)
            if sent is not None:
                sent.levels_before = before
            else:
                self._levels.restore(session, *before)
            return effects
        answer = ToClient(session, call, True, result_reply(envelope.id, b"{}"))
        return [self._tell_level(level), answer] if level else [answer]

    def abandon(self, session: Hashable, call: int, reason: str, now: int) -> list[Effect]:
        if self._drop_held(lambda held: held.session == session and held.call == call):
            return []
        known = self._sessions.get(session)
        minted = known.calls.pop(call, None) if known is not None else None
        if minted is None:
            return []
        self._now = now
        given_up = self._calls.pop(minted)
        self._give_up(given_up)
        effects: list[Effect] = [ToUpstream(own_messages.cancelled(minted, reason))]
        if reason == "timeout" and not given_up.open_ended:
            if self._silence.suspect(given_up.heard):
                if self._silence.begin(now):
                    effects.append(ToUpstream(own_messages.probe(self._own_id("probe"), legacy=self._legacy)))
            elif given_up.method not in self._never_slow:
                effects.append(SLOW)
        return effects

    # --- one request and its way ------------------------------------------------------------------------------------

    def awaits(self, id_raw: bytes) -> bool:
        return id_raw in self._calls or not self._own.get(id_raw, _LATE).startswith(_LATE)

    @property
    def is_quiet(self) -> bool:
        return not self._held and all(call.open_ended for call in self._calls.values())

    def check(self, now: int, timeout_ns: int) -> list[Effect]:
        if self._state != "ready" or not self._silence.check(now, timeout_ns):
            return []
        return [ToUpstream(own_messages.probe(self._own_id("check"), legacy=self._legacy))]

    def lost(self, id_raw: bytes, loss: CallLost, outcome: Outcome | None, now: int) -> list[Effect]:
        self._now = now
        effects: list[Effect] = [] if outcome is None else [outcome]
        if outcome == SUCCESS:
            self._silence.hear()
        call = self._calls.pop(id_raw, None)
        if call is None:
            purpose = self._own.pop(id_raw, None)
            if purpose == "initialize" and self._state == "waiting":
                return effects + self._handshake_failed(loss.reason)
            if purpose in _PROBES:
                return [SILENT] * self._silence.give_up() if outcome == DEATH else effects
            return []
        del self._sessions[call.session].calls[call.number]
        if loss.sent:
            self._give_up(call)
        lost = CallLost(call.session, call.number, loss.code, loss.reason, loss.sent, loss.retry_after_ms)
        return [lost, *self._undo(call), *([] if call.open_ended else effects)]

    # --- what waits for the handshake -----------------------------------------------------------------------------

    def _hold(self, session: Hashable, known: Session, call: int, envelope: Envelope, raw: bytes) -> list[Effect]:
        if self._state == "down":
            if self._greeting is not None and envelope.kind == "request" and envelope.method == "initialize":
                return self._introduce(session, call, envelope)  # an error, the server's own
            return self._unserved(session, call, envelope, "upstream down")
        if envelope.method == "notifications/initialized":
            known.initialised = True
            return []
        if envelope.method == "notifications/cancelled":
            return self._cancel_held(session, call, envelope)
        if len(self._held) >= self._max_held or self._held_bytes + len(raw) > self._max_held_bytes:
            return self._unserved(session, call, envelope, "overloaded")
        self._held.append(Held(session, call, envelope, raw))
        self._held_bytes += len(raw)
        return []

    def _cancel_held(self, session: Hashable, call: int, envelope: Envelope) -> list[Effect]:
        if not envelope.target:
            return [Counted("unknown_cancellation")]
        key = id_key(envelope.target)
        for index, held in enumerate(self._held):
            own = held.session == session and held.envelope.kind == "request" and held.envelope.method != "initialize"
            if own and (held.call == call if call else id_key(held.envelope.id) == key):
                del self._held[index]
                self._held_bytes -= len(held.raw)
                return []
        return [Counted("unknown_cancellation")]

    def _drop_held(self, unwanted: Callable[[Held], bool]) -> bool:
        if not self._held:
            return False
        before = len(self._held)
        self._held = deque(held for held in self._held if not unwanted(held))
        self._held_bytes = sum(len(held.raw) for held in self._held)
        return len(self._held) < before

    def _fail_held(self, reason: str) -> list[Effect]:
        held_back, self._held, self._held_bytes = self._held, deque(), 0
        return [
            CallLost(held.session, held.call, 503, reason, False)
            for held in held_back
            if held.envelope.kind == "request"
        ]

    # --- from the upstream --------------------------------------------------------------------------------------

    def from_upstream(self, raw: bytes, now: int) -> list[Effect]:
        self._now = now
        try:
            message = parse_upstream(raw)
        except ValueError as error:
            effects: list[Effect] = [log_line("warning", f"not a message ({error})", raw), Counted("garbage")]
            instead = invalid_answer(raw)
            return effects if instead is None else [*effects, *self.from_upstream(instead, now)]
        self._silence.hear()
        if message.kind == "response":
            return self._answer(message, raw, now)
        if message.kind == "request":
            if message.method == "ping":
                return [ToUpstream(result_reply(message.id, b"{}"))]
            reply = error_reply(message.id, METHOD_NOT_FOUND, "not available: this server is shared by several clients")
            return [Counted("server_request"), ToUpstream(reply)]
        return self._announce(message, raw)

    def _answer(self, message: UpstreamMessage, raw: bytes, now: int) -> list[Effect]:
        call = self._calls.pop(message.id, None)
        if call is None:
            purpose = self._own.pop(message.id, None)
            if purpose == "initialize":
                return self._greeted(message, raw, now)
            if purpose is None:
                return [Counted("unknown_answer")]
            if purpose == "subscribe" and message.error:
                return [log_line("warning", "a resource could not be subscribed to again", raw)]
            return [SUCCESS] if purpose in ("check", _LATE + "check") else []
        del self._sessions[call.session].calls[call.number]
        edits = [(message.id_at, message.id_at + len(message.id), call.id)]
        if message.subscription == message.id:
            edits.append((message.subscription_at, message.subscription_at + len(message.subscription), call.id))
            edits.sort()
        effects: list[Effect] = [ToClient(call.session, call.number, True, splice(raw, edits))]
        if message.error:
            effects += self._undo(call)
        if not call.open_ended:
            slow = now - call.sent_ns > self._slow_call_ns and call.method not in self._never_slow
            effects.append(SLOW if slow else SUCCESS)
        return effects

    def _announce(self, message: UpstreamMessage, raw: bytes) -> list[Effect]:
        method = message.method
        if method == "notifications/progress":
            call = self._calls.get(message.progress)
            if call is None or not call.progress:
                return [Counted("unknown_progress")]
            at = message.progress_at
            text = splice(raw, [(at, at + len(message.progress), call.progress)])
            return [ToClient(call.session, call.number, False, text)]
        if method == "notifications/cancelled":
            return self._cancelled_by_server(message, raw)
        if message.subscription:
            call = self._calls.get(message.subscription)
            if call is None or not call.open_ended:
                return [Counted("unknown_subscription")]
            at = message.subscription_at
            text = splice(raw, [(at, at + len(message.subscription), call.id)])
            return [ToClient(call.session, call.number, False, text)]
        if method == "notifications/message":
            return self._log(message, raw)
        if self._legacy and method == "notifications/resources/updated":
            return [ToClient(session, 0, False, raw) for session in self._subscriptions.subscribers(message.uri)]
        if self._legacy and method in LIST_CHANGED:
            return [ToClient(session, 0, False, raw) for session, known in self._sessions.items() if known.initialised]
        only = self._unless(_only(self._sessions), self._ghosts.all(self._now))
        if only in self._sessions:
            return [ToClient(only, 0, False, raw)]
        return [log_line("info", "a notification that belongs to no one client", raw), Counted("unattributed")]

    def _cancelled_by_server(self, message: UpstreamMessage, raw: bytes) -> list[Effect]:
        """A server ends a subscription so (2026-07-28, cancellation); it may end nothing else."""
        call = self._calls.get(message.target)
        if call is None or not call.open_ended:
            return [Counted("unknown_cancellation")]
        del self._calls[message.target]
        del self._sessions[call.session].calls[call.number]
        edits = [(message.target_at, message.target_at + len(message.target), call.id)]
        if message.subscription == message.target:
            edits.append((message.subscription_at, message.subscription_at + len(message.subscription), call.id))
            edits.sort()
        return [ToClient(call.session, call.number, True, splice(raw, edits))]

    def _give_up(self, call: Call) -> None:
        if not call.open_ended:
            self._ghosts.gave_up(call.session, self._now, asked=bool(call.level))

    @staticmethod
    def _unless(session: Hashable, ghosts: Iterable[Hashable]) -> Hashable:
        """That session, unless one who is gone may be meant as well. Nothing is ever given to a ghost."""
        return _Unclear.SEVERAL if any(ghost != session for ghost in ghosts) else session

    def _log(self, message: UpstreamMessage, raw: bytes) -> list[Effect]:
        level = message.level if is_level(message.level) else "info"
        if self._legacy:
            session = _only(call.session for call in self._calls.values() if not call.open_ended)
            if session is _Unclear.NOBODY:
                session = self._unless(_only(self._sessions), self._ghosts.all(self._now))
            else:
                session = self._unless(session, self._ghosts.of_calls(self._now))
            passes = session in self._sessions and self._levels.passes(session, level)
        else:
            # Only a request that asked for messages can have caused one (2026-07-28, logging).
            asking = [call for call in self._calls.values() if call.level and not call.open_ended]
            session = self._unless(_only(call.session for call in asking), self._ghosts.of_asking_calls(self._now))
            passes = any(reaches(level, call.level) for call in asking)
        if isinstance(session, _Unclear):
            return [log_line(level, "log message", raw), Counted("unattributed")]
        return [ToClient(session, 0, False, raw)] if passes else [Counted("filtered_log_message")]

    # --- small change -------------------------------------------------------------------------------------------

    def _undo(self, call: Call) -> list[Effect]:
        """A request failed that had changed what is kept here. Returns what the upstream must be told, if it lives."""
        if call.new_uri and self._subscriptions.remove(call.session, call.new_uri):
            return [ToUpstream(own_messages.unsubscribe(self._own_id("unsubscribe"), call.new_uri))]
        if call.levels_before is not None:
            level = self._levels.restore(call.session, *call.levels_before)
            return [self._tell_level(level)] if level else []
        return []

    def _tell_level(self, level: str) -> ToUpstream:
        return ToUpstream(own_messages.set_level(self._own_id("level"), level))

    def _mint(self) -> bytes:
        self._minted += 1
        return b"%d" % self._minted

    def _own_id(self, purpose: str) -> bytes:
        if len(self._own) >= _MAX_OWN:
            del self._own[next(iter(self._own))]
        minted = self._mint()
        self._own[minted] = purpose
        return minted
