"""The bridge: the actor that runs the stdio MCP servers, and holds the links to WebSocket and HTTP ones.

It joins three things that know nothing of each other: the acceptors' messages, the pool, which decides, and the
children, which do the input and output. A turn is one batch from the mailbox, or one read from one child, or one tick;
each ends with ``_settle``, which writes what the turn has produced.

A server is somebody else's program and its clients are strangers. So each step has a boundary: whatever is raised
while a client's message or a server's line is handled ends that call or that server, is logged and counted, and
touches no other. A crash of the actor itself kills all servers (their clients get 502); the next incarnation finds and
ends what may be left.
"""

from __future__ import annotations

import functools
import logging
import ssl
import time
from collections.abc import Hashable
from typing import Any

import attrs
import msgspec
import trio

from actors.audit_ring import AuditRing
from ipc.context import Context
from ipc.errors import ActorDown, MailboxFull
from ipc.framing import maximum_for
from ipc.inflight import HELD, LARGE, open_account
from ipc.mailbox import Delivery
from ipc.messages import (
    Abandon,
    AttachSession,
    AuditEvent,
    CallFailed,
    Deliver,
    Describe,
    Description,
    DetachSession,
    Drain,
    Forward,
    Message,
    Outcomes,
    SessionLost,
    SettingsChanged,
    Taken,
)
from ipc.settings import Upstream

from .descendants import become_subreaper
from .dial import tls_context
from .http_link import HttpLink
from .link import Link, LinkSettings
from .outlet import Outlet, Source
from .pool import Instance, Pool
from .process import GRACE_S, Child, ChildEvents
from .registry import REGISTRY, SpawnFailed, end_all_now, environment
from .slot import MILLISECOND, SECOND, Change
from .ws_link import WsLink

log = logging.getLogger("portcullis.upstream")

KINDS = ("stdio", "ws", "http")
"""Of upstreams; TCP ones are the acceptors' own."""

OUTCOMES_NS = 100 * MILLISECOND
ORPHANS_NS = 2 * SECOND
AUDIT_CAPACITY = 1024
_FRAME_SLACK = 65_536  # a Deliver's other fields
_END_RESERVE_NS = SECOND  # of a drain's time: for signals to be obeyed, and to report

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "emergency": logging.CRITICAL,
}
_COLUMNS = {"success": 0, "death": 1, "silent": 2, "slow": 3}  # of an Outcomes row

SessionKey = tuple[str, int]  # the acceptor's name, and its number of the session


async def main(context: Context) -> None:
    """Run the stdio servers until drained. Returns only after a Drain, with every server ended."""
    before = become_subreaper()
    REGISTRY.open()
    try:
        await Bridge(context).run()
    finally:
        if not end_all_now():
            log.error("something that a server started cannot be killed")
        become_subreaper(before)


class Bridge:
    """One incarnation. It is its pool's PoolEvents."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.settings
        self._counted: dict[str, int] = {}
        self._account = open_account(context.ledger)
        self._heavy = False  # what the servers' input holds is worth counting
        self._audit = AuditRing.kept(
            context.keep, context.address("audit"), context.name, AUDIT_CAPACITY, context.settings.audit_on_full
        )
        self._breaker = context.address("breaker")
        self._outlets = {
            name: Outlet(
                context.address(name), 4 * self._settings.max_buffer_size, lambda: self._speaking, self._count
            )
            for name in context.peers("acceptor")
        }
        self._incarnations = dict.fromkeys(self._outlets, 0)
        self._pool = Pool(
            (upstream for upstream in self._settings.upstreams if upstream.kind in KINDS),
            self,
            settings=self._settings,
            now=time.monotonic_ns(),
            on_change=self._changed,
        )
        self._links: set[Link] = set()
        # What the frames to the acceptors hold, whatever the settings become.
        most = maximum_for(self._settings.max_request_size, self._settings.max_response_size)
        self._max_message = most - _FRAME_SLACK
        self._link_settings = LinkSettings.of(self._settings, self._max_message, self._tls)
        self._tls_context: ssl.SSLContext | None = None
        self._speaking: Source | None = None  # whose output is being handled
        self._unsent: list[Child] = []
        self._children: set[Child] = set()
        self._outcomes: dict[str, list[int]] = {}
        self._outcomes_due_ns: int | None = None
        self._orphans_due_ns = 0
        self._nursery: trio.Nursery | None = None
        self._armed_ns: int | None = None  # when the clock goes off
        self._rearm = trio.Event()
        self._quiet = trio.Event()  # replaced by ``_drain``; set when nothing is in flight or nothing runs
        self._draining = False

    # --- its tasks ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        stops = [
            self._context.address(name).watch(functools.partial(self._acceptor_changed, name))
            for name in self._outlets
        ]
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._keep_time)
                self._context.ready()
                await self._obey(nursery)
        finally:
            for stop in stops:
                stop()
            self._account.close()

    async def _obey(self, nursery: trio.Nursery) -> None:
        while True:
            for delivery in await self._context.mailbox.receive():
                message = delivery.message
                if isinstance(message, Drain):
                    if not self._draining:
                        self._draining = True
                        self._pool.drain()
                        nursery.start_soon(self._drain, message.deadline_ns, nursery.cancel_scope)
                elif isinstance(message, SettingsChanged):
                    self._settings = self._pool.settings = self._context.settings
                elif isinstance(message, Describe):
                    delivery.reply(Description(msgspec.json.encode(self.describe())))
                else:
                    self._handle(delivery)
            self._settle()

    async def _keep_time(self) -> None:
        while True:
            now = time.monotonic_ns()
            self._pool.tick(now)
            if self._outcomes_due_ns is not None and now >= self._outcomes_due_ns:
                self._report_outcomes(now)
            if (self._children or REGISTRY.orphans) and now >= self._orphans_due_ns:
                REGISTRY.end_orphans()
                self._orphans_due_ns = now + ORPHANS_NS
                self._audit.flush()
            self._settle()
            self._armed_ns = self._next_deadline()
            self._rearm = trio.Event()
            if self._armed_ns is None:
                await self._rearm.wait()
            else:
                with trio.move_on_after(max(0, self._armed_ns - time.monotonic_ns()) / SECOND):
                    await self._rearm.wait()

    def _next_deadline(self) -> int | None:
        deadlines = [self._pool.next_deadline(), self._outcomes_due_ns]
        if self._children or REGISTRY.orphans:
            deadlines.append(self._orphans_due_ns)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    async def _drain(self, deadline_ns: int, everything: trio.CancelScope) -> None:
        """Let calls finish, end the servers, return from ``main``; at the deadline what is left is killed."""
        def seconds_until(when_ns: int) -> float:
            return max(0, when_ns - time.monotonic_ns()) / SECOND

        ending_ns = min(int(2 * GRACE_S * SECOND), max(0, deadline_ns - time.monotonic_ns() - _END_RESERVE_NS) // 2)
        with trio.move_on_after(seconds_until(deadline_ns - _END_RESERVE_NS - ending_ns)):
            while self._pool.in_flight:
                self._quiet = trio.Event()
                await self._quiet.wait()
        for child in self._children:
            child.grace_s = min(GRACE_S, max(0.1, seconds_until(deadline_ns - _END_RESERVE_NS) / 2))
        self._pool.close_all(time.monotonic_ns())
        self._settle()
        with trio.move_on_after(seconds_until(deadline_ns - _END_RESERVE_NS // 2)):
            while self._children or self._links:
                self._quiet = trio.Event()
                await self._quiet.wait()
            self._report_outcomes(time.monotonic_ns())
            await self._audit.settled(seconds_until(deadline_ns - _END_RESERVE_NS // 2))
        everything.cancel()

    # --- acceptors ----------------------------------------------------------------------------------------------

    def _handle(self, delivery: Delivery) -> None:
        message = delivery.message
        now = time.monotonic_ns()
        try:
            match message:
                case Forward(acceptor, session, call, envelope, raw):
                    self._check_incarnation(acceptor)
                    self._pool.forward((acceptor, session), call, envelope, raw, now)
                    if len(raw) >= LARGE:
                        self._took(acceptor, session, len(raw))
                case Abandon(acceptor, session, call, reason):
                    self._pool.abandon((acceptor, session), call, reason, now)
                case AttachSession():
                    self._check_incarnation(message.acceptor)
                    self._attach(message)
                case DetachSession(acceptor, session):
                    self._pool.detach((acceptor, session), now)
                case _:
                    self._count("unknown message")
                    log.error("the bridge does not understand %s", type(message).__name__)
        except Exception:  # the step's boundary (see the module)
            self._count("crashed step")
            log.exception("a client's message could not be handled")
            if isinstance(message, Forward) and message.envelope.kind == "request":
                self.failed((message.acceptor, message.session), message.call, 502, "internal error", True, 0)

    def _took(self, acceptor: str, session: int, size: int) -> None:
        """A large message is this worker's to count now, out of MAX_INFLIGHT_BYTES; its acceptor need not any more."""
        self._heavy = True
        self._account.write(HELD, self._pool.held_bytes())
        try:
            self._context.address(acceptor).control(Taken(session, size))
        except (ActorDown, MailboxFull):
            self._count("untold: a message was taken")  # the acceptor gives its part up after a while

    def _attach(self, message: AttachSession) -> None:
        try:
            self._pool.attach((message.acceptor, message.session), message.upstream, message.version)
        except KeyError:
            log.error(  # noqa: TRY400 - no trace is needed to see that the two disagree on the configuration
                "%s attached a session to %r, which is no server of the bridge", message.acceptor, message.upstream
            )
            self._count("unknown upstream")

    def _acceptor_changed(self, name: str, _incarnation: int) -> None:
        """A callback of its address: soon after the change, which messages of the new incarnation may overtake."""
        self._check_incarnation(name)
        self._settle()

    def _check_incarnation(self, acceptor: str) -> None:
        """The sessions of an acceptor end with its incarnation."""
        incarnation = self._context.address(acceptor).incarnation
        if incarnation == self._incarnations[acceptor]:
            return
        self._incarnations[acceptor] = incarnation
        self._outlets[acceptor].clear()
        now = time.monotonic_ns()
        for key in self._pool.sessions():
            if isinstance(key, tuple) and key[0] == acceptor:
                self._pool.detach(key, now)

    def _tell(self, acceptor: str, message: Message, size: int) -> None:
        self._outlets[acceptor].send(message, size)

    # --- PoolEvents ----------------------------------------------------------------------------------------------

    def connect(self, upstream: Upstream, instance: Instance) -> None:
        now = time.monotonic_ns()
        if self._nursery is None or self._draining:
            instance.failed("draining", now)
            return
        if upstream.kind != "stdio":
            kind = WsLink if upstream.kind == "ws" else HttpLink
            link = kind(upstream, instance, self, self._link_settings)
            self._links.add(link)
            self._nursery.start_soon(self._run_link, link, name=upstream.name)
            return
        server = _Server(self, upstream.name, instance)
        try:
            child = REGISTRY.spawn(
                upstream.command,
                upstream.args,
                environment(upstream.env),
                upstream.cwd,
                server.events(),
                max_line=min(self._settings.max_response_size, self._max_message),
                max_buffer=self._settings.max_buffer_size,
            )
        except SpawnFailed as failure:
            instance.failed(str(failure), now)
            return
        server.child = child
        instance.pid = child.pid
        self._children.add(child)
        self._orphans_due_ns = now + ORPHANS_NS
        self._nursery.start_soon(server.run, name=f"{upstream.name} ({child.pid})")
        instance.opened(child, now)

    def deliver(self, session: Hashable, call: int, final: bool, raw: bytes) -> None:
        acceptor, number = _key(session)
        self._tell(acceptor, Deliver(number, call, final, raw), len(raw))

    def failed(
        self, session: Hashable, call: int, code: int, reason: str, sent: bool, retry_after_ms: int
    ) -> None:
        acceptor, number = _key(session)
        self._tell(acceptor, CallFailed(number, call, code, reason, sent, retry_after_ms), len(reason))

    def lost(self, session: Hashable, reason: str) -> None:
        acceptor, number = _key(session)
        self._tell(acceptor, SessionLost(number, reason), len(reason))

    def outcome(self, upstream: str, kind: str) -> None:
        self._outcomes.setdefault(upstream, [0, 0, 0, 0])[_COLUMNS[kind]] += 1
        if self._outcomes_due_ns is None:
            self._outcomes_due_ns = time.monotonic_ns() + OUTCOMES_NS

    def log(self, upstream: str, level: str, text: str) -> None:
        log.log(_LEVELS.get(level, logging.INFO), "%s: %s", upstream, text)

    def _changed(self, upstream: str, what: Change, reason: str) -> None:
        down = what == "down"
        self._audit.record(
            AuditEvent(
                event=f"upstream.{what}",
                severity="warning" if down else "info",
                outcome="failure" if down else "success",
                time_ns=time.time_ns(),
                upstream=upstream,
                reason=reason,
            )
        )
        self._audit.flush()

    def _report_outcomes(self, now: int) -> None:
        self._outcomes_due_ns = None
        if not self._outcomes:
            return
        rows = [(name, *counts) for name, counts in self._outcomes.items()]
        try:
            self._breaker.control(Outcomes(self._context.name, rows))  # type: ignore[arg-type]
        except (ActorDown, MailboxFull):
            self._outcomes_due_ns = now + SECOND  # kept, and added to
        else:
            self._outcomes = {}

    # --- links ------------------------------------------------------------------------------------------------

    def _tls(self) -> ssl.SSLContext:
        """Made once, by the first link that needs it: the authorities of a whole system take a while to read."""
        if self._tls_context is None:
            self._tls_context = tls_context(self._settings.upstream_ca_path)
        return self._tls_context

    async def _run_link(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            for outlet in self._outlets.values():
                outlet.paused.discard(link)
            self._links.discard(link)
            self._settle()

    # --- children -----------------------------------------------------------------------------------------------

    def unsent(self, child: Child) -> None:
        self._unsent.append(child)

    def speaking(self, source: Source | None) -> None:
        self._speaking = source

    def ended(self, child: Child) -> None:
        self._children.discard(child)
        self._settle()

    def settle(self) -> None:
        self._settle()

    def _settle(self) -> None:
        """The end of a turn."""
        while self._unsent:
            self._unsent.pop().flush()
        if self._heavy:
            held = self._pool.held_bytes()
            self._heavy = held >= LARGE
            self._account.write(HELD, held if self._heavy else 0)
        if self._draining and (not self._pool.in_flight or not (self._children or self._links)):
            self._quiet.set()
        deadline = self._next_deadline()
        if deadline is not None and (self._armed_ns is None or deadline < self._armed_ns):
            self._rearm.set()

    def count(self, what: str) -> None:
        self._count(what)

    def _count(self, what: str) -> None:
        self._counted[what] = self._counted.get(what, 0) + 1

    # --- for operators ------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        pool = self._pool.describe()
        counted = pool.pop("counted") | self._counted
        waiting = sum(outlet.waiting for outlet in self._outlets.values())
        mine = {
            "processes": REGISTRY.statistics(),
            "links": len(self._links),
            "waiting": waiting,
            "audit": attrs.asdict(self._audit.statistics()),
        }
        return pool | {"counted": counted} | mine


@attrs.define(eq=False)
class _Server:
    """One child of the bridge and the pool's instance that it is."""

    _bridge: Bridge
    _name: str
    _instance: Instance
    child: Child | None = None

    def events(self) -> ChildEvents:
        return ChildEvents(
            line=self._line,
            oversize=self._oversize,
            room=self._instance.room,
            closed=self._closed,
            errors=self._errors,
            unsent=self._unsent,
            settle=self._settle,
        )

    async def run(self) -> None:
        child = self._running()
        try:
            await child.run()
        except* Exception:
            self._bridge.count("crashed server")
            log.exception("%s: the server's task failed; it is ended", self._name)
            self._instance.closed("internal error", time.monotonic_ns())
        finally:
            self._bridge.ended(child)

    def _running(self) -> Child:
        assert self.child is not None  # noqa: S101 - set right after the spawn, before anything can be told
        return self.child

    def _line(self, raw: bytes) -> None:
        self._step(functools.partial(self._instance.line, raw, time.monotonic_ns()))

    def _oversize(self, head: bytes, tail: bytes, length: int) -> None:
        self._step(functools.partial(self._instance.oversize, head, tail, length, time.monotonic_ns()))

    def _step(self, step: functools.partial[None]) -> None:
        child = self._running()
        self._bridge.speaking(child)
        try:
            step()
        except Exception:  # the step's boundary (see the bridge's module)
            self._bridge.count("crashed step")
            log.exception("%s: a message of the server could not be handled; it is ended", self._name)
            child.close()
        finally:
            self._bridge.speaking(None)

    def _closed(self, reason: str) -> None:
        self._instance.closed(reason, time.monotonic_ns())

    def _errors(self, text: str) -> None:
        log.info("%s: stderr: %s", self._name, text)

    def _unsent(self) -> None:
        self._bridge.unsent(self._running())

    def _settle(self) -> None:
        self._bridge.settle()


def _key(session: Hashable) -> SessionKey:
    assert isinstance(session, tuple)  # noqa: S101 - the bridge attaches nothing else
    return session
