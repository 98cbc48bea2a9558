"""Whose connection is this? From accepted to the question for admission, in the contract's order: block, rate, limits.

A client's address is the connection's own, or what a PROXY header says, or, on HTTP behind a trusted proxy, what that
proxy wrote into ``X-Forwarded-For``. The last is known only when the request is there; until then such a connection
counts in the totals alone (its key is empty), and when the address is known the limiter is asked again, for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.policy.address_set import canonical
from actors.policy.client_key import client_key
from actors.policy.forwarded import Hop, client_of
from ipc.messages import Refused

from .connection import Connection, Stage

if TYPE_CHECKING:
    from actors.policy.proxy_protocol import Proxied

    from .hub import Hub

_MILLISECOND = 1_000_000


class Arrivals:
    """Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def begin(self, connection: Connection) -> None:
        """A connection was accepted, and nothing of it was read."""
        if self._hub.settings.proxy_protocol != "required":
            self._identified(connection, connection.peer_ip, connection.peer_port)
            return
        blocklist = self._hub.blocklist
        connection.exempt = blocklist.is_exempt(connection.peer_ip)
        if blocklist.refuses(connection):
            self._hub.prefaces.refuse_blocked(connection)
            return
        if blocklist.is_trusted(connection.peer_ip):
            # Until its client is known this is a proxy's connection, which is never held to account.
            connection.key = ""
        elif blocklist.trusted:
            self._hub.prefaces.malformed(connection, "not one of TRUSTED_PROXIES")
            return
        connection.waiting_for = ""
        connection.entry_deadline_ns = self._hub.now + self._hub.settings.handshake_timeout_ms * _MILLISECOND
        self._hub.deadlines.by(connection, connection.entry_deadline_ns)
        self._hub.prefaces.begin(connection, self._introduced)

    def _introduced(self, connection: Connection, header: Proxied) -> None:
        """The PROXY header has come; without an address in it the connection is the proxy's own, a health check."""
        hub = self._hub
        timeout_ms = hub.settings.handshake_timeout_ms
        if connection.listener == "tcp" and connection.tls is None:
            timeout_ms = hub.settings.auth_timeout_ms
        connection.entry_deadline_ns = hub.now + timeout_ms * _MILLISECOND
        if header.ip:
            self._identified(connection, header.ip, header.port)
        else:
            self._name(connection, connection.peer_ip, connection.peer_port)
            self._enter(connection)

    def _identified(self, connection: Connection, ip: str, port: int) -> None:
        blocklist = self._hub.blocklist
        self._name(connection, ip, port)
        if blocklist.refuses(connection):
            self.refuse_blocked(connection)
            return
        if connection.listener == "ws" and blocklist.is_trusted(connection.peer_ip):
            connection.hop = "awaited"
            connection.key = ""
        self._enter(connection)

    def _name(self, connection: Connection, ip: str, port: int) -> None:
        connection.peer_ip = str(canonical(ip))
        connection.peer_port = port
        connection.key = client_key(connection.peer_ip)
        connection.exempt = self._hub.blocklist.is_exempt(connection.peer_ip)

    def _enter(self, connection: Connection) -> None:
        if connection.listener == "tcp" or (connection.tls is not None and connection.tls.handshaking):
            connection.waiting_for = "limiter"
        if self._hub.blocklist.when_complete(connection):
            self.enter(connection)

    def enter(self, connection: Connection) -> None:
        """All blocks are known here: ask for a place."""
        if connection.hop == "" and self._hub.blocklist.refuses(connection):
            self.refuse_blocked(connection)
        else:
            self._hub.entry.ask_admission(connection)

    def requested(self, connection: Connection) -> bool:
        """An admitted connection's HTTP request is there. False: it waits until its client has a place too."""
        request = connection.request
        if connection.hop != "awaited" or request is None:
            return connection.hop == ""
        peer = Hop(connection.peer_ip, connection.peer_port)
        hop = client_of(peer, request.get_all("x-forwarded-for"), self._hub.blocklist.trusted)
        self._name(connection, hop.ip, hop.port)
        if hop is peer:  # it says nothing of a client
            connection.hop = ""
            return True
        if self._hub.blocklist.refuses(connection):
            self.refuse_blocked(connection)
            return False
        connection.hop = "asked"
        connection.waiting_for = "limiter"
        self._hub.entry.ask_admission(connection)
        return False

    def recover(self, connection: Connection) -> bool:
        """After a hub that crashed. True: what had been asked for this connection is asked again."""
        if connection.preface is not None:
            self._hub.prefaces.begin(connection, self._introduced)
        elif connection.hop == "asked":
            connection.waiting_for = "limiter"
            self._hub.entry.ask_admission(connection)
        elif connection.admitted is None:
            self._enter(connection)
        else:
            return False
        return True

    def refuse_blocked(self, connection: Connection, detail: str = "") -> None:
        if connection.stage < Stage.CLOSING:
            self._hub.entry.refuse(connection, Refused(reason="block", detail=detail))
