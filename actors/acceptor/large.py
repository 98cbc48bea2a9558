"""Messages that are too large to be parsed between two turns: they go to the validator worker as sealed memfds."""

from __future__ import annotations

import fcntl
import functools
import io
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from actors.policy.client_ends import id_at_ends
from actors.policy.content.screen import Finding
from actors.policy.jsonrpc import Refusal, has_no_id, splice
from ipc.errors import MalformedFrame
from ipc.messages import Checking, Invalid, LinksChanged, Message, Valid, Validate

from .connection import RETRY_MS, Connection, Item, Stage
from .lines import KEPT_HEAD, KEPT_TAIL

if TYPE_CHECKING:
    from ipc.fdpass import DescriptorLink

    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

LARGE_BYTES: Final = 256 * 1024
WAIT_NS: Final = 10_000_000_000  # for a verdict, a restart of the validator included
AT_A_TIME: Final = 4  # with the validator: the copies that it needs are bounded by that
SLICE: Final = 1 << 20  # bytes copied in one turn: about half a millisecond
UNAVAILABLE: Final = 503
TRIES: Final = 2  # the incarnations of the validator that one message may kill
SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@attrs.define(slots=True, eq=False)
class _Pending:
    connection: Connection
    item: Item
    schema: bytes = b""
    killed: int = 0  # incarnations of the validator that died while they checked it


class LargeMessages:
    """The acceptor's side of the validator actor.

    A few messages at a time are with the validator, the others wait here. The one that it was checking when it died
    (it says which it begins) is tried once more on its next incarnation; if that dies of it too, the message is
    refused, and held against its sender. What merely waited in a validator that died is tried as often as it takes,
    within its time.

    Invariant: every pending ticket is in ``_sent`` or in ``_queue`` or is the one that is being copied.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._pending: dict[int, _Pending] = {}
        self._queue: deque[int] = deque()  # tickets that are not with the validator yet
        self._sent: dict[int, None] = {}  # those that are, oldest first
        self._checking = 0  # the one that it works at; 0: not known
        self._copying = 0  # the one that is being copied; it is in neither
        self._broken = self._link is None  # nothing can be sent to it: wait for its successor
        self._next = 1
        self._changed = trio.Event()
        self._listens_to: DescriptorLink | None = None

    def validate(self, connection: Connection, item: Item, now: int, schema: bytes = b"") -> None:
        """Start; the verdict goes into ``item`` and ``Dispatch.validated`` is called.

        Args:
            schema: of the arguments, where it is known already that they are to be validated.
        """
        ticket = self._next
        self._next += 1
        self._pending[ticket] = _Pending(connection, item, schema)
        self._hub.wheel.add(now + WAIT_NS, functools.partial(self._expire, ticket))
        self._queue.append(ticket)
        self._send_more()

    @property
    def _link(self) -> DescriptorLink | None:
        return self._hub.context.links.get("validator")

    def _send_more(self) -> None:
        """Begin with the next one, if there is one and the validator has room."""
        while self._queue and not self._copying and not self._broken and len(self._sent) < AT_A_TIME:
            ticket = self._queue.popleft()
            if ticket not in self._pending:
                continue
            try:
                memory = io.FileIO(os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w")
            except OSError as error:
                log.warning("no memory for a large message: %s", error.strerror)
                self._refuse(ticket, "overloaded")
                continue
            self._copying = ticket
            self._copy(ticket, memory, 0)

    def _copy(self, ticket: int, memory: io.FileIO, at: int) -> None:
        """A slice of the message in each turn: ten megabytes at once would hold up everybody else."""
        pending = self._pending.get(ticket)
        if pending is not None:
            raw = pending.item.raw
            try:
                at += memory.write(memoryview(raw)[at : at + SLICE])
            except OSError as error:
                log.warning("no memory for a large message: %s", error.strerror)
                self._refuse(ticket, "overloaded")
            else:
                if at < len(raw):
                    self._hub.post(functools.partial(self._copy, ticket, memory, at))
                    return
                self._send(ticket, memory, at)
        self._copying = 0
        memory.close()
        self._hub.post(self._send_more)

    def _send(self, ticket: int, memory: io.FileIO, size: int) -> None:
        link = self._link
        try:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
            if link is None:
                raise BrokenPipeError
            schema = self._pending[ticket].schema
            link.send(Validate(ticket, size, self._hub.settings.max_json_depth, schema), [memory.fileno()])
        except OSError as error:  # the validator is gone: its successor, or the deadline
            log.warning("a large message could not be handed over: %s", error.strerror)
            self._broken = True
            self._queue.appendleft(ticket)
        except ValueError:  # it fits into no packet, and wouldn't the next time
            log.exception("a large message could not be handed over")
            self._refuse(ticket, "overloaded")
        else:
            self._sent[ticket] = None

    async def receive(self) -> None:
        """Task: verdicts, from one incarnation of the validator after the other."""
        while True:
            changed = self._changed
            link = self._listens_to = self._link
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
        self._broken = False
        self._hear_out()
        culprit = self._pending.get(self._checking)
        if culprit is not None:
            culprit.killed += 1
            if culprit.killed >= TRIES:
                self._quarantine(self._checking, culprit)
        self._checking = 0
        self._queue.extendleft(reversed([ticket for ticket in self._sent if ticket in self._pending]))
        self._sent.clear()
        self._send_more()
        return True

    def _hear_out(self) -> None:
        """The last words of a validator that died, which the task may not have read yet."""
        link = self._listens_to
        try:
            while link is not None and link is not self._link and link.fileno() != -1:
                message, descriptors = link.receive_nowait()
                for fd in descriptors:
                    os.close(fd)
                self._verdict(message)
        except (BlockingIOError, EOFError, OSError, MalformedFrame):
            return

    def _quarantine(self, ticket: int, pending: _Pending) -> None:
        self._hub.event(
            pending.connection, "message.invalid", severity="error", outcome="refused", reason="quarantined"
        )
        if pending.connection.stage < Stage.CLOSING:
            self._hub.offence(pending.connection, "malformed")
        if pending.schema:
            self._hub.screening.condemn(pending.connection, pending.schema)
        self._refuse(ticket, "quarantined")

    def _verdict(self, message: object) -> None:
        if isinstance(message, Checking):
            self._checking = message.ticket
            return
        if not isinstance(message, Valid | Invalid):
            log.warning("unexpected verdict %s", type(message).__name__)
            return
        if self._checking == message.ticket:
            self._checking = 0
        pending = self._pending.pop(message.ticket, None)
        self._sent.pop(message.ticket, None)
        self._send_more()
        if pending is None:
            return
        item = pending.item
        if isinstance(message, Valid):
            schema = b"" if pending.schema else self._hub.screening.schema(pending.connection, message.envelope)
            if schema:  # only now is it known what it calls: once more, with that
                item.envelope = message.envelope
                pending.schema, pending.killed = schema, 0
                self._pending[message.ticket] = pending
                self._queue.appendleft(message.ticket)
                self._send_more()
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
            self._refuse(ticket, "policy actor down")

    def _refuse(self, ticket: int, reason: str) -> None:
        """Nobody can say whether it is valid."""
        pending = self._pending.pop(ticket)
        raw = pending.item.raw
        envelope = pending.item.envelope  # known where only the content is still to be looked at
        data: dict[str, object] = {"reason": reason, "retryAfterMs": RETRY_MS}
        head, tail = raw[:KEPT_HEAD], raw[-KEPT_TAIL:]
        known = envelope.id if envelope is not None else id_at_ends(head, tail)
        if envelope is not None:
            notification = envelope.kind != "request"
        else:
            notification = known == b"null" and has_no_id(head, tail)
        pending.item.refusal = Refusal(
            UNAVAILABLE,
            "not available now",
            rule=reason,
            id=known or b"null",
            notification=notification,
            data=data,
        )
        self._hub.post(functools.partial(self._resume, pending))

    def _resume(self, pending: _Pending) -> None:
        if pending.connection.stage < Stage.CLOSING:
            self._hub.step(pending.connection, self._hub.dispatch.validated, pending.item)
        elif pending.item.hold is not None:
            self._hub.inflight.release(pending.item.hold)
