"""A pool on scripted transports, with time as the test says."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

import attrs

from actors.policy.jsonrpc import parse_client
from actors.upstream.pool import Instance, Pool
from actors.upstream.slot import SECOND
from ipc.messages import Envelope
from ipc.settings import Settings, Upstream

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


@attrs.define(eq=False)
class Wire:
    """One transport: what was sent over it, and whether it has room."""

    instance: Instance
    upstream: str
    sent: list[dict[str, Any]] = attrs.field(factory=list)
    room: bool = True
    closed: bool = False

    def send(self, raw: bytes, about: Envelope | None = None) -> bool:
        assert not self.closed
        assert b"\n" not in raw
        if self.room:
            self.sent.append(json.loads(raw))
        return self.room

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def requests(self, method: str) -> list[dict[str, Any]]:
        return [message for message in self.sent if message.get("method") == method and "id" in message]


@attrs.define(eq=False)
class PoolRig:
    """``at_once``: transports open as soon as they are asked for; otherwise they wait in ``opening``."""

    upstreams: tuple[Upstream, ...]
    at_once: bool = True
    version: str = ""  # what servers negotiate; "": what was asked for
    settings: dict[str, Any] = attrs.field(factory=dict)
    now: int = 1_000 * SECOND
    wires: list[Wire] = attrs.field(factory=list)
    opening: list[Instance] = attrs.field(factory=list)
    delivered: list[tuple[Hashable, int, bool, dict[str, Any]]] = attrs.field(factory=list)
    failures: list[tuple[Hashable, int, int, str, bool, int]] = attrs.field(factory=list)
    losses: list[tuple[Hashable, str]] = attrs.field(factory=list)
    outcomes: list[tuple[str, str]] = attrs.field(factory=list)
    changes: list[tuple[str, str]] = attrs.field(factory=list)
    pool: Pool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = Pool(
            self.upstreams,
            self,
            settings=Settings(upstreams=self.upstreams, **self.settings),
            now=self.now,
            jitter=lambda: 0.0,
            on_change=lambda upstream, what, _reason: self.changes.append((upstream, what)),
        )

    # --- PoolEvents

    def connect(self, upstream: Upstream, instance: Instance) -> None:
        if self.at_once:
            self.open(upstream, instance)
        else:
            self.opening.append(instance)

    def open(self, upstream: Upstream, instance: Instance) -> Wire:
        wire = Wire(instance, upstream.name)
        self.wires.append(wire)
        instance.opened(wire, self.now)
        self.greet(wire)
        return wire

    def deliver(self, session: Hashable, call: int, final: bool, raw: bytes) -> None:
        self.delivered.append((session, call, final, json.loads(raw)))

    def failed(self, session: Hashable, call: int, code: int, reason: str, sent: bool, retry_after_ms: int) -> None:
        self.failures.append((session, call, code, reason, sent, retry_after_ms))

    def lost(self, session: Hashable, reason: str) -> None:
        self.losses.append((session, reason))

    def outcome(self, upstream: str, kind: str) -> None:
        self.outcomes.append((upstream, kind))

    def log(self, upstream: str, level: str, text: str) -> None:
        assert level in {"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}
        assert text.isprintable()

    # --- the test's side

    def open_next(self) -> Wire:
        return self.open(self.upstreams[0], self.opening.pop(0))

    def greet(self, wire: Wire) -> None:
        """Answer ``initialize`` where it was sent by the gateway."""
        for request in wire.requests("initialize"):
            if isinstance(request["id"], str):
                continue  # a client's own, on a server of its own
            version = self.version or request["params"]["protocolVersion"]
            self.say(wire, {"jsonrpc": "2.0", "id": request["id"], "result": {"protocolVersion": version}})

    def say(self, wire: Wire, message: dict[str, Any]) -> None:
        wire.instance.line(json.dumps(message).encode(), self.now)

    def answer(self, wire: Wire, request: dict[str, Any]) -> None:
        self.say(wire, {"jsonrpc": "2.0", "id": request["id"], "result": {"to": request["method"]}})

    def forward(self, session: Hashable, call: int, method: str, params: dict[str, Any] | None = None) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        if not method.startswith("notifications/"):
            message["id"] = f"id-{call}"
        raw = json.dumps(message).encode()
        self.pool.forward(session, call, parse_client(raw), raw, self.now)

    def initialize(self, session: Hashable, call: int, version: str = "2025-11-25") -> None:
        self.forward(session, call, "initialize", {"protocolVersion": version, "capabilities": {}})

    def wait(self, seconds: float) -> None:
        """Time passes, in the steps that the pool asks for."""
        end = self.now + int(seconds * SECOND)
        for _ in range(1_000_000):
            deadline = self.pool.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.pool.tick(self.now)
        else:
            raise AssertionError("the pool never rests")
        self.now = end
        self.pool.tick(end)

    def state(self, upstream: str = "s") -> dict[str, Any]:
        return self.pool.describe()["upstreams"][upstream]


def shared(name: str = "s") -> Upstream:
    return Upstream(name=name, kind="tcp", host="127.0.0.1", port=1)


def private(name: str = "s") -> Upstream:
    return Upstream(name=name, kind="stdio", command="x", instance="per-session")
