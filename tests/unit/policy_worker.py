"""Runs actors of the policy worker in this process, as a worker would, with an exchange between them and the test."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from ipc.context import Context
from ipc.exchange import Exchange
from ipc.mailbox import Mailbox
from ipc.messages import Describe, Description, Drain, Message
from ipc.settings import Settings, Upstream

ACTORS = ("auth", "limiter", "breaker", "audit", "acceptor.0", "acceptor.1")
WITHIN_NS = 60_000_000_000  # far above what it takes: the machines are shared


class Worker:
    """One worker's exchange, actors by name, and their ends."""

    def __init__(self, exchange: Exchange, nursery: trio.Nursery, settings: Settings) -> None:
        self.exchange = exchange
        self.nursery = nursery
        self.settings = settings
        self.crashes: list[tuple[str, BaseException]] = []
        self._incarnations: dict[str, int] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._ended: dict[str, trio.Event] = {}
        self._keep: dict[str, dict[str, Any]] = {}  # by actor: what outlives its incarnations

    def open(self, name: str) -> Mailbox:
        """A mailbox under that name, with the test as its actor."""
        incarnation = self._incarnations[name] = self._incarnations.get(name, 0) + 1
        mailbox = Mailbox(name)
        self.exchange.register(mailbox, incarnation)
        return mailbox

    def shut(self, name: str) -> None:
        self.exchange.unregister(name, "ended")

    async def start(self, name: str, main: Callable[[Context], Awaitable[None]], **changed: Any) -> None:
        """Run an actor; returns when it is ready, or has ended."""
        mailbox = self.open(name)
        ready = trio.Event()
        ended = self._ended[name] = trio.Event()
        scope = self._scopes[name] = trio.CancelScope()
        context = Context(
            name=name,
            worker=self.exchange.worker,
            incarnation=self._incarnations[name],
            settings=msgspec.structs.replace(self.settings, **changed),
            mailbox=mailbox,
            address=self.exchange.address,
            peers=self.exchange.peers,
            ready=ready.set,
            renew=lambda: None,
            keep=self._keep.setdefault(name, {}),
        )

        async def run() -> None:
            mailbox.adopt()
            try:
                with scope:
                    await main(context)
            except Exception as error:  # noqa: BLE001 - a worker's boundary: an actor's crash is its own
                self.crashes.append((name, error))
            finally:
                self.shut(name)
                ready.set()
                ended.set()

        self.nursery.start_soon(run)
        await ready.wait()

    async def kill(self, name: str) -> None:
        """End an actor where it stands, without a chance to tidy up beyond its ``finally``."""
        self._scopes[name].cancel()
        await self._ended[name].wait()

    async def kill_process(self, name: str) -> None:
        """The actor, and what its worker process held for it."""
        await self.kill(name)
        del self._keep[name]

    async def drain(self, name: str) -> None:
        self.exchange.address(name).control(Drain(time.monotonic_ns() + WITHIN_NS))
        await self._ended[name].wait()

    async def ask(self, name: str, message: Message) -> Message:
        return await self.exchange.address(name).ask(message, time.monotonic_ns() + WITHIN_NS)

    async def describe(self, name: str) -> dict[str, Any]:
        answer = await self.ask(name, Describe())
        assert isinstance(answer, Description)
        return msgspec.json.decode(answer.data)


@asynccontextmanager
async def policy_worker(tmp_path: Path, **settings: Any) -> AsyncIterator[Worker]:
    effective = Settings(
        state_dir=str(tmp_path / "state"),
        audit_log_dir=str(tmp_path / "log"),
        upstreams=(Upstream(name="time", kind="stdio", command="true"),),
        **settings,
    )
    exchange = Exchange("policy", dict.fromkeys(ACTORS, "policy"))
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        worker = Worker(exchange, nursery, effective)
        yield worker
        nursery.cancel_scope.cancel()


async def eventually(condition: Callable[[], bool], within_s: float = 60) -> None:
    """Wait until it holds; fails when it doesn't in time."""
    with trio.fail_after(within_s):
        while not condition():  # of files and other threads there is no event
            await trio.sleep(0.002)
