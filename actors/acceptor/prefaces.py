"""The PROXY header that precedes everything else on a connection, TLS too, with ``PROXY_PROTOCOL=required``.

It is looked at where it lies, in the kernel's buffer, and only its own bytes are taken out: what follows may be a TLS
record, and belongs to whoever reads next. As long as it isn't whole, all that is there is part of it and is taken, so
the descriptor does not stay readable.

Nobody counts a connection whose client isn't known, so those that wait for their header are bounded here, of one peer
and in all. A proxy sends its header at once: so it is the one that has waited longest that makes room.
"""

from __future__ import annotations

import functools
import socket
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from actors.policy.proxy_protocol import LONGEST_V2, Proxied, ProxyHeaderReader, ProxyProtocolError

from .connection import Connection, Stage

if TYPE_CHECKING:
    from .hub import Hub, Readiness

Done = Callable[[Connection, Proxied], None]

MOST: Final = 512
MOST_OF_ONE: Final = 128


class Prefaces:
    """While a connection's header is awaited its descriptor is served here. Everything runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._waiting: dict[int, Connection] = {}  # by session, in the order of their coming
        self._peers: Counter[str] = Counter()  # how many of them each peer has

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, connection: Connection, done: Done) -> None:
        """``done`` is called with the header when it has come."""
        if self._peers[connection.peer_ip] >= MOST_OF_ONE:
            self._make_room(connection.peer_ip)
        elif len(self._waiting) >= MOST:
            self._make_room(max(self._peers, key=lambda peer: self._peers[peer]))
        self._waiting[connection.session] = connection
        self._peers[connection.peer_ip] += 1
        connection.preface = connection.preface or ProxyHeaderReader()
        before = self._hub.ready[connection.fd]
        self._hub.ready[connection.fd] = functools.partial(self._ready, connection, before, done)

    def _make_room(self, peer: str) -> None:
        oldest = next(connection for connection in self._waiting.values() if connection.peer_ip == peer)
        self._hub.step(oldest, self._end, "too many wait for a PROXY header")

    def forget(self, connection: Connection) -> None:
        """Its header has come, or it has ended. No-op for one that did not wait."""
        if self._waiting.pop(connection.session, None) is not None:
            self._peers[connection.peer_ip] -= 1
            if not self._peers[connection.peer_ip]:
                del self._peers[connection.peer_ip]

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
        self.forget(connection)  # while it still bears its peer's address
        hub.ready[connection.fd] = before
        done(connection, reader.header)

    def timed_out(self, connection: Connection) -> None:
        """A peer that has said nothing at all is a scanner or a health check."""
        if connection.bytes_in:
            self._hub.offence(connection, "handshake")
        self._end(connection, "no PROXY header in time")

    def malformed(self, connection: Connection, reason: str) -> None:
        """Whoever is there is no client of ours, and speaks we don't know what: there is nothing to answer.

        It is held against the peer itself, unless that is a trusted proxy.
        """
        self._hub.offence(connection, "handshake")
        self._end(connection, reason)

    def _end(self, connection: Connection, error: str, reason: str = "handshake") -> None:
        hub = self._hub
        hub.refused += 1
        hub.event(
            connection,
            "connection.refused",
            severity="warning",
            outcome="refused",
            reason=reason,
            detail={"error": error},
        )
        hub.close_now(connection, reason)

    def refuse_blocked(self, connection: Connection) -> None:
        """The peer itself is blocked, whomever it would speak for."""
        self._end(connection, "the peer is blocked", "block")
