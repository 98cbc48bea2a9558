"""What one end of a control socket has to say, in order, without ever making its loop wait."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Sequence

import attrs
import trio

from ipc.control import ControlMessage
from ipc.fdpass import DescriptorLink

log = logging.getLogger("supervisor.control")

_CAPACITY = 1024
"""Messages. Both ends read at every turn of their loops; one that has left so many unread doesn't turn."""


class OutboxFull(BlockingIOError):
    """The other end does not read. The message was dropped, its given descriptors are closed."""


@attrs.define(eq=False)
class Outbox:
    """Sends on a link that somebody else owns and reads."""

    _link: DescriptorLink
    _waiting: deque[tuple[ControlMessage, tuple[socket.socket | int, ...]]] = attrs.field(factory=deque, init=False)
    _queued: trio.Event = attrs.field(factory=trio.Event, init=False)

    def send(
        self, message: ControlMessage, *, lent: Sequence[int] = (), given: Sequence[socket.socket | int] = ()
    ) -> None:
        """Send now if possible, else soon. The receiver gets the descriptors in the order lent, given.

        ``given`` ones are closed once they went; a lent one is duplicated if it can't go at once. To a peer that has
        gone nothing is sent. Raises ValueError for a message that is too long, OutboxFull.
        """
        if self._waiting:
            self._enqueue(message, lent, given)
            return
        try:
            self._link.send(message, [*lent, *map(_number, given)])
        except BlockingIOError:
            self._enqueue(message, lent, given)
        except OSError as error:  # the peer is dying, or this end is closed: whoever watches the process knows
            log.debug("%s can't be sent: %s", type(message).__name__, error)
            _close(given)
        except BaseException:
            _close(given)
            raise
        else:
            _close(given)

    async def run(self) -> None:
        """Send what did not go at once, until cancelled."""
        while True:
            await self._queued.wait()
            while self._waiting:
                message, owned = self._waiting[0]
                try:
                    await self._link.send_wait(message, [_number(item) for item in owned])
                except (OSError, ValueError, trio.ClosedResourceError) as error:
                    log.warning("%s can't be sent: %s", type(message).__name__, error)
                self._waiting.popleft()
                _close(owned)
            self._queued = trio.Event()

    def close(self) -> None:
        """Drop what waits, with its descriptors."""
        for _, owned in self._waiting:
            _close(owned)
        self._waiting.clear()

    def _enqueue(self, message: ControlMessage, lent: Sequence[int], given: Sequence[socket.socket | int]) -> None:
        if len(self._waiting) >= _CAPACITY:
            _close(given)
            raise OutboxFull("the other end of the control socket does not read")
        self._waiting.append((message, (*(os.dup(descriptor) for descriptor in lent), *given)))
        self._queued.set()


def _number(item: socket.socket | int) -> int:
    return item if isinstance(item, int) else item.fileno()


def _close(items: Sequence[socket.socket | int]) -> None:
    for item in items:
        if isinstance(item, int):
            os.close(item)
        else:
            item.close()
