"""The deadlines of connections and calls: handshake, login, idle, ping, write, linger, answer."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from .connection import Connection, Stage
from .ws import encode_ping

if TYPE_CHECKING:
    from .hub import Hub

LOOK_NS: Final = 10_000_000_000  # at the latest; it bounds for how long a closed connection is remembered here
EXPIRY_LOOK_NS: Final = 500_000_000  # for a grant that expires: half of the second within which it has to end
SOONEST_NS: Final = 250_000_000
MILLISECOND: Final = 1_000_000


class Deadlines:
    """One entry of the timer wheel for each connection, at the earliest of its deadlines.

    A call adds no entry of its own: calls come and go within milliseconds, and their deadlines are much later than
    the next look at their connection. Everything here runs in the hub's turn.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.configure()

    def configure(self) -> None:
        """Go by the hub's settings."""
        settings = self._hub.settings
        self._write_ns = settings.write_timeout_ms * MILLISECOND
        self._ping_ns = settings.ws_ping_interval_ms * MILLISECOND
        self._idle_ns = {
            "ws": settings.ws_connection_timeout * MILLISECOND,
            "tcp": settings.tcp_connection_timeout * MILLISECOND,
            "http": 0,
        }
        # The end of a call arms nothing, which is what the hot path can afford; so an idle connection that has had
        # one is noticed by the next look, a quarter of its time late at most.
        shortest = min((idle for idle in self._idle_ns.values() if idle), default=LOOK_NS)
        self._look_ns = max(SOONEST_NS, min(LOOK_NS, shortest // 4))

    def by(self, connection: Connection, deadline_ns: int) -> None:
        """Look at the connection at this time, or before."""
        if connection.armed_ns and connection.armed_ns <= deadline_ns:
            return
        connection.armed_ns = deadline_ns
        self._hub.wheel.add(deadline_ns, functools.partial(self._look, connection, deadline_ns))

    def arm(self, connection: Connection) -> None:
        """Look at the connection when the earliest of its deadlines comes."""
        self.by(connection, self._next(connection))

    def _look(self, connection: Connection, due_ns: int, now: int) -> None:
        if connection.armed_ns != due_ns or connection.stage is Stage.CLOSED:
            return  # an earlier look has taken this one's place
        connection.armed_ns = 0
        self._hub.step(connection, self._look_now, now)

    def _look_now(self, connection: Connection, now: int) -> None:
        self._check(connection, now)
        if connection.session in self._hub.connections:  # it has survived that
            self.arm(connection)

    def _next(self, connection: Connection) -> int:
        now = self._hub.now
        due = now + self._look_ns
        if connection.blocked_since_ns:
            due = min(due, connection.blocked_since_ns + self._write_ns)
        if connection.stage is Stage.CLOSING:
            return min(due, connection.linger_until_ns or due)
        if connection.stage < Stage.OPEN:
            return min(due, connection.entry_deadline_ns or due)
        remaining_ns = self._hub.revocation.remaining_ns(connection)
        if remaining_ns is not None:  # by the wall clock, which may be set meanwhile
            due = min(due, now + max(0, min(remaining_ns, EXPIRY_LOOK_NS)))
        idle_ns = self._idle_ns[connection.transport]
        if idle_ns and not connection.calls:
            due = min(due, connection.idle_since_ns + idle_ns)
        if connection.transport == "ws" and self._ping_ns:
            due = min(due, self._ping_due(connection))
        for call in connection.calls.values():
            if call.deadline_ns:
                due = min(due, call.deadline_ns)
        return due

    def _ping_due(self, connection: Connection) -> int:
        return max(connection.last_ping_ns, connection.opened_ns) + self._ping_ns

    def _check(self, connection: Connection, now: int) -> None:
        """Enforce whichever of the connection's deadlines has passed."""
        hub = self._hub
        if connection.blocked_since_ns and now - connection.blocked_since_ns >= self._write_ns:
            hub.close_now(connection, "write timeout")
        elif connection.stage is Stage.CLOSING:
            if connection.linger_until_ns and now >= connection.linger_until_ns:
                hub.close_now(connection, "closed")
        elif connection.stage < Stage.OPEN:
            if connection.entry_deadline_ns and now >= connection.entry_deadline_ns:
                hub.entry.timed_out(connection)
        elif hub.revocation.expired(connection):
            hub.revocation.expire(connection)
        else:
            for call in [call for call in connection.calls.values() if call.deadline_ns and now >= call.deadline_ns]:
                hub.answers.timed_out(connection, call, now)
            self._check_idle(connection, now)

    def _check_idle(self, connection: Connection, now: int) -> None:
        idle_ns = self._idle_ns[connection.transport]
        if idle_ns and not connection.calls and now - connection.idle_since_ns >= idle_ns:
            self._hub.close(connection, 1001, "idle timeout")
        elif connection.transport == "ws" and self._ping_ns and now >= self._ping_due(connection):
            if connection.last_ping_ns and connection.last_received_ns < connection.last_ping_ns:
                self._hub.close_now(connection, "ping timeout")
                return
            connection.last_ping_ns = now
            connection.write(encode_ping())
            self._hub.dirty[connection.fd] = connection
