"""The real actors, each of which raises when a file of its name appears in the directory SABOTAGE of its settings.

The directory is found beside the state directory. For tests only: the production table names none of this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from actors import audit, auth, breaker, limiter, validator
from actors.acceptor import hub
from actors.upstream import bridge
from ipc.context import Context


class Sabotaged(Exception):
    """Raised on purpose."""


def _sabotaged(main: Callable[[Context], Awaitable[None]]) -> Callable[[Context], Awaitable[None]]:
    async def run(context: Context) -> None:
        fuse = Path(context.settings.state_dir).parent / "sabotage" / context.name

        async def wait_for_the_fuse() -> None:
            while not fuse.exists():
                await trio.sleep(0.02)
            fuse.unlink()
            raise Sabotaged(context.name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_the_fuse)
            await main(context)
            nursery.cancel_scope.cancel()

    return run


run_audit = _sabotaged(audit.main)
run_auth = _sabotaged(auth.main)
run_breaker = _sabotaged(breaker.main)
run_limiter = _sabotaged(limiter.main)
run_validator = _sabotaged(validator.main)
run_acceptor = _sabotaged(hub.main)
run_bridge = _sabotaged(bridge.main)
