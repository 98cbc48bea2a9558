"""What goes back to one acceptor: in order, bounded, and felt by the server that it comes from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs

from ipc.address import Address
from ipc.errors import ActorDown
from ipc.framing import FrameTooLong
from ipc.messages import CallFailed, Deliver, Message

MAX_MESSAGES = 16_384


class Source(Protocol):
    """Where messages come from: told to stop while they find no room."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


@attrs.define(eq=False)
class Outlet:
    """The way to one acceptor's data lane.

    When the lane is full, messages wait here, and each source that adds to them is paused until all have left. So
    what waits is at most what the sources had read already, plus refusals of the acceptor's own calls; past the
    bounds it is dropped and counted: the acceptor's own timeout answers then.
    """

    _address: Address
    _max_bytes: int
    _source: Callable[[], Source | None]  # whose output is being handled now
    _count: Callable[[str], None]
    _waiting: deque[tuple[Message, int]] = attrs.field(factory=deque)
    _bytes: int = 0
    paused: set[Source] = attrs.field(factory=set)

    def send(self, message: Message, size: int) -> None:
        """Hand on one message with ``size`` bytes of payload."""
        if not self._waiting and self._told(message):
            return
        if len(self._waiting) >= MAX_MESSAGES or self._bytes + size > self._max_bytes:
            self._count("undeliverable: the acceptor does not keep up")
            return
        if not self._waiting:
            self._address.on_room(self._room)
        self._waiting.append((message, size))
        self._bytes += size
        source = self._source()
        if source is not None and source not in self.paused:
            self.paused.add(source)
            source.pause()

    def clear(self) -> None:
        """The acceptor that all this was for is gone."""
        self._waiting.clear()
        self._bytes = 0
        self._resume()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _room(self) -> None:
        while self._waiting:
            message, size = self._waiting[0]
            if not self._told(message):
                self._address.on_room(self._room)
                return
            if not self._waiting:
                break  # cleared on the way
            self._waiting.popleft()
            self._bytes -= size
        self._resume()

    def _resume(self) -> None:
        paused, self.paused = self.paused, set()
        for source in paused:
            source.resume()

    def _told(self, message: Message) -> bool:
        """False: no room. What can never arrive counts as told."""
        try:
            return self._address.tell(message)
        except ActorDown:
            self._count("undeliverable: the acceptor is down")
        except FrameTooLong:
            self._count("undeliverable: too large")
            if isinstance(message, Deliver) and message.call and message.final:
                return self._told(CallFailed(message.session, message.call, 502, "response_too_large", sent=True))
        return True
