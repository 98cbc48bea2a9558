"""The actors of one worker, under the same rules as the workers themselves. The trio shell around ``decide``."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any, cast

import attrs
import trio

from ipc.context import ActorFunction, Context, Listener
from ipc.control import ActorEvent, ActorSpec, ActorState
from ipc.errors import ActorDown, MailboxFull
from ipc.exchange import Exchange
from ipc.fdpass import DescriptorLink
from ipc.mailbox import Mailbox
from ipc.messages import Drain, Message, SettingsChanged
from ipc.settings import Settings
from ipc.shelf import Shelves
from ipc.tls_material import TlsMaterial

from .engine import Engine
from .strategy import (
    AllUp,
    Begin,
    CameUp,
    Crashed,
    Effect,
    Ended,
    Escalate,
    Kill,
    Plan,
    Renew,
    Start,
    Stop,
    StopAll,
    Up,
)

log = logging.getLogger("supervisor.actors")

_INCARNATIONS = 1 << 20
"""Of an actor within one worker process. Above them counts the worker's own, so an actor's number always grows."""

_MAILBOXES_S = 1.0


@attrs.define(eq=False)
class Resources:
    """What the worker holds for its actors, whatever becomes of their incarnations."""

    listeners: dict[str, list[Listener]]  # by actor
    links: dict[str, dict[str, DescriptorLink]]  # by actor and key
    keep: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    ledger: int = -1  # a descriptor
    shelves: Shelves = attrs.field(factory=Shelves)
    tls: TlsMaterial | None = attrs.field(default=None, repr=False)

    @classmethod
    def none(cls, actors: tuple[ActorSpec, ...]) -> Resources:
        names = [actor.name for actor in actors]
        return cls({name: [] for name in names}, {name: {} for name in names}, {name: {} for name in names})


@attrs.define(eq=False)
class Report:
    """Where the tree tells of itself. Nothing here may raise."""

    states: Callable[[tuple[ActorState, ...]], None]
    event: Callable[[ActorEvent], None]
    ready: Callable[[], None]
    failed: Callable[[str], None]
    ended: Callable[[], None]


@attrs.define(eq=False)
class _Running:
    """One incarnation of one actor. ``fault`` is what one of its callbacks raised."""

    spec: ActorSpec
    number: int
    mailbox: Mailbox
    context: Context
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    fault: Exception | None = None

    def callback_failed(self, error: Exception) -> None:
        self.fault = self.fault or error
        self.scope.cancel()


class ActorTree:
    """Runs the actors of ``plan``; ``run`` must be running.

    ``address`` is how actors find each other (it may know more names than the exchange).
    """

    def __init__(
        self,
        *,
        worker: str,
        incarnation: int,
        actors: tuple[ActorSpec, ...],
        plan: Plan,
        exchange: Exchange,
        settings: Settings,
        resources: Resources,
        report: Report,
        address: Callable[[str], Any],
    ) -> None:
        self._worker = worker
        self._base = incarnation * _INCARNATIONS
        self._specs = {actor.name: actor for actor in actors}
        self._exchange = exchange
        self._settings = settings
        self._resources = resources
        self._report = report
        self._address = address
        self._running: dict[str, _Running] = {}
        self._nursery: trio.Nursery | None = None
        self._last_states: tuple[ActorState, ...] = ()
        self.stop_by_ns: int | None = None
        self.engine = Engine(plan, self._perform)

    async def run(self) -> None:
        """Start the actors and keep them running, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.engine.post(Begin())
            self._tell_states()
            nursery.start_soon(self._tell_mailboxes)
            await self.engine.keep_time()

    async def _tell_mailboxes(self) -> None:
        while True:
            await trio.sleep(_MAILBOXES_S)
            self._tell_states()

    def stop(self, deadline_ns: int) -> None:
        """Drain every actor, in reverse order; none gets longer than until ``deadline_ns``."""
        self.stop_by_ns = deadline_ns
        self.engine.post(StopAll())
        self._tell_states()

    def mailboxes(self) -> list[Mailbox]:
        """Of the incarnations that run."""
        return [running.mailbox for running in self._running.values()]

    def configure(self, settings: Settings) -> None:
        """Every actor that runs is told; one that starts later starts with them."""
        self._settings = settings
        for name, running in self._running.items():
            running.context.settings = settings
            running.context.tls = self._resources.tls
            self.tell(name, SettingsChanged())

    def tell(self, actor: str, message: Message) -> None:
        """To a local actor, if it is up: one that starts later finds what the message is about in its context."""
        try:
            self._exchange.address(actor).control(message)
        except (ActorDown, MailboxFull) as error:
            log.debug("%s is not told: %s", type(message).__name__, error)

    def states(self) -> tuple[ActorState, ...]:
        return tuple(
            ActorState(child.spec.name, child.phase, child.incarnation, child.restarts, *self._mailbox(child.spec.name))
            for child in self.engine.state.children
        )

    def _mailbox(self, name: str) -> tuple[int, int, int]:
        """Queued, received, refused. Read from outside the actor: one that hangs shows a mailbox that grows."""
        running = self._running.get(name)
        if running is None:
            return 0, 0, 0
        seen = running.mailbox.statistics()
        return seen.data_queued + seen.control_queued, seen.data_received + seen.control_received, seen.refused

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Start(name, number):
                self._start(self._specs[name], number)
            case Stop(name, number, deadline_ns):
                self._stop(name, number, deadline_ns)
            case Kill(name, number, reason):
                running = self._running.get(name)
                if running is not None and running.number == number:
                    log.warning("actor %s is cancelled: %s", name, reason)
                    running.scope.cancel()
            case Crashed(name, number, reason):
                log.error("actor %s crashed: %s", name, reason)
                self._report.event(ActorEvent("actor.crashed", name, number, reason))
            case CameUp(name, number):
                log.debug("actor %s is up, incarnation %d", name, number)
                if number > 1:
                    self._report.event(ActorEvent("actor.restarted", name, number))
            case AllUp():
                self._tell_states()
                self._report.ready()
            case Escalate(name, reason):
                log.critical("actor %s takes its worker down: %s", name, reason)
                number = self.engine.state.child(name).incarnation
                self._report.event(ActorEvent("actor.escalated", name, number, reason))
                self._report.failed(f"{name}: {reason}")
            case Ended():
                self._tell_states()
                self._report.ended()

    def _start(self, spec: ActorSpec, number: int) -> None:
        if self._nursery is None:
            raise RuntimeError("not running")
        mailbox = Mailbox(spec.name)
        context = Context(
            name=spec.name,
            worker=self._worker,
            incarnation=self._base + number,
            settings=self._settings,
            mailbox=mailbox,
            address=self._address,
            peers=self._exchange.peers,
            ready=lambda: self._ready(spec.name, number),
            renew=lambda: self._renew(spec.name, number),
            keep=self._resources.keep[spec.name],
            listeners=self._resources.listeners[spec.name],
            links=self._resources.links[spec.name],
            ledger=self._resources.ledger,
            shelves=self._resources.shelves,
            tls=self._resources.tls,
        )
        running = _Running(spec, number, mailbox, context)
        mailbox.owner_failed = running.callback_failed
        self._exchange.register(mailbox, context.incarnation)
        self._running[spec.name] = running
        self._nursery.start_soon(self._live, running, name=f"{spec.name}#{number}")

    def _ready(self, name: str, number: int) -> None:
        self.engine.post(Up(name, number))
        self._tell_states()

    def _renew(self, name: str, number: int) -> None:
        if self.engine.state.child(name).incarnation == number:
            self.engine.post(Renew(name))

    def _stop(self, name: str, number: int, deadline_ns: int) -> None:
        running = self._running.get(name)
        if running is None or running.number != number:
            return
        if self.stop_by_ns is not None:
            deadline_ns = min(deadline_ns, self.stop_by_ns)
        try:
            self._exchange.address(name).control(Drain(deadline_ns))
        except (ActorDown, MailboxFull) as error:
            log.warning("actor %s can't be drained, it is cancelled: %s", name, error)
            running.scope.cancel()

    async def _live(self, running: _Running) -> None:
        """One incarnation, from its first line to its last. The boundary around an actor's code."""
        name = running.spec.name
        reason = "returned without having been told to"
        running.mailbox.adopt()
        with running.scope:
            try:
                await _load(running.spec.target)(running.context)
            except Exception as error:
                log.exception("actor %s raised", name)
                reason = describe(error)
        if running.fault is not None:
            log.error("a callback of actor %s raised", name, exc_info=running.fault)
            reason = describe(running.fault)
        elif running.scope.cancelled_caught:
            reason = "cancelled"
        self._exchange.unregister(name, reason)
        del self._running[name]
        self.engine.exited(name, running.number, reason)
        self._tell_states()

    def _tell_states(self) -> None:
        states = self.states()
        if states != self._last_states:
            self._last_states = states
            self._report.states(states)


def _load(target: str) -> ActorFunction:
    module, _, function = target.partition(":")
    return cast("ActorFunction", getattr(importlib.import_module(module), function))


def describe(error: BaseException) -> str:
    """One line for logs, bounded: the first leaf of a group says most."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
