"""MAX_INFLIGHT_BYTES: what this worker's clients may make it hold, out of one pool for all workers.

A message of ``LARGE`` bytes and more holds a reservation from its first bytes until it has been forwarded or refused:
its declared length where it has one (a frame's, and the sum of those that have come of a message in fragments), in
steps of ``STEP`` as it grows where not (a TCP line). Smaller ones are covered by the standing part that each worker
holds for all of them together, so that they cost nothing here.

    unfinished (may be given up) → finished: parked, being validated → on its way to the bridge → gone

What an upstream's connection holds in this worker is counted as it stands; what the bridge worker holds, it counts
itself, from before it says that it has taken a message (``Taken``).

Who may take what is ``actors.policy.inflight``; the numbers of all workers are in ``ipc.ledger``. Everything here runs
in the hub's turn, and waits for nobody: a message that finds no room makes its connection wait, unread, and is tried
again at the next tick, or when something here is freed.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from actors.policy import inflight, jsonrpc
from actors.policy.client_ends import id_at_ends, id_at_head
from actors.policy.inflight import Share
from ipc.inflight import HELD, LARGE, WANT_BYTES, WANT_NS, YOUNGEST_NS, open_account
from ipc.ledger import Ledger

from .connection import RETRY_MS, Connection, Stage
from .lines import LineReader, Oversize
from .ws import WsReceiver

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

STEP: Final = 256 * 1024
STANDING: Final = 1 << 20  # for all the small messages of a worker
WAIT_NS: Final = 10_000_000_000  # of an unfinished message for room
TAKEN_NS: Final = 60_000_000_000  # a bridge that has not taken a message by now is not there any more


@attrs.define(slots=True, eq=False)
class Hold:
    """One message's reservation: ``size`` bytes since ``place_ns``, which is its place in line."""

    connection: Connection
    place_ns: int
    size: int = 0
    wants: int = 0  # bytes more that it waits for; 0: it doesn't
    since_ns: int = 0  # when it began to wait


class Inflight:
    """See the module. Invariant: ``_sum`` is the sum of the sizes of all holds that have not been released."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        settings = hub.settings
        self._limit = settings.max_inflight_bytes
        self._ledger: Ledger = hub.context.keep.get("ledger") or open_account(hub.context.ledger)
        hub.context.keep["ledger"] = self._ledger
        # One message of the greatest size must always fit beside what all workers hold for the small ones.
        spare = max(0, self._limit - settings.max_request_size) // (2 * settings.workers)
        self._standing = min(STANDING, spare)
        self._sum = 0
        self._upstreams = 0  # bytes in this worker's own connections to upstreams
        self._unfinished: dict[int, Hold] = {}  # by session, oldest first
        self._waiting: dict[int, Hold] = {}  # those of them that want more
        self._taking: deque[tuple[int, int, int, Hold]] = deque()  # told to the bridge: session, bytes, when
        self._publish()

    # --- a message's way -------------------------------------------------------------------------------------

    def received(self, connection: Connection, codec: WsReceiver | LineReader[bytes]) -> None:
        """After each read: what the connection's unfinished message holds, or has declared, is reserved."""
        if connection.owes_refusal:
            self._tell(connection, codec.head)
        size = codec.declared
        if size < LARGE:
            return
        hold = connection.hold
        if hold is None:
            hold = connection.hold = Hold(connection, self._place())
            self._unfinished[connection.session] = hold
            self._publish()
        if size > hold.size:
            if isinstance(codec, LineReader):
                size = max(size, min(-(-size // STEP) * STEP, codec.max_line))
            self._reserve(hold, size - hold.size)

    def finished(self, connection: Connection, size: int) -> Hold:
        """The message is complete: from now on it is not given up. ``size`` is what it really has."""
        hold = connection.hold
        if hold is None:  # it grew large with its last read
            hold = Hold(connection, self._place())
        else:
            connection.hold = None
            self._unfinished.pop(connection.session, None)
            self._waiting.pop(connection.session, None)
            connection.starved = False
            hold.wants = 0
        self._resize(hold, size)
        return hold

    def forwarded(self, hold: Hold, *, elsewhere: bool) -> None:
        """Its route has taken the message: the bridge says when it has it; a connection of this worker counts it."""
        if elsewhere:
            self._taking.append((hold.connection.session, hold.size, self._hub.now, hold))
        else:
            self.look()
            self.release(hold)

    def taken(self, session: int, size: int) -> None:
        """The bridge holds, and counts, a message of that size now."""
        for entry in self._taking:
            if entry[:2] == (session, size):
                self._taking.remove(entry)
                self.release(entry[3])
                return

    def bridge_changed(self) -> None:
        """What was on its way to the old one is gone with it."""
        while self._taking:
            self.release(self._taking.popleft()[3])

    def release(self, hold: Hold) -> None:
        """The message is held no more."""
        self._resize(hold, 0)
        if self._waiting:
            self._settle()

    def forget(self, connection: Connection) -> None:
        """The connection takes no more messages: those that it holds are gone."""
        connection.owes_refusal = False
        if connection.hold is not None:
            self._drop(connection.hold)
        for index, item in enumerate(connection.parked):
            # The validator's copy is there until its verdict comes.
            if item.hold is not None and not (index == 0 and connection.parked_for == "validator"):
                self.release(item.hold)
        if self._waiting:
            self._settle()

    def recover(self, connection: Connection) -> None:
        """After a hub that crashed: reserve anew what the connection still holds."""
        connection.hold = None
        connection.starved = False
        if isinstance(connection.codec, WsReceiver | LineReader):
            self.received(connection, connection.codec)

    def discarded(self, connection: Connection, ends: Oversize) -> None:
        """A message that was given up has come to its end."""
        if connection.owes_refusal:
            connection.owes_refusal = False
            found = id_at_ends(ends.head, ends.tail)
            if found == b"null" and jsonrpc.has_no_id(ends.head, ends.tail or ends.head):
                self._hub.count("refused_503")
                self._hub.dispatch.unanswered(connection, None, "overloaded")
                return
            self._refuse(connection, found)

    # --- the clock -------------------------------------------------------------------------------------------

    def tick(self, now: int) -> None:
        """Whoever waits is tried again, here or in another worker; what waited too long is given up."""
        if self._upstreams:
            self.look()
        while self._taking and now - self._taking[0][2] > TAKEN_NS:
            self.release(self._taking.popleft()[3])
        if not self._waiting and not (self._unfinished and any(self._ledger.column(WANT_NS))):
            return
        for hold in [hold for hold in self._waiting.values() if now - hold.since_ns > WAIT_NS]:
            self._give_up(hold)
        self._settle()

    def look(self) -> None:
        """Count what this worker's own connections to upstreams hold."""
        held = self._hub.routes.pool.held_bytes()
        self._upstreams = held if held >= LARGE else 0
        self._publish()

    @property
    def held(self) -> int:
        """Bytes that this worker holds now, without the standing part."""
        return self._sum + self._upstreams

    # --- the pool --------------------------------------------------------------------------------------------

    def _place(self) -> int:
        """Now, but later than every message that came before."""
        last = next(reversed(self._unfinished.values())).place_ns if self._unfinished else 0
        return max(self._hub.now, last + 1)

    def _reserve(self, hold: Hold, size: int) -> None:
        if not self._waiting and self._take(hold, size):
            return
        if not hold.wants:
            hold.since_ns = self._hub.now
        hold.wants = size
        hold.connection.starved = True
        self._waiting[hold.connection.session] = hold
        self._publish()
        self._settle()

    def _take(self, hold: Hold, size: int) -> bool:
        """Write it down, then look whether there was room: of two that do so at once, one sees the other."""
        before = self._ledger.read(HELD)
        self._ledger.write(HELD, before + size)
        if not inflight.may_take(hold.place_ns, size, self._others(), before, self._limit) and not (
            self._ledger.bury()
            and inflight.may_take(hold.place_ns, size, self._others(), before, self._limit)
        ):
            self._ledger.write(HELD, before)
            return False
        hold.size += size
        self._sum += size
        return True

    def _settle(self) -> None:
        """Serve whom there is room for, oldest first; give up what has to be given up."""
        while True:
            while self._waiting:
                hold = min(self._waiting.values(), key=lambda hold: hold.place_ns)
                if not self._take(hold, hold.wants):
                    break
                del self._waiting[hold.connection.session]
                self._go_on(hold)
            if not self._unfinished:
                return
            own = self._publish()
            # Looked at twice: a row that changes while it is read may say what never was.
            if not all(
                inflight.must_yield(own, self._others(), self._limit, len(self._unfinished)) for _ in range(2)
            ):
                return
            if self._ledger.bury():
                continue
            self._give_up(next(reversed(self._unfinished.values())))

    def _go_on(self, hold: Hold) -> None:
        connection = hold.connection
        hold.wants = 0
        connection.starved = False
        self._publish()
        self._hub.dirty[connection.fd] = connection

    def _give_up(self, hold: Hold) -> None:
        """Refuse an unfinished message: its rest is read and thrown away, the connection goes on."""
        connection = hold.connection
        self._hub.count("overloaded")
        self._drop(hold)
        self._hub.step(connection, self._discard)

    def _drop(self, hold: Hold) -> None:
        """An unfinished message's reservation ends."""
        connection = hold.connection
        connection.hold = None
        connection.starved = False
        self._unfinished.pop(connection.session, None)
        self._waiting.pop(connection.session, None)
        self._resize(hold, 0)

    def _discard(self, connection: Connection) -> None:
        codec = connection.codec
        if connection.stage >= Stage.CLOSING or not isinstance(codec, WsReceiver | LineReader):
            return
        keys = connection.grant.limit_keys if connection.grant is not None else (connection.key,)
        self._hub.budget.charge(keys, self._hub.now)
        connection.owes_refusal = True
        self._tell(connection, codec.discard())
        self._hub.dirty[connection.fd] = connection

    def _tell(self, connection: Connection, head: bytes) -> None:
        """Refuse it as soon as its id is known."""
        found = id_at_head(head)
        if found is not None:
            connection.owes_refusal = False
            self._refuse(connection, found)

    def _refuse(self, connection: Connection, request_id: bytes) -> None:
        self._hub.count("refused_503")
        data: dict[str, object] = {"reason": "overloaded", "retryAfterMs": RETRY_MS}
        connection.send_message(jsonrpc.error_reply(request_id, 503, "too many bytes are held now", data))

    def _resize(self, hold: Hold, size: int) -> None:
        if size != hold.size:
            self._sum += size - hold.size
            hold.size = size
        self._publish()

    def _others(self) -> list[Share]:
        columns = [self._ledger.column(word) for word in (HELD, WANT_NS, WANT_BYTES, YOUNGEST_NS)]
        own = self._ledger.row
        return [Share(*row) for number, row in enumerate(zip(*columns, strict=True)) if number != own and any(row)]

    def _publish(self) -> Share:
        waiting = min(self._waiting.values(), key=lambda hold: hold.place_ns, default=None)
        youngest = next(reversed(self._unfinished.values())).place_ns if self._unfinished else 0
        own = Share(
            self._standing + self._sum + self._upstreams,
            waiting.place_ns if waiting is not None else 0,
            waiting.wants if waiting is not None else 0,
            youngest,
        )
        for word, value in zip((HELD, WANT_NS, WANT_BYTES, YOUNGEST_NS), own, strict=True):
            self._ledger.write(word, value)
        return own
