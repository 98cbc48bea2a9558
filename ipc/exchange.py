"""The switchboard of one worker: which actors live here, which behind a channel, and the addresses of all.

Nothing here awaits but ``run``, which drives three things: a reader (and, for a full socket, a writer) task for each
channel, one task that ends each turn (runs the callbacks, flushes the channels), and one timer for all deadlines.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import trio

from .address import Address
from .callbacks import CallbackQueue, OnCallbackError
from .channel import CONGESTED, Channel, ChannelStatistics
from .deadline import PendingRequests
from .errors import MalformedFrame
from .frames import Control, Credit, Data, Down, Frame, Reply, Request, Up
from .framing import DEFAULT_MAXIMUM
from .mailbox import Delivery, Mailbox, MailboxStatistics, Share
from .messages import Message
from .reference import AddressStatistics, LocalAddress, RemoteAddress

# Credit goes back when this part of a lane is owed: often enough that a sender never runs dry while its receiver
# keeps up, rarely enough that it costs next to nothing a message.
_CREDIT_PART = 4

_TIMER_SLACK = 1e-6  # seconds; float rounding must not wake the timer before the deadline


@attrs.frozen
class ExchangeStatistics:
    """Everything that waits in or has passed through one worker.

    ``stale`` counts messages that came for an incarnation that was over, ``late`` answers that nobody waited for any
    more, ``orphans`` callbacks of ended incarnations, ``malformed`` channels closed for breaking the protocol.
    """

    worker: str
    pending: int
    late: int
    expired: int
    stale: int
    callback_errors: int
    orphans: int
    malformed: int
    mailboxes: tuple[MailboxStatistics, ...]
    channels: tuple[ChannelStatistics, ...]
    addresses: tuple[AddressStatistics, ...]


@attrs.define(eq=False)
class _Peer:
    """Another worker, across its replacements."""

    name: str
    channel: Channel
    owed: dict[str, Share] = attrs.field(factory=dict)  # by local actor: taken, and not yet credited on this channel


class Exchange:
    """All addresses and channels of one worker process.

    Args:
        worker: its name.
        placement: actor name → worker name, for every actor there is.
        on_malformed: called with (peer, error) when a peer broke the protocol; its channel is closed by then.
        on_callback_error: called with (which callback, error) for what a callback raised that belongs to no actor
            (see ``Mailbox.adopt``). Without it, ``run`` raises the error.
        maximum: the longest frame between workers, in bytes.
        congested: unsent bytes of one channel from which on ``tell`` through it returns False.
        clock: nanoseconds of CLOCK_MONOTONIC.

    """

    def __init__(
        self,
        worker: str,
        placement: Mapping[str, str],
        *,
        on_malformed: Callable[[str, MalformedFrame], None] | None = None,
        on_callback_error: OnCallbackError | None = None,
        maximum: int = DEFAULT_MAXIMUM,
        congested: int = CONGESTED,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.worker = worker
        self._placement = dict(placement)
        self._on_malformed = on_malformed
        self._maximum = maximum
        self._congested = congested
        self._clock = clock
        self._callbacks = CallbackQueue(self._wake, on_callback_error or self._crash)
        self._pending = PendingRequests(self._callbacks, self._arm)
        self._local: dict[str, LocalAddress] = {}
        self._remote: dict[str, RemoteAddress] = {}
        for name, where in self._placement.items():
            if where == worker:
                self._local[name] = LocalAddress(name, self._callbacks, self._pending, sender=worker)
            else:
                self._remote[name] = RemoteAddress(name, self._callbacks, self._pending, peer=where)
        self._mailboxes: dict[str, tuple[Mailbox, int]] = {}
        self._peers: dict[str, _Peer] = {}
        self._dirty: list[Channel] = []
        self._nursery: trio.Nursery | None = None
        self._turn_task: trio.lowlevel.Task | None = None  # while it is parked
        self._work = False  # something for the turn task
        self._timer: trio.CancelScope | None = None
        self._armed_ns: float = math.inf  # when the timer goes off
        self._crashes: list[Exception] = []
        self._stale = self._malformed = 0
        self._handlers: dict[type, Callable[[_Peer, Any, int], None]] = {
            Up: self._take_up,
            Down: self._take_down,
            Data: self._take_data,
            Control: self._take_control,
            Request: self._take_request,
            Reply: self._take_reply,
            Credit: self._take_credit,
        }

    # --- names

    def address(self, name: str) -> Address:
        """The same object each time. Raises LookupError for a name that is not in the placement."""
        found: Address | None = self._local.get(name) or self._remote.get(name)
        if found is None:
            raise LookupError(f"no actor named {name!r}")
        return found

    def peers(self, kind: str) -> tuple[str, ...]:
        """Names of all actors of that kind: ``acceptor`` → ``acceptor.0``, ``acceptor.1``."""
        return tuple(name for name in self._placement if name == kind or name.startswith(kind + "."))

    # --- actors of this worker

    def register(self, mailbox: Mailbox, incarnation: int) -> None:
        """The actor is up from now on, for everybody.

        Raises ValueError when it is placed elsewhere or another incarnation is up.
        """
        address = self._local.get(mailbox.name)
        if address is None or mailbox.name in self._mailboxes or mailbox.closed or incarnation < 1:
            raise ValueError(f"{mailbox.name} can't come up here as incarnation {incarnation}")
        mailbox.attach(
            schedule=self._schedule, drained=self._drained, on_close=partial(self._closed_mailbox, incarnation)
        )
        self._mailboxes[mailbox.name] = (mailbox, incarnation)
        address.up(mailbox, incarnation)
        for peer in self._peers.values():
            peer.channel.send(_up(mailbox, incarnation))

    def unregister(self, name: str, reason: str) -> None:
        """The incarnation that is up, if any, is over: the same as closing its mailbox."""
        entry = self._mailboxes.get(name)
        if entry is not None:
            entry[0].close(reason)

    # --- other workers

    def connect(self, peer: str, sock: socket.socket) -> None:
        """Talk to that worker through ``sock`` (a connected stream, now ours) and to its predecessor no more."""
        old = self._peers.get(peer)
        if old is not None:
            old.channel.close("replaced")
        channel = Channel(
            peer,
            sock,
            on_frame=partial(self._take, peer),
            on_batch=self._callbacks.run,
            on_closed=self._closed_channel,
            on_dirty=self._mark_dirty,
            on_room=partial(self._unblocked, peer),
            maximum=self._maximum,
            congested=self._congested,
        )
        self._peers[peer] = _Peer(peer, channel)
        for mailbox, incarnation in self._mailboxes.values():
            channel.send(_up(mailbox, incarnation))
        if self._nursery is not None:
            self._nursery.start_soon(channel.run)

    def disconnect(self, peer: str, reason: str) -> None:
        """That worker is gone or not to be trusted. No error if it was not connected."""
        entry = self._peers.get(peer)
        if entry is not None:
            entry.channel.close(reason)

    def flush(self) -> None:
        """Write now what all channels' sockets take. For the end of a synchronous turn; it happens anyway soon."""
        dirty, self._dirty = self._dirty, []
        for channel in dirty:
            channel.flush()

    # --- running

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry messages until cancelled; then what is written is sent as far as the sockets take it, the channels
        are closed, and whoever waits for an actor behind them gets ActorDown."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for peer in self._peers.values():
                    nursery.start_soon(peer.channel.run)
                nursery.start_soon(self._turns)
                nursery.start_soon(self._watch_deadlines)
                task_status.started()
        finally:
            self._nursery = None
            for peer in list(self._peers.values()):
                peer.channel.close("the worker stops")
            self._callbacks.run()

    def statistics(self) -> ExchangeStatistics:
        return ExchangeStatistics(
            worker=self.worker,
            pending=len(self._pending),
            late=self._pending.late,
            expired=self._pending.expired,
            stale=self._stale,
            callback_errors=self._callbacks.errors,
            orphans=self._callbacks.orphans,
            malformed=self._malformed,
            mailboxes=tuple(mailbox.statistics() for mailbox, _ in self._mailboxes.values()),
            channels=tuple(peer.channel.statistics() for peer in self._peers.values()),
            addresses=tuple(
                address.statistics() for address in (*self._local.values(), *self._remote.values())
            ),
        )

    async def _turns(self) -> None:
        """Ends each turn of the loop in which something was sent or has to be called back."""
        while True:
            if self._work:
                await trio.lowlevel.checkpoint()
            else:
                self._turn_task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abandon_turn)
            self._work = False
            self._callbacks.run()
            self.flush()
            if self._crashes:
                raise self._crashes[0]

    def _abandon_turn(self, _raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
        self._turn_task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        self._work = True
        if self._turn_task is not None:
            task, self._turn_task = self._turn_task, None
            trio.lowlevel.reschedule(task)

    async def _watch_deadlines(self) -> None:
        while True:
            next_ns = self._pending.expire(self._clock())
            with trio.CancelScope() as scope:
                self._timer, self._armed_ns = scope, math.inf
                if next_ns is not None:
                    self._arm(next_ns)
                await trio.sleep_forever()

    def _arm(self, deadline_ns: int) -> None:
        if self._timer is not None and deadline_ns < self._armed_ns:
            self._armed_ns = deadline_ns
            self._timer.deadline = trio.current_time() + (deadline_ns - self._clock()) / 1e9 + _TIMER_SLACK

    def _crash(self, where: str, error: Exception) -> None:
        error.add_note(f"raised by the callback for {where}")
        self._crashes.append(error)
        self._wake()

    # --- hooks of mailboxes and channels

    def _schedule(self, mailbox: Mailbox, callback: Callable[[], None]) -> None:
        self._callbacks.add(mailbox, f"arrival at {mailbox.name}", callback)

    def _drained(self, mailbox: Mailbox, sender: str, share: Share) -> None:
        if sender == self.worker:
            self._local[mailbox.name].drained()
            return
        peer = self._peers[sender]
        owed = peer.owed.setdefault(mailbox.name, Share())
        owed.data += share.data
        owed.data_size += share.data_size
        owed.control += share.control
        owed.control_size += share.control_size
        if (
            owed.data * _CREDIT_PART >= mailbox.data_limit
            or owed.control * _CREDIT_PART >= mailbox.control_limit
            or max(owed.data_size, owed.control_size) * _CREDIT_PART >= mailbox.size_limit
        ):
            del peer.owed[mailbox.name]
            peer.channel.send(
                Credit(
                    mailbox.name,
                    self._mailboxes[mailbox.name][1],
                    data=owed.data,
                    data_size=owed.data_size,
                    control=owed.control,
                    control_size=owed.control_size,
                )
            )

    def _closed_mailbox(self, incarnation: int, mailbox: Mailbox, reason: str) -> None:
        del self._mailboxes[mailbox.name]
        self._local[mailbox.name].down(reason)
        for peer in self._peers.values():
            peer.owed.pop(mailbox.name, None)
            peer.channel.send(Down(mailbox.name, incarnation, reason))

    def _mark_dirty(self, channel: Channel) -> None:
        self._dirty.append(channel)
        self._wake()

    def _unblocked(self, peer: str) -> None:
        for address in self._remote.values():
            if address.peer == peer:
                address.unblocked()

    def _closed_channel(self, channel: Channel, reason: str, error: MalformedFrame | None) -> None:
        del self._peers[channel.peer]
        for mailbox, _ in self._mailboxes.values():
            mailbox.forget(channel.peer)
        for address in self._remote.values():
            if address.peer == channel.peer:
                address.down(reason)
        if error is not None:
            self._malformed += 1
            if self._on_malformed is not None:
                self._on_malformed(channel.peer, error)

    # --- frames from peers

    def _take(self, name: str, frame: Frame, size: int) -> None:
        self._handlers[type(frame)](self._peers[name], frame, size)

    def _theirs(self, peer: _Peer, actor: str) -> RemoteAddress:
        address = self._remote.get(actor)
        if address is None or address.peer != peer.name:
            raise MalformedFrame(f"{peer.name} speaks for {actor!r}, which does not live there")
        return address

    def _ours(self, actor: str, incarnation: int) -> Mailbox | None:
        """None: that incarnation is over."""
        entry = self._mailboxes.get(actor)
        if entry is not None and entry[1] == incarnation:
            return entry[0]
        if actor not in self._local:
            raise MalformedFrame(f"a message for {actor!r}, which does not live here")
        self._stale += 1
        return None

    def _take_up(self, peer: _Peer, frame: Up, _size: int) -> None:
        self._theirs(peer, frame.actor).up(peer.channel, frame)

    def _take_down(self, peer: _Peer, frame: Down, _size: int) -> None:
        address = self._theirs(peer, frame.actor)
        if address.incarnation != frame.incarnation:
            raise MalformedFrame(f"{frame.actor} goes down as incarnation {frame.incarnation}, which is not up")
        address.down(frame.reason)

    def _take_data(self, peer: _Peer, frame: Data, size: int) -> None:
        mailbox = self._ours(frame.actor, frame.incarnation)
        if mailbox is not None and not mailbox.offer(Delivery(frame.message, peer.name), size=size):
            raise MalformedFrame(f"more data for {frame.actor} than there is credit for")

    def _take_control(self, peer: _Peer, frame: Control, size: int) -> None:
        mailbox = self._ours(frame.actor, frame.incarnation)
        if mailbox is not None and not mailbox.offer(Delivery(frame.message, peer.name), control=True, size=size):
            raise MalformedFrame(f"more control messages for {frame.actor} than it has room for")

    def _take_request(self, peer: _Peer, frame: Request, size: int) -> None:
        mailbox = self._ours(frame.actor, frame.incarnation)
        if mailbox is None:
            return
        answer = partial(_answer, peer.channel, frame.actor, frame.incarnation, frame.id)
        delivery = Delivery(frame.message, peer.name, answer, frame.deadline_ns)
        if not mailbox.offer(delivery, control=True, size=size):
            raise MalformedFrame(f"more requests for {frame.actor} than it has room for")

    def _take_reply(self, peer: _Peer, frame: Reply, _size: int) -> None:
        self._theirs(peer, frame.actor)
        self._pending.settle(frame.actor, frame.incarnation, frame.id, frame.message)

    def _take_credit(self, peer: _Peer, frame: Credit, _size: int) -> None:
        self._theirs(peer, frame.actor).credit(frame)


def _answer(channel: Channel, actor: str, incarnation: int, request: int, message: Message) -> None:
    channel.send(Reply(actor, incarnation, request, message))


def _up(mailbox: Mailbox, incarnation: int) -> Up:
    return Up(
        mailbox.name, incarnation, data=mailbox.data_limit, size=mailbox.size_limit, control=mailbox.control_limit
    )
