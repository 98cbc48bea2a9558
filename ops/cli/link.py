"""One connection to a gateway that carries whole JSON-RPC messages, whatever it runs over."""

from __future__ import annotations

from typing import Final, Protocol

# The gateway lets answers of 16 MiB through by default; what is longer is not for a command line's memory.
MAX_MESSAGE: Final = 64 * 1024 * 1024

# A peer that does not answer our close within this many seconds has nothing more to say to us.
CLOSE_GRACE: Final = 2.0


class Link(Protocol):
    """Open from the start; closed by the context manager that made it."""

    @property
    def peer(self) -> str:
        """Where it leads, for people. Never holds a credential."""

    async def send(self, message: bytes) -> None:
        """Send one message: UTF-8 without a newline. Raises LinkClosed."""

    async def receive(self) -> bytes:
        """The next message. Raises LinkClosed."""
