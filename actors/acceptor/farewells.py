"""Connections that have been told everything and linger, so that their peers can read it before the socket is closed.

Those that were never open have a budget of their own: whoever is refused again and again fills it with refused
connections, and must not fill with them what is for the others. Beyond it a socket is closed at once, and the refusal
may get lost on its way.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from .connection import Connection

MOST: Final = 256
MOST_OF_ONE: Final = 32
"""Of one address: a refused client that behaves has one, so others always find room."""


class Farewells:
    """Which connections of this hub linger. An estate that a crashed hub left is closed without ceremony."""

    def __init__(self) -> None:
        self._lingering: dict[int, str] = {}  # session -> the peer that it counts for
        self._peers: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._lingering)

    def begin(self, connection: Connection) -> bool:
        """False: there is no room, close it now."""
        peer = connection.key or connection.peer_ip
        if connection.grant is not None:
            peer = ""  # as many as may be open
        elif len(self._lingering) - self._peers[""] >= MOST or self._peers[peer] >= MOST_OF_ONE:
            return False
        self._lingering[connection.session] = peer
        self._peers[peer] += 1
        return True

    def end(self, connection: Connection) -> None:
        """It is closed. No-op for one that did not linger."""
        peer = self._lingering.pop(connection.session, None)
        if peer is not None:
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]
