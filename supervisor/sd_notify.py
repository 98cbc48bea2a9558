"""What a service manager is told: ready, reloading, stopping, and that the supervisor makes progress (sd_notify(3)).

A datagram on the socket that ``NOTIFY_SOCKET`` names, a path or an abstract name, each line an assignment. Nothing
here ever blocks or fails the gateway: what the socket does not take at once is kept and tried again with the next
datagram, and that a manager is out of reach is logged once.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Literal

import attrs
import trio

log = logging.getLogger("supervisor.sd_notify")

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_MOST_KEPT = 16
"""Datagrams that wait for room; the newest ones say what holds."""

_LONGEST_STATUS = 1024

Phase = Literal["starting", "ready", "stopping"]


@attrs.define(eq=False)
class ServiceManager:
    """The manager that started this process, or nobody: then every method does nothing.

    ``watchdog_ns`` is how long the manager waits for a sign of life before it restarts the service; 0: for ever.
    """

    address: str = ""
    watchdog_ns: int = 0
    _phase: Phase = attrs.field(default="starting", init=False)
    _socket: socket.socket | None = attrs.field(default=None, init=False)
    _kept: list[bytes] = attrs.field(factory=list, init=False)
    _lost: bool = attrs.field(default=False, init=False)

    def ready(self, status: str) -> None:
        """The start is complete. No-op when the stop was quicker."""
        if self._phase == "starting":
            self._phase = "ready"
            self._send("READY=1", f"STATUS={_one_line(status)}")

    def stopping(self, status: str, within_ms: int) -> None:
        """The drain begins; it may take so long, whatever the manager's own limit for a stop is."""
        if self._phase != "stopping":
            self._phase = "stopping"
            self._send("STOPPING=1", f"STATUS={_one_line(status)}", f"EXTEND_TIMEOUT_USEC={within_ms * 1000}")

    def status(self, text: str) -> None:
        """One line for people."""
        self._send(f"STATUS={_one_line(text)}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Around a reload, however it ends. Only what is ready can be ready again: otherwise nothing is said."""
        told = self._phase == "ready"
        if told:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            if told and self._phase == "ready":
                self._send("READY=1")

    async def keep_alive(self, lateness_ns: Callable[[], int]) -> None:
        """Say twice in the manager's time that there is progress, until cancelled.

        ``lateness_ns`` is by how much the supervisor's look at its workers is overdue. Past half the manager's time
        nothing is said any more: a loop that turns but no longer supervises is as good as one that hangs.
        """
        if not (self.address and self.watchdog_ns):
            return
        half_ns = self.watchdog_ns // 2
        while True:
            # Not kept when there is no room: an old sign of life would be a false one.
            if lateness_ns() < half_ns and self._flush():
                self._send("WATCHDOG=1")
            await trio.sleep(half_ns / 1e9)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> None:
        if self.address:
            self._kept.append("\n".join(assignments).encode("utf-8", "replace"))
            del self._kept[:-_MOST_KEPT]
            self._flush()

    def _flush(self) -> bool:
        """Whether nothing is left to be sent."""
        try:
            sock = self._connected()
            while self._kept:
                sock.send(self._kept[0], socket.MSG_NOSIGNAL)
                del self._kept[0]
        except BlockingIOError:
            log.debug("the service manager's socket is full")
        except OSError as error:  # it may come back, on the same address
            if not self._lost:
                log.warning("the service manager is out of reach: %s", error)
            self._lost = True
            self.close()
        else:
            self._lost = False
        return not self._kept

    def _connected(self) -> socket.socket:
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                # An abstract name has a NUL where environment variables, which can't hold one, write an @.
                sock.connect("\0" + self.address[1:] if self.address.startswith("@") else self.address)
            except OSError:
                sock.close()
                raise
            self._socket = sock
        return self._socket


def of_environment(environment: MutableMapping[str, str]) -> ServiceManager:
    """The manager that the variables name, which are removed: whoever we start must not speak for us.

    An address that is neither a path nor an abstract name, and a watchdog that is meant for another process, count as
    none.
    """
    address, usec, pid = (environment.pop(name, "") for name in _VARIABLES)
    if not address:
        return ServiceManager()
    if address[0] not in "/@" or len(address) < 2:
        log.warning("NOTIFY_SOCKET is neither a path nor an abstract socket; the service manager is told nothing")
        return ServiceManager()
    meant = not pid or pid == str(os.getpid())
    valid = usec.isascii() and usec.isdigit() and int(usec) > 0
    if usec and not valid:
        log.warning("WATCHDOG_USEC is not a positive number; the service manager gets no sign of life")
    return ServiceManager(address, int(usec) * 1000 if meant and valid else 0)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_STATUS]
