"""Messages that are too large to be parsed between two turns: they go to the validator worker as sealed memfds."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from actors.policy.content.screen import Finding
from actors.policy.jsonrpc import Refusal, splice
from ipc.errors import MalformedFrame
from ipc.messages import Invalid, LinksChanged, Message, Valid, Validate

from .connection import Connection, Item, Stage

if TYPE_CHECKING:
    from ipc.fdpass import DescriptorLink

    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

LARGE_BYTES: Final = 256 * 1024
WAIT_NS: Final = 10_000_000_000  # for a verdict, a restart of the validator included
TRIES: Final = 2  # the incarnations of the validator that one message may kill
SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@attrs.define(slots=True, eq=False)
class _Pending:
    connection: Connection
    item: Item
    deadline_ns: int
    schema: bytes = b""
    tries: int = 0


class LargeMessages:
    """The acceptor's side of the validator actor.

    A message that is with the validator when that dies is tried once more on its next incarnation; if that dies too,
    the message is refused.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._pending: dict[int, _Pending] = {}
        self._queue: list[int] = []  # tickets that the link had no room for
        self._next = 1
        self._changed = trio.Event()

    def validate(self, connection: Connection, item: Item, now: int, schema: bytes = b"") -> None:
        """Start; the verdict goes into ``item`` and ``Dispatch.validated`` is called.

        Args:
            schema: of the arguments, where it is known already that they are to be validated.
        """
        ticket = self._next
        self._next += 1
        self._pending[ticket] = _Pending(connection, item, now + WAIT_NS, schema)
        self._hub.wheel.add(now + WAIT_NS, functools.partial(self._expire, ticket))
        self._send(ticket)

    @property
    def _link(self) -> DescriptorLink | None:
        return self._hub.context.links.get("validator")

    def _send(self, ticket: int) -> None:
        pending = self._pending[ticket]
        link = self._link
        if link is None:
            self._queue.append(ticket)
            return
        raw = pending.item.raw
        try:
            fd = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            log.warning("no memory for a large message: %s", error.strerror)
            self._refuse(ticket, 503, "overloaded")
            return
        try:
            view = memoryview(raw)
            while view:
                view = view[os.write(fd, view) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            link.send(Validate(ticket, len(raw), self._hub.settings.max_json_depth, pending.schema), [fd])
            pending.tries += 1
        except BlockingIOError:
            self._queue.append(ticket)
        except OSError as error:  # the validator is gone, or there is no memory: its successor, or the deadline
            log.warning("a large message could not be handed over: %s", error.strerror)
            self._queue.append(ticket)
        finally:
            os.close(fd)

    async def receive(self) -> None:
        """Task: verdicts, from one incarnation of the validator after the other."""
        while True:
            changed = self._changed
            link = self._link
            if link is not None:
                try:
                    while True:
                        message, descriptors = await link.receive()
                        for fd in descriptors:  # none is expected
                            os.close(fd)
                        self._hub.post(functools.partial(self._verdict, message))
                except (EOFError, OSError, MalformedFrame, trio.ClosedResourceError) as error:
                    log.warning("the link to the validator ended: %s", error)
            await changed.wait()

    def delivered(self, message: Message) -> bool:
        """A new validator: what its predecessor took with it is tried again, or refused the second time."""
        if not isinstance(message, LinksChanged):
            return False
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        self._queue.clear()
        for ticket, pending in list(self._pending.items()):
            if pending.tries >= TRIES:
                self._hub.event(
                    pending.connection, "message.invalid", severity="error", outcome="refused", reason="quarantined"
                )
                if pending.schema:
                    self._hub.screening.condemn(pending.connection, pending.schema)
                self._refuse(ticket, 503, "quarantined")
            else:
                self._send(ticket)
        return True

    def _verdict(self, message: object) -> None:
        if not isinstance(message, Valid | Invalid):
            log.warning("unexpected verdict %s", type(message).__name__)
            return
        pending = self._pending.pop(message.ticket, None)
        queue, self._queue = self._queue, []
        for ticket in queue:  # a packet has left the link: there is room again
            if ticket in self._pending:
                self._send(ticket)
        if pending is None:
            return
        item = pending.item
        if isinstance(message, Valid):
            schema = b"" if pending.schema else self._hub.screening.schema(pending.connection, message.envelope)
            if schema:  # only now is it known what it calls: once more, with that
                item.envelope = message.envelope
                pending.schema, pending.tries = schema, 0
                self._pending[message.ticket] = pending
                self._send(message.ticket)
                return
            item.envelope = message.envelope
            item.findings = [Finding(*row) for row in message.findings]  # type: ignore[arg-type]
            if message.edits:
                item.raw = splice(item.raw, message.edits)
        else:
            data = msgspec.json.decode(message.data, type=dict[str, object]) if message.data else None
            item.refusal = Refusal(
                message.code,
                message.message,
                rule=message.rule,
                id=message.id,
                notification=message.notification,
                data=data,
            )
        self._resume(pending)

    def _expire(self, ticket: int, _now: int) -> None:
        if ticket in self._pending:
            self._refuse(ticket, 503, "policy actor down")

    def _refuse(self, ticket: int, code: int, reason: str) -> None:
        pending = self._pending.pop(ticket)
        data: dict[str, object] = {"reason": reason, "retryAfterMs": 1000}
        envelope = pending.item.envelope  # known where only the content is still to be looked at
        pending.item.refusal = Refusal(
            code,
            "not available now",
            rule=reason,
            id=envelope.id or b"null" if envelope is not None else b"null",
            notification=envelope is not None and envelope.kind != "request",
            data=data,
        )
        self._hub.post(functools.partial(self._resume, pending))

    def _resume(self, pending: _Pending) -> None:
        if pending.connection.stage < Stage.CLOSING:
            self._hub.step(pending.connection, self._hub.dispatch.validated, pending.item)
