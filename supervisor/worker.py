"""A worker process's main: ``python -m supervisor.worker``, started by the supervisor and by nobody else.

It warms up, says Hello, and becomes what its one assignment says: the actors of one worker, with channels to the
others. Until then it may be the warm standby, ready to take anybody's place.
"""

from __future__ import annotations

import faulthandler
import importlib
import itertools
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence

import attrs
import msgspec
import trio

from ipc.address import Address
from ipc.address import Reply as AddressReply
from ipc.context import Listener
from ipc.control import (
    SUPERVISOR,
    ActorEvent,
    ActorSpec,
    ActorState,
    ActorStates,
    Adopt,
    Answered,
    Asked,
    Assign,
    Configure,
    Connect,
    ControlMessage,
    Failing,
    Hello,
    LinkGrant,
    ListenerGrant,
    PeerBroken,
    Post,
    Ready,
    Reply,
    Stop,
    Stopped,
    ToWorker,
    Withdraw,
)
from ipc.errors import ActorDown, DeadlineExceeded, MailboxFull, MalformedFrame
from ipc.exchange import Exchange
from ipc.fdpass import DescriptorLink
from ipc.framing import maximum_for
from ipc.mailbox import Delivery, Mailbox
from ipc.messages import AnyMessage, Done, LinksChanged, ListenersChanged
from ipc.shelf import Shelves, worker_place
from ipc.tls_material import TlsMaterial

from . import logs
from .actor_tree import ActorTree, Report, Resources, describe
from .heartbeat import BEATS, Slot
from .lifetime import Lifetime
from .monitor import Monitor
from .outbox import Outbox, OutboxFull
from .specs import actor_plan

log = logging.getLogger("supervisor.worker")

EXIT_ESCALATED = 70
"""EX_SOFTWARE (sysexits.h): the actors failed too often."""

_ANSWER_NS = 5_000_000_000
"""How long a local actor may take to answer the supervisor."""

_ASKS = 256
"""Requests of local actors that wait for the supervisor's answer."""

_RETIRE_S = 1.0
"""How long after a descriptor was taken from an actor it is closed. The actor unregisters it from its poller in one of
the next turns of this very loop; closing it first would leave a registration that nobody can remove (epoll(7))."""

_ESCALATION_S = 1.0
"""For the other actors to finish when one has failed for good."""


class Retired(Exception):
    """The process is done; ``code`` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


@attrs.frozen
class Arguments:
    """The command line."""

    control: int
    lifetime: int
    parent: int
    log: str
    log_format: str
    modules: tuple[str, ...]

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Arguments:
        """Raises ValueError or KeyError for anything that is not the supervisor's."""
        given = dict(zip(argv[::2], argv[1::2], strict=True))
        return cls(
            control=int(given["--control"]),
            lifetime=int(given["--lifetime"]),
            parent=int(given["--parent"]),
            log=given["--log"],
            log_format=given["--log-format"],
            modules=tuple(name for name in given["--import"].split(",") if name),
        )


class Worker:
    """What this process is, once assigned. ``fds`` are the assignment's descriptors; they belong to it now."""

    def __init__(self, control: DescriptorLink, outbox: Outbox, assign: Assign, fds: list[int]) -> None:
        self._control = control
        self._outbox = outbox
        self._assign = assign
        self._asks: dict[int, Delivery] = {}
        self._ids = itertools.count(1)
        self._nursery: trio.Nursery | None = None
        self._exit_code = 0
        heartbeat, ledger, shelves, *fds = fds
        self._slot = Slot(heartbeat)
        os.close(heartbeat)
        self._resources = Resources.none(assign.actors)
        self._resources.ledger = ledger
        owners = [*assign.placement, *map(worker_place, {*assign.placement.values(), assign.worker})]
        self._resources.shelves = Shelves(shelves, owners)
        self._monitor = Monitor(
            self._resources.shelves.of(worker_place(assign.worker)), measuring=assign.settings.measuring
        )
        if assign.tls:
            self._resources.tls = TlsMaterial.opened(fds.pop(0))
        self._listeners: dict[int, Listener] = {}
        taken = len(assign.listeners)
        self._add_listeners(assign.listeners, fds[:taken])
        self._peers = {peer.name: peer.incarnation for peer in assign.peers}
        streams = dict(zip(self._peers, fds[taken:], strict=False))
        links = fds[taken + len(streams) :]
        workers = sorted({*assign.placement.values(), assign.worker})
        placement = assign.placement | {_alias(worker): worker for worker in workers}
        self._exchange = Exchange(
            assign.worker,
            placement,
            on_malformed=self._peer_broke,
            on_callback_error=self._callback_failed,
            maximum=maximum_for(assign.settings.max_request_size, assign.settings.max_response_size),
        )
        for peer, descriptor in streams.items():
            self._exchange.connect(peer, socket.socket(fileno=descriptor))
        for grant, descriptor in zip(assign.links, links, strict=True):
            self._add_link(grant, descriptor)
        self._tree = ActorTree(
            worker=assign.worker,
            incarnation=assign.incarnation,
            actors=assign.actors,
            plan=actor_plan(assign.actors, assign.strategy),
            exchange=self._exchange,
            settings=assign.settings,
            resources=self._resources,
            report=Report(
                states=self._tell_states,
                event=self._tell_event,
                ready=lambda: self._say(Ready()),
                failed=self._failed,
                ended=self._ended,
            ),
            address=self._address,
        )
        self._supervisor = Mailbox(_alias(assign.worker))

    async def run(self) -> None:
        """Until it is told to stop or can't go on; raises Retired either way."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._beat)
            await nursery.start(self._exchange.run)
            self._exchange.register(self._supervisor, self._assign.incarnation)
            nursery.start_soon(self._forward_to_supervisor)
            nursery.start_soon(self._obey)
            nursery.start_soon(self._tree.run)

    # --- towards the supervisor

    def _say(self, message: ControlMessage) -> None:
        try:
            self._outbox.send(message)
        except (OutboxFull, ValueError) as error:
            log.warning("the supervisor can't be told %s: %s", type(message).__name__, error)

    def _tell_states(self, states: tuple[ActorState, ...]) -> None:
        self._say(ActorStates(states))

    def _tell_event(self, event: ActorEvent) -> None:
        self._say(event)

    def _peer_broke(self, peer: str, error: MalformedFrame) -> None:
        log.error("%s broke the protocol between workers: %s", peer, error)
        self._say(PeerBroken(peer, self._peers[peer], str(error)[:300]))

    def _callback_failed(self, where: str, error: Exception) -> None:
        """Of no actor: one of this module's own."""
        log.error("the callback for %s raised", where, exc_info=error)

    def _failed(self, reason: str) -> None:
        self._exit_code = EXIT_ESCALATED
        self._say(Failing(reason[:1000]))
        if self._nursery is not None:
            self._nursery.start_soon(self._give_up)

    async def _give_up(self) -> None:
        await trio.sleep(_ESCALATION_S)
        raise Retired(EXIT_ESCALATED)

    def _ended(self) -> None:
        if not self._exit_code:
            self._say(Stopped())
        if self._nursery is not None:
            self._nursery.start_soon(self._retire)

    async def _retire(self) -> None:
        await trio.lowlevel.checkpoint()  # what was sent in this turn leaves with the channels' flush
        raise Retired(self._exit_code)

    async def _beat(self) -> None:
        """Written by the loop itself: it is the loop's progress that counts."""
        pause = self._assign.heartbeat_ms / BEATS / 1000
        while True:
            before = time.monotonic_ns()
            self._slot.beat(before)
            await trio.sleep(pause)
            self._monitor.beat(time.monotonic_ns() - before - int(pause * 1e9), self._tree.mailboxes())

    def _address(self, name: str) -> Address:
        return self._exchange.address(_alias(self._assign.worker) if name == SUPERVISOR else name)

    async def _forward_to_supervisor(self) -> None:
        while True:
            for delivery in await self._supervisor.receive():
                number = 0
                if delivery.wants_reply:
                    self._forget_late_asks()
                    if len(self._asks) >= _ASKS:
                        delivery.reply(Done(ok=False, detail="too many requests wait for the supervisor"))
                        continue
                    number = next(self._ids)
                    self._asks[number] = delivery
                self._say(Asked(number, delivery.sender, _as_any(delivery.message)))

    def _forget_late_asks(self) -> None:
        now = time.monotonic_ns()
        self._asks = {number: ask for number, ask in self._asks.items() if ask.deadline_ns > now}

    # --- from the supervisor

    async def _obey(self) -> None:
        while True:
            message, fds = await self._control.receive()
            self._take(message, fds)

    def _take(self, message: msgspec.Struct, fds: list[int]) -> None:
        match message:
            case Connect(peer, stream, links):
                if stream:
                    self._peers[peer.name] = peer.incarnation
                    self._exchange.connect(peer.name, socket.socket(fileno=fds.pop(0)))
                for grant, descriptor in zip(links, fds, strict=True):
                    self._add_link(grant, descriptor)
                    self._tree.tell(grant.actor, LinksChanged(grant.key))
            case Adopt(listeners):
                self._add_listeners(listeners, fds)
                self._listeners_changed()
            case Withdraw(listeners):
                self._withdraw(listeners)
                self._listeners_changed()
            case Configure(settings, tls):
                if tls:
                    self._resources.tls = TlsMaterial.opened(fds.pop(0))
                logs.set_level(settings.log_level)
                self._tree.configure(settings)
                self._monitor.configure(measuring=settings.measuring)
            case Post(number, actor, posted):
                self._post(number, actor, posted)
            case Reply(number, answer):
                ask = self._asks.pop(number, None)
                if ask is not None:
                    ask.reply(answer)
            case Stop(deadline_ns):
                self._tree.stop(deadline_ns)
            case Assign():
                raise MalformedFrame("a second assignment")

    def _post(self, number: int, actor: str, message: AnyMessage) -> None:
        if not number:
            self._tree.tell(actor, message)
            return

        def answered(answer: AddressReply) -> None:
            if isinstance(answer, (ActorDown, DeadlineExceeded)):
                self._say(Answered(number, None, str(answer)))
            else:
                self._say(Answered(number, _as_any(answer)))

        try:
            self._exchange.address(actor).request(message, time.monotonic_ns() + _ANSWER_NS, answered)
        except MailboxFull as error:
            self._say(Answered(number, None, str(error)))

    # --- descriptors

    def _add_listeners(self, grants: Sequence[ListenerGrant], fds: Sequence[int]) -> None:
        for grant, descriptor in zip(grants, fds, strict=True):
            listener = Listener(grant.kind, socket.socket(fileno=descriptor))
            listener.sock.setblocking(False)
            self._listeners[grant.id] = listener
            for actor in self._listening(grant.kind):
                self._resources.listeners[actor.name].append(listener)

    def _withdraw(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            listener = self._listeners.pop(number, None)
            if listener is None:
                continue
            for listeners in self._resources.listeners.values():
                if listener in listeners:
                    listeners.remove(listener)
            self._close_later(listener.sock)

    def _listeners_changed(self) -> None:
        for actor in self._assign.actors:
            if actor.listens:
                self._tree.tell(actor.name, ListenersChanged())

    def _listening(self, kind: str) -> list[ActorSpec]:
        return [actor for actor in self._assign.actors if kind in actor.listens]

    def _add_link(self, grant: LinkGrant, descriptor: int) -> None:
        links = self._resources.links[grant.actor]
        old = links.get(grant.key)
        links[grant.key] = DescriptorLink(socket.socket(fileno=descriptor), AnyMessage)
        if old is not None:
            self._close_later(old)

    def _close_later(self, item: socket.socket | DescriptorLink) -> None:
        async def close() -> None:
            await trio.sleep(_RETIRE_S)
            item.close()

        if self._nursery is not None:
            self._nursery.start_soon(close)


def _alias(worker: str) -> str:
    """The mailbox behind the name ``supervisor`` in one worker; every worker has its own."""
    return f"{SUPERVISOR}@{worker}"


def _as_any(message: object) -> AnyMessage:
    """Every message is one of AnyMessage; only the type checker can't know."""
    return message  # type: ignore[return-value]


async def _assignment(control: DescriptorLink) -> tuple[Assign, list[int]]:
    message, fds = await control.receive()
    if not isinstance(message, Assign):
        raise MalformedFrame(f"{type(message).__name__} before an assignment")
    return message, fds


async def serve(arguments: Arguments, lifetime: Lifetime) -> int:
    """Warm until assigned, then a worker. Returns the exit code."""
    control = DescriptorLink(socket.socket(fileno=arguments.control), ToWorker)
    outbox = Outbox(control)
    outbox.send(Hello(os.getpid()))
    code = 0
    try:
        assign, fds = await _assignment(control)
        logs.set_up(assign.worker, arguments.log, as_json=arguments.log_format == "json")
        logs.set_level(assign.settings.log_level)  # the configuration may have been read anew since the spawn
        if assign.hosts_children:
            lifetime.host_children()
        worker = Worker(control, outbox, assign, fds)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            await worker.run()
    except* Retired as group:
        code = max(_code(error) for error in _leaves(group))
    except* EOFError:
        log.debug("the supervisor has closed the control socket")
    except* Exception as group:
        log.critical("this worker can't go on", exc_info=group)
        outbox.send(Failing(describe(group)))
        code = 1
    return code


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for error in group.exceptions for leaf in _leaves(error)]
    return [group]


def _code(error: BaseException) -> int:
    return error.code if isinstance(error, Retired) else 1


def _ignore_signals() -> None:
    """A service manager sends its SIGTERM to every process of the service; only the supervisor acts on it.

    Handlers, not SIG_IGN: children of this process would inherit that through exec, and never end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda _number, _frame: None)


def main(argv: Sequence[str]) -> int:
    """The process, from its first line to its exit code."""
    arguments = Arguments.parse(argv)
    _ignore_signals()
    lifetime = Lifetime(arguments.lifetime, arguments.parent)
    # SIGABRT (a fence) and crashes of C code leave a trace of every thread on stderr, and no core file anywhere.
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for descriptor in (arguments.control, arguments.lifetime):
        os.set_inheritable(descriptor, False)
    logs.set_up("standby", arguments.log, as_json=arguments.log_format == "json")
    for module in arguments.modules:
        try:
            importlib.import_module(module)
        except Exception:
            log.exception("%s can't be imported", module)  # its actor's start says so again, and counts
    try:
        code = trio.run(serve, arguments, lifetime)
    finally:
        lifetime.end_children()
        logs.finish()
    return code


if __name__ == "__main__":
    # Not sys.exit: nothing is left to be done, and no thread of a library may hold up the successor.
    os._exit(main(sys.argv[1:]))
