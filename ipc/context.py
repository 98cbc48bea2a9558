"""What an actor is given when it starts, and the shape that every actor has."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

from .shelf import Shelves

if TYPE_CHECKING:
    from .address import Address
    from .fdpass import DescriptorLink
    from .mailbox import Mailbox
    from .settings import Settings
    from .tls_material import TlsMaterial


@attrs.frozen
class Listener:
    """A listening socket, non-blocking, owned by the supervisor; this is a duplicate. Closing it closes no port."""

    kind: Literal["ws", "tcp", "health"]
    sock: socket.socket


@attrs.define
class Context:
    """One incarnation of one actor.

    ``name`` is the actor's own (``acceptor.0``, ``limiter``). ``keep`` outlives the incarnation but not the worker
    process: what a restarted actor of the same name finds again. ``listeners`` changes when the supervisor hands
    listeners over (a ListenersChanged message follows each change), ``settings`` when the configuration is read anew
    (SettingsChanged), ``tls`` with them (ReloadCertificates); it is None where TLS is off or not this worker's concern.
    """

    name: str
    worker: str
    incarnation: int
    settings: Settings
    mailbox: Mailbox
    address: Callable[[str], Address]  # by actor name; the same object for the life of the worker
    peers: Callable[[str], tuple[str, ...]]  # names of all actors of that kind ("acceptor" -> acceptor.0, acceptor.1)
    ready: Callable[[], None]  # to be called once: the next child is started only then
    renew: Callable[[], None]  # have this actor drained and started anew, in order: no failure
    keep: dict[str, Any] = attrs.field(factory=dict)
    listeners: list[Listener] = attrs.field(factory=list)
    tls: TlsMaterial | None = attrs.field(default=None, repr=False)
    links: dict[str, DescriptorLink] = attrs.field(factory=dict)  # SEQPACKET links by peer worker's name
    ledger: int = -1  # the descriptor of the table that all workers share (``ipc.ledger``); -1: there is none
    shelves: Shelves = attrs.field(factory=Shelves)  # where what was counted outlives its worker


class ActorFunction(Protocol):
    """``async def main(context)``: raises = crashed, returns = ended (normal only after a Drain)."""

    def __call__(self, context: Context, /) -> Awaitable[None]: ...
