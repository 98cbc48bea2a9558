"""The real actors, each of which does what a file of its name in the directory SABOTAGE says.

``raise``, ``block`` (the loop sleeps), ``spin`` (the loop turns and does nothing), ``late WAIT SECONDS`` (each turn of
the actor begins so much later, for so long). The file ``clock`` says by how many seconds wall time is wrong.
The directory is beside the state directory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import chaos_controls
import trio

from actors import audit, auth, breaker, limiter, validator
from actors.acceptor import hub
from actors.upstream import bridge
from ipc.context import Context

_time, _time_ns = time.time, time.time_ns
_wrong_ns = 0


class Sabotaged(Exception):
    """Raised on purpose."""


time.time = lambda: _time() + _wrong_ns / 1e9
time.time_ns = lambda: _time_ns() + _wrong_ns


def _hurt(main: Callable[[Context], Awaitable[None]]) -> Callable[[Context], Awaitable[None]]:
    async def run(context: Context) -> None:
        directory = Path(context.settings.state_dir).parent / "sabotage"
        chaos_controls.in_worker((directory / "control").read_text(), context)
        fuse = directory / context.name
        clock = directory / "clock"
        late = [0.0, 0.0]  # how long, until when
        receive = context.mailbox.receive

        async def receive_late() -> object:
            if trio.current_time() < late[1]:
                await trio.sleep(late[0])
            return await receive()

        context.mailbox.receive = receive_late

        async def watch() -> None:
            global _wrong_ns
            while True:
                what = []
                with contextlib.suppress(OSError):  # another fault may leave it without descriptors
                    _wrong_ns = int(clock.read_text() or 0) * 1_000_000_000
                    if fuse.exists():
                        what = fuse.read_text().split()
                        fuse.unlink()
                if what:
                    if what[0] == "late":
                        late[:] = float(what[1]), trio.current_time() + float(what[2])
                    else:
                        act(what[0])
                await trio.sleep(0.02)

        def act(what: str) -> None:
            if what == "raise":
                raise Sabotaged(context.name)
            while True:
                if what == "block":
                    time.sleep(3600)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await main(context)
            nursery.cancel_scope.cancel()

    return run


run_audit = _hurt(audit.main)
run_auth = _hurt(auth.main)
run_breaker = _hurt(breaker.main)
run_limiter = _hurt(limiter.main)
run_validator = _hurt(validator.main)
run_acceptor = _hurt(hub.main)
run_bridge = _hurt(bridge.main)
