"""The acceptor's half of blocking: who is refused at once, and whose live connections end.

The limiter decides and tells; what it told last holds while it is down. Before the first whole list has come nobody is
let in at all: a worker that has just started knows nothing of anybody's blocks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

from actors.policy import jsonrpc
from actors.policy.address_set import AddressSet, canonical
from actors.policy.blocks import PRINCIPAL
from ipc.messages import Blocked, Grant, Message, Unblocked

from .connection import Connection, Stage

if TYPE_CHECKING:
    from .hub import Hub


@attrs.define
class Known:
    """What the limiter has told. Kept for a hub that is restarted in this process.

    ``rows`` maps a key to the end of its block (wall-clock milliseconds) and whether it is automatic; ``incoming`` is
    the list that is being told anew, and takes the place of ``rows`` when it is whole.
    """

    rows: dict[str, tuple[int, bool]] = attrs.field(factory=dict)
    incoming: dict[str, tuple[int, bool]] | None = None
    complete: bool = False


class Blocklist:
    """Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._known: Known = hub.context.keep.setdefault("blocks", Known())
        self._waiting: list[Connection] = []  # admitted before the first list was whole
        self.configure()

    def configure(self) -> None:
        """Go by the hub's settings."""
        settings = self._hub.settings
        self._allowed = AddressSet.of(settings.ip_allowlist)
        self._barred = AddressSet.of(settings.ip_blocklist)
        self.trusted = AddressSet.of(settings.trusted_proxies)

    @property
    def complete(self) -> bool:
        return self._known.complete

    def __len__(self) -> int:
        return len(self._known.rows)

    def is_trusted(self, ip: str) -> bool:
        return bool(self.trusted) and canonical(ip) in self.trusted

    def is_exempt(self, ip: str) -> bool:
        """Whether no automatic block holds for this address, and nothing is held against it."""
        return canonical(ip) in self._allowed or self.is_trusted(ip)

    def refuses(self, connection: Connection) -> bool:
        """Whether its address may not come in. No block of any kind holds for a trusted proxy, be it of the /64 that
        it shares with others."""
        if self.is_trusted(connection.peer_ip):
            return False
        return self._is_barred(connection) or self._holds(connection.key, exempt=connection.exempt)

    def _is_barred(self, connection: Connection) -> bool:
        ip = connection.peer_ip
        return bool(self._barred) and canonical(ip) in self._barred and not self.is_trusted(ip)

    def refuses_principal(self, grant: Grant) -> bool:
        return bool(grant.principal) and self._holds(PRINCIPAL + grant.principal, exempt=False)

    def _holds(self, key: str, *, exempt: bool) -> bool:
        block = self._known.rows.get(key)
        if block is None:
            return False
        until_ms, automatic = block
        return until_ms > time.time_ns() // 1_000_000 and not (exempt and automatic)

    def when_complete(self, connection: Connection) -> bool:
        """False: its way in goes on by itself, through ``arrivals.enter``, as soon as all blocks are known."""
        if self._known.complete:
            return True
        self._waiting.append(connection)
        return False

    def delivered(self, message: Message) -> bool:
        if isinstance(message, Blocked):
            self._blocked(message)
        elif isinstance(message, Unblocked):
            for key in message.keys:
                self._known.rows.pop(key, None)
        else:
            return False
        return True

    def _blocked(self, message: Blocked) -> None:
        known = self._known
        rows = {key: (until_ms, automatic) for key, until_ms, automatic in message.rows}
        if message.first:
            known.incoming = {}
        if known.incoming is None:
            known.rows.update(rows)
            self._end(rows)
            return
        known.incoming.update(rows)
        if message.last:
            known.rows, known.incoming, known.complete = known.incoming, None, True
            self._end(known.rows)
            waiting, self._waiting = self._waiting, []
            for connection in waiting:
                if connection.stage < Stage.CLOSING:
                    self._hub.step(connection, self._hub.arrivals.enter)

    def _end(self, keys: dict[str, tuple[int, bool]]) -> None:
        """Close the live connections of who is blocked now."""
        if not keys:
            return
        for connection in list(self._hub.connections.values()):
            if connection.stage >= Stage.CLOSING:
                continue
            grant = connection.grant
            if connection.key in keys and self.refuses(connection):
                self._hub.step(connection, self._close, 1008, "this address is blocked")
            elif grant is not None and PRINCIPAL + grant.principal in keys and self.refuses_principal(grant):
                self._hub.step(connection, self._close, 3003, "this principal is blocked")

    def end_barred(self) -> None:
        """Close the live connections of addresses that are on IP_BLOCKLIST by now."""
        for connection in list(self._hub.connections.values()):
            if connection.stage < Stage.CLOSING and self._is_barred(connection):
                self._hub.step(connection, self._close, 1008, "this address is blocked")

    def _close(self, connection: Connection, code: int, why: str) -> None:
        if connection.stage < Stage.OPEN:
            self._hub.arrivals.refuse_blocked(connection, why)
            return
        if connection.transport == "tcp":
            connection.send_message(jsonrpc.error_reply(b"null", 403, why, {"reason": "block"}))
        self._hub.event(connection, "connection.refused", severity="warning", outcome="refused", reason="block")
        self._hub.close(connection, code, why)
