"""The PROXY header that precedes everything else on a connection, TLS too, with ``PROXY_PROTOCOL=required``.

It is looked at where it lies, in the kernel's buffer, and only its own bytes are taken out: what follows may be a TLS
record, and belongs to whoever reads next. As long as it isn't whole, all that is there is part of it and is taken, so
the descriptor does not stay readable.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from actors.policy.proxy_protocol import LONGEST_V2, Proxied, ProxyHeaderReader, ProxyProtocolError

from .connection import Connection, Stage

if TYPE_CHECKING:
    from .hub import Hub, Readiness

Done = Callable[[Connection, Proxied], None]


class Prefaces:
    """While a connection's header is awaited its descriptor is served here. Everything runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def begin(self, connection: Connection, done: Done) -> None:
        """``done`` is called with the header when it has come."""
        connection.preface = connection.preface or ProxyHeaderReader()
        before = self._hub.ready[connection.fd]
        self._hub.ready[connection.fd] = functools.partial(self._ready, connection, before, done)

    def _ready(
        self,
        connection: Connection,
        before: Readiness,
        done: Done,
        events: int,
        now: int,
    ) -> None:
        if connection.stage >= Stage.CLOSING:
            before(events, now)
            return
        self._hub.step(connection, self._read, before, done)

    def _read(self, connection: Connection, before: Readiness, done: Done) -> None:
        hub = self._hub
        reader = connection.preface
        assert reader is not None  # noqa: S101 - what this part is called for
        try:
            seen = connection.sock.recv(LONGEST_V2, socket.MSG_PEEK)
            taken = reader.receive(seen) if seen else 0
            if taken:
                connection.sock.recv(taken)
        except BlockingIOError:
            return
        except OSError:
            seen = b""
        except ProxyProtocolError as error:
            self.malformed(connection, str(error))
            return
        if not seen:  # a load balancer's look at the port, most likely
            hub.close_now(connection, "closed")
            return
        connection.bytes_in += taken
        if reader.header is None:
            return
        connection.preface = None
        hub.ready[connection.fd] = before
        done(connection, reader.header)

    def malformed(self, connection: Connection, reason: str) -> None:
        """Whoever is there is no client of ours, and speaks we don't know what: there is nothing to answer."""
        hub = self._hub
        hub.refused += 1
        hub.event(
            connection,
            "connection.refused",
            severity="warning",
            outcome="refused",
            reason="handshake",
            detail={"error": reason},
        )
        hub.close_now(connection, "handshake")


