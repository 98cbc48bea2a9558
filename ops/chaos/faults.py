"""How each fault of the plan is done to a running gateway. Only what the harness started is ever touched."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import attrs
import trio

from . import processes, wire
from .clients import Identity, Place, enter, request
from .gateway import ROOT, Gateway
from .ledger import Injected, Ledger
from .network import Network, Weather
from .plan import TAKES_DOWN, Fault
from .wire import Ended, Refused

STORM = 120
"""Connections."""

SLOW = 6
"""Clients."""

_PAD = 60_000
_REPLACED_WITHIN_S = 20.0


@attrs.define(eq=False)
class Upstreams:
    """The servers behind the gateway: their moods, and the one that listens on TCP."""

    directory: Path
    tcp_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def ledger(self) -> Path:
        return self.directory / "executed"

    def mood_file(self, name: str) -> Path:
        return self.directory / f"mood.{name}"

    def be(self, name: str, mood: str) -> None:
        draft = self.directory / f"mood.{name}.new"
        draft.write_text(mood)
        draft.replace(self.mood_file(name))

    def arguments(self, name: str) -> list[str]:
        files = ["--ledger", str(self.ledger), "--mood", str(self.mood_file(name))]
        return ["-P", "-m", "ops.chaos.upstream", "--name", name, *files]

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *self.arguments("tcp"), "--tcp", str(self.tcp_port)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@attrs.define(eq=False)
class Injector:
    """Does faults. ``sabotage`` is the directory that the test-only build watches."""

    gateway: Gateway
    upstreams: Upstreams
    networks: list[Network]
    sabotage: Path
    ledger: Ledger
    place: Place
    friend: Identity
    random: random.Random

    async def do(self, fault: Fault) -> Injected:
        """Until it is over, what it left to be healed included."""
        done = Injected(fault.number, fault.kind, fault.target, time.monotonic_ns())
        self.ledger.faults.append(done)
        name = fault.kind.replace("-", "_")
        incarnation = self.gateway.incarnations.get(fault.worker, 0)
        try:
            if fault.kind.startswith("upstream-") and fault.kind != "upstream-kill":
                await self._mood(fault)
            elif fault.kind.startswith("net-") and fault.kind != "net-reset":
                await self._weather(fault)
            else:
                await getattr(self, f"_{name}")(fault, done)
        finally:
            done.ended_ns = time.monotonic_ns()
        if fault.kind in TAKES_DOWN and fault.worker and not done.note:
            with trio.move_on_after(_REPLACED_WITHIN_S):
                while self.gateway.incarnations.get(fault.worker, 0) <= incarnation:
                    await trio.sleep(0.01)
                done.replaced_s = (time.monotonic_ns() - done.began_ns) / 1e9
        return done

    # --- processes

    def _hit(self, fault: Fault, done: Injected, number: int) -> int:
        pid = self.gateway.pid_of(fault.target)
        if not self.gateway.send(pid, number):
            done.note = "it was not there"
        return pid

    async def _kill(self, fault: Fault, done: Injected) -> None:
        self._hit(fault, done, signal.SIGKILL)

    async def _abort(self, fault: Fault, done: Injected) -> None:
        self._hit(fault, done, signal.SIGABRT)

    async def _pause(self, fault: Fault, done: Injected) -> None:
        pid = self._hit(fault, done, signal.SIGSTOP)
        await trio.sleep(fault.seconds)
        self.gateway.send(pid, signal.SIGCONT)

    async def _stop(self, fault: Fault, done: Injected) -> None:
        """Until it has been replaced; then it is woken, if it should still be there."""
        pid = self._hit(fault, done, signal.SIGSTOP)
        with trio.move_on_after(20):
            while self.gateway.workers.get(fault.target) == pid:
                await trio.sleep(0.05)
        self.gateway.send(pid, signal.SIGCONT)

    # --- actors

    async def _light(self, fault: Fault, done: Injected, what: str) -> None:
        """A fuse for the test-only build. It burns when the actor runs; one that is being replaced takes it later."""
        fuse = self.sabotage / fault.target
        draft = fuse.with_name(fuse.name + ".new")
        draft.write_text(what)
        draft.replace(fuse)
        with trio.move_on_after(15):
            while fuse.exists():
                await trio.sleep(0.01)
            return
        with contextlib.suppress(FileNotFoundError):
            fuse.unlink()
        done.note = "its fuse did not burn"

    async def _raise(self, fault: Fault, done: Injected) -> None:
        await self._light(fault, done, "raise")

    async def _block(self, fault: Fault, done: Injected) -> None:
        await self._hang(fault, done, "block")

    async def _spin(self, fault: Fault, done: Injected) -> None:
        await self._hang(fault, done, "spin")

    async def _hang(self, fault: Fault, done: Injected, how: str) -> None:
        pid = self.gateway.workers.get(fault.worker)
        await self._light(fault, done, how)
        with trio.move_on_after(20):
            while not done.note and self.gateway.workers.get(fault.worker) == pid:
                await trio.sleep(0.05)

    async def _answer_late(self, fault: Fault, done: Injected) -> None:
        await self._light(fault, done, f"late 0.3 {fault.seconds}")
        await trio.sleep(fault.seconds + 0.3)

    async def _clock(self, fault: Fault, _done: Injected) -> None:
        """Wall time jumps in every actor; CLOCK_MONOTONIC does not."""
        clock = self.sabotage / "clock"
        clock.write_text(fault.target)
        await trio.sleep(fault.seconds)
        clock.write_text("0")

    # --- upstreams and the network

    async def _upstream_kill(self, fault: Fault, done: Injected) -> None:
        if fault.target == "tcp":
            self.upstreams.kill()
            await trio.sleep(self.random.uniform(0, 0.3))
            self.upstreams.start()
            return
        servers = [server for server in self.gateway.servers() if "--name stdio" in server.command]
        if not servers:
            done.note = "it was not there"
        for server in servers:
            self.gateway.send(server.pid, signal.SIGKILL)

    async def _mood(self, fault: Fault) -> None:
        self.upstreams.be(fault.target, fault.kind.removeprefix("upstream-"))
        try:
            await trio.sleep(fault.seconds)
        finally:
            self.upstreams.be(fault.target, "well")

    async def _weather(self, fault: Fault) -> None:
        for network in self.networks:
            network.weather = cast("Weather", fault.kind.removeprefix("net-"))
        try:
            await trio.sleep(fault.seconds)
        finally:
            for network in self.networks:
                if network.weather == "blackhole":
                    network.reset()  # whoever is behind one learns of it in the end
                network.weather = "calm"

    async def _net_reset(self, _fault: Fault, _done: Injected) -> None:
        for network in self.networks:
            network.reset()

    # --- clients

    async def _storm(self, fault: Fault, _done: Injected) -> None:
        """Connections that all come at once, say nothing or half a word, and go."""
        door = self.friend.door(self.place, ws=fault.target == "ws")
        async with trio.open_nursery() as nursery:
            for number in range(STORM):
                source = f"127.{self.random.randint(200, 239)}.{self.random.randint(0, 255)}.{number + 1}"
                nursery.start_soon(self._gust, attrs.evolve(door, source=source), fault.seconds, number)

    async def _gust(self, door: wire.Door, seconds: float, number: int) -> None:
        began_ns = time.monotonic_ns()
        try:
            with trio.move_on_after(seconds + 5):
                opened = await wire.connect(door)
                try:
                    await opened.write((b"", b"GET / HT", b'{"jsonrpc"')[number % 3])
                    await trio.sleep(seconds)
                finally:
                    await wire.close(opened)
        except ConnectionRefusedError:
            self.ledger.attempted("storm", began_ns, "connection refused")
        except (OSError, Ended):
            self.ledger.counts["storm: ended"] += 1

    async def _slow_readers(self, fault: Fault, _done: Injected) -> None:
        """Clients that ask for a lot and read nothing of it."""

        async def ask(opened: wire.Wire, source: str) -> None:
            for number in range(20):
                call = self.ledger.sent(self.ledger.name("slow-reader"), "slow-reader", source)
                self.ledger.done(call, "cut")  # nobody will read its answer
                await opened.send(request(call.name, b"%d" % number, _PAD))
            await trio.sleep(fault.seconds)

        await self._slow(fault, ask)

    async def _slow_writers(self, fault: Fault, _done: Injected) -> None:
        """Clients that take long over one message, and never finish it."""

        async def drip(opened: wire.Wire, source: str) -> None:
            del source
            raw = opened.framed(request("H-unfinished", b"1", 1))[:-1]
            for at in range(0, len(raw), 3):
                await opened.write(raw[at : at + 3])
                await trio.sleep(fault.seconds / len(raw) * 3)

        await self._slow(fault, drip)

    async def _slow(self, fault: Fault, use: object) -> None:
        async def one(number: int) -> None:
            source = f"127.9.{self.random.randint(0, 255)}.{number + 1}"
            identity = Identity(f"slow{number}", "static", source, self.friend.secrets)
            with contextlib.suppress(OSError, Ended, Refused, trio.TooSlowError):
                opened = await enter(identity, self.place, ws=fault.target == "ws")
                try:
                    with trio.move_on_after(fault.seconds + 5):
                        await use(opened, source)  # type: ignore[operator]
                finally:
                    await wire.close(opened)

        async with trio.open_nursery() as nursery:
            for number in range(SLOW):
                nursery.start_soon(one, number)

    # --- operators and the machine

    async def _reload(self, fault: Fault, done: Injected) -> None:
        self._hit(fault, done, signal.SIGHUP)

    async def _reopen_log(self, fault: Fault, done: Injected) -> None:
        self._hit(fault, done, signal.SIGUSR1)

    async def _descriptors(self, fault: Fault, done: Injected) -> None:
        """Hardly any are left to a worker."""
        pid = self.gateway.pid_of(fault.target)
        try:
            few = processes.highest_descriptor(pid) + 2
        except OSError:
            done.note = "it was not there"
            return
        async with self._limited(pid, resource.RLIMIT_NOFILE, few, done):
            await trio.sleep(fault.seconds)

    async def _full_disk(self, fault: Fault, done: Injected) -> None:
        """Nothing can be written any more: each write fails, with EFBIG where a full disk would say ENOSPC."""
        async with self._limited(self.gateway.pid_of(fault.target), resource.RLIMIT_FSIZE, 1, done):
            await trio.sleep(fault.seconds)

    @asynccontextmanager
    async def _limited(self, pid: int, what: int, soft: int, done: Injected) -> AsyncIterator[None]:
        if pid <= 1:
            done.note = "it was not there"
            yield
            return
        try:
            before = resource.prlimit(pid, what)
            resource.prlimit(pid, what, (soft, before[1]))
        except (ProcessLookupError, PermissionError) as error:
            done.note = f"not limited: {type(error).__name__}"
            yield
            return
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, what, before)
