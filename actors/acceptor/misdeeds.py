"""What clients of this worker did wrong, counted and told to the limiter."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from ipc.errors import ActorDown, MailboxFull
from ipc.messages import Grant, OffenceKind, Offences

from .connection import Connection

if TYPE_CHECKING:
    from .hub import Hub

_ROWS: Final = 512  # in one message
_MOST: Final = 8192  # rows kept for a limiter that is down; past it offences of further clients are not


class Misdeeds:
    """Batched, except failed authentications: the third one has to be known before a fourth is tried.

    What an authenticated principal does is held against the principal. Whoever is authenticated without a name of its
    own (by a static token) is held to account by the limits alone: its address may be many others' too. What is done
    without authentication is held against the address, unless that is allow-listed or a trusted proxy's. A credential
    that fails is always somebody's who is not authenticated by it.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._counts: Counter[tuple[str, str, OffenceKind]] = Counter()

    def note(self, connection: Connection, kind: OffenceKind, grant: Grant | None = None, count: int = 1) -> None:
        """Args:
        grant: what the client has just been granted, if the connection does not bear it yet.
        """
        if not self._hub.settings.auto_block_enabled:
            return
        bears = grant or (connection.grant if connection.authenticated else None)
        principal = bears.principal if bears is not None else ""
        if not principal and (connection.exempt or not connection.key or (bears is not None and kind != "auth")):
            return
        row = (connection.key, principal, kind)
        if row in self._counts or len(self._counts) < _MOST:
            self._counts[row] += count
        self._hub.count(f"offences_{kind}")
        if kind == "auth":
            self.report()

    def report(self) -> None:
        """Tell the limiter. While it is down, or busy, it is told later."""
        while self._counts:
            rows = [(*row, count) for row, count in list(self._counts.items())[:_ROWS]]
            try:
                self._hub.limiter.control(Offences(self._hub.name, rows))
            except (ActorDown, MailboxFull):
                return
            for key, principal, kind, _ in rows:
                del self._counts[key, principal, kind]


