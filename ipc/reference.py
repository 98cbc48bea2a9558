"""Addresses of actors: ``LocalAddress`` for one in this process, ``RemoteAddress`` for one behind a channel.

What both promise is in ``address.Address``; what they share is in ``Reference``. They differ only in where a message
goes and in what room there is for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs
import trio

from .address import Reply
from .callbacks import CallbackQueue
from .channel import Channel
from .deadline import PendingRequests
from .errors import ActorDown, MailboxFull, MalformedFrame
from .frames import Control, Credit, Data, Request, Up
from .mailbox import Delivery, Mailbox, Share, acting
from .messages import Message


@attrs.frozen
class AddressStatistics:
    """``untaken`` is what this worker has sent and the actor has not taken out of its mailbox, as far as is known."""

    name: str
    incarnation: int
    untaken: Share
    waiting_for_room: int
    watchers: int


@attrs.define(eq=False)
class _Watcher:
    owner: Mailbox | None
    callback: Callable[[int], None]
    active: bool = True

    def notify(self, incarnation: int) -> None:
        if self.active:
            self.callback(incarnation)


@attrs.define(eq=False)
class _Asker:
    """A task in ``ask``."""

    task: trio.lowlevel.Task
    reply: Reply | None = None
    parked: bool = False

    def answered(self, reply: Reply) -> None:
        self.reply = reply
        if self.parked:
            self.parked = False
            trio.lowlevel.reschedule(self.task)


@attrs.define(eq=False)
class Reference:
    """What both kinds of address share.

    Callbacks belong to the actor whose task (or callback) registers them, see ``Mailbox.adopt``. They are called from
    the exchange's own task, never from within another actor's call, and not after their actor's incarnation is over.
    ``tell``, ``control`` and ``request`` raise FrameTooLong for a message that does not fit in a frame between
    processes.
    """

    name: str
    _callbacks: CallbackQueue
    _pending: PendingRequests
    incarnation: int = attrs.field(default=0, init=False)
    _reason: str = attrs.field(default="not started", init=False)  # why there is no incarnation
    _watchers: dict[_Watcher, None] = attrs.field(factory=dict, init=False)
    _room: list[tuple[Mailbox | None, Callable[[], None]]] = attrs.field(factory=list, init=False)

    def on_room(self, callback: Callable[[], None]) -> None:
        self._room.append((acting.get(), callback))
        if not self.incarnation or self._has_room():
            self._room_is_back()

    def request(self, message: Message, deadline_ns: int, on_reply: Callable[[Reply], None]) -> None:
        owner = acting.get()
        refusal = self._request(message, deadline_ns, on_reply, owner)
        if isinstance(refusal, ActorDown):
            self._callbacks.call(owner, f"answer of {self.name}", on_reply, refusal)

    async def ask(self, message: Message, deadline_ns: int) -> Message:
        asker = _Asker(trio.lowlevel.current_task())
        # No owner: a task has to be woken even while its actor ends.
        opened = self._request(message, deadline_ns, asker.answered, None)
        if isinstance(opened, ActorDown):
            await trio.lowlevel.checkpoint()
            raise opened

        def abandon(_raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
            asker.parked = False
            self._pending.forget(self.name, opened)
            return trio.lowlevel.Abort.SUCCEEDED

        asker.parked = True
        await trio.lowlevel.wait_task_rescheduled(abandon)
        reply = asker.reply
        assert reply is not None  # noqa: S101 - nothing else wakes the task
        if isinstance(reply, Message):
            return reply
        raise reply

    def watch(self, callback: Callable[[int], None]) -> Callable[[], None]:
        watcher = _Watcher(acting.get(), callback)
        self._watchers[watcher] = None

        def stop() -> None:
            watcher.active = False
            self._watchers.pop(watcher, None)

        self._callbacks.call(watcher.owner, f"watch of {self.name}", callback, self.incarnation)
        return stop

    def statistics(self) -> AddressStatistics:
        raise NotImplementedError

    def _has_room(self) -> bool:
        raise NotImplementedError

    def _request(
        self, message: Message, deadline_ns: int, on_reply: Callable[[Reply], None], owner: Mailbox | None
    ) -> int | ActorDown:
        """Send a request; returns its id, or why it could not be sent."""
        raise NotImplementedError

    def _statistics(self, untaken: Share) -> AddressStatistics:
        return AddressStatistics(self.name, self.incarnation, untaken, len(self._room), len(self._watchers))

    def _room_is_back(self) -> None:
        waiting, self._room = self._room, []
        for owner, callback in waiting:
            self._callbacks.add(owner, f"room of {self.name}", callback)

    def _changed(self, incarnation: int, reason: str) -> None:
        self.incarnation = incarnation
        self._reason = reason
        if not incarnation:
            self._pending.fail(self.name, reason)
        for watcher in list(self._watchers):
            if watcher.owner is not None and watcher.owner.closed:
                del self._watchers[watcher]
            else:
                self._callbacks.add(watcher.owner, f"watch of {self.name}", watcher.notify, incarnation)
        if not incarnation:
            self._room_is_back()


@attrs.define(eq=False)
class LocalAddress(Reference):
    """``sender`` is the name of this worker."""

    _sender: str = attrs.field(kw_only=True)
    _mailbox: Mailbox | None = attrs.field(default=None, init=False)

    def tell(self, message: Message) -> bool:
        return self._up().offer(Delivery(message, self._sender))

    def control(self, message: Message) -> None:
        if not self._up().offer(Delivery(message, self._sender), control=True):
            raise MailboxFull(self.name)

    def up(self, mailbox: Mailbox, incarnation: int) -> None:
        """An incarnation takes messages from now on."""
        self._mailbox = mailbox
        self._changed(incarnation, "")

    def down(self, reason: str) -> None:
        """It has ended."""
        self._mailbox = None
        self._changed(0, reason)

    def drained(self) -> None:
        """The actor has taken what this worker had sent."""
        if self._room:
            self._room_is_back()

    def statistics(self) -> AddressStatistics:
        share = self._mailbox.share(self._sender) if self._mailbox is not None else Share()
        return self._statistics(share)

    def _up(self) -> Mailbox:
        if self._mailbox is None:
            raise ActorDown(self.name, self._reason)
        return self._mailbox

    def _has_room(self) -> bool:
        return self._mailbox is not None and self._mailbox.has_room(self._sender)

    def _request(
        self, message: Message, deadline_ns: int, on_reply: Callable[[Reply], None], owner: Mailbox | None
    ) -> int | ActorDown:
        mailbox = self._mailbox
        if mailbox is None:
            return ActorDown(self.name, self._reason)
        request = self._pending.open(self.name, self.incarnation, deadline_ns, on_reply, owner)
        answer = partial(self._answered, self.incarnation, request)
        if mailbox.offer(Delivery(message, self._sender, answer, deadline_ns), control=True):
            return request
        self._pending.forget(self.name, request)
        return ActorDown(self.name, "mailbox full")

    def _answered(self, incarnation: int, request: int, reply: Message) -> None:
        self._pending.settle(self.name, incarnation, request, reply)


@attrs.define(eq=False)
class RemoteAddress(Reference):
    """``peer`` is the worker that the actor lives in.

    The counters hold what was sent to this incarnation and has not been credited yet; the limits are the
    incarnation's own, from Up.
    """

    peer: str = attrs.field(kw_only=True)
    _channel: Channel | None = attrs.field(default=None, init=False)
    _limits: Share = attrs.field(factory=Share, init=False)
    _sent: Share = attrs.field(factory=Share, init=False)

    def tell(self, message: Message) -> bool:
        channel = self._up()
        if not self._has_room():
            return False
        self._sent.data_size += channel.send(Data(self.name, self.incarnation, message))
        self._sent.data += 1
        return True

    def control(self, message: Message) -> None:
        channel = self._up()
        if not self._has_control_room():
            raise MailboxFull(self.name)
        self._sent.control_size += channel.send(Control(self.name, self.incarnation, message))
        self._sent.control += 1

    def up(self, channel: Channel, frame: Up) -> None:
        """The peer has told of an incarnation. Raises MalformedFrame when one is up already."""
        if self.incarnation:
            raise MalformedFrame(f"{self.name} is up twice")
        self._channel = channel
        self._limits = Share(frame.data, frame.size, frame.control, frame.size)
        self._sent = Share()
        self._changed(frame.incarnation, "")

    def down(self, reason: str) -> None:
        """It has ended, or the channel has. Nothing happens if none was up."""
        if self.incarnation:
            self._channel = None
            self._changed(0, reason)

    def credit(self, frame: Credit) -> None:
        """The actor has taken messages. Raises MalformedFrame for more than were sent."""
        if frame.incarnation != self.incarnation:
            return
        sent = self._sent
        sent.data -= frame.data
        sent.data_size -= frame.data_size
        sent.control -= frame.control
        sent.control_size -= frame.control_size
        if min(sent.data, sent.data_size, sent.control, sent.control_size) < 0:
            raise MalformedFrame(f"{self.name} gives credit for more than it was sent")
        self.unblocked()

    def unblocked(self) -> None:
        """Credit has come, or the channel has room again."""
        if self._room and self._has_room():
            self._room_is_back()

    def statistics(self) -> AddressStatistics:
        return self._statistics(attrs.evolve(self._sent) if self.incarnation else Share())

    def _up(self) -> Channel:
        if self._channel is None:
            raise ActorDown(self.name, self._reason)
        return self._channel

    def _has_room(self) -> bool:
        return (
            self._channel is not None
            and self._sent.data < self._limits.data
            and self._sent.data_size < self._limits.data_size
            and not self._channel.congested
        )

    def _has_control_room(self) -> bool:
        sent, limits = self._sent, self._limits
        return sent.control < limits.control and sent.control_size < limits.control_size

    def _request(
        self, message: Message, deadline_ns: int, on_reply: Callable[[Reply], None], owner: Mailbox | None
    ) -> int | ActorDown:
        channel = self._channel
        if channel is None:
            return ActorDown(self.name, self._reason)
        if not self._has_control_room():
            return ActorDown(self.name, "mailbox full")
        request = self._pending.open(self.name, self.incarnation, deadline_ns, on_reply, owner)
        try:
            size = channel.send(Request(self.name, self.incarnation, request, deadline_ns, message))
        except BaseException:
            self._pending.forget(self.name, request)
            raise
        self._sent.control += 1
        self._sent.control_size += size
        return request
