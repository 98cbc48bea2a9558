"""All instances of all upstreams of one worker: which there are, which one a message goes to, and when one is started,
restarted or ended. It does no I/O: its owner opens transports, feeds lines in, and carries events out.

A shared upstream has one instance for each protocol version that it negotiated, under that version as its key, and one
under ``""`` for what needs no handshake: the modern era, where each request carries its version, and plain JSON-RPC.
Where a server answers a version other than the one asked for, the asked one becomes an alias. A per-session upstream
has one instance for each session.

Rules, in one place:

- A call is answered, always: by the upstream, or by ``failed`` with 502 (the upstream may have seen it) or 503 (it has
  not). While an instance starts, calls wait for it; while it waits for its next restart they fail at once.
- What a client can make this keep is bounded: calls in flight by ``upstream_max_inflight`` for each upstream (waiting
  ones included), requests that stay open by ``MAX_OPEN`` for each session, waiting bytes by ``max_buffer_size``.
- A crash loop costs the machine at most one start every few seconds for each key, or for each per-session upstream.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Literal, Protocol

import attrs

from actors.policy import mux as muxing
from actors.policy.eras import SessionRoute
from actors.policy.mux import Mux
from ipc.messages import Envelope
from ipc.settings import Settings, Upstream

MILLISECOND = 1_000_000
SECOND = 1_000_000_000

MAX_OPEN = 64  # requests that stay open, for each session: the contract asks for a cap, editors open a handful
START_TIMEOUT_NS = 60 * SECOND  # launchers such as npx download the server first
IDLE_NS = 300 * SECOND
SETTLED_NS = 10 * SECOND  # up for so long: the next failure is a first one again
_TICK_NS = 250 * MILLISECOND  # how often the multiplexers look at their own deadlines, while calls are in flight

BAD_GATEWAY = 502
UNAVAILABLE = 503

_REFUSED_VERSION = "2025-03-26"  # it has batches; a server that insists on it is asked for the one before
_FALLBACK_VERSION = "2024-11-05"
_OPEN_ENDED = "subscriptions/listen"

OutcomeKind = Literal["success", "slow", "silent", "death"]
Level = Literal["debug", "info", "warning", "error"]


class Transport(Protocol):
    """An open way to one upstream."""

    def send(self, raw: bytes) -> bool:
        """Take one message and frame it. False: its bounded buffer is full and nothing was taken; ``Instance.room``
        is called once there is room again."""

    def close(self) -> None:
        """End it. Returns at once; ``Instance.closed`` may follow, and is ignored."""


class PoolEvents(Protocol):
    """What a pool asks of its owner. None of these may raise, or call back into the pool, but for ``connect``."""

    def connect(self, upstream: Upstream, instance: Instance) -> None:
        """Begin to open a transport: ``instance.opened`` or ``instance.failed`` follows, at once or later."""

    def deliver(self, session: Hashable, call: int, final: bool, raw: bytes) -> None: ...

    def failed(
        self, session: Hashable, call: int, code: int, reason: str, sent: bool, retry_after_ms: int
    ) -> None: ...

    def lost(self, session: Hashable, reason: str) -> None:
        """The session's state upstream is gone; it has to begin anew."""

    def outcome(self, upstream: str, kind: OutcomeKind) -> None: ...

    def log(self, upstream: str, level: str, text: str) -> None: ...

    def changed(self, upstream: str, what: Literal["up", "down", "restarted"], reason: str) -> None:
        """An instance came up for the first time, went down, or came up again."""


@attrs.frozen
class Waiting:
    """A message for an instance that isn't up yet."""

    session: Hashable
    call: int
    envelope: Envelope
    raw: bytes


@attrs.define(eq=False)
class Session:
    """One client connection as the pool sees it."""

    upstream: UpstreamState
    route: SessionRoute
    instances: set[Instance] = attrs.field(factory=set)
    calls: dict[int, Instance] = attrs.field(factory=dict)  # what is in flight or waits
    open: set[int] = attrs.field(factory=set)  # the ones of ``calls`` that stay open
    lost: str = ""  # per-session: why there is no instance any more


@attrs.define(eq=False)
class UpstreamState:
    """One configured upstream."""

    config: Upstream
    shared: bool
    instances: set[Instance] = attrs.field(factory=set)
    by_key: dict[str, Instance] = attrs.field(factory=dict)  # shared: by asked and by negotiated version
    in_flight: int = 0  # calls in flight or waiting, those that stay open left out
    failures: Failures = attrs.field(factory=lambda: Failures())  # per-session: of starts
    sessions: int = 0


@attrs.define
class Failures:
    """How often in a row something failed, and when it may be tried again."""

    streak: int = 0
    not_before_ns: int = 0

    def add(self, now: int, *, settled: bool, jitter: float) -> None:
        """At once after a first failure, then 100 ms, doubling up to 5 s, of which jitter takes up to half."""
        if settled:
            self.streak = 0
        full = 0 if self.streak == 0 else min(5 * SECOND, 100 * MILLISECOND << min(self.streak - 1, 16))
        self.not_before_ns = now + int(full * (1 - jitter / 2))
        self.streak += 1

    def wait_ms(self, now: int) -> int:
        return max(0, -((now - self.not_before_ns) // MILLISECOND))


class Pool:
    """See the module.

    Args:
        upstreams: those of this worker; the first of ``settings.upstreams`` is the default one.
        now: CLOCK_MONOTONIC nanoseconds, as everywhere here.
        jitter: gives numbers in [0, 1).
    """

    def __init__(
        self,
        upstreams: Iterable[Upstream],
        events: PoolEvents,
        *,
        settings: Settings,
        now: int,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.events = events
        self.settings = settings
        self.jitter = jitter
        self.counted: dict[str, int] = {}
        self._upstreams = {
            upstream.name: UpstreamState(upstream, upstream.instance == "shared") for upstream in upstreams
        }
        self._default = settings.upstreams[0].name if settings.upstreams else ""
        self._sessions: dict[Hashable, Session] = {}
        self._draining = False
        self._next_tick_ns = now + _TICK_NS

    # --- sessions -----------------------------------------------------------------------------------------------

    def attach(self, session: Hashable, upstream: str) -> None:
        """A client that will speak to that upstream. Raises KeyError for one that this pool does not have."""
        state = self._upstreams[upstream]
        if session not in self._sessions:
            self._sessions[session] = Session(state, SessionRoute())
            state.sessions += 1

    def detach(self, session: Hashable, now: int) -> None:
        """The client has gone; what it has in flight is cancelled upstream."""
        gone = self._sessions.pop(session, None)
        if gone is None:
            return
        gone.upstream.sessions -= 1
        for call in list(gone.calls):
            self._settle(gone, call)
        for instance in list(gone.instances):
            instance.forget(session, now)

    def sessions(self) -> Iterable[Hashable]:
        return tuple(self._sessions)

    # --- messages -----------------------------------------------------------------------------------------------

    def forward(self, session: Hashable, call: int, envelope: Envelope, raw: bytes, now: int) -> None:
        """Send a checked message of a client on. ``call`` is 0 for a notification or a response."""
        known = self._sessions.get(session)
        if known is None:
            self._refuse(session, call, "the session is not attached")
            return
        if known.lost:
            self._refuse(session, call, known.lost)
            return
        stays_open = envelope.method == _OPEN_ENDED
        if call:
            refusal = self._admit(known, stays_open=stays_open)
            if refusal:
                self._refuse(session, call, refusal, 1000)
                return
        elif envelope.method == "notifications/cancelled":
            pass
        instance = self._instance(session, known, envelope, call, now)
        if instance is None:
            return
        if call:
            known.calls[call] = instance
            if stays_open:
                known.open.add(call)
            else:
                known.upstream.in_flight += 1
        instance.take(Waiting(session, call, envelope, raw), now)

    def abandon(self, session: Hashable, call: int, reason: str, now: int) -> None:
        """Nobody waits for this call any more."""
        known = self._sessions.get(session)
        if known is None:
            return
        instance = known.calls.get(call)
        if instance is not None:
            self._settle(known, call)
            instance.abandon(session, call, reason, now)

    def _admit(self, session: Session, *, stays_open: bool) -> str:
        """Why a call can't be taken; "" when it can."""
        if self._draining:
            return "draining"
        if stays_open:
            return "overloaded" if len(session.open) >= MAX_OPEN else ""
        return "overloaded" if session.upstream.in_flight >= self.settings.upstream_max_inflight else ""

    def _refuse(self, session: Hashable, call: int, reason: str, retry_after_ms: int = 0) -> None:
        if call:
            self.events.failed(session, call, UNAVAILABLE, reason, False, retry_after_ms)
        else:
            self.count("dropped: " + reason)

    def _settle(self, session: Session, call: int) -> None:
        """The call is over."""
        if session.calls.pop(call, None) is None:
            return
        if call in session.open:
            session.open.discard(call)
        else:
            session.upstream.in_flight -= 1

    def count(self, what: str, by: int = 1) -> None:
        self.counted[what] = self.counted.get(what, 0) + by

    # --- instances -----------------------------------------------------------------------------------------------

    # (continued below, once the multiplexer is in the tree)
