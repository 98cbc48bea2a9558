"""An admin actor on a free port, with actors around it that answer as a test wants."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio

from actors.admin import server
from ipc.address import Address
from ipc.context import Context, Listener
from ipc.exchange import Exchange
from ipc.mailbox import Mailbox
from ipc.messages import (
    AuditAck,
    AuditBatch,
    AuditEvent,
    Describe,
    Description,
    Drain,
    GatewayStatus,
    Message,
    TreeSnapshot,
)
from ipc.settings import Settings, Upstream

ADMIN_TOKEN = "T0ken-of-the-tests_4f1b0c9e8d7a6b5c"
ACTORS = ("acceptor.0", "acceptor.1", "auth", "limiter", "breaker", "audit", "bridge", "validator")
SETTINGS = Settings(
    admin_token=ADMIN_TOKEN,
    upstreams=(Upstream(name="time", kind="stdio"), Upstream(name="far", kind="tcp", host="h", port=1)),
)


@attrs.define
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@attrs.define
class StandIn:
    """One actor around admin. It describes itself with ``data``, answers others by ``answer``, keeps what it got."""

    name: str
    exchange: Exchange
    data: dict[str, Any] | bytes = attrs.field(factory=dict)  # bytes: as they are, instead of JSON
    answer: Callable[[Message], Message | None] = lambda _message: None
    deaf: bool = False
    received: list[Message] = attrs.field(factory=list)
    events: list[AuditEvent] = attrs.field(factory=list)
    came: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    incarnation: int = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        mailbox = Mailbox(self.name)
        self.incarnation += 1
        self.scope = trio.CancelScope()
        self.exchange.register(mailbox, self.incarnation)
        task_status.started()
        with self.scope:
            while True:
                for delivery in await mailbox.receive():
                    self.received.append(delivery.message)
                    self.came.set()
                    self.came = trio.Event()
                    if not delivery.wants_reply or self.deaf:
                        continue
                    reply = self._reply(delivery.message)
                    if reply is not None:
                        delivery.reply(reply)
        self.exchange.unregister(self.name, "killed by the test")

    def _reply(self, message: Message) -> Message | None:
        match message:
            case Describe():
                return Description(self.data if isinstance(self.data, bytes) else json.dumps(self.data).encode())
            case AuditBatch(first=first, events=events):
                self.events.extend(events)
                return AuditAck(first + len(events))
            case _:
                return self.answer(message)

    async def got(self, wanted: Callable[[Message], bool]) -> Message:
        while True:
            for message in self.received:
                if wanted(message):
                    return message
            await self.came.wait()

    async def status(self, wanted: Callable[[GatewayStatus], bool]) -> GatewayStatus:
        found = await self.got(lambda message: isinstance(message, GatewayStatus) and wanted(message))
        assert isinstance(found, GatewayStatus)
        return found


@attrs.define
class Bench:
    nursery: trio.Nursery
    exchange: Exchange
    actors: dict[str, StandIn]
    port: int
    context: Context

    @property
    def admin(self) -> Address:
        return self.exchange.address("admin")

    def tree(self, **members: Any) -> None:
        """The supervisor tells its tree."""
        document = {"uptime_s": 5.0, "version": "0.1.0", "draining": False, "degraded": [], "restarts": 3, **members}
        self.admin.control(TreeSnapshot(json.dumps(document).encode()))

    async def start(self, name: str) -> None:
        await self.nursery.start(self.actors[name].run)

    async def stop(self, name: str) -> None:
        """Returns when admin knows."""
        self.actors[name].scope.cancel()
        while self.exchange.address(name).incarnation:
            await trio.lowlevel.checkpoint()

    async def open(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def request(
        self, method: str, target: str, *, token: str | None = None, host: str = "localhost", body: bytes = b"",
        stream: trio.SocketStream | None = None, headers: tuple[tuple[str, str], ...] = (),
    ) -> Reply:
        wire = stream or await self.open()
        protocol = h11.Connection(h11.CLIENT)
        fields = [("Host", host), ("Content-Length", str(len(body))), *headers]
        if token is not None:
            fields.append(("Authorization", f"Bearer {token}"))
        await wire.send_all(protocol.send(h11.Request(method=method, target=target, headers=fields)) or b"")
        await wire.send_all((protocol.send(h11.Data(data=body)) or b"") + (protocol.send(h11.EndOfMessage()) or b""))
        reply = await read(wire, protocol)
        if stream is None:
            await wire.aclose()
        return reply


async def read(wire: trio.SocketStream, protocol: h11.Connection) -> Reply:
    response: h11.Response | None = None
    body = b""
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            protocol.receive_data(await wire.receive_some(65536))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        else:
            raise AssertionError(f"no answer: {event}")
    assert response is not None
    headers = {name.decode(): value.decode() for name, value in response.headers}
    return Reply(response.status_code, headers, body)


@asynccontextmanager
async def bench(
    settings: Settings = SETTINGS, *, down: tuple[str, ...] = (), host: str = "127.0.0.1", within_s: float = 20
) -> AsyncIterator[Bench]:
    """Admin and its neighbours, up; ``down`` names those that are not. Everything is gone afterwards."""
    names = (*ACTORS, "supervisor")
    exchange = Exchange("w", dict.fromkeys((*names, "admin"), "w"))
    sock = socket.create_server((host, 0))
    sock.setblocking(False)
    mailbox = Mailbox("admin")
    ready = trio.Event()
    context = Context(
        name="admin",
        worker="w",
        incarnation=1,
        settings=settings,
        mailbox=mailbox,
        address=exchange.address,
        peers=exchange.peers,
        ready=ready.set,
        renew=lambda: None,
        listeners=[Listener("health", sock)],
    )
    with trio.fail_after(within_s):
        async with trio.open_nursery() as nursery:
            await nursery.start(exchange.run)
            actors = {name: StandIn(name, exchange) for name in names}
            made = Bench(nursery, exchange, actors, sock.getsockname()[1], context)
            for name in names:
                if name not in down:
                    await made.start(name)
            exchange.register(mailbox, 1)
            async with trio.open_nursery() as admin:
                admin.start_soon(server.main, context)
                await ready.wait()
                yield made
                made.admin.control(Drain(time.monotonic_ns() + 2_000_000_000))
            nursery.cancel_scope.cancel()
    sock.close()
