"""The inbox of one incarnation of one actor: two bounded lanes, emptied in one go, control first.

Bounds hold for each sending worker by itself, so that no peer can use up the room of another. As the owner always
takes everything, the room that comes back is known at each drain without counting single messages.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import attrs
import trio

from .errors import ActorDown
from .messages import Message

# The mailbox of the actor that the current task works for. Callbacks are attributed to it.
acting: ContextVar[Mailbox | None] = ContextVar("acting", default=None)


@attrs.define(eq=False)
class Delivery:
    """One message as its receiver gets it.

    ``sender`` is a worker's name. ``answer`` takes the reply; None for messages that want none. ``deadline_ns``
    (CLOCK_MONOTONIC) is when the asker stops waiting, 0 if it does not wait.
    """

    message: Message
    sender: str
    _answer: Callable[[Message], None] | None = None
    deadline_ns: int = 0
    wants_reply: bool = attrs.field(init=False)

    @wants_reply.default
    def _has_asker(self) -> bool:
        return self._answer is not None

    def reply(self, message: Message) -> None:
        """Answer a request, once. An answer that comes too late is dropped and counted by the exchange.

        Raises RuntimeError for a message that wants no reply or has had one, FrameTooLong if the asker is in another
        process and the message is longer than a frame may be (the request is still unanswered then).
        """
        if self._answer is None:
            raise RuntimeError("already answered" if self.wants_reply else "the sender waits for no reply")
        self._answer(message)
        self._answer = None


@attrs.define
class Share:
    """What is one sender's of a mailbox: messages in each lane, and their bytes as encoded."""

    data: int = 0
    data_size: int = 0
    control: int = 0
    control_size: int = 0


@attrs.frozen
class MailboxStatistics:
    """Queued now, bounds per sender, and totals since the start of the incarnation."""

    name: str
    data_queued: int
    control_queued: int
    data_limit: int
    control_limit: int
    size_limit: int
    data_received: int
    control_received: int
    refused: int
    drains: int
    closed: bool


class Mailbox:
    """Where an actor's messages wait.

    Args:
        name: the actor's.
        data: the data lane's bound in messages, for each sending worker.
        control: the control lane's, requests included.
        size: each lane's bound in bytes as encoded, for each sending worker other than this one; the message that
            crosses it is still taken.

    """

    def __init__(self, name: str, *, data: int = 4096, control: int = 16384, size: int = 64 * 1024 * 1024) -> None:
        if min(data, control, size) < 1:
            raise ValueError("a lane needs room for one message")
        self.name = name
        self.data_limit = data
        self.control_limit = control
        self.size_limit = size
        # Set by the worker that runs the actor: called with what a callback of the actor raised. It has to end it.
        self.owner_failed: Callable[[Exception], None] | None = None
        self._data: list[Delivery] = []
        self._control: list[Delivery] = []
        self._shares: dict[str, Share] = {}  # sums up to what _data and _control hold, less what was forgotten
        self._on_arrival: Callable[[], None] | None = None
        self._announced = False  # on_arrival is scheduled or has run, and nothing was drained since
        self._receiver: trio.lowlevel.Task | None = None
        self._closed: str | None = None
        self._schedule: Callable[[Mailbox, Callable[[], None]], None] | None = None
        self._drained: Callable[[Mailbox, str, Share], None] | None = None
        self._on_close: Callable[[Mailbox, str], None] | None = None
        self._data_received = self._control_received = self._refused = self._drains = 0

    # --- the sender's side

    def offer(self, delivery: Delivery, *, control: bool = False, size: int = 0) -> bool:
        """Take a message in. False: its lane is full for that sender, nothing was queued.

        ``size`` is the message's length in bytes as encoded, if it was. Raises ActorDown when closed.
        """
        if self._closed is not None:
            raise ActorDown(self.name, self._closed)
        share = self._shares.get(delivery.sender)
        if share is None:
            share = self._shares[delivery.sender] = Share()
        if control:
            if share.control >= self.control_limit or share.control_size >= self.size_limit:
                self._refused += 1
                return False
            share.control += 1
            share.control_size += size
            self._control_received += 1
            self._control.append(delivery)
        else:
            if share.data >= self.data_limit or share.data_size >= self.size_limit:
                self._refused += 1
                return False
            share.data += 1
            share.data_size += size
            self._data_received += 1
            self._data.append(delivery)
        if self._receiver is not None:
            self._resume()
        elif self._on_arrival is not None and not self._announced:
            self._announce()
        return True

    def has_room(self, sender: str) -> bool:
        """Whether ``offer`` on the data lane would succeed for that sender."""
        share = self._shares.get(sender)
        return share is None or (share.data < self.data_limit and share.data_size < self.size_limit)

    def share(self, sender: str) -> Share:
        """What that sender has in here now (a copy)."""
        share = self._shares.get(sender)
        return attrs.evolve(share) if share is not None else Share()

    def forget(self, sender: str) -> None:
        """The sender's process has gone: what it has sent is still delivered, but no room is owed for it."""
        self._shares.pop(sender, None)

    # --- the owner's side

    def drain(self) -> list[Delivery]:
        """Everything there is, control first, each lane in order of arrival; an empty list when there is nothing."""
        self._announced = False
        if self._data:
            batch = self._control + self._data if self._control else self._data
            self._data, self._control = [], []
        elif self._control:
            batch, self._control = self._control, []
        else:
            return []
        self._drains += 1
        shares, self._shares = self._shares, {}
        if self._drained is not None:
            for sender, share in shares.items():
                self._drained(self, sender, share)
        return batch

    async def receive(self) -> list[Delivery]:
        """``drain``, but waits while there is nothing. For one task at a time.

        Raises ActorDown once the mailbox is closed and empty.
        """
        if self._data or self._control:
            await trio.lowlevel.checkpoint()
        while not (self._data or self._control):
            if self._closed is not None:
                await trio.lowlevel.checkpoint()
                raise ActorDown(self.name, self._closed)
            if self._receiver is not None:
                raise trio.BusyResourceError("another task receives from this mailbox")
            self._receiver = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abandon)
        return self.drain()

    @property
    def on_arrival(self) -> Callable[[], None] | None:
        """For an owner that drains itself in a callback: called after something has come, soon and not from within
        the sender's call, and again only after a drain."""
        return self._on_arrival

    @on_arrival.setter
    def on_arrival(self, callback: Callable[[], None] | None) -> None:
        self._on_arrival = callback
        self._announced = False
        if callback is not None and (self._data or self._control):
            self._announce()

    def adopt(self) -> None:
        """The calling task, and every task it starts from now on, works for this mailbox's actor.

        An exception from a callback that it registers through an address goes to ``owner_failed``; once the mailbox
        is closed its callbacks are not called any more. (A task in ``Address.ask`` is woken nevertheless.)
        """
        acting.set(self)

    # --- life

    @property
    def closed(self) -> bool:
        return self._closed is not None

    def attach(
        self,
        *,
        schedule: Callable[[Mailbox, Callable[[], None]], None],
        drained: Callable[[Mailbox, str, Share], None],
        on_close: Callable[[Mailbox, str], None],
    ) -> None:
        """The exchange's hooks: run a callback soon, a sender's room is back, the mailbox was closed."""
        self._schedule, self._drained, self._on_close = schedule, drained, on_close

    def close(self, reason: str) -> None:
        """The incarnation is over. Every unanswered request resolves with ActorDown; what is queued is dropped.

        ``reason`` may be any text, an exception's too: it is cut to 200 characters.
        """
        if self._closed is not None:
            return
        # It goes to other processes: nothing in it may keep the news from being encoded.
        reason = self._closed = reason[:200].encode(errors="backslashreplace").decode()
        self._data, self._control = [], []
        self._shares.clear()
        if self._receiver is not None:
            self._resume()
        if self._on_close is not None:
            self._on_close(self, reason)

    def statistics(self) -> MailboxStatistics:
        return MailboxStatistics(
            name=self.name,
            data_queued=len(self._data),
            control_queued=len(self._control),
            data_limit=self.data_limit,
            control_limit=self.control_limit,
            size_limit=self.size_limit,
            data_received=self._data_received,
            control_received=self._control_received,
            refused=self._refused,
            drains=self._drains,
            closed=self._closed is not None,
        )

    def _announce(self) -> None:
        self._announced = True
        if self._schedule is not None:
            self._schedule(self, self._arrived)
        else:
            self._arrived()

    def _arrived(self) -> None:
        if self._on_arrival is not None and (self._data or self._control):
            self._on_arrival()
        else:
            self._announced = False

    def _resume(self) -> None:
        task, self._receiver = self._receiver, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _abandon(self, _raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
        self._receiver = None
        return trio.lowlevel.Abort.SUCCEEDED
