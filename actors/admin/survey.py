"""What the actors say of themselves: asked again and again, the last good answer of each kept with its age."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import trio

from ipc.address import Address
from ipc.context import Context
from ipc.errors import ActorDown, DeadlineExceeded
from ipc.messages import Describe, Description

log = logging.getLogger("portcullis.admin")

KINDS = ("acceptor", "auth", "limiter", "breaker", "audit", "bridge", "validator")
PATIENCE_NS = 500_000_000


@attrs.frozen
class View:
    """One actor. ``data`` is its last good answer, empty before the first one; ``age_s`` that answer's age.

    ``up`` is known by the channels at once, ``answering`` tells whether it answered when it was last asked.
    """

    name: str
    kind: str
    up: bool
    answering: bool
    incarnation: int
    data: dict[str, Any]
    age_s: float
    of: int = 0  # the incarnation that gave ``data``


@attrs.define
class _Subject:
    address: Address
    kind: str
    data: dict[str, Any] = attrs.field(factory=dict)
    at_ns: int = 0
    of: int = 0
    answering: bool = False


class Survey:
    """All actors but admin itself. ``now`` gives CLOCK_MONOTONIC nanoseconds."""

    def __init__(self, context: Context, now: Callable[[], int] = time.monotonic_ns) -> None:
        self._now = now
        self._subjects = {
            name: _Subject(context.address(name), kind) for kind in KINDS for name in sorted(context.peers(kind))
        }
        self._lock = trio.Lock()
        self._finished = 0
        self.malformed = 0

    async def refresh(self) -> None:
        """Ask everybody, at once. Returns after at most half a second, with the answers of a round begun after this
        call; callers at the same time share a round."""
        wanted = self._finished + (2 if self._lock.locked() else 1)
        async with self._lock:
            if self._finished >= wanted:
                return
            async with trio.open_nursery() as nursery:
                for subject in self._subjects.values():
                    nursery.start_soon(self._ask, subject)
            self._finished += 1

    def views(self, kind: str | None = None) -> list[View]:
        now = self._now()
        return [
            View(
                name=name,
                kind=subject.kind,
                up=bool(subject.address.incarnation),
                answering=subject.answering and bool(subject.address.incarnation),
                incarnation=subject.address.incarnation,
                data=subject.data,
                age_s=round((now - subject.at_ns) / 1e9, 3) if subject.at_ns else 0.0,
                of=subject.of,
            )
            for name, subject in self._subjects.items()
            if kind is None or subject.kind == kind
        ]

    async def _ask(self, subject: _Subject) -> None:
        asked = subject.address.incarnation
        try:
            answer = await subject.address.ask(Describe(), self._now() + PATIENCE_NS)
        except (ActorDown, DeadlineExceeded):
            subject.answering = False
            return
        try:
            if not isinstance(answer, Description):
                raise msgspec.ValidationError(f"{type(answer).__name__} instead of a description")
            subject.data = msgspec.json.decode(answer.data, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            self.malformed += 1
            subject.answering = False
            log.error("%s described itself badly: %s", subject.address.name, error)  # noqa: TRY400
            return
        subject.at_ns = self._now()
        subject.of = asked
        subject.answering = True
