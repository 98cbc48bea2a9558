"""All instances of all upstreams of one worker: which there are, which one a message goes to, and when one is started,
restarted or ended. It does no I/O: its owner opens transports, feeds lines in, and carries events out.

A *slot* is a place for one running instance: a shared upstream has one for each protocol version that it negotiated,
under that version as its key, and one under ``""`` for what needs no handshake (the modern era, where each request
carries its version, and plain JSON-RPC). Where a server answers another version than the one asked for, the asked
one becomes an alias. A per-session upstream has a slot for each session. An *instance* is one run of a slot.

Rules, in one place:

- A call is answered, always: by the upstream, or by ``failed`` with 502 (the upstream may have seen it) or 503 (it has
  not). While an instance starts, calls wait for it; while its slot waits for the next restart they fail at once.
- What clients can make this keep is bounded: calls in flight by ``upstream_max_inflight`` for each upstream (waiting
  ones included, and those of other pools with the same upstream), requests that stay open by ``MAX_OPEN`` for each
  session, waiting bytes by ``max_buffer_size`` for each slot.
- A shared instance that was up and dies is started again by itself as long as a session is attached to it; its
  multiplexer lives on, and so do the sessions. A per-session instance that dies takes its session with it.
- A crash loop costs the machine one start every few seconds for each slot, or for each per-session upstream.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import attrs

from actors.policy import eras
from actors.policy.mux import Mux
from ipc.messages import Envelope
from ipc.settings import Settings, Upstream

from .bulkhead import Bulkhead, OwnBulkhead
from .slot import (
    CANCELLED,
    MILLISECOND,
    OVERLOADED_RETRY_MS,
    SECOND,
    START_TIMEOUT_NS,
    TICK_NS,
    Change,
    Failures,
    Instance,
    PoolEvents,
    Slot,
    State,
    Transport,
    Waiting,
)

__all__ = ["Instance", "Pool", "PoolEvents", "Transport"]

MAX_OPEN = 64  # requests that stay open, for each session: the contract asks for a cap, editors open a handful
MAX_EARLY = 16  # calls given up before they came; more than a few at a time means that they were answered
IDLE_NS = 300 * SECOND
PROBE_NS = 5 * SECOND  # for the answer to a probe, unless calls have less time

UNAVAILABLE = 503


@attrs.define(eq=False)
class Session:
    """One client connection as the pool sees it."""

    upstream: UpstreamState
    route: eras.SessionRoute
    slots: set[Slot] = attrs.field(factory=set)
    calls: dict[int, Slot] = attrs.field(factory=dict)  # in flight or waiting
    open: set[int] = attrs.field(factory=set)  # those of ``calls`` that stay open
    early: dict[int, None] = attrs.field(factory=dict)  # given up before they came, newest last
    lost: str = ""  # per-session: why there is no instance any more


@attrs.define(eq=False)
class UpstreamState:
    """One configured upstream."""

    config: Upstream
    shared: bool
    keys: dict[str, Slot] = attrs.field(factory=dict)  # shared: by asked and by negotiated version
    slots: set[Slot] = attrs.field(factory=set)
    in_flight: int = 0  # calls in flight or waiting, those that stay open left out
    failures: Failures = attrs.field(factory=Failures)  # per-session: of runs that never came up


class Pool:
    """See the module.

    Args:
        upstreams: those of this worker; the first of ``settings.upstreams`` is the default one.
        now: CLOCK_MONOTONIC nanoseconds, as everywhere here.
        jitter: gives numbers in [0, 1).
        on_change: called with (upstream, "up" | "down" | "restarted", reason) when an instance came up for the first
            time, went down, or came up again.
        bulkhead: where other pools have the same upstreams; without it this one has them alone.
    """

    def __init__(
        self,
        upstreams: Iterable[Upstream],
        events: PoolEvents,
        *,
        settings: Settings,
        now: int,
        jitter: Callable[[], float] = random.random,
        on_change: Callable[[str, Change, str], None] | None = None,
        bulkhead: Bulkhead | None = None,
    ) -> None:
        self.bulkhead = bulkhead if bulkhead is not None else OwnBulkhead(settings.upstream_max_inflight)
        self.events = events
        self.settings = settings
        self.jitter = jitter
        self._on_change = on_change
        self.check_every_ns = settings.health_check_interval * MILLISECOND if settings.health_check_enabled else 0
        self.counted: dict[str, int] = {}
        self._changes: dict[str, dict[str, int]] = {}  # of the servers' states, by upstream
        self._upstreams = {
            upstream.name: UpstreamState(upstream, upstream.instance == "shared") for upstream in upstreams
        }
        self._default = settings.upstreams[0].name if settings.upstreams else ""
        self._sessions: dict[Hashable, Session] = {}
        self._draining = False
        self._wake_ns: int | None = None
        self._now = now  # the latest that was seen

    # --- sessions -----------------------------------------------------------------------------------------------

    def attach(self, session: Hashable, upstream: str, version: str = "") -> None:
        """A client that will speak to that upstream. Again for the same one is no error, for another a change.

        ``version``: the legacy protocol version at which it has been initialised already, "" for a fresh one.
        Raises KeyError for an upstream that this pool does not have.
        """
        state = self._upstreams[upstream]
        known = self._sessions.get(session)
        if known is not None and known.upstream is not state:
            self.detach(session, self._now)
            known = None
        if known is None:
            self._sessions[session] = Session(state, eras.SessionRoute(version))
        elif version and not known.route.version:
            known.route.version = version

    def detach(self, session: Hashable, now: int) -> None:
        """The client has gone; what it has in flight is cancelled upstream."""
        gone = self._sessions.get(session)
        if gone is None:
            return
        slots = gone.slots | set(gone.calls.values())
        for call in list(gone.calls):
            self.settle(session, call)
        del self._sessions[session]
        for slot in slots:
            slot.leave(session, now)

    def sessions(self) -> tuple[Hashable, ...]:
        return tuple(self._sessions)

    # --- messages -----------------------------------------------------------------------------------------------

    def forward(self, session: Hashable, call: int, envelope: Envelope, raw: bytes, now: int) -> None:
        """Send a checked message of a client on. ``call`` is 0 for a notification or a response, and for
        ``notifications/cancelled`` the call that it names."""
        self._now = now
        known = self._sessions.get(session)
        if known is None or known.lost:
            self._reject(session, call, envelope, known.lost if known is not None else "the session is not attached", 0)
            return
        if envelope.kind != "request":
            # A cancellation goes where its call went, and ends it: no answer will come.
            slot = known.calls.get(call) if call else None
            if slot is None:
                slot = self._slot_of(session, known, envelope)
            elif envelope.method == CANCELLED:
                self.settle(session, call)
            slot.take(Waiting(session, call, envelope, raw), now)
            return
        if self._draining:
            self._reject(session, call, envelope, "draining", 0)
            return
        if call in known.early:
            del known.early[call]
            self.count("given up early")
            return
        stays_open = eras.is_open_ended(envelope.method)
        name = known.upstream.config.name
        full = len(known.open) >= MAX_OPEN if stays_open else not self.bulkhead.enter(name)
        if full:
            self._reject(session, call, envelope, "overloaded", OVERLOADED_RETRY_MS)
            return
        slot = self._slot_of(session, known, envelope)
        known.calls[call] = slot
        if stays_open:
            known.open.add(call)
        else:
            known.upstream.in_flight += 1
        slot.take(Waiting(session, call, envelope, raw), now)
        self.wake_at(now + TICK_NS)

    def abandon(self, session: Hashable, call: int, reason: str, now: int) -> None:
        """Nobody waits for this call any more."""
        known = self._sessions.get(session)
        if known is None:
            return
        slot = known.calls.get(call)
        if slot is not None:
            self.settle(session, call)
            slot.abandon(session, call, reason, now)
            return
        # It may have been answered, or its message may be on its way still: giving up travels on a faster lane.
        known.early[call] = None
        if len(known.early) > MAX_EARLY:
            del known.early[next(iter(known.early))]

    def _reject(self, session: Hashable, call: int, envelope: Envelope, reason: str, retry_after_ms: int) -> None:
        if envelope.kind == "request":
            self.events.failed(session, call, UNAVAILABLE, reason, False, retry_after_ms)
        else:
            self.count("dropped")

    def _slot_of(self, session: Hashable, known: Session, envelope: Envelope) -> Slot:
        if known.upstream.shared:
            return self.slot(known.upstream, known.route.key(envelope))
        for slot in known.slots:
            return slot
        # Normally the client's own ``initialize`` reaches its server. Where it has been answered by another already
        # (see ``attach``) the gateway greets the server, as it does for shared ones.
        version = known.route.version
        mux = self.make_mux(known.upstream.config, version, shared=bool(version))
        slot = Slot(self, known.upstream, version, mux, session)
        known.upstream.slots.add(slot)
        known.slots.add(slot)
        return slot

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self, now: int) -> None:
        """Restarts, start timeouts, probes, idle instances."""
        self._now = now
        if self._wake_ns is None or now < self._wake_ns:
            return
        self._wake_ns = None
        for upstream in self._upstreams.values():
            for slot in tuple(upstream.slots):
                if slot.state != "idle":
                    self.wake_at(slot.tick(now))
            self._retire_idle(upstream, now)

    def next_deadline(self) -> int | None:
        """When ``tick`` has something to do; None: not before the next event."""
        return self._wake_ns

    def wake_at(self, when_ns: int) -> None:
        if self._wake_ns is None or when_ns < self._wake_ns:
            self._wake_ns = when_ns

    def _retire_idle(self, upstream: UpstreamState, now: int) -> None:
        if not upstream.shared:
            return
        kept = None
        if upstream.config.name == self._default:
            kept = max(upstream.slots, key=lambda slot: slot.last_used_ns, default=None)
        for slot in upstream.slots:
            unused = slot.state == "up" and not slot.mux.sessions and not slot.mux.in_flight
            if unused and slot is not kept and now - slot.last_used_ns >= IDLE_NS:
                self.events.log(upstream.config.name, "info", "nobody uses the server: it is ended")
                slot.retire()

    # --- the end -------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no new call. ``in_flight`` tells when the rest is done."""
        self._draining = True

    @property
    def in_flight(self) -> int:
        """Calls in flight or waiting, of all upstreams; those that stay open left out."""
        return sum(upstream.in_flight for upstream in self._upstreams.values())

    def held_bytes(self) -> int:
        """What all instances keep of their clients' messages, until their upstreams have them."""
        return sum(slot.held_bytes() for upstream in self._upstreams.values() for slot in upstream.slots)

    def close_all(self, now: int | None = None) -> None:
        """End every instance. What is still in flight fails with 502 or 503."""
        self._draining = True
        now = self._now if now is None else now
        for upstream in self._upstreams.values():
            for slot in tuple(upstream.slots):
                slot.close("draining", now)
        self._wake_ns = None

    # --- for slots ----------------------------------------------------------------------------------------------

    def slot(self, upstream: UpstreamState, key: str) -> Slot:
        """The shared slot of that key; made if there is none."""
        found = upstream.keys.get(key)
        if found is None:
            found = upstream.keys[key] = Slot(
                self, upstream, key, self.make_mux(upstream.config, key, shared=True), None
            )
            upstream.slots.add(found)
        return found

    def probe_ns(self, upstream: Upstream) -> int:
        """How long a probe of that upstream may go unanswered."""
        return min(PROBE_NS, self.settings.call_timeout_ms(upstream) * MILLISECOND)

    def make_mux(self, upstream: Upstream, version: str, *, shared: bool) -> Mux:
        return Mux(
            version=version,
            shared=shared,
            probe_timeout_ns=self.probe_ns(upstream),
            handshake_timeout_ns=START_TIMEOUT_NS,
            slow_call_ns=self.settings.circuitbreaker_slow_call_ms * MILLISECOND,
            slow_tool_calls=upstream.slow_tool_calls,
        )

    def refuse(self, message: Waiting, reason: str, retry_after_ms: int) -> None:
        """A message was not taken by its slot, and never will be."""
        if message.envelope.kind == "request" and self.settle(message.session, message.call):
            self.events.failed(message.session, message.call, UNAVAILABLE, reason, False, retry_after_ms)
        else:
            self.count("dropped")

    def settle(self, session: Hashable, call: int) -> bool:
        """The call is over. False when there was no such call."""
        known = self._sessions.get(session)
        if known is None or known.calls.pop(call, None) is None:
            return False
        if call in known.open:
            known.open.discard(call)
        else:
            known.upstream.in_flight -= 1
            self.bulkhead.leave(known.upstream.config.name)
        return True

    def joined(self, session: Hashable, slot: Slot) -> None:
        known = self._sessions.get(session)
        if known is not None:
            known.slots.add(slot)

    def leave(self, session: Hashable, slot: Slot, reason: str) -> None:
        """The session's own slot is no more. ``reason`` is empty when nothing is lost with it."""
        known = self._sessions.get(session)
        if known is not None:
            known.slots.discard(slot)
        if reason:
            self.lose(session, reason)

    def lose(self, session: Hashable, reason: str) -> None:
        known = self._sessions.get(session)
        if known is not None and not known.lost:
            known.lost = reason
            self.events.lost(session, reason)

    def moved(self, old: Slot, new: Slot) -> None:
        """``new`` serves what ``old`` was for."""
        for key, slot in old.upstream.keys.items():
            if slot is old:
                old.upstream.keys[key] = new

    def readdress(self, message: Waiting, slot: Slot) -> None:
        known = self._sessions.get(message.session)
        if known is not None and message.call in known.calls:
            known.calls[message.call] = slot

    def changed(self, upstream: str, what: Change, reason: str) -> None:
        changes = self._changes.setdefault(upstream, {})
        changes[what] = changes.get(what, 0) + 1
        if self._on_change is not None:
            self._on_change(upstream, what, reason)

    def count(self, what: str) -> None:
        self.counted[what] = self.counted.get(what, 0) + 1

    # --- for operators ------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """``{"upstreams": {name: {"state", "instances": [...]}}, "sessions", "counted"}``."""
        return {
            "upstreams": {
                name: {
                    "state": _state(upstream),
                    "in_flight": upstream.in_flight,
                    "changes": dict(self._changes.get(name, {})),
                    "instances": [slot.describe() for slot in upstream.slots if slot.state != "idle"],
                }
                for name, upstream in self._upstreams.items()
            },
            "sessions": len(self._sessions),
            "counted": dict(self.counted),
        }


def _state(upstream: UpstreamState) -> State:
    states = {slot.state for slot in upstream.slots}
    order: tuple[State, ...] = ("up", "starting", "down")
    return next((state for state in order if state in states), "idle")
