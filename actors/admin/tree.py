"""The process tree as the supervisor told it last."""

from __future__ import annotations

from typing import Any

import msgspec


class MailboxNode(msgspec.Struct, frozen=True):
    """Messages that wait now, and those taken in and refused for want of room since the actor's start."""

    queued: int = 0
    received: int = 0
    refused: int = 0


class ActorNode(msgspec.Struct, frozen=True):
    name: str
    state: str = "unknown"
    incarnation: int = 0
    restarts: int = 0
    mailbox: MailboxNode = MailboxNode()


class WorkerNode(msgspec.Struct, frozen=True):
    """``pid`` is 0 while the worker has no process; ``rss_kb`` 0 when it isn't known."""

    name: str
    role: str = ""
    pid: int = 0
    state: str = "unknown"
    incarnation: int = 0
    restarts: int = 0
    rss_kb: int = 0
    actors: tuple[ActorNode, ...] = ()


class Tree(msgspec.Struct, frozen=True):
    """What a TreeSnapshot holds. Members that are not named here are ignored."""

    uptime_s: float = 0.0
    version: str = ""
    draining: bool = False
    degraded: tuple[str, ...] = ()
    restarts: int = 0
    workers: tuple[WorkerNode, ...] = ()

    def actors(self) -> dict[str, ActorNode]:
        return {actor.name: actor for worker in self.workers for actor in worker.actors}

    def document(self) -> dict[str, Any]:
        """As the API shows it."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def decode(data: bytes) -> Tree:
    """Raises msgspec.MsgspecError."""
    return msgspec.json.decode(data, type=Tree)
