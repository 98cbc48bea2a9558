"""What has passed through an acceptor since its start, without a counter more per message.

Each connection counts for itself; what it has counted is added here when it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from .connection import Connection


@attrs.define
class Traffic:
    """Sums over the connections that are gone. ``opened`` counts those too that never got as far as a message."""

    opened: int = 0
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add(self, connection: Connection) -> None:
        """Once a connection, at its end."""
        self.opened += 1
        self.messages_in += connection.messages_in
        self.messages_out += connection.messages_out
        self.bytes_in += connection.bytes_in
        self.bytes_out += connection.bytes_out

    def with_those(self, living: Iterable[Connection]) -> dict[str, int]:
        """The sums with those of the connections that still live."""
        sums = attrs.evolve(self)
        for connection in living:
            sums.add(connection)
        return attrs.asdict(sums)
