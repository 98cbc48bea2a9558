"""A bridge actor in this process, with acceptors, breaker and audit played by the test."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from actors.policy.jsonrpc import parse_client
from actors.upstream import bridge, descendants
from actors.upstream.registry import REGISTRY
from ipc.context import Context
from ipc.errors import ActorDown
from ipc.exchange import Exchange
from ipc.mailbox import Mailbox
from ipc.messages import (
    Abandon,
    AttachSession,
    AuditAck,
    AuditBatch,
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
    Taken,
)
from ipc.settings import Settings, Upstream

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
PATIENCE_S = 30

MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def program(name: str, script: str, *args: str, **options: Any) -> Upstream:
    """An upstream that is one of the tests' programs."""
    return Upstream(name=name, kind="stdio", command=sys.executable, args=(str(UPSTREAMS / script), *args), **options)


def embedded(name: str = "embedded", **options: Any) -> Upstream:
    root = str(Path(bridge.__file__).parent.parent.parent)
    return Upstream(
        name=name, kind="stdio", command=sys.executable, args=("-m", "ops.embedded"), cwd=root, **options
    )


@attrs.define(eq=False)
class Client:
    """One session of one acceptor. Calls are numbered by the acceptor; ids are the client's own."""

    rig: Rig
    acceptor: str
    number: int
    answers: dict[int, dict[str, Any]] = attrs.field(factory=dict)  # final ones, by call
    raws: dict[int, bytes] = attrs.field(factory=dict)
    failures: dict[int, CallFailed] = attrs.field(factory=dict)
    partial: dict[int, list[dict[str, Any]]] = attrs.field(factory=dict)
    unsolicited: list[dict[str, Any]] = attrs.field(factory=list)
    lost: list[str] = attrs.field(factory=list)
    calls: int = 0

    def forward(self, raw: bytes, call: int) -> None:
        assert self.rig.bridge.tell(Forward(self.acceptor, self.number, call, parse_client(raw), raw))

    def request(self, method: str, params: dict[str, Any] | None = None, *, id: Any = 1) -> int:
        """Send; the call's number."""
        self.calls += 1
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": id, "method": method}
        if params is not None:
            message["params"] = params
        self.forward(json.dumps(message).encode(), self.calls)
        return self.calls

    def notify(self, method: str, params: dict[str, Any], *, call: int = 0) -> None:
        self.forward(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode(), call)

    async def outcome(self, call: int) -> dict[str, Any] | CallFailed:
        await self.rig.until(lambda: call in self.answers or call in self.failures)
        return self.answers.get(call) or self.failures[call]

    async def call(self, method: str, params: dict[str, Any] | None = None, *, id: Any = 1) -> Any:
        """The result; CallFailed or the error where there is none."""
        answer = await self.outcome(self.request(method, params, id=id))
        if isinstance(answer, CallFailed):
            return answer
        assert answer["id"] == id
        assert type(answer["id"]) is type(id)
        return answer.get("result", answer.get("error"))

    async def initialize(self, version: str = "2025-11-25") -> Any:
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        result = await self.call("initialize", params, id="init")
        self.notify("notifications/initialized", {})
        return result

    def abandon(self, call: int, reason: Any = "timeout") -> None:
        self.rig.bridge.control(Abandon(self.acceptor, self.number, call, reason))

    def detach(self) -> None:
        self.rig.bridge.control(DetachSession(self.acceptor, self.number))


@attrs.define(eq=False)
class Rig:
    exchange: Exchange
    context: Context
    mailboxes: dict[str, Mailbox]
    nursery: trio.Nursery
    finished: trio.Event = attrs.field(factory=trio.Event)
    clients: dict[tuple[str, int], Client] = attrs.field(factory=dict)
    outcomes: dict[str, list[int]] = attrs.field(factory=dict)
    events: list[AuditEvent] = attrs.field(factory=list)
    taken: list[tuple[int, int]] = attrs.field(factory=list)  # (session, bytes) of large messages
    changed: trio.Event = attrs.field(factory=trio.Event)
    incarnations: dict[str, int] = attrs.field(factory=dict)
    reading: bool = True

    @property
    def bridge(self) -> Any:
        return self.exchange.address("bridge")

    def client(self, upstream: str, number: int, acceptor: str = "acceptor.0", version: str = "") -> Client:
        client = self.clients[(acceptor, number)] = Client(self, acceptor, number)
        self.bridge.control(AttachSession(acceptor, number, upstream, "", version))
        return client

    async def until(self, condition: Any) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await self.changed.wait()

    async def describe(self) -> dict[str, Any]:
        answer = await self.bridge.ask(Describe(), time.monotonic_ns() + PATIENCE_S * 10**9)
        assert isinstance(answer, Description)
        return json.loads(answer.data)

    async def until_described(self, condition: Any) -> dict[str, Any]:
        with trio.fail_after(PATIENCE_S):
            while True:
                described = await self.describe()
                if condition(described):
                    return described
                with trio.move_on_after(0.02):
                    await self.changed.wait()

    async def drain(self, seconds: float = 4) -> None:
        self.bridge.control(Drain(time.monotonic_ns() + int(seconds * 1e9)))
        with trio.fail_after(PATIENCE_S):
            await self.finished.wait()

    def replace_acceptor(self, name: str) -> None:
        """It crashes and comes up again: its sessions are gone."""
        self.exchange.unregister(name, "crashed")
        self.mailboxes[name] = Mailbox(name)
        self.incarnations[name] += 1
        self.exchange.register(self.mailboxes[name], self.incarnations[name])
        self.nursery.start_soon(self._read, name)

    async def _read(self, name: str) -> None:
        mailbox = self.mailboxes[name]
        while self.mailboxes[name] is mailbox:
            try:
                deliveries = await mailbox.receive()
            except ActorDown:
                return  # replaced
            for delivery in deliveries:
                self._take(name, delivery)
            self.changed.set()
            self.changed = trio.Event()

    def _take(self, name: str, delivery: Any) -> None:
        message: Message = delivery.message
        match message:
            case Deliver(session, call, final, raw):
                client = self.clients[(name, session)]
                if final:
                    assert call not in client.answers
                    client.answers[call] = json.loads(raw)
                    client.raws[call] = raw
                elif call:
                    client.partial.setdefault(call, []).append(json.loads(raw))
                else:
                    client.unsolicited.append(json.loads(raw))
            case CallFailed():
                client = self.clients[(name, message.session)]
                assert message.call not in client.failures
                client.failures[message.call] = message
            case SessionLost(session, reason):
                self.clients[(name, session)].lost.append(reason)
            case Outcomes(source, rows):
                assert source == "bridge"
                for upstream, *counts in rows:
                    before = self.outcomes.setdefault(upstream, [0, 0, 0, 0])
                    self.outcomes[upstream] = [a + b for a, b in zip(before, counts, strict=True)]
            case Taken(session, size):
                self.taken.append((session, size))
            case AuditBatch(_, first, events):
                self.events += events
                delivery.reply(AuditAck(first + len(events)))
            case _:
                raise AssertionError(f"unexpected {message}")


@asynccontextmanager
async def rig(*upstreams: Upstream, acceptors: int = 1, **settings: Any) -> AsyncIterator[Rig]:
    """A running bridge. On the way out it is ended, and nothing of it is left."""
    names = [f"acceptor.{number}" for number in range(acceptors)]
    others = [*names, "breaker", "audit"]
    exchange = Exchange("here", dict.fromkeys([*others, "bridge"], "here"))
    mailboxes = {name: Mailbox(name) for name in [*others, "bridge"]}
    below = set(descendants.children(os.getpid()))
    ready = trio.Event()
    context = Context(
        name="bridge",
        worker="here",
        incarnation=1,
        settings=Settings(upstreams=upstreams, **settings),
        mailbox=mailboxes["bridge"],
        address=exchange.address,
        peers=exchange.peers,
        ready=ready.set,
        renew=lambda: None,
    )
    async with trio.open_nursery() as nursery:
        this = Rig(exchange, context, mailboxes, nursery)
        await nursery.start(exchange.run)
        for name in others:
            exchange.register(mailboxes[name], 1)
            this.incarnations[name] = 1
            nursery.start_soon(this._read, name)

        async def run_bridge() -> None:
            await bridge.main(context)
            this.finished.set()

        nursery.start_soon(run_bridge)
        await ready.wait()
        exchange.register(mailboxes["bridge"], 1)
        yield this
        nursery.cancel_scope.cancel()
    assert set(descendants.children(os.getpid())) - below == set()
    assert REGISTRY.statistics() == {"servers": 0, "orphans": 0, "ending": 0}
