"""Two arrangements of the same actors: asker and answerer in one process' exchange, and in two joined by a channel."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import attrs
import trio
import trio.testing

from ipc.address import Address
from ipc.exchange import Exchange
from ipc.mailbox import Mailbox


class VirtualClock:
    """CLOCK_MONOTONIC for exchanges, in step with the trio clock of the test, which may be a jumping one."""

    def __call__(self) -> int:
        return round(trio.current_time() * 1e9)

    def after(self, seconds: float) -> int:
        return self() + round(seconds * 1e9)


@attrs.define
class Arrangement:
    """``address`` is of the actor ``target`` as its user sees it; ``near`` is the user's exchange, ``far`` the actor's.

    They are the same object in the local arrangement.
    """

    near: Exchange
    far: Exchange
    clock: VirtualClock
    incarnation: int = 0

    @property
    def address(self) -> Address:
        return self.near.address("target")

    async def start(self, **limits: int) -> Mailbox:
        """The next incarnation of ``target``, known to the user when this returns."""
        self.incarnation += 1
        mailbox = Mailbox("target", **limits)
        self.far.register(mailbox, self.incarnation)
        await trio.testing.wait_all_tasks_blocked()
        assert self.address.incarnation == self.incarnation
        return mailbox


async def settle() -> None:
    """Everything that can happen without time passing has happened."""
    await trio.testing.wait_all_tasks_blocked()


def join(one: Exchange, other: Exchange) -> None:
    left, right = socket.socketpair()
    one.connect(other.worker, left)
    other.connect(one.worker, right)


def open_descriptors() -> dict[str, str]:
    """What this process has open, by number."""
    found = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):  # the one that lists them is closed by now
            found[entry.name] = str(entry.readlink())
    return found
