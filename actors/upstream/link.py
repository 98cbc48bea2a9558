"""What the links to network servers have in common: who owns them, how they speak to the pool, and how they stop
reading while nobody has room for what they bring."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from actors.policy.jsonrpc import flatten
from ipc.messages import Envelope
from ipc.settings import Settings, Upstream

from .outlet import Source
from .slot import Instance

log = logging.getLogger("portcullis.upstream")


class LinkOwner(Protocol):
    """What a link needs of the bridge. All in the loop's thread, none may raise."""

    def speaking(self, source: Source | None) -> None:
        """Whose output is being handled now."""

    def settle(self) -> None:
        """A turn has ended."""

    def count(self, what: str) -> None: ...


@attrs.frozen
class LinkSettings:
    """Sizes in bytes, times in seconds. ``tls`` makes, or has already made, the context that verifies servers."""

    max_message: int
    max_buffer: int
    max_depth: int
    max_calls: int
    ping_s: float
    write_timeout_s: float
    tls: Callable[[], ssl.SSLContext]

    @classmethod
    def of(cls, settings: Settings, max_message: int, tls: Callable[[], ssl.SSLContext]) -> LinkSettings:
        return cls(
            max_message=min(settings.max_response_size, max_message),
            max_buffer=settings.max_buffer_size,
            max_depth=settings.max_json_depth,
            max_calls=settings.upstream_max_inflight,
            ping_s=settings.ws_ping_interval_ms / 1000,
            write_timeout_s=settings.write_timeout_ms / 1000,
            tls=tls,
        )


class Link:
    """The way to one network server, for one run of one slot. It is that instance's transport.

    Subclasses serve in ``serve`` until ``ending`` is set or the server is gone, and tell the instance all of it.
    """

    def __init__(self, upstream: Upstream, instance: Instance, owner: LinkOwner, settings: LinkSettings) -> None:
        self.upstream = upstream
        self.instance = instance
        self.settings = settings
        self.ending = trio.Event()  # the pool wants no more of it
        self._owner = owner
        self._resumed: trio.Event | None = None  # set when reading may go on; None while it does

    async def run(self) -> None:
        """The link's whole life. Raises nothing that a server can cause."""
        try:
            await self.serve()
        except* Exception:
            self._owner.count("crashed link")
            log.exception("%s: the link's task failed; it is ended", self.upstream.name)
            self.tell(self.instance.closed, "internal error")
        finally:
            self.close()

    async def serve(self) -> None:
        raise NotImplementedError

    # --- the transport --------------------------------------------------------------------------------------------

    def send(self, raw: bytes, about: Envelope | None = None) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """End it. Returns at once; nothing is said to the instance after this."""
        self.ending.set()

    def pause(self) -> None:
        """Read no more of the server for now."""
        if self._resumed is None:
            self._resumed = trio.Event()

    def resume(self) -> None:
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    @property
    def is_paused(self) -> bool:
        return self._resumed is not None

    async def flow(self) -> None:
        """Wait while paused."""
        while self._resumed is not None:
            await self._resumed.wait()

    # --- to the pool ------------------------------------------------------------------------------------------------

    def message(self, raw: bytes) -> None:
        """Hand on what the server said: one message, line breaks between its tokens allowed."""
        self._step(lambda now: self.instance.line(flatten(raw), now))

    def oversize(self, head: bytes, tail: bytes, length: int) -> None:
        self._step(lambda now: self.instance.oversize(head, tail, length, now))

    def tell(self, what: Callable[[str, int], None], reason: str) -> None:
        """``instance.closed`` or another of that shape."""
        if not self.ending.is_set():
            log.debug("%s: %s", self.upstream.name, reason)
            what(reason, time.monotonic_ns())
            self._owner.settle()

    def settle(self) -> None:
        self._owner.settle()

    def count(self, what: str) -> None:
        self._owner.count(what)

    def _step(self, step: Callable[[int], None]) -> None:
        if self.ending.is_set():
            return
        self._owner.speaking(self)
        try:
            step(time.monotonic_ns())
        except Exception:  # the step's boundary (see the bridge's module)
            self._owner.count("crashed step")
            log.exception("%s: a message of the server could not be handled; its link is ended", self.upstream.name)
            self.tell(self.instance.closed, "internal error")
            self.close()
        finally:
            self._owner.speaking(None)
            self._owner.settle()
