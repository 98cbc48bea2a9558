"""The workers: the trio shell around ``decide`` for processes.

One task attends each process from its spawn to its exit; everything that it reports, and everything that the clock or
an operator brings, is turned into events for the engine, whose effects come back here. An error in the handling of
one event is logged and counted, and the tree goes on: the supervisor is the one process that nobody restarts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import attrs
import msgspec
import trio

from ipc import ledger, shelf
from ipc.control import (
    ActorEvent,
    ActorState,
    ActorStates,
    Adopt,
    Answered,
    Asked,
    Assign,
    Configure,
    Connect,
    Failing,
    Hello,
    ListenerGrant,
    PeerBroken,
    PeerGrant,
    Post,
    Ready,
    Reply,
    Stopped,
    Withdraw,
)
from ipc.control import (
    Stop as StopWorker,
)
from ipc.errors import MalformedFrame
from ipc.messages import AnyMessage, AuditBatch, TreeSnapshot
from ipc.settings import Settings
from ipc.tls_material import TlsMaterial

from . import handover, proc, reaper, snapshot, wiring
from .backoff import MILLISECOND
from .engine import Engine
from .heartbeat import BEATS, Judge, Slot
from .journal import AuditFeed, Details, Outcome, Severity
from .listeners import Listeners
from .spawn import Process, Spawner
from .specs import SpecTable, WorkerSpec, kind_of
from .standby import Standby
from .strategy import AllUp, Begin, CameUp, Crashed, Effect, Ended, Escalate, Kill, KillAll, Start, Stop, StopAll, Up

log = logging.getLogger("supervisor.tree")

_SNAPSHOT_S = 1.0
_SNAPSHOT_GAP_S = 0.02
"""Changes come in bursts; one snapshot a burst is enough."""

_EXIT_GRACE_S = 1.0
"""A worker closes its control socket a moment before its exit; one that only closes it is ended."""

_ACTOR_EVENTS: dict[str, tuple[Severity, Outcome]] = {
    "actor.crashed": ("error", "failure"),
    "actor.restarted": ("info", "success"),
    "actor.escalated": ("critical", "failure"),
}


@attrs.define(eq=False)
class Member:
    """One worker in its present incarnation. ``told``: its assignment has been sent; ``warm``: it was from the start
    a process that had said Hello."""

    spec: WorkerSpec
    incarnation: int
    process: Process
    warm: bool
    told: bool = False
    slot: Slot | None = None
    actors: tuple[ActorState, ...] = ()


class WorkerTree:
    """All workers of ``table``.

    ``ready`` is set when the first start is complete, ``finished`` when nothing is left; ``failed`` then says why, if
    it was not a stop that was asked for. ``answer`` is asked for the reply to an actor's message to the supervisor.
    """

    def __init__(
        self,
        *,
        table: SpecTable,
        settings: Settings,
        listeners: Listeners,
        spawner: Spawner,
        answer: Callable[[AnyMessage], AnyMessage],
        version: str,
        tls: TlsMaterial | None = None,
    ) -> None:
        self.ready = trio.Event()
        self.finished = trio.Event()
        self.failed = ""
        self.draining = False
        self.faults = 0
        self._table = table
        self._placement = table.placement
        self._settings = settings
        self._tls = tls
        self._listeners = listeners
        self._spawner = spawner
        self._answer = answer
        self._version = version
        self._engine = Engine(table.plan(), self._perform)
        self._members: dict[str, Member] = {}
        self._prepared: dict[str, Process] = {}  # spawned for the first start, by worker
        self._standby = Standby(self._spawn_standby if table.standby else None)
        self._attended: dict[int, Process] = {}  # every process that lives, by pid
        # What an exec'ed launcher has left to us as children is not ours to end.
        self._inherited = frozenset(child.pid for child in proc.children(os.getpid()))
        self._audit = AuditFeed(self._post_batch)
        self._held: dict[str, handover.Holder] = {}
        timeout_ns = settings.heartbeat_timeout_ms * MILLISECOND
        now = time.monotonic_ns()
        self._started_ns = now
        self._judge = Judge(timeout_ns=timeout_ns, interval_ns=timeout_ns // BEATS, looked_ns=now)
        self._suspect: frozenset[str] = frozenset()
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._ledger = ledger.create()  # shared by all workers; never read here
        self._shelves = shelf.create()  # neither

    # --- life

    async def run(self) -> None:
        """Start everything, keep it running, and return when all has stopped."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for spec in self._table.workers:
                self._prepare(spec)
            nursery.start_soon(self._engine.keep_time)
            nursery.start_soon(self._every, self._judge.interval_ns / 1e9, self._look)
            nursery.start_soon(self._every, _SNAPSHOT_S, self._audit.retry)
            nursery.start_soon(self._inform)
            self._engine.post(Begin())
            await self.finished.wait()
            for process in self._attended.values():  # the standby, and what was prepared and never used
                process.kill("not needed any more")
            while self._attended:
                await next(iter(self._attended.values())).exited.wait()
                await trio.lowlevel.checkpoint()
            await self._end_orphans()
            nursery.cancel_scope.cancel()
        os.close(self._ledger)
        os.close(self._shelves)

    def drain(self) -> None:
        """Stop in reverse order: the edges drain first, audit ends last."""
        if self.draining:
            return
        self.draining = True
        self._tell_admin()
        self._engine.post(StopAll())

    def kill(self) -> None:
        """End everything at once."""
        self.draining = True
        self._engine.post(KillAll())

    def reap(self) -> None:
        """A child has ended: collect it if it is nobody's."""
        reaper.reap_unknown(self._attended)

    def lateness_ns(self) -> int:
        """By how much the look at the workers' heartbeats is overdue, which is this process's own sign of life."""
        return max(0, time.monotonic_ns() - self._judge.looked_ns - self._judge.interval_ns)

    @property
    def pids(self) -> dict[str, int]:
        return {name: member.process.pid for name, member in self._members.items()}

    async def _every(self, seconds: float, step: Callable[[], None]) -> None:
        while True:
            self._guard(step)
            await trio.sleep(seconds)

    def _guard(self, step: Callable[[], None]) -> None:
        """The boundary around everything that isn't an effect of ``decide`` (those have the engine's)."""
        try:
            step()
        except Exception:
            self.faults += 1
            log.exception("a step of the supervisor failed; it goes on")

    # --- processes

    def _prepare(self, spec: WorkerSpec) -> None:
        """Imports take longest, so all first interpreters warm up side by side."""
        try:
            self._prepared[spec.name] = self._spawn(spec.modules)
        except OSError as error:
            log.warning("no process for %s: %s", spec.name, error)  # its Start tries again, and reports

    def _spawn_standby(self) -> Process:
        return self._spawn(tuple(dict.fromkeys(m for w in self._table.workers if w.handover for m in w.modules)))

    def _spawn(self, modules: tuple[str, ...]) -> Process:
        if self._nursery is None:
            raise RuntimeError("not running")
        process = self._spawner.spawn(modules)
        self._attended[process.pid] = process
        self._nursery.start_soon(self._attend, process)
        return process

    async def _attend(self, process: Process) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, process)
                nursery.start_soon(process.write)
                await process.wait()
                nursery.cancel_scope.cancel()
            self._take_rest(process)
        except Exception:
            self.faults += 1
            log.exception("pid %d can't be attended, it is ended", process.pid)
            process.kill("the supervisor lost track of it")
            await process.wait()
        del self._attended[process.pid]
        process.close()
        self._guard(lambda: self._gone(process))
        self._guard(self.reap)

    async def _listen(self, process: Process) -> None:
        while True:
            try:
                message, fds = await process.link.receive()
            except EOFError:
                with trio.move_on_after(_EXIT_GRACE_S) as scope:
                    await process.exited.wait()
                if scope.cancelled_caught:
                    process.kill("closed its control socket")
                return
            except MalformedFrame as error:
                process.kill(f"sent a message that is none: {error}")
                return
            self._receive(process, message, fds)

    def _take_rest(self, process: Process) -> None:
        """What it said before it died."""
        while True:
            try:
                message, fds = process.link.receive_nowait()
            except (BlockingIOError, EOFError, MalformedFrame):
                return
            self._receive(process, message, fds)

    def _receive(self, process: Process, message: msgspec.Struct, fds: list[int]) -> None:
        for descriptor in fds:  # no worker has a reason to send one
            os.close(descriptor)
        self._guard(lambda: self._take(process, message))

    def _take(self, process: Process, message: msgspec.Struct) -> None:
        member = next((m for m in self._members.values() if m.process is process), None)
        match message:
            case Hello():
                process.hello = True
                if member is not None and not member.told:
                    self._assign(member)
            case Failing(reason):
                process.said = reason
            case Answered(number, answer, reason):
                self._audit.answered(number, answer, reason)
            case _ if member is None:
                process.kill(f"said {type(message).__name__} before it had an assignment")
            case Ready():
                self._engine.post(Up(member.spec.name, member.incarnation))
            case ActorStates(actors):
                before, member.actors = member.actors, actors
                if snapshot.lives(before) != snapshot.lives(actors):  # mailboxes go with the next regular snapshot
                    self._changed.set()
            case ActorEvent():
                self._record_actor(member, message)
            case PeerBroken(name, incarnation, reason):
                broken = self._members.get(name)
                if broken is not None and broken.incarnation == incarnation:
                    broken.process.kill(f"broke the protocol with {member.spec.name}: {reason}")
            case Asked(number, _, asked):
                answered = self._answer(asked)
                if number:
                    process.send(Reply(number, answered))
            case Stopped():
                pass  # its exit is what counts

    def _gone(self, process: Process) -> None:
        """It has exited and is reaped."""
        how = process.ending()
        if not self.finished.is_set():
            self._standby.gone(process)
        self._prepared = {name: other for name, other in self._prepared.items() if other is not process}
        member = next((m for m in self._members.values() if m.process is process), None)
        if member is None:
            return
        name = member.spec.name
        del self._members[name]
        if member.slot is not None:
            member.slot.close()
        self._judge = self._judge.unwatch(name)
        self._suspect -= {name}
        if name == self._placement.get("audit"):
            self._audit.restart()
        if self.draining:
            # It has accepted its queues empty; what comes now goes to the listeners of those that still drain.
            self._listeners.close_of(name)
        if member.spec.hosts_children and self._nursery is not None:
            self._nursery.start_soon(self._end_orphans)
        self._engine.exited(name, member.incarnation, how)
        self._hand_over()
        self._changed.set()

    async def _end_orphans(self) -> None:
        try:
            ended = await reaper.end_orphans(lambda: self._attended.keys() | self._inherited)
        except Exception:
            self.faults += 1
            log.exception("what a worker left behind could not be ended")
            return
        if ended:
            log.warning("ended %d processes that a worker left behind", ended)

    async def _fence(self, process: Process, fault: str) -> None:
        try:
            await process.fence(fault)
        except Exception:
            self.faults += 1
            log.exception("pid %d could not be fenced in order, it is killed", process.pid)
            process.kill(fault)

    # --- the effects of decisions

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Start(name, incarnation):
                self._start(self._table.worker(name), incarnation)
            case Stop(name, _, deadline_ns):
                self._stop(self._members[name], deadline_ns)
            case Kill(name, _, reason):
                log.warning("worker %s is killed: %s", name, reason)
                self._members[name].process.kill(reason)
            case Crashed(name, incarnation, reason, due_ns, trouble):
                wait_ms = max(0, due_ns - time.monotonic_ns()) // MILLISECOND
                log.error("worker %s is down (%s), restarted in %d ms", name, trouble or reason, wait_ms)
                detail: Details = {"worker": name, "incarnation": incarnation}
                self._audit.record("worker.killed", "error", "failure", reason=trouble or reason, detail=detail)
            case CameUp(name, incarnation):
                self._came_up(self._members[name], incarnation)
            case AllUp():
                self._audit.record("gateway.started", "info", "success", detail={"version": self._version})
                self.ready.set()
                self._standby.refresh()
            case Escalate(name, reason):
                self.failed = f"{name}: {reason}"
            case Ended():
                self.finished.set()
        self._changed.set()

    def _start(self, spec: WorkerSpec, incarnation: int) -> None:
        process = self._prepared.pop(spec.name, None) or self._standby.take() or self._spawn(spec.modules)
        member = Member(spec, incarnation, process, warm=process.hello)
        self._members[spec.name] = member
        if process.hello:
            self._assign(member)

    def _assign(self, member: Member) -> None:
        """Tell the process what it is, and its peers that it is there. What can't be told ends it."""
        try:
            self._tell_assignment(member)
        except (OSError, ValueError) as error:
            log.warning("%s can't be given its assignment: %s", member.spec.name, error)
            member.process.kill(f"can't be given its assignment: {error}")

    def _tell_assignment(self, member: Member) -> None:
        spec = member.spec
        told = {name: other for name, other in self._members.items() if other.told}
        pairs = wiring.connect(self._table, spec.name, told)
        mine = [end for own, theirs in pairs for end in ((own, theirs) if own.peer == spec.name else (own,))]
        listening = self._listeners.of(spec.name)
        slot, descriptor = Slot.create()
        member.slot = slot
        tls: list[int] = []
        try:
            tls = self._material(spec)
            member.process.send(
                Assign(
                    worker=spec.name,
                    incarnation=member.incarnation,
                    strategy=spec.strategy,
                    actors=spec.actors,
                    placement=self._placement,
                    settings=self._table.settings_for(spec, self._settings),
                    heartbeat_ms=self._settings.heartbeat_timeout_ms,
                    hosts_children=spec.hosts_children,
                    listeners=tuple(ListenerGrant(item.id, item.kind) for item in listening),
                    peers=tuple(PeerGrant(e.peer, told[e.peer].incarnation) for e in mine if e.stream is not None),
                    links=tuple(grant for end in mine for grant in end.grants),
                    tls=bool(tls),
                ),
                lent=[
                    descriptor, self._ledger, self._shelves, *tls, *(item.sock.fileno() for item in listening)
                ],
                given=[
                    *(end.stream for end in mine if end.stream is not None),
                    *(sock for end in mine for _, sock in end.links),
                ],
            )
        except BaseException:
            for own, theirs in pairs:
                own.close()
                theirs.close()
            raise
        finally:
            for lent in (descriptor, *tls):
                os.close(lent)
        member.told = True
        for own, theirs in pairs:
            if own.peer != spec.name:
                peer = PeerGrant(spec.name, member.incarnation)
                told[own.peer].process.send(
                    Connect(peer, theirs.stream is not None, theirs.grants), given=theirs.sockets
                )

    def _stop(self, member: Member, deadline_ns: int) -> None:
        if member.spec.name == self._placement.get("audit"):
            outcome: Outcome = "failure" if self.failed else "success"
            self._audit.record("gateway.stopped", "info", outcome, reason=self.failed)
            self._audit.feed(hurry=True)
        if member.told:
            member.process.send(StopWorker(deadline_ns))
        else:
            member.process.kill("not needed any more")

    def _came_up(self, member: Member, incarnation: int) -> None:
        name = member.spec.name
        self._judge = self._judge.watch(name, time.monotonic_ns())
        log.info("worker %s is up: pid %d, incarnation %d", name, member.process.pid, incarnation)
        if incarnation > 1:
            detail: Details = {"worker": name, "incarnation": incarnation}
            self._audit.record("worker.restarted", "info", "success", detail=detail)
        self._audit.feed()
        self._hand_over()
        if self._engine.state.mode == "running" and self.ready.is_set():
            self._standby.refresh()

    # --- heartbeats and handed-over listeners

    def _look(self) -> None:
        now = time.monotonic_ns()
        beats = {name: member.slot.read() for name, member in self._members.items() if member.slot is not None}
        fencing = {name for name, member in self._members.items() if member.process.fencing}
        self._judge, verdict = self._judge.look(beats, now, fencing=fencing)
        if verdict.suspect != self._suspect:
            self._suspect = verdict.suspect
            self._changed.set()
        if verdict.overdue is not None and self._nursery is not None:
            silence_ms = verdict.silence_ns // MILLISECOND
            log.error("worker %s makes no progress for %d ms, it is fenced", verdict.overdue, silence_ms)
            process = self._members[verdict.overdue].process
            process.fencing = True
            self._nursery.start_soon(self._fence, process, f"no progress for {silence_ms} ms")
        self._hand_over()
        if self._engine.state.mode == "running":
            self._standby.check()

    def _hand_over(self) -> None:
        """Have every listener served by somebody who can."""
        servers = [self._server(spec) for spec in self._table.workers if spec.handover]
        running = self._engine.state.mode == "running"
        wanted = handover.holders(servers, self._held) if running else {}
        for owner, holder in list(self._held.items()):
            member = self._members.get(holder[0])
            alive = member is not None and member.incarnation == holder[1]
            if not alive:
                del self._held[owner]
            elif running and wanted.get(owner) != holder and member is not None:
                del self._held[owner]
                member.process.send(Withdraw(tuple(item.id for item in self._listeners.of(owner))))
        for owner, holder in wanted.items():
            if owner not in self._held:
                listening = self._listeners.of(owner)
                self._held[owner] = holder
                log.warning("%s serves the listeners of %s too", holder[0], owner)
                self._members[holder[0]].process.send(
                    Adopt(tuple(ListenerGrant(item.id, item.kind) for item in listening)),
                    lent=[item.sock.fileno() for item in listening],
                )

    def _server(self, spec: WorkerSpec) -> handover.Server:
        child = self._engine.state.child(spec.name)
        member = self._members.get(spec.name)
        return handover.Server(
            name=spec.name,
            incarnation=child.incarnation,
            serves=child.phase == "up" and member is not None and spec.name not in self._suspect,
            replaced_soon=child.phase == "starting" and member is not None and member.warm,
        )

    # --- what the supervisor says to actors

    def configure(self, settings: Settings, tls: TlsMaterial | None = None) -> None:
        """Have every worker go by these settings, those that start later included."""
        self._settings = settings
        self._tls = tls
        for member in self._members.values():
            if member.told:
                lent = self._material(member.spec)
                try:
                    effective = self._table.settings_for(member.spec, settings)
                    member.process.send(Configure(effective, bool(lent)), lent=lent)
                finally:
                    for descriptor in lent:
                        os.close(descriptor)

    def _material(self, spec: WorkerSpec) -> list[int]:
        """The descriptor of what TLS is served with, for a worker that serves it; the caller closes it."""
        serves = self._tls is not None and ("ws" in spec.listens or "tcp" in spec.listens)
        return [self._tls.sealed()] if self._tls is not None and serves else []

    def tell_all(self, kind: str, message: AnyMessage) -> None:
        """To every actor of that kind whose worker has been told what it is. One that starts later reads anew."""
        for actor, host in self._placement.items():
            member = self._members.get(host)
            if kind_of(actor) == kind and member is not None and member.told:
                member.process.send(Post(0, actor, message))

    # --- audit events

    def record(
        self, event: str, severity: Severity, outcome: Outcome, *, reason: str = "", detail: Details | None = None
    ) -> None:
        """An event of the gateway as a whole."""
        self._audit.record(event, severity, outcome, reason=reason, detail=detail)

    def _record_actor(self, member: Member, event: ActorEvent) -> None:
        severity, outcome = _ACTOR_EVENTS[event.event]
        detail: Details = {"actor": event.actor, "worker": member.spec.name, "incarnation": event.incarnation}
        self._audit.record(event.event, severity, outcome, reason=event.reason, detail=detail)

    def _post_batch(self, number: int, batch: AuditBatch) -> bool:
        host = self._placement.get("audit", "")
        member = self._members.get(host)
        if member is None or self._engine.state.child(host).phase not in ("up", "stopping"):
            return False
        member.process.send(Post(number, "audit", batch))
        return True

    # --- the live tree, for admin

    async def _inform(self) -> None:
        while True:
            with trio.move_on_after(_SNAPSHOT_S):
                await self._changed.wait()
            self._changed = trio.Event()
            self._guard(self._tell_admin)
            await trio.sleep(_SNAPSHOT_GAP_S)

    def _tell_admin(self) -> None:
        host = self._placement.get("admin", "")
        member = self._members.get(host)
        if member is not None and self._engine.state.child(host).phase == "up":
            member.process.send(Post(0, "admin", self.snapshot()))

    def snapshot(self) -> TreeSnapshot:
        views = {}
        for spec in self._table.workers:
            member = self._members.get(spec.name)
            views[spec.name] = snapshot.WorkerView(
                spec.role,
                member.process.pid if member is not None else 0,
                spec.name in self._suspect,
                member.actors if member is not None else (),
            )
        return snapshot.build(
            self._engine.state,
            views,
            uptime_s=(time.monotonic_ns() - self._started_ns) / 1e9,
            version=self._version,
            draining=self.draining,
        )
