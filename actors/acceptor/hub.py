"""The acceptor: one task that serves every ready socket of its worker.

The hub awaits one thing, the readability of its own epoll descriptor, and then runs a *turn* without awaiting:
it receives from all ready sockets, decides about all that it received, places all answers and upstream requests in
buffers, and then sends them all. Answers of other actors and due timers reach it as posted calls, which it runs in
the same turn, so that everything about a connection happens in this one place, one step after another.

One boundary stands around each step of each connection: whatever a step raises ends that connection and no other.
The table of connections is kept outside the actor, so that a hub that crashes finds its connections again.

epoll is level-triggered here: what a turn leaves unread is reported again. A socket's mask is changed only when its
wishes change (EPOLLOUT only while its peer does not read, EPOLLIN not while its messages wait for something).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol

import attrs
import trio

from actors.audit_ring import AuditRing
from actors.policy.client_key import client_key
from ipc.context import Context, Listener
from ipc.messages import (
    AuditEvent,
    Describe,
    Description,
    Disconnect,
    Done,
    Drain,
    Evict,
    GatewayStatus,
    ListenersChanged,
    OffenceKind,
    ReloadCertificates,
    SettingsChanged,
)
from ipc.settings import Settings

from . import describe
from .answers import Answers
from .arrivals import Arrivals
from .authorising import Authorising
from .blocklist import Blocklist
from .budget import Budget
from .catalogue import Catalogue
from .closed_door import drop_everything
from .connection import LINGER_NS, RECEIVE_BYTES, Connection, Stage
from .deadlines import Deadlines
from .dispatch import Dispatch
from .entry import Entry
from .farewells import Farewells
from .handshakes import Handshakes
from .http import HeadReader
from .inflight import Inflight
from .large import LargeMessages
from .lines import LineReader
from .login import Login
from .meter import Meter
from .misdeeds import Misdeeds
from .prefaces import Prefaces
from .revocation import Revocation
from .routes import Routes
from .screening import Screening
from .tcp_upstream import TcpUpstream
from .tls import why
from .traffic import Traffic
from .wheel import TimerWheel
from .ws import encode_close

log = logging.getLogger("portcullis.acceptor")

EVENTS_A_TURN: Final = 512
ACCEPTS_A_TURN: Final = 64  # per listener, so that a storm of connections doesn't starve the open ones
TICK_NS: Final = 50_000_000
UNREAD_SLACK: Final = 1 << 20  # beyond MAX_BUFFER_SIZE: for framing and for saying what was dropped
LAST_WORDS_NS: Final = 1_000_000_000
IOV_MAX: Final = 64  # buffers gathered in one send; far below the system's own limit of 1,024
DESCRIPTOR_PAUSE_NS: Final = 250_000_000  # out of descriptors: leave the queue alone for so long
IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT


class Readiness(Protocol):
    """What an epoll descriptor's owner does when it is ready."""

    def __call__(self, events: int, now: int, /) -> None: ...


@attrs.define(eq=False)
class Estate:
    """What outlives a hub that crashes: the connections, and the numbers that must not repeat."""

    connections: dict[int, Connection] = attrs.field(factory=dict)
    next_session: int = 1
    next_call: int = 1


class Hub:
    """One incarnation of one acceptor."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings: Settings = context.settings
        self.name = context.name
        # A worker's sessions begin where no predecessor's can have been: what is said of an old one must not be
        # taken for a new one's.
        first = 1 + (context.incarnation >> 20 << 24)
        self.estate: Estate = context.keep.setdefault("estate", Estate(next_session=first))
        self.connections = self.estate.connections
        self.now = time.monotonic_ns()
        self.epoll = select.epoll()
        self.ready: dict[int, Readiness] = {}
        self.posted: list[Callable[[], None]] = []
        self.dirty: dict[int, Connection] = {}
        self.dirty_links: dict[int, TcpUpstream] = {}
        self.tasks: trio.Nursery | None = None
        self.wheel: TimerWheel[Callable[[int], None]] = TimerWheel(TICK_NS, self.now)
        self.waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.woken = False
        self.listening: dict[int, Listener] = {}
        self.draining_until_ns = 0
        self.last_words_until_ns = 0
        self.finished = trio.Event()  # drained, or out of time for it
        self.empty = trio.Event()  # and no connection is left
        self.status: GatewayStatus | None = None
        self.refused = 0
        self.faults = 0

        self.limiter = context.address("limiter")
        self.audit = AuditRing.kept(
            context.keep,
            context.address("audit"),
            f"{context.name}.{context.incarnation}",
            capacity=8192,
            policy=self.settings.audit_on_full,
        )
        self.counts: dict[str, int] = {}
        if "meter" not in context.keep:
            context.keep["meter"] = Meter(context.shelves.of(self.name))
        self.meter: Meter = context.keep["meter"]
        self.meter.measuring = self.settings.measuring
        # Of the connections that are gone; like the others it outlives this incarnation.
        self.traffic: Traffic = context.keep.setdefault("traffic", Traffic())
        self.deadlines = Deadlines(self)
        self.farewells = Farewells()
        self.budget = Budget(self)
        self.blocklist = Blocklist(self)
        self.misdeeds = Misdeeds(self)
        self.prefaces = Prefaces(self)
        self.arrivals = Arrivals(self)
        self.catalogue = Catalogue(self)
        self.routes = Routes(self)
        self.inflight = Inflight(self)
        self.large = LargeMessages(self)
        self.authorising = Authorising(self)
        self.screening = Screening(self)
        self.dispatch = Dispatch(self)
        self.answers = Answers(self)
        self.login = Login(self)
        self.revocation = Revocation(self)
        self.entry = Entry(self)
        self.handshakes = Handshakes(self)

        self.epoll.register(self.waker, IN)
        self.ready[self.waker] = self._on_waker

    # --- the turn --------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Serve what is ready now; False when nothing was."""
        events = self.epoll.poll(0, EVENTS_A_TURN)
        if not events and not self.posted:
            return False
        now = self.now = time.monotonic_ns()
        ready = self.ready
        for fd, mask in events:  # receive all, decide all
            step = ready.get(fd)
            if step is not None:
                step(mask, now)
        if self.posted:
            calls, self.posted = self.posted, []
            for call in calls:
                call()
        self.budget.look_ahead(now)
        self._flush_all()  # send all
        if self.meter.arrived:
            self.meter.turned()
        return True

    def post(self, call: Callable[[], None]) -> None:
        """Run ``call`` in the next turn. For callbacks of other actors: they return at once and raise nothing."""
        self.posted.append(call)
        if not self.woken:
            self.woken = True
            os.eventfd_write(self.waker, 1)

    def _on_waker(self, _events: int, _now: int) -> None:
        os.eventfd_read(self.waker)
        self.woken = False

    def step(self, connection: Connection, action: Callable[..., None], *arguments: object) -> None:
        """The boundary: run one step of one connection; if it raises, that connection ends, and only that one."""
        try:
            action(connection, *arguments)
        except Exception:
            self.faults += 1
            log.exception("connection %s: a step failed, it is closed", self.public_id(connection))
            self.event(connection, "actor.crashed", severity="error", outcome="failure", reason="step")
            self.abort(connection, "internal")

    def link_step(self, link: TcpUpstream, action: Callable[..., None], *arguments: object) -> None:
        """The same boundary for an upstream's connection: a step that raises ends that connection."""
        try:
            action(*arguments)
        except Exception:
            self.faults += 1
            log.exception("an upstream connection's step failed, it is closed")
            link.broken("internal error")

    def start_task(self, task: Callable[[], Awaitable[None]]) -> None:
        """For what has to await (connecting to an upstream)."""
        if self.tasks is not None:
            self.tasks.start_soon(task)

    # --- listeners -------------------------------------------------------------------------------------------

    def sync_listeners(self) -> None:
        """Serve exactly the listeners that the context holds now."""
        wanted = {listener.sock.fileno(): listener for listener in self.context.listeners if listener.kind != "health"}
        for fd in [fd for fd in self.listening if fd not in wanted]:
            del self.listening[fd]
            self.forget(fd)
        for fd, listener in wanted.items():
            if fd not in self.listening:
                listener.sock.setblocking(False)
                self.listening[fd] = listener
                self.watch(fd, IN, functools.partial(self._accept, listener))

    def _accept(self, listener: Listener, _events: int, now: int) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, address = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(listener, now, error)
                    return
                continue  # the peer was gone before it was accepted (ECONNABORTED, EPROTO …): the next one
            self._begin(listener, sock, address, now)

    def _pause(self, listener: Listener, now: int, error: OSError) -> None:
        """No descriptor to accept with: leave the connection in the queue and look again a little later."""
        fd = listener.sock.fileno()
        log.warning("cannot accept on %s: %s; trying again", listener.kind, error.strerror)
        self.epoll.modify(fd, 0)

        def resume(_now: int) -> None:
            if fd in self.listening:
                self.epoll.modify(fd, IN)

        self.wheel.add(now + DESCRIPTOR_PAUSE_NS, resume)

    def _begin(self, listener: Listener, sock: socket.socket, address: tuple[Any, ...], now: int) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # reset already: the first read will say so
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = self.estate.next_session
        self.estate.next_session += 1
        kind: Literal["ws", "tcp"] = "ws" if listener.kind == "ws" else "tcp"
        ip = str(address[0]).partition("%")[0]
        settings = self.settings
        connection = Connection(
            session=session,
            sock=sock,
            fd=sock.fileno(),
            listener=kind,
            peer_ip=ip,
            peer_port=int(address[1]),
            key=client_key(ip),
            codec=HeadReader() if kind == "ws" else LineReader(max_line=settings.max_preauth_size),
            opened_ns=now,
            wall_opened_ns=time.time_ns(),
            idle_since_ns=now,
            last_received_ns=now,
            tls=self.handshakes.layer(),
        )
        self.meter.accepted(kind)
        self.connections[session] = connection
        self._register(connection)
        self.step(connection, self.entry.begin, now)

    def _register(self, connection: Connection) -> None:
        connection.interest = IN
        handshaking = connection.tls is not None and connection.tls.handshaking
        step = self.handshakes.on_socket if handshaking else self.on_socket
        self.watch(connection.fd, IN, functools.partial(step, connection))
        self.deadlines.arm(connection)

    def adopt_kept(self) -> None:
        """Serve the connections that a crashed predecessor left: what it was doing for them is answered as unknown."""
        for connection in list(self.connections.values()):
            connection.armed_ns = 0  # in its predecessor's wheel
            self._register(connection)
            self.step(connection, self.dispatch.recover, self.now)
            self.dirty[connection.fd] = connection

    # --- one connection's socket -----------------------------------------------------------------------------

    def on_socket(self, connection: Connection, events: int, now: int) -> None:
        """The readiness of a connection's descriptor."""
        if not connection.wants_input:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self.step(connection, self._hung_up)
            self.dirty[connection.fd] = connection  # for the mask
        elif events & ~OUT:  # readable, hung up or in error: the read tells which
            self.step(connection, self.receive, now)
        if events & OUT and connection.stage is not Stage.CLOSED:
            self.dirty[connection.fd] = connection

    def receive(self, connection: Connection, now: int) -> None:
        """Read once, and deal with what came."""
        tls = connection.tls
        try:
            data = connection.sock.recv(RECEIVE_BYTES) if tls is None else tls.receive(connection.sock, RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:  # reset, timed out, unreachable: the peer's end, whatever its name
            self.entry.gone(connection)
            self.close_now(connection, why(error))
            return
        if connection.stage is Stage.CLOSING:
            connection.linger_left -= len(data)
            if not data and connection.out:  # it has nothing more to say, and may still listen
                connection.eof = True
                self.dirty[connection.fd] = connection
            elif not data or connection.linger_left < 0:
                self.close_now(connection, "closed")
            return
        if not data:
            connection.eof = True
            self.dispatch.ended(connection)
            self.dirty[connection.fd] = connection
            return
        connection.bytes_in += len(data)
        connection.last_received_ns = now
        self.dirty[connection.fd] = connection
        if connection.transport == "http":
            self.entry.received(connection, data, now)
        else:
            self.dispatch.received(connection, data, now)

    def _hung_up(self, connection: Connection) -> None:
        """EPOLLHUP or EPOLLERR on a connection that isn't read now: they can't be masked, so they are dealt with."""
        error = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or connection.blocked_since_ns or connection.eof:
            self.close_now(connection, "reset")
            return
        # Hung up in both directions with nothing in error: nobody is there to answer to.
        self.close_now(connection, "closed")

    def _flush_all(self) -> None:
        dirty, self.dirty = self.dirty, {}
        for connection in dirty.values():
            if connection.stage is not Stage.CLOSED:
                self.step(connection, self._flush)
        if self.dirty_links:
            links, self.dirty_links = self.dirty_links, {}
            for link in links.values():
                self.link_step(link, link.flush)

    def _flush(self, connection: Connection) -> None:
        if connection.out:
            self._send(connection)
            if connection.stage is Stage.CLOSED:
                return
        if connection.tls is not None and not self.handshakes.settled(connection):
            return
        if connection.stage is Stage.CLOSING and not connection.out and not connection.linger_until_ns:
            self._linger(connection)
            return
        wanted = (IN if connection.wants_input else 0) | (OUT if connection.out else 0)
        if wanted != connection.interest:
            connection.interest = wanted
            self.epoll.modify(connection.fd, wanted)

    def _send(self, connection: Connection) -> None:
        out = connection.out
        try:
            if connection.tls is not None:
                sent = connection.tls.send(connection.sock, out)
            else:
                sent = connection.sock.send(out[0]) if len(out) == 1 else connection.sock.sendmsg(out[:IOV_MAX])
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close_now(connection, "reset")
            return
        connection.bytes_out += sent
        connection.out_bytes -= sent
        if not connection.out_bytes:
            out.clear()
            connection.blocked_since_ns = 0
            return
        if sent or not connection.blocked_since_ns:  # it reads, if slowly; or it has just stopped
            connection.blocked_since_ns = self.now
            self.deadlines.by(connection, self.now + self.settings.write_timeout_ms * 1_000_000)
        index = 0
        while sent >= len(out[index]):
            sent -= len(out[index])
            index += 1
        del out[:index]
        if sent:
            out[0] = memoryview(out[0])[sent:]
        if connection.out_bytes > self.settings.max_buffer_size + UNREAD_SLACK:
            self.close_now(connection, "slow reader")

    # --- ends ------------------------------------------------------------------------------------------------

    def close(self, connection: Connection, code: int, reason: str) -> None:
        """End it in order: what is queued, then a WebSocket close frame with ``code`` where there is one, then FIN."""
        if connection.stage >= Stage.CLOSING:
            return
        if connection.transport == "ws" and not connection.close_sent:
            connection.close_sent = True
            connection.write(encode_close(code, reason[:100]))
        self.finish(connection, reason)

    def finish(self, connection: Connection, reason: str) -> None:
        """Write what is queued, then close. The rest of the connection (calls, budget, session) ends now."""
        if connection.stage >= Stage.CLOSING:
            return
        self._leave(connection, reason)
        connection.stage = Stage.CLOSING
        self.dirty[connection.fd] = connection
        self.deadlines.by(connection, self.now + LINGER_NS)

    def _linger(self, connection: Connection) -> None:
        """All is written. Closing with unread input would reset the connection and destroy the answer on its way to
        the peer (RFC 1122 §4.2.2.13), so send FIN and read the rest away for a bounded while. Its place is free."""
        self.entry.vacate(connection)
        if not self.farewells.begin(connection):
            self.close_now(connection, "closed")
            return
        connection.linger_until_ns = self.now + LINGER_NS
        self.deadlines.by(connection, connection.linger_until_ns)
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close_now(connection, "reset")
            return
        if connection.eof:
            self.close_now(connection, "closed")
            return
        if connection.interest != IN:
            connection.interest = IN
            self.epoll.modify(connection.fd, IN)

    def abort(self, connection: Connection, reason: str) -> None:
        """After a fault of ours: tell the peer if that is still possible, and close."""
        try:
            self.close(connection, 1011, "internal error")
        except Exception:
            log.exception("connection %s: could not be closed in order", self.public_id(connection))
            self.close_now(connection, reason)

    def close_now(self, connection: Connection, reason: str, *, audited: bool = False) -> None:
        """Close the socket. Ends the rest of the connection too if that has not happened."""
        if connection.stage is Stage.CLOSED:
            return
        if connection.stage < Stage.CLOSING:
            self._leave(connection, reason, audited=audited)
        connection.stage = Stage.CLOSED
        self.forget(connection.fd)
        self.dirty.pop(connection.fd, None)
        connection.sock.close()
        connection.out.clear()
        self.connections.pop(connection.session, None)
        self.meter.closed(connection)
        self.traffic.add(connection)
        self.farewells.end(connection)
        self.prefaces.forget(connection)
        self.entry.vacate(connection)

    def _leave(self, connection: Connection, reason: str, *, audited: bool = False) -> None:
        if connection.stage is Stage.OPEN:
            self.meter.left(connection, self.now)
            if not audited:
                self.event(connection, "connection.closed", reason=reason)
        self.dispatch.leave(connection)

    # --- the clock ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """What happens by the clock: timers, lease reports, batches to the policy actors."""
        now = self.now = time.monotonic_ns()
        for entry in self.wheel.due(now):
            entry(now)
        self.entry.report(now)
        self.misdeeds.report()
        self.revocation.tick(now)
        self.routes.tick(now)
        self.catalogue.tick(now)
        self.inflight.tick(now)
        self.meter.tick(now, self.connections.values())
        self.audit.flush()
        if self.draining_until_ns:
            self._check_drained(now)

    # --- messages of other actors ----------------------------------------------------------------------------

    def on_mail(self) -> None:
        """The mailbox has something: take it in the next turn."""
        self.post(self._read_mail)

    def _read_mail(self) -> None:
        for delivery in self.context.mailbox.drain():
            message = delivery.message
            if self.routes.delivered(message):
                continue
            match message:
                case GatewayStatus():
                    self.status = message
                case ListenersChanged():
                    self.sync_listeners()
                case SettingsChanged():
                    self.configure()
                case ReloadCertificates():
                    self.handshakes.reload()
                case Drain(deadline_ns=deadline):
                    self._drain(deadline)
                case Describe():
                    delivery.reply(Description(data=describe.acceptor(self)))
                case Evict(sessions=sessions):
                    self.entry.evict(sessions)
                case Disconnect(connection=public):
                    delivery.reply(self._disconnect(public))
                case _ if self.budget.delivered(message) or self.blocklist.delivered(message):
                    pass
                case _ if self.revocation.delivered(message) or self.large.delivered(message):
                    pass
                case _:
                    log.warning("unexpected message %s", type(message).__name__)

    def configure(self) -> None:
        """The settings were read anew. Only what the new ones forbid ends."""
        self.settings = self.context.settings
        self.audit.policy = self.settings.audit_on_full
        self.meter.measuring = self.settings.measuring
        for part in (self.deadlines, self.budget, self.blocklist, self.routes, self.screening):
            part.configure()
        for connection in list(self.connections.values()):
            if connection.stage is Stage.OPEN:
                self.step(connection, self.entry.size_up)
        self.blocklist.end_barred()

    def _disconnect(self, public: str) -> Done:
        for connection in self.connections.values():
            if self.public_id(connection) == public and connection.stage < Stage.CLOSING:
                self.step(connection, self.close, 1008, "disconnected by an operator")
                return Done(ok=True)
        return Done(ok=False, detail="no such connection here")

    # --- drain -----------------------------------------------------------------------------------------------

    def _drain(self, deadline_ns: int) -> None:
        """Refuse what is new, let what is in flight finish, then close everything with 1001."""
        if not self.draining_until_ns:
            # The last part of the time is for telling whoever still waits that it is over.
            self.draining_until_ns = deadline_ns - min(LAST_WORDS_NS, (deadline_ns - self.now) // 4)
            self.last_words_until_ns = deadline_ns
            log.info("draining: %d connections", len(self.connections))

    def _check_drained(self, now: int) -> None:
        late = now >= self.draining_until_ns
        for connection in list(self.connections.values()):
            waits = connection.waiting_for or connection.parked or len(connection.calls) > connection.open_ended
            if connection.stage < Stage.CLOSING and (late or not waits):
                self.step(connection, self.dispatch.going_away)
        self._flush_all()
        if late or not self.connections:
            if not self.finished.is_set():
                self._stop_listening(now)
            if not self.connections:
                self.empty.set()

    def _stop_listening(self, now: int) -> None:
        """Accept what is queued (each gets its refusal), and end. The supervisor closes the ports.

        From here on the kernel drops what still arrives at these sockets, so that nobody gets into a queue which is
        then thrown away: a client that tries now tries again in a second, and is refused by the closed port.
        """
        for listener in list(self.listening.values()):
            drop_everything(listener.sock)
            before = 0
            while before != self.estate.next_session:
                before = self.estate.next_session
                self._accept(listener, IN, now)
        self._flush_all()
        self.finished.set()

    # --- shared by the parts ---------------------------------------------------------------------------------

    def watch(self, fd: int, mask: int, step: Readiness) -> None:
        self.ready[fd] = step
        self.epoll.register(fd, mask)

    def forget(self, fd: int) -> None:
        if self.ready.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def offence(self, connection: Connection, kind: OffenceKind) -> None:
        """The client did something wrong; enough of that blocks it (``misdeeds`` says whom)."""
        self.misdeeds.note(connection, kind)

    def count(self, what: str) -> None:
        """One more of ``what``, for the statistics."""
        self.counts[what] = self.counts.get(what, 0) + 1
        self.meter.count(what)

    def public_id(self, connection: Connection) -> str:
        """The connection's name in logs, audit and the admin API."""
        return f"{self.name.rpartition('.')[2]}-{connection.session:x}"

    def event(
        self,
        connection: Connection,
        event: str,
        *,
        severity: Literal["info", "warning", "error", "critical"] = "info",
        outcome: Literal["success", "failure", "refused", "unknown"] = "success",
        reason: str = "",
        method: str = "",
        rule: str = "",
        detail: dict[str, str | int | float | bool] | None = None,
    ) -> None:
        """Record one audit event about a connection."""
        if event == "connection.refused":
            self.meter.refused(connection, reason)
        self.audit.record(
            AuditEvent(
                event=event,
                severity=severity,
                outcome=outcome,
                time_ns=time.time_ns(),
                connection=self.public_id(connection),
                transport=connection.transport,
                peer_ip=connection.peer_ip,
                peer_port=connection.peer_port,
                principal=connection.grant.principal if connection.grant else "",
                method=method,
                rule=rule,
                upstream=connection.upstream,
                reason=reason,
                detail=detail or {},
            )
        )

    # --- the task --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until drained."""
        self.context.mailbox.on_arrival = self.on_mail
        self.entry.start()
        self.routes.start()
        self.adopt_kept()
        self.sync_listeners()
        try:
            async with trio.open_nursery() as nursery:
                self.tasks = nursery
                nursery.start_soon(self._serve)
                nursery.start_soon(self._tick_on)
                nursery.start_soon(self.large.receive)
                self.context.ready()
                await self.finished.wait()
                await self._end(nursery)
        finally:
            self.tasks = None
            self.context.mailbox.on_arrival = None
            self.entry.stop()
            self.routes.stop()
            self.meter.publish(self.connections.values())
            self.epoll.close()
            os.close(self.waker)

    async def _serve(self) -> None:
        fd = self.epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(fd)
            while self.turn():
                await trio.lowlevel.checkpoint()  # the channels' tasks get their turn too

    async def _tick_on(self) -> None:
        while True:
            await trio.sleep(TICK_NS / 1e9)
            self.tick()
            self._flush_all()

    async def _end(self, nursery: trio.Nursery) -> None:
        """Give the last bytes a moment to leave, then stop serving."""
        left_ns = self.last_words_until_ns - time.monotonic_ns() - TICK_NS
        with trio.move_on_after(max(0, min(LINGER_NS, left_ns)) / 1e9):
            await self.empty.wait()
        for connection in list(self.connections.values()):
            self.close_now(connection, "drained")
        self.entry.report(self.now)
        self.budget.close()
        self.audit.flush()
        await self.audit.settled()
        nursery.cancel_scope.cancel()


async def main(context: Context) -> None:
    """The actor ``acceptor.N``."""
    await Hub(context).run()
