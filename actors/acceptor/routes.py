"""The ways to the upstreams: over the bridge worker, or straight over TCP from this worker's own epoll."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from actors.upstream.bulkhead import Bulkhead, OwnBulkhead, SharedBulkhead
from actors.upstream.pool import Instance, Pool
from ipc.address import Reply
from ipc.errors import ActorDown, MailboxFull
from ipc.framing import FrameTooLong
from ipc.messages import (
    Abandon,
    AttachSession,
    AuditEvent,
    BreakerSnapshot,
    BreakerSubscribe,
    CallFailed,
    Circuit,
    Deliver,
    DetachSession,
    Envelope,
    Forward,
    Grant,
    ListAnswers,
    Message,
    Outcomes,
    ProbesInFlight,
    SessionLost,
    Taken,
)
from ipc.settings import Upstream

from .connection import Stage
from .tcp_upstream import TcpUpstream

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

ASK_NS: Final = 2_000_000_000
PROBE_PERMITS: Final = 1  # while an upstream's state is unknown: as half-open
PERMIT_RETRY_MS: Final = 200  # within which a permit that nobody uses has come here
KINDS: Final = ("success", "death", "silent", "slow")  # the order of the counts in an Outcomes row


class Route(Protocol):
    """What the dispatch needs of an upstream. ``session`` and ``call`` are the acceptor's own numbers."""

    timeout_ns: int
    max_timeout_ns: int
    per_session: bool
    elsewhere: bool
    """Whether what it takes goes to another process, which says so (``Taken``)."""

    def attach(self, session: int, upstream: str, grant: Grant | None, version: str) -> None: ...
    def detach(self, session: int) -> None: ...
    def forward(self, session: int, call: int, envelope: Envelope, raw: bytes, now: int) -> bool:
        """Take the message; False: no room now. What fails later comes back as ``failed``."""
        ...

    def abandon(self, session: int, call: int, reason: str, now: int) -> None: ...
    def on_room(self, callback: Callable[[], None]) -> None: ...
    def refused_for(self, now: int) -> int:
        """0: the breaker lets one call pass now. Otherwise in how many milliseconds to ask again."""
        ...

    @property
    def half_open(self) -> bool:
        """Whether the calls that pass now are probes."""
        ...

    def probe(self, change: int) -> None:
        """A probe is sent (1), or it has ended, however it did (-1)."""
        ...

    def is_open(self) -> bool:
        """Whether the breaker lets nothing pass. What gets no answer is no probe and takes no permit."""
        ...


class Breakers:
    """The acceptor's copy of the circuits. An upstream that nothing is known of counts as half-open.

    While a circuit is half-open no more probes of this acceptor are in flight than it has permits. Who is refused for
    want of one asks for it: permits that others don't use are dealt to those who do.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._address = hub.context.address("breaker")
        self._circuits: dict[str, Circuit] = {}
        self._probes: dict[str, int] = {}  # in flight, by upstream
        self._wanting: set[str] = set()  # refused for want of a permit since the last report
        self._told: dict[str, int] = {}
        self._stop: Callable[[], None] | None = None

    def start(self) -> None:
        def changed(incarnation: int) -> None:
            if incarnation:
                self._hub.post(self._subscribe)

        self._stop = self._address.watch(changed)

    def stop(self) -> None:
        if self._stop is not None:
            self._stop()

    def _subscribe(self) -> None:
        def answered(reply: Reply) -> None:
            if isinstance(reply, BreakerSnapshot):
                self._hub.post(functools.partial(self.learn, reply))
                self._hub.post(self._hub.catalogue.tell_all)
                self._told = {}  # to an incarnation that knows of none

        self._address.request(BreakerSubscribe(self._hub.name), self._hub.now + ASK_NS, answered)

    def learn(self, snapshot: BreakerSnapshot) -> None:
        for circuit in snapshot.circuits:
            self._circuits[circuit.upstream] = circuit

    @property
    def _enabled(self) -> bool:
        return self._hub.settings.circuitbreaker_enabled

    def is_open(self, upstream: str) -> bool:
        circuit = self._circuits.get(upstream)
        return self._enabled and circuit is not None and circuit.state == "open"

    def refused_for(self, upstream: str, now: int) -> int:
        if not self._enabled:
            return 0
        circuit = self._circuits.get(upstream)
        permits = PROBE_PERMITS
        if circuit is not None:
            if circuit.state == "closed":
                return 0
            if circuit.state == "open":  # past its time: until the breaker says so, which may have to be restarted
                return max(PERMIT_RETRY_MS, -(-(circuit.retry_at_ns - now) // 1_000_000))
            permits = circuit.permits
        if self._probes.get(upstream, 0) < permits:
            return 0
        self._wanting.add(upstream)
        return PERMIT_RETRY_MS

    def is_half_open(self, upstream: str) -> bool:
        circuit = self._circuits.get(upstream)
        return self._enabled and (circuit is None or circuit.state == "half_open")

    def probe(self, upstream: str, change: int) -> None:
        self._probes[upstream] = max(0, self._probes.get(upstream, 0) + change)

    def tick(self) -> None:
        """Tell the breaker of the permits' use, when it has changed."""
        if self._probes == self._told and not self._wanting:
            return
        rows = [(name, count, name in self._wanting) for name, count in self._probes.items()]
        rows.extend((name, 0, True) for name in self._wanting if name not in self._probes)
        try:
            self._address.control(ProbesInFlight(self._hub.name, rows))
        except (ActorDown, MailboxFull):
            return
        self._told = dict(self._probes)
        self._wanting.clear()

    def describe(self) -> dict[str, str]:
        return {name: circuit.state for name, circuit in self._circuits.items()}


class _ToUpstream:
    """What both kinds of route share: the upstream's timeouts (its own, or the gateway's) and its breaker."""

    elsewhere = False

    def __init__(self, hub: Hub, upstream: Upstream) -> None:
        self._hub = hub
        self._upstream = upstream
        self._name = upstream.name
        self.per_session = upstream.instance == "per-session"
        self.configure()

    def configure(self) -> None:
        """Go by the hub's settings."""
        settings = self._hub.settings
        self.timeout_ns = settings.call_timeout_ms(self._upstream) * 1_000_000
        self.max_timeout_ns = settings.max_call_timeout_ms(self._upstream) * 1_000_000

    def refused_for(self, now: int) -> int:
        return self._hub.routes.breakers.refused_for(self._name, now)

    @property
    def half_open(self) -> bool:
        return self._hub.routes.breakers.is_half_open(self._name)

    def probe(self, change: int) -> None:
        self._hub.routes.breakers.probe(self._name, change)

    def is_open(self) -> bool:
        return self._hub.routes.breakers.is_open(self._name)


class BridgeRoute(_ToUpstream):
    """To a stdio server, which lives in the bridge worker.

    Attaching and detaching go on the control lane, which may overtake data of the same session: a session number is
    never attached to a second upstream once it has forwarded anything, so that this cannot misroute a message.
    """

    elsewhere = True

    def __init__(self, hub: Hub, upstream: Upstream) -> None:
        super().__init__(hub, upstream)
        self._bridge = hub.context.address("bridge")

    def attach(self, session: int, upstream: str, grant: Grant | None, version: str) -> None:
        principal = grant.principal if grant is not None else ""
        self._control(AttachSession(self._hub.name, session, upstream, principal, version))

    def detach(self, session: int) -> None:
        self._control(DetachSession(self._hub.name, session))

    def abandon(self, session: int, call: int, reason: str, now: int) -> None:  # noqa: ARG002
        self._control(Abandon(self._hub.name, session, call, "timeout" if reason == "timeout" else "closed"))

    def _control(self, message: Message) -> None:
        try:
            self._bridge.control(message)
        except ActorDown:
            pass  # its next incarnation is told of every session when it comes up
        except MailboxFull:
            log.warning("the bridge does not keep up; a %s was lost", type(message).__name__)
            self._hub.count("bridge_control_lost")

    def forward(self, session: int, call: int, envelope: Envelope, raw: bytes, now: int) -> bool:  # noqa: ARG002
        try:
            return self._bridge.tell(Forward(self._hub.name, session, call, envelope, raw))
        except ActorDown:
            return False  # it is restarted in a moment: the message waits for that like for room
        except FrameTooLong:  # possible where MAX_REQUEST_SIZE has been raised since this worker started
            self._hub.count("too_large_for_the_bridge")
            if envelope.kind == "request":
                # Posted: its step has still to note that the call was forwarded.
                failed = functools.partial(self._hub.answers.failed, session, call, 413, "message too large", False, 0)
                self._hub.post(failed)
            return True

    def on_room(self, callback: Callable[[], None]) -> None:
        if self._bridge.incarnation:
            self._bridge.on_room(callback)  # else its coming up resumes whoever waits


class TcpRoute(_ToUpstream):
    """To a TCP server, over sockets in the hub's own epoll."""

    def __init__(self, hub: Hub, upstream: Upstream, pool: Pool) -> None:
        super().__init__(hub, upstream)
        self._pool = pool

    def attach(self, session: int, upstream: str, grant: Grant | None, version: str) -> None:  # noqa: ARG002
        self._pool.attach(session, upstream, version)

    def detach(self, session: int) -> None:
        self._pool.detach(session, self._hub.now)

    def abandon(self, session: int, call: int, reason: str, now: int) -> None:
        self._pool.abandon(session, call, reason, now)

    def forward(self, session: int, call: int, envelope: Envelope, raw: bytes, now: int) -> bool:
        self._pool.forward(session, call, envelope, raw, now)
        return True

    def on_room(self, callback: Callable[[], None]) -> None:
        callback()


class PoolOwner:
    """What the pool of TCP upstreams wants of its owner. Runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.outcomes: dict[str, list[int]] = {}

    def connect(self, upstream: Upstream, instance: Instance) -> None:
        self._hub.start_task(TcpUpstream(self._hub, upstream, instance).open)

    def deliver(self, session: Hashable, call: int, final: bool, raw: bytes) -> None:
        assert isinstance(session, int)  # noqa: S101 - what this acceptor attached
        self._hub.answers.deliver(session, call, final, raw)

    def failed(self, session: Hashable, call: int, code: int, reason: str, sent: bool, retry_after_ms: int) -> None:
        assert isinstance(session, int)  # noqa: S101 - what this acceptor attached
        # Posted: a call may fail while ``forward`` still runs, in the middle of another step of its connection.
        self._hub.post(functools.partial(self._hub.answers.failed, session, call, code, reason, sent, retry_after_ms))

    def lost(self, session: Hashable, reason: str) -> None:
        assert isinstance(session, int)  # noqa: S101 - what this acceptor attached
        self._hub.answers.lost(session, reason)

    def outcome(self, upstream: str, kind: str) -> None:
        row = self.outcomes.setdefault(upstream, [0] * len(KINDS))
        if kind == "death":  # the server's, however many connections to it this worker has, one for each version
            row[KINDS.index(kind)] = 1
        else:
            row[KINDS.index(kind)] += 1

    def changed(self, upstream: str, what: Literal["up", "down", "restarted"], reason: str) -> None:
        self._hub.audit.record(
            AuditEvent(
                event=f"upstream.{what}",
                severity="warning" if what == "down" else "info",
                outcome="failure" if what == "down" else "success",
                time_ns=time.time_ns(),
                upstream=upstream,
                reason=reason,
            )
        )

    def log(self, upstream: str, level: str, text: str) -> None:
        log.log(logging.getLevelNamesMapping().get(level.upper(), logging.INFO), "%s: %s", upstream, text)


def _bulkhead(hub: Hub, upstreams: list[str]) -> Bulkhead | None:
    """Shared with the other acceptors; None when there is nobody to share with."""
    acceptors = sorted(hub.context.peers("acceptor"))
    if not upstreams or len(acceptors) < 2:
        return None
    settings = hub.settings
    row = acceptors.index(hub.name)
    path = Path(settings.state_dir) / "inflight"
    try:
        return SharedBulkhead(path, row, len(acceptors), upstreams, settings.upstream_max_inflight)
    except OSError as error:
        share = max(1, settings.upstream_max_inflight // len(acceptors))
        log.warning("%s: %s; each worker keeps to %d calls in flight", path, error.strerror, share)
        return OwnBulkhead(share)


class Routes:
    """All routes by the upstreams' names, and the breakers' states beside them."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.breakers = Breakers(hub)
        upstreams = hub.settings.upstreams
        self.default = upstreams[0].name
        self._owner = PoolOwner(hub)
        network = tuple(upstream for upstream in upstreams if upstream.kind == "tcp")
        self.pool = Pool(
            network,
            self._owner,
            settings=hub.settings,
            now=hub.now,
            on_change=self._owner.changed,
            bulkhead=_bulkhead(hub, [upstream.name for upstream in network]),
        )
        self._routes: dict[str, BridgeRoute | TcpRoute] = {
            upstream.name: TcpRoute(hub, upstream, self.pool) if upstream.kind == "tcp" else BridgeRoute(hub, upstream)
            for upstream in upstreams
        }
        self.names = frozenset(self._routes)
        self._bridge = hub.context.address("bridge")
        self._bridge_incarnation = 0
        self._stop: Callable[[], None] | None = None

    def of(self, upstream: str) -> Route:
        return self._routes[upstream]

    def configure(self) -> None:
        """Go by the hub's settings."""
        self.pool.settings = self._hub.settings
        for route in self._routes.values():
            route.configure()

    def start(self) -> None:
        self.breakers.start()

        def changed(incarnation: int) -> None:
            self._hub.post(functools.partial(self._bridge_changed, incarnation))

        if any(isinstance(route, BridgeRoute) for route in self._routes.values()):
            self._stop = self._bridge.watch(changed)

    def stop(self) -> None:
        self.breakers.stop()
        self.pool.close_all()
        if self._stop is not None:
            self._stop()

    def _bridge_changed(self, incarnation: int) -> None:
        """Down: whatever was in flight there is answered now. Up: it is told of all sessions."""
        before, self._bridge_incarnation = self._bridge_incarnation, incarnation
        self._hub.inflight.bridge_changed()
        answers = self._hub.answers
        for connection in list(self._hub.connections.values()):
            route = connection.route
            if not isinstance(route, BridgeRoute) or connection.stage is not Stage.OPEN:
                continue
            if before and before != incarnation:
                if route.per_session and connection.forwarded:
                    answers.lost(connection.session, "bridge down")
                    continue
                for number in list(connection.calls):
                    answers.failed(connection.session, number, 502, "bridge down", True, 0)
            if incarnation:
                route.attach(connection.session, connection.upstream, connection.grant, connection.version)
                if connection.parked_for == "room":
                    connection.parked_for = ""
                    self._hub.step(connection, self._hub.dispatch.resume)

    def tick(self, now: int) -> None:
        self.pool.tick(now)
        self.breakers.tick()
        if self._owner.outcomes:
            rows = [(name, *row) for name, row in self._owner.outcomes.items()]
            try:
                self._hub.context.address("breaker").control(Outcomes(self._hub.name, rows))  # type: ignore[arg-type]
            except (ActorDown, MailboxFull):
                return  # kept, and added to, until it is up again
            self._owner.outcomes = {}

    def delivered(self, message: Message) -> bool:
        """Whether ``message`` came from an upstream or the breaker; it has been dealt with then."""
        answers = self._hub.answers
        match message:
            case Deliver():
                answers.deliver(message.session, message.call, message.final, message.raw)
            case CallFailed():
                answers.failed(
                    message.session, message.call, message.code, message.reason, message.sent, message.retry_after_ms
                )
            case SessionLost():
                answers.lost(message.session, message.reason)
            case BreakerSnapshot():
                self.breakers.learn(message)
            case ListAnswers():
                self._hub.catalogue.learn(message)
            case Taken():
                self._hub.inflight.taken(message.session, message.size)
            case _:
                return False
        return True
