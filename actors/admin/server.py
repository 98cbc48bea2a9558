"""The actor ``admin``: serves the health listener, asks all actors how they are, and tells the acceptors the result.

It depends on nobody: whoever is down is shown as down. What it knows is at most a second or so old.
"""

from __future__ import annotations

import errno
import logging
import time
from contextlib import ExitStack

import attrs
import msgspec
import trio

from ipc.context import Context, Listener
from ipc.errors import ActorDown, MailboxFull
from ipc.mailbox import Delivery
from ipc.messages import Describe, Description, Drain, GatewayStatus, ListenersChanged, SettingsChanged, TreeSnapshot

from ..audit_ring import AuditRing
from . import health, tree
from .access import is_loopback
from .answers import security_headers
from .connection import Connection
from .metrics import Metrics
from .routes import Routes, State
from .survey import Survey

log = logging.getLogger("portcullis.admin")

MOST_CONNECTIONS = 128
"""At once. Operators and monitors are few; when there are more, the one that waits longest without a request goes."""

SURVEY_EVERY_S = 1.0
FINISH_S = 1.0
"""How long answers under way may take at the end."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class AdminServer:
    """One incarnation of the actor."""

    def __init__(self, context: Context) -> None:
        settings = context.settings
        self.context = context
        self.audit = AuditRing(context.address("audit"), context.name, policy="drop")
        self.survey = Survey(context)
        self.state = State(context, self.survey, self.audit, time.monotonic_ns(), Metrics(context))
        self._headers = security_headers(settings)
        self._connections: dict[Connection, None] = {}  # in the order in which they came
        self._listening: dict[Listener, trio.CancelScope] = {}
        self._routes: dict[Listener, Routes] = {}
        self._changed = trio.Event()  # an actor came or went
        self._empty = trio.Event()  # the last connection has ended, after a Drain
        self._draining = False
        self._drain_deadline_ns = 0

    async def run(self) -> None:
        """Until a Drain."""
        async with trio.open_nursery() as nursery:
            with ExitStack() as watches:
                watches.callback(self.state.recent.close)
                for view in self.survey.views():
                    watches.callback(self.context.address(view.name).watch(self._note))
                await self._serve_until_drained(nursery)
            nursery.cancel_scope.cancel()

    async def _serve_until_drained(self, nursery: trio.Nursery) -> None:
        self._listen(nursery)
        nursery.start_soon(self._survey)
        self.context.ready()
        while not self._draining:
            for delivery in await self.context.mailbox.receive():
                self._take(delivery, nursery)
        await self._finish()

    def _take(self, delivery: Delivery, nursery: trio.Nursery) -> None:
        message = delivery.message
        match message:
            case TreeSnapshot(data=data):
                self._take_tree(data)
            case ListenersChanged():
                self._listen(nursery)
            case SettingsChanged():
                self._headers = security_headers(self.context.settings)
                for routes in self._routes.values():
                    routes.configure()
            case Describe():
                delivery.reply(Description(msgspec.json.encode(self._describe())))
            case Drain(deadline_ns=deadline_ns):
                self._draining = True
                self._drain_deadline_ns = deadline_ns
            case _:
                log.warning("unexpected %s from %s", type(message).__name__, delivery.sender)

    def _take_tree(self, data: bytes) -> None:
        try:
            self.state.tree = tree.decode(data)
        except msgspec.MsgspecError as error:
            self.state.count("malformed_trees")
            log.error("the supervisor's tree can't be read: %s", error)  # noqa: TRY400
            return
        self.state.tree_at_ns = time.monotonic_ns()
        self._tell()

    def _describe(self) -> dict[str, object]:
        return {
            **self.state.counts,
            "connections": len(self._connections),
            "malformed": self.survey.malformed,
            "audit": attrs.asdict(self.audit.statistics()),
        }

    # --- what is known, and who is told

    def _note(self, _incarnation: int) -> None:
        self._changed.set()

    async def _survey(self) -> None:
        """Ask every second, and as soon as an actor has come or gone: its new incarnation knows nothing yet."""
        while True:
            self._changed = trio.Event()
            await self.survey.refresh()
            self.state.hear()
            self.state.rates.observe(self.survey.views("acceptor"), time.monotonic_ns())
            self._tell()
            self.audit.flush()
            with trio.move_on_after(SURVEY_EVERY_S):
                await self._changed.wait()
                self._tell()

    def _tell(self) -> None:
        """Every acceptor that is up. One that is not is told when it is back."""
        judged = self.state.health()
        status = GatewayStatus(judged.status, judged.ready, health.encode(judged))
        for name in self.context.peers("acceptor"):
            try:
                self.context.address(name).control(status)
            except ActorDown:
                continue
            except MailboxFull:
                self.state.count("untold")

    # --- the listeners

    def _listen(self, nursery: trio.Nursery) -> None:
        """Serve what ``context.listeners`` holds, and nothing else."""
        wanted = [listener for listener in self.context.listeners if listener.kind == "health"]
        for listener in [listener for listener in self._listening if listener not in wanted]:
            self._listening.pop(listener).cancel()
            self._routes.pop(listener, None)
        for listener in wanted:
            if listener not in self._listening:
                self._listening[listener] = scope = trio.CancelScope()
                nursery.start_soon(self._accept, listener, scope, nursery)

    async def _accept(self, listener: Listener, scope: trio.CancelScope, nursery: trio.Nursery) -> None:
        routes = self._routes[listener] = Routes(self.state, local=is_loopback(listener.sock.getsockname()[0]))
        sock = trio.socket.from_stdlib_socket(listener.sock)
        with scope:
            while True:
                try:
                    accepted, peer = await sock.accept()
                except OSError as error:
                    # A connection that was reset in the queue is its own loss; without descriptors wait for some.
                    self.state.count("accept_errors")
                    log.warning("accept: %s", error)
                    await trio.sleep(0.1 if error.errno in _EXHAUSTED else 0)
                    continue
                self._make_room()
                stream = trio.SocketStream(accepted)
                connection = Connection(stream, routes.handle, self._headers, peer=str(peer[0]))
                self._connections[connection] = None
                nursery.start_soon(self._serve, connection)

    def _make_room(self) -> None:
        """The listener has to be reachable whatever others do on it: the oldest that waits gives way."""
        if len(self._connections) < MOST_CONNECTIONS:
            return
        oldest = next((connection for connection in self._connections if not connection.busy), None)
        oldest = oldest or next(iter(self._connections))
        self.state.count("evicted")
        del self._connections[oldest]
        oldest.scope.cancel()

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        finally:
            self._connections.pop(connection, None)
            if connection.faults:
                self.state.count("faults")
            if self._draining and not self._connections:
                self._empty.set()

    async def _finish(self) -> None:
        """Nothing new; what is being answered is answered, and what was recorded is written."""
        for scope in self._listening.values():
            scope.cancel()
        for connection in self._connections:
            connection.last = True
            if not connection.busy:
                connection.scope.cancel()
        left_s = max(0.0, (self._drain_deadline_ns - time.monotonic_ns()) / 1e9)
        with trio.move_on_after(min(FINISH_S, left_s)):
            if self._connections:
                await self._empty.wait()
            await self.audit.settled(within_s=FINISH_S)


async def main(context: Context) -> None:
    """The actor ``admin``."""
    await AdminServer(context).run()
