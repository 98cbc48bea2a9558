"""Socket pairs between workers: made by the supervisor, which keeps neither end.

A pair is made when the later of its two workers is assigned; a replaced worker gets new pairs, and its surviving
peers their new ends.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

import attrs

from ipc.control import LinkGrant

from .specs import SpecTable


@attrs.define(eq=False)
class Ends:
    """What one worker gets for one peer: a stream, or None, and links. It owns the sockets until they are given."""

    peer: str
    stream: socket.socket | None = None
    links: list[tuple[LinkGrant, socket.socket]] = attrs.field(factory=list)

    @property
    def grants(self) -> tuple[LinkGrant, ...]:
        return tuple(grant for grant, _ in self.links)

    @property
    def sockets(self) -> list[socket.socket]:
        """In the order that the control messages name."""
        return [*([self.stream] if self.stream is not None else []), *(sock for _, sock in self.links)]

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def connect(table: SpecTable, worker: str, others: Iterable[str]) -> list[tuple[Ends, Ends]]:
    """New pairs between ``worker`` and each of ``others`` (and itself) that it talks to: its end, the other's.

    ``Ends.peer`` of its own end names the other worker, and the reverse. Raises OSError; nothing is open then.
    """
    made: list[tuple[Ends, Ends]] = []
    try:
        for other in (*others, worker):
            own, theirs = Ends(other), Ends(worker)
            made.append((own, theirs))
            if table.talk(worker, other):
                own.stream, theirs.stream = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            _link(table, worker, other, own, theirs)
    except OSError:
        for own, theirs in made:
            own.close()
            theirs.close()
        raise
    return [(own, theirs) for own, theirs in made if own.sockets]


def _link(table: SpecTable, worker: str, other: str, own: Ends, theirs: Ends) -> None:
    placement = table.placement
    for first, second in table.linked():
        where = placement[first], placement[second]
        if where not in ((worker, other), (other, worker)):
            continue
        mine, yours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        at_first, at_second = LinkGrant(first, second), LinkGrant(second, where[0])
        if where[0] == worker:
            own.links.append((at_first, mine))
            theirs.links.append((at_second, yours))
        else:
            own.links.append((at_second, mine))
            theirs.links.append((at_first, yours))
