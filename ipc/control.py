"""What the supervisor and a worker process say to each other over the worker's control socket (SEQPACKET).

Descriptors travel beside a message, in the order in which its docstring names them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .messages import AnyMessage
from .settings import Settings

PROTOCOL = 1
"""Both ends come from one source tree; a worker of another version (an upgrade under a running gateway) is refused."""

SUPERVISOR = "supervisor"
"""The actor name under which the supervisor is reached from every worker."""


class ControlMessage(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of everything on a control socket."""


# --- parts of an assignment --------------------------------------------------------------------------------------


class ActorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One actor of a worker: ``target`` is ``module:function``; ``listens`` are the kinds of listeners it is given.

    ``stage`` orders starts and stops within the worker; ``stop_ms`` is how long it may take to return after a Drain.
    """

    name: str
    target: str
    stage: int = 0
    listens: tuple[Literal["ws", "tcp", "health"], ...] = ()
    start_ms: int = 20_000
    stop_ms: int = 2_000


class ListenerGrant(msgspec.Struct, frozen=True, array_like=True):
    """A listening socket that travels beside the message. ``id`` names it when it is taken back."""

    id: int
    kind: Literal["ws", "tcp", "health"]


class PeerGrant(msgspec.Struct, frozen=True, array_like=True):
    """A worker that this one talks to, in the incarnation that has the other end of the stream."""

    name: str
    incarnation: int


class LinkGrant(msgspec.Struct, frozen=True, array_like=True):
    """One end of a SEQPACKET pair for ``actor``, which finds it as ``context.links[key]``."""

    actor: str
    key: str


class ActorState(msgspec.Struct, frozen=True, array_like=True):
    """What the live tree shows of one actor.

    ``queued`` messages wait in its mailbox now; it has ``received`` and ``refused`` so many since its start.
    """

    name: str
    state: str
    incarnation: int
    restarts: int
    queued: int = 0
    received: int = 0
    refused: int = 0


# --- worker -> supervisor ----------------------------------------------------------------------------------------


class Hello(ControlMessage, frozen=True):
    """The interpreter is warm and waits for an assignment."""

    pid: int
    protocol: int = PROTOCOL


class Ready(ControlMessage, frozen=True):
    """Every actor of the assignment is up."""


class ActorStates(ControlMessage, frozen=True):
    """The actors after a change, and every second, as mailboxes fill and empty."""

    actors: tuple[ActorState, ...]


class ActorEvent(ControlMessage, frozen=True):
    """One event for the audit log."""

    event: Literal["actor.crashed", "actor.restarted", "actor.escalated"]
    actor: str
    incarnation: int
    reason: str = ""


class PeerBroken(ControlMessage, frozen=True):
    """That incarnation of a worker sent what is not a frame."""

    worker: str
    incarnation: int
    reason: str


class Failing(ControlMessage, frozen=True):
    """This process is about to end, and why."""

    reason: str


class Stopped(ControlMessage, frozen=True):
    """Every actor has returned after a Stop; the process ends now."""


class Asked(ControlMessage, frozen=True):
    """A local actor's message to the supervisor. ``id`` is 0 when no answer is wanted."""

    id: int
    sender: str
    message: AnyMessage


class Answered(ControlMessage, frozen=True):
    """To a Post with an id. ``message`` is None when the actor was down or did not answer in time."""

    id: int
    message: AnyMessage | None
    reason: str = ""


# --- supervisor -> worker ----------------------------------------------------------------------------------------


class Assign(ControlMessage, frozen=True):
    """What this process is from now on. Comes once.

    Descriptors: the heartbeat memfd, the ledger (``ipc.ledger``), the shelves (``ipc.shelf``), the TLS material if
    ``tls``, the listeners, one stream socket a peer, one link each.
    """

    worker: str
    incarnation: int
    strategy: Literal["one_for_one", "rest_for_one", "one_for_all"]
    actors: tuple[ActorSpec, ...]
    placement: dict[str, str]
    settings: Settings
    heartbeat_ms: int
    hosts_children: bool
    listeners: tuple[ListenerGrant, ...] = ()
    peers: tuple[PeerGrant, ...] = ()
    links: tuple[LinkGrant, ...] = ()
    tls: bool = False


class Connect(ControlMessage, frozen=True):
    """A new incarnation of ``peer``. Descriptors: its stream socket if ``stream``, then one link each."""

    peer: PeerGrant
    stream: bool
    links: tuple[LinkGrant, ...] = ()


class Adopt(ControlMessage, frozen=True):
    """Serve these listeners of another worker too. Descriptors: the listeners."""

    listeners: tuple[ListenerGrant, ...]


class Withdraw(ControlMessage, frozen=True):
    """Their own worker serves them again."""

    listeners: tuple[int, ...]


class Configure(ControlMessage, frozen=True):
    """These settings take the place of the assignment's. Descriptor: the TLS material if ``tls``."""

    settings: Settings
    tls: bool = False


class Post(ControlMessage, frozen=True):
    """Give this to a local actor. ``id`` is 0 when no answer is wanted."""

    id: int
    actor: str
    message: AnyMessage


class Reply(ControlMessage, frozen=True):
    """To Asked."""

    id: int
    message: AnyMessage


class Stop(ControlMessage, frozen=True):
    """Drain every actor, then end. What has not ended by ``deadline_ns`` (monotonic) is killed."""

    deadline_ns: int


FromWorker = Hello | Ready | ActorStates | ActorEvent | PeerBroken | Failing | Stopped | Asked | Answered
ToWorker = Assign | Connect | Adopt | Withdraw | Configure | Post | Reply | Stop
