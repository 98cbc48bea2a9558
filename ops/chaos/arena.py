"""One run of the harness: gateways one after the other on the same state, clients, villains, faults, and the judge."""

from __future__ import annotations

import json
import math
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import attrs
import trio

from . import judge, processes, wire
from .clients import CALL_TIMEOUT_MS, Client, Identity, Place, served
from .credentials import Authority, Secrets, Way
from .faults import Injector, Upstreams
from .gateway import ROOT, Gateway, start
from .hostile import MARK, Blocked, Villains
from .judge import Judge, Limits
from .ledger import Injected, Ledger
from .network import Network
from .plan import Fault

LIMITS: Final = Limits(((120, 5.0), (40, 1.0)))
PROBES: Final = 6
"""New clients after each fault. With two edges, one of them at least finds the one that was hit."""

RECOVERED_WITHIN_S: Final = 30.0
WORKERS_EXPECTED: Final = 7  # policy, admin, bridge, validator, two edges, the standby
TOGETHER: Final = 3
"""Faults at the same time, at most."""

HONEST: Final = 18
GREEDY: Final = 2
PRIVATE_CLIENTS: Final = frozenset({6, 7, 13, 14})  # have a server process each
_WAYS: Final[tuple[Way, ...]] = ("static", "jwt", "session", "ticket", "certificate", "access")

Ending = Literal["quiet", "busy", "killed"]
"""Of a life: when nobody is connected any more, in the middle of everything, or by SIGKILL of the supervisor."""


@attrs.frozen
class Plan:
    """How long a run is. ``per_life``: faults until the gateway is stopped or killed, and started anew.

    ``control``: what the test-only build turns off. ``tls``: None alternates.
    """

    faults: int
    seconds: float = math.inf
    per_life: int = 25
    build: Path | None = None
    control: str = ""
    tls: bool | None = None
    honest: int = HONEST
    greedy: int = GREEDY
    endings: tuple[Ending, ...] = ("quiet", "busy", "quiet", "killed")
    tell: Callable[[str], None] = lambda _line: None


@attrs.define(eq=False, slots=False)
class Arena:
    directory: Path
    seed: int
    plan: Plan
    ledger: Ledger = attrs.field(factory=Ledger)
    secrets: Secrets = attrs.field(factory=Secrets)
    place: Place = attrs.field(factory=Place)
    memory: list[tuple[float, int, int]] = attrs.field(factory=list)
    """Over time: seconds since the start, KiB of the supervisor, KiB of all workers."""

    lives: int = 0
    log: list[str] = attrs.field(factory=list)
    done: int = 0
    _next: Fault | None = None  # drawn already
    began: float = attrs.field(factory=time.monotonic)

    def __attrs_post_init__(self) -> None:
        chance = self.random = random.Random(self.seed)
        self.authority = Authority(self.directory / "certificates")
        self.upstreams = Upstreams(self.directory, _free_port())
        self.sabotage = self.directory / "sabotage"
        self.sabotage.mkdir()
        (self.sabotage / "clock").write_text("0")
        (self.sabotage / "control").write_text(self.plan.control)
        self._write_configuration()
        self.identities = [
            Identity(f"client{number}-{way}", way, f"127.0.1.{number + 2}", self.secrets)
            for number, way in ((number, _WAYS[number % len(_WAYS)]) for number in range(self.plan.honest))
        ]
        token = self.secrets.token("greedy")
        self.greedy = [
            Identity(f"greedy{number}", "jwt", "127.0.9.9", self.secrets, token) for number in range(self.plan.greedy)
        ]
        self.villains = Villains(
            self.ledger, self.place, random.Random(chance.random()), self.secrets, Blocked("blocked", "127.66.6.6")
        )

    def _write_configuration(self) -> None:
        for name in ("stdio", "tcp", judge.PRIVATE):
            self.upstreams.be(name, "well")
        servers: dict[str, dict[str, object]] = {
            name: {
                "command": sys.executable, "args": self.upstreams.arguments(name), "env": {"PYTHONPATH": str(ROOT)},
            }
            for name in ("stdio", judge.PRIVATE)
        }  # fmt: skip
        servers[judge.PRIVATE]["instance"] = "per-session"
        servers["tcp"] = {"url": f"tcp://127.0.0.1:{self.upstreams.tcp_port}"}
        (self.directory / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
        rules = {"rules": [{"name": "no-villains", "effect": "deny", "tool": [f"{MARK}*"]}]}
        (self.directory / "policy.json").write_text(json.dumps(rules))

    def _environment(self, *, tls: bool) -> dict[str, str]:
        (most, seconds), (burst, burst_s) = LIMITS.windows
        return {
            "MCP_CONFIG": str(self.directory / "mcp.json"),
            "AUTHORIZATION_POLICY": str(self.directory / "policy.json"),
            "WS_AUTH_TOKEN": self.secrets.static,
            "TCP_AUTH_TOKEN": self.secrets.static,
            "JWT_SECRET": self.secrets.jwt,
            "RATE_LIMIT_MAX_REQUESTS": str(most),
            "RATE_LIMIT_WINDOW_MS": str(int(seconds * 1000)),
            "RATE_LIMIT_BURST_REQUESTS": str(burst),
            "RATE_LIMIT_BURST_WINDOW_MS": str(int(burst_s * 1000)),
            "CONNECTION_RATE_LIMIT": "100000",
            "WS_MAX_CONNECTIONS": "1000",
            "TCP_MAX_CONNECTIONS": "1000",
            "MAX_CONNECTIONS_PER_IP": "100",
            "THREAT_THRESHOLD": "1000000000",  # greed must not block: it is the limit that is watched
            "MAX_CONCURRENT_SESSIONS": "100000",
            "CIRCUITBREAKER_TIMEOUT": str(CALL_TIMEOUT_MS),
            "CIRCUITBREAKER_RESET_TIMEOUT": "300",
            "HEARTBEAT_TIMEOUT_MS": str(int(judge.HEARTBEAT_S * 1000)),
            "WRITE_TIMEOUT_MS": "3000",
            "DRAIN_TIMEOUT_MS": "4000",
            "WORKERS": "2",
            "LOG_LEVEL": "info",
            **(self.authority.environment() if tls else {}),
        }

    # --- a run

    async def run(self, plan: Iterator[Fault]) -> None:
        """All lives, until the faults or the time are used up. Findings are in the ledger."""
        self.upstreams.start()
        try:
            while self._goes_on():
                await self._life(plan)
        finally:
            self.upstreams.kill()
        judging = Judge(self.ledger, LIMITS)
        directory = self.directory
        await trio.to_thread.run_sync(
            judging.judge_all, self.upstreams.ledger, directory / "audit", directory / "state"
        )

    def _goes_on(self) -> bool:
        return self.done < self.plan.faults and time.monotonic() - self.began < self.plan.seconds

    async def _life(self, plan: Iterator[Fault]) -> None:
        """One gateway, from its start to its end."""
        tls = self.lives % 2 == 0 if self.plan.tls is None else self.plan.tls
        ending = self.plan.endings[self.lives % len(self.plan.endings)]
        self.lives += 1
        self.place.tls = self.authority if tls else None
        gateway = await trio.to_thread.run_sync(
            lambda: start(self.directory, self._environment(tls=tls), build=self.plan.build)
        )
        try:
            await self._live(gateway, plan, ending)
        finally:
            if gateway.process.poll() is None:
                await trio.to_thread.run_sync(gateway.kill)
            self.log += [f"--- life {self.lives}\n", *gateway.log]
        Judge(self.ledger, LIMITS).workers(gateway)

    async def _live(self, gateway: Gateway, plan: Iterator[Fault], ending: Ending) -> None:
        self.place.ws, self.place.tcp = gateway.ports["ws"], gateway.ports["tcp"]
        await self._until(lambda: len(gateway.interpreters()) >= WORKERS_EXPECTED, 10)
        before = judge.footprint(gateway)
        networks = [Network(gateway.ports[kind], f"127.0.7.{n}") for n, kind in enumerate(("ws", "tcp"), 1)]
        async with trio.open_nursery() as everything:
            for network in networks:
                await everything.start(network.serve)
            self.place.proxied = {True: networks[0].own_port, False: networks[1].own_port}
            injector = Injector(
                gateway, self.upstreams, networks, self.sabotage, self.ledger, self.place,
                Identity("friend", "static", "127.0.8.8", self.secrets), random.Random(self.random.random()),
            )  # fmt: skip
            async with trio.open_nursery() as clients:
                for client in self._clients():
                    clients.start_soon(client.live)
                clients.start_soon(self.villains.live)
                clients.start_soon(self._weigh, gateway)
                await trio.sleep(0.5)
                await self._break(injector, plan)
                if ending != "quiet":
                    await self._end_amid(gateway, ending)
                clients.cancel_scope.cancel()
            if ending == "quiet":
                await self._end_quietly(gateway, before)
            everything.cancel_scope.cancel()
        for network in networks:
            if network.refused and ending == "quiet":
                self.ledger.find("refused-connection", f"{network.refused} of the relay's")

    def _clients(self) -> list[Client]:
        made = []
        for number, identity in enumerate([*self.identities, *self.greedy]):
            ws = number % 2 == 0 if identity.way != "ticket" else True
            if identity.way in ("session", "access"):
                ws = number % 4 < 2
            client = Client(
                identity, self.ledger, self.place, random.Random(self.random.random()), ws,
                server=("stdio", "tcp")[number // 2 % 2],
            )  # fmt: skip
            if number in PRIVATE_CLIENTS:
                client.server = judge.PRIVATE
            if identity in self.greedy:
                client.pause_s, client.depth = 0.02, 8
            elif identity.way in ("static", "jwt") and number % 5 == 0:
                client.proxied = True
                client.shared = f"127.0.7.{1 if ws else 2}"
            made.append(client)
        return made

    # --- breaking

    async def _break(self, injector: Injector, plan: Iterator[Fault]) -> None:
        last = self.done + self.plan.per_life
        while self._goes_on() and self.done < last:
            group = [self._next or next(plan)]
            self._next = next(plan)
            while self._next.gap_s == 0 and len(group) < TOGETHER:
                group.append(self._next)
                self._next = next(plan)
            await trio.sleep(group[0].gap_s)
            await self._strike(injector, group)
            self.done += len(group)

    async def _strike(self, injector: Injector, group: Sequence[Fault]) -> None:
        """Faults at the same time, and new clients that want to be served."""
        injected: list[Injected] = []

        async def do(fault: Fault) -> None:
            injected.append(await injector.do(fault))

        began = time.monotonic()
        lasting = max(fault.seconds for fault in group) > 0
        async with trio.open_nursery() as nursery:
            for fault in group:
                nursery.start_soon(do, fault)
            if not lasting:
                await trio.sleep(0.005)
                took = await self._probe(began)
        if lasting:
            took = await self._probe(time.monotonic())
        for one in injected:
            one.recovery_s = took
            one.alone = len(group) == 1
            if took is None:
                self.ledger.find("not-recovered", f"{one.kind} {one.target}: not within {RECOVERED_WITHIN_S:g} s")
        what = " + ".join(f"{fault.kind} {fault.target}" for fault in group)
        self.plan.tell(f"{group[0].number:5} {what:50} {'never' if took is None else f'{took:6.2f} s'}")

    async def _probe(self, since: float) -> float | None:
        """Seconds until as many new clients as there are probes have been served; None: not in time."""
        with trio.move_on_after(RECOVERED_WITHIN_S):
            async with trio.open_nursery() as nursery:
                for number in range(PROBES):
                    source = f"127.3.{self.random.randint(0, 255)}.{self.random.randint(1, 254)}"
                    identity = Identity("probe", "static", source, self.secrets)
                    nursery.start_soon(self._served, identity, number)
            return time.monotonic() - since
        return None

    async def _served(self, identity: Identity, number: int) -> None:
        server = ("stdio", "tcp")[number // 2 % 2]
        await served(identity, self.ledger, self.place, ws=number % 2 == 0, server=server)

    # --- ending

    async def _end_amid(self, gateway: Gateway, ending: Ending) -> None:
        """While clients call. From now on the ports may be closed."""
        fault = Injected(0, "restart", ending, time.monotonic_ns())
        self.ledger.faults.append(fault)
        family = gateway.family()
        if ending == "busy":
            self.upstreams.be("stdio", "hang")
            await trio.sleep(0.3)
            code = await trio.to_thread.run_sync(gateway.stop)
            self.upstreams.be("stdio", "well")
            if code != 0:
                self.ledger.find("bad-exit", f"exit code {code}")
        else:
            await trio.to_thread.run_sync(gateway.stop, signal.SIGKILL)
        left = await trio.to_thread.run_sync(judge.after_the_end, gateway, family)
        self._left(left if ending == "busy" else [what for what in left if not what.startswith("temporary")])
        for path in (gateway.directory / "tmp").iterdir():
            path.unlink()
        fault.ended_ns = time.monotonic_ns()

    async def _end_quietly(self, gateway: Gateway, before: judge.Footprint) -> None:
        """Everything has to be as it was at first, and then gone."""
        await self._until(lambda: not judge.processes_left(gateway, WORKERS_EXPECTED), 10)
        self._left(judge.processes_left(gateway, WORKERS_EXPECTED))
        await self._until(lambda: not judge.left_behind(before, judge.footprint(gateway)), 10)
        self._left(judge.left_behind(before, judge.footprint(gateway)))
        self._left(await self._connections(gateway))
        family = gateway.family()
        code = await trio.to_thread.run_sync(gateway.stop)
        if code != 0:
            self.ledger.find("bad-exit", f"exit code {code}")
        self._left(await trio.to_thread.run_sync(judge.after_the_end, gateway, family))

    async def _connections(self, gateway: Gateway) -> list[str]:
        """Those that the gateway still counts although nobody is connected."""
        token = (gateway.directory / "state" / "admin.token").read_text().strip()
        rows: list[dict[str, object]] = []
        with trio.move_on_after(15):
            while True:
                try:
                    rows = await _get(gateway.ports["health"], "/admin/v1/connections", token)
                except (OSError, wire.Ended, ValueError, KeyError):
                    rows = [{"id": "the admin API does not answer"}]
                if not rows:
                    return []
                await trio.sleep(0.2)
        return [f"connection {row}" for row in rows[:5]]

    async def _until(self, condition: Callable[[], object], seconds: float) -> None:
        with trio.move_on_after(seconds):
            while not await trio.to_thread.run_sync(condition):
                await trio.sleep(0.1)

    def _left(self, what: Sequence[str]) -> None:
        for one in what:
            self.ledger.find("left-behind", one)

    async def _weigh(self, gateway: Gateway) -> None:
        while True:
            workers = sum(processes.resident_kib(pid) for pid in gateway.workers.values())
            at = round(time.monotonic() - self.began, 1)
            self.memory.append((at, processes.resident_kib(gateway.pid), workers))
            await trio.sleep(2)


async def _get(port: int, path: str, token: str) -> list[dict[str, object]]:
    opened = await wire.connect(wire.Door(port, ws=True))
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        await opened.write(head.encode() + b"Connection: close\r\n\r\n")
        await opened.head()
        rows: list[dict[str, object]] = json.loads(await opened.rest())["connections"]
        return rows
    finally:
        await wire.close(opened)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
