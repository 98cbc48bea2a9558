"""All listening sockets. The supervisor alone owns them; workers get duplicates, so no worker's death closes a port.

Each edge worker has sockets of its own, bound with SO_REUSEPORT: the kernel spreads connections evenly over them, and
what waits in the backlog of a dead worker's socket is served by its next incarnation. REUSEPORT would also let a
second gateway share the port without a word, so the port is probed first by a plain bind.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Literal

import attrs

from ipc.settings import Settings

from . import proc

Kind = Literal["ws", "tcp", "health"]

_PICKS = 16
"""How many free ports are tried until one is free on every host of a listener."""


class PortInUse(RuntimeError):
    """A port can't be had; the message names who holds it, if that can be known. ``holders`` are pids."""

    def __init__(self, message: str, holders: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.holders = holders


@attrs.frozen
class Listening:
    """One listening socket. ``owner`` is the worker that it was made for."""

    id: int
    kind: Kind
    owner: str
    sock: socket.socket


@attrs.frozen
class Listeners:
    """``ports`` are the numbers in use, by kind."""

    all: tuple[Listening, ...]
    ports: dict[Kind, int]

    def of(self, worker: str) -> tuple[Listening, ...]:
        return tuple(listening for listening in self.all if listening.owner == worker)

    def close_of(self, worker: str) -> None:
        """That worker will not be replaced: its sockets leave their group, and new connections go to the others'."""
        for listening in self.of(worker):
            listening.sock.close()

    def close(self) -> None:
        for listening in self.all:
            listening.sock.close()


def open_all(settings: Settings, owners: dict[Kind, tuple[str, ...]]) -> Listeners:
    """One socket for each owner, host and kind. Raises PortInUse, or OSError for an address that can't be bound."""
    wanted: dict[Kind, tuple[tuple[str, ...], int]] = {
        "ws": (settings.ws_host, settings.ws_port),
        "tcp": (settings.tcp_host, settings.tcp_port),
        "health": (settings.health_host, settings.health_port),
    }
    opened: list[Listening] = []
    ports: dict[Kind, int] = {}
    try:
        for kind, (hosts, port) in wanted.items():
            workers = owners.get(kind, ())
            if not workers:
                continue
            ports[kind] = number = _free_port(kind, hosts, port)
            for worker in workers:
                for host in hosts:
                    opened.append(Listening(len(opened), kind, worker, _listen(kind, host, number)))
    except BaseException:
        for listening in opened:
            listening.sock.close()
        raise
    return Listeners(tuple(opened), ports)


def _listen(kind: Kind, host: str, port: int) -> socket.socket:
    sock = _socket(host)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what it accepts
        _bind(kind, sock, host, port)
        sock.listen(_backlog())
    except BaseException:
        sock.close()
        raise
    return sock


def _free_port(kind: Kind, hosts: tuple[str, ...], port: int) -> int:
    """The number itself, or for 0 one that is free on every host. Raises PortInUse, OSError."""
    if port:
        _probe(kind, hosts, port)
        return port
    for attempt in range(_PICKS):
        with _socket(hosts[0]) as first:
            _bind(kind, first, hosts[0], 0)
            picked = int(first.getsockname()[1])
        try:
            _probe(kind, hosts, picked)
        except PortInUse:
            if attempt == _PICKS - 1:
                raise
        else:
            return picked
    raise AssertionError("unreachable")


def _probe(kind: Kind, hosts: tuple[str, ...], port: int) -> None:
    """Bind without REUSEPORT, which fails while anybody listens there, REUSEPORT or not."""
    for host in hosts:
        with _socket(host) as probe:
            _bind(kind, probe, host, port)


def _bind(kind: Kind, sock: socket.socket, host: str, port: int) -> None:
    """Raises PortInUse; OSError for what can't be bound at all. Both name the variable."""
    variable = kind.upper()
    try:
        sock.bind((host, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            place = f"{variable}_HOST/{variable}_PORT: can't bind {host} port {port}"
            raise OSError(error.errno, f"{place}: {error.strerror}") from None
        pids = tuple(proc.holders(port))
        raise PortInUse(f"{variable}_PORT: {host} port {port} {_named(pids)}", pids) from None


def _named(pids: tuple[int, ...]) -> str:
    if not pids:
        return "is in use by another process"
    return "is in use by " + ", ".join(f"pid {pid} ({proc.command(pid) or 'unknown'})" for pid in pids)


def _socket(host: str) -> socket.socket:
    """Reusable after a restart (TIME_WAIT), v6 only where it is v6, non-blocking, not inheritable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _backlog() -> int:
    """As many as the kernel allows: connections wait here while a worker is being replaced."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text("ascii"))
    except (OSError, ValueError):
        return socket.SOMAXCONN


def left_behind(error: PortInUse) -> bool:
    """Whether the holder is a worker whose supervisor was killed a moment ago: it ends by itself."""
    return bool(error.holders) and all(_is_left_behind(pid) for pid in error.holders)


def _is_left_behind(pid: int) -> bool:
    found = proc.stat(pid)
    if found is None:
        return True
    if "supervisor.worker" not in proc.command(pid):
        return False
    return found.parent == os.getpid() or "supervisor" not in proc.command(found.parent)
