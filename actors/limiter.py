"""The actor ``limiter``: the one truth of budgets and connection counts, handed out in leases.

Each turn takes all messages there are, decides them in order, writes the records of the decisions to the journal in
one append, and only then answers. So a crash at any instruction renews nobody's budget: what a client was told is
written, and what is written counts.

Connections are not in the journal, because the acceptors know theirs: nobody is admitted before every acceptor that
is up has told its own (Resync). Until then questions wait, each until its deadline.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import attrs
import msgspec
import trio

from ipc.address import Address
from ipc.context import Context
from ipc.errors import ActorDown, MailboxFull
from ipc.mailbox import Delivery
from ipc.messages import (
    Admit,
    Admitted,
    BlockClient,
    Describe,
    Description,
    Drain,
    Established,
    Evict,
    Exhausted,
    Lease,
    LeaseReport,
    LeaseRequest,
    ListBlocks,
    Message,
    Offences,
    Recall,
    Refused,
    Released,
    Resync,
    SettingsChanged,
    UnblockClient,
)
from ipc.settings import Settings

from .alarm import Alarm
from .block_store import FILE, BlockStore
from .blocking import Blocking
from .journal import Journal, boot_id, state_file
from .lease_book import UNMETERED
from .policy.blocks import Block
from .policy.connections import Connected, ConnectionLimits, ConnectionRate, Connections
from .policy.leases import Denied, Forfeited, Granted, LeasePolicy, Logged, Reported
from .policy.scoring import Forgiven, Offended, Scored
from .policy.shared_address import SharedAddress
from .policy.window import WindowRule
from .recalls import Recalls

log = logging.getLogger("portcullis.limiter")

_MS = 1_000_000
_MINUTE_NS = 60_000_000_000
# What an acceptor is given at a time when there is no limit.
_UNMETERED_UNITS = 1 << 20
_UNMETERED_NS = 60_000_000_000
# Questions that wait for Resync; more than the connections that all listeners may hold in their handshakes.
_MOST_PARKED = 4096
_PARKED_NS = 5_000_000_000  # for a question without a deadline
_SWEEP_NS = 1_000_000_000
_SWEEP_KEYS = 256
_RETRY_MS = 1000
# How long a newcomer waits for the one that makes room for it: far more than that takes, less than clients wait.
_ROOM_NS = 2_000_000_000
_BURST = 1  # its place among the window rules
# A limiter that comes back finds the channels to live acceptors still being joined. For so long one that isn't up
# yet is waited for, as if it were.
_JOINING_NS = 500_000_000

Record = Granted | Reported | Forfeited | Logged | Connected | Offended | Scored | Forgiven


@attrs.define
class Counters:
    admitted: int = 0
    refused_block: int = 0
    refused_limit: int = 0
    refused_rate: int = 0
    refused_unavailable: int = 0
    evicted: int = 0
    leases: int = 0
    units_granted: int = 0
    exhausted: int = 0
    recalled: int = 0
    reports: int = 0
    reports_unknown: int = 0
    acceptors_lost: int = 0
    journal_errors: int = 0
    journal_rewrites: int = 0
    journal_cut_bytes: int = 0


@attrs.define
class _Acceptor:
    address: Address
    incarnation: int = 0  # that runs now; 0: none does
    synced: int = 0  # the incarnation whose connections are known


@attrs.define
class _Newcomer:
    """Waits for ``leaving`` (acceptor, session) to go."""

    delivery: Delivery
    message: Admit
    until_ns: int
    leaving: tuple[str, int]


class Limiter:
    """The state and the decisions of one turn; the trio part is in ``main``."""

    def __init__(
        self, context: Context, journal_path: Path, now: int, store: BlockStore, kept: Iterable[Block]
    ) -> None:
        settings = context.settings
        self.context = context
        self.enabled = settings.rate_limit_enabled
        self.leases = LeasePolicy(_window_rules(settings))
        self.rate = ConnectionRate(WindowRule(settings.connection_rate_limit, _MINUTE_NS))
        self.connections = Connections(
            ConnectionLimits(
                settings.ws_max_connections, settings.tcp_max_connections, settings.max_connections_per_ip
            )
        )
        self.counters = Counters()
        self.alarm = Alarm()
        self.draining = False
        self._acceptors: dict[str, _Acceptor] = {}
        self._auth = _Acceptor(context.address("auth"))  # is told of blocks, too
        self._parked: deque[tuple[int, Delivery]] = deque()
        self._recalls = Recalls()
        self._newcomers: list[_Newcomer] = []  # in the order of their coming; each has one that leaves for it
        self._records: list[Record] = []
        self._answers: list[tuple[Delivery, Message]] = []
        self._encode = msgspec.msgpack.Encoder().encode
        self._behind = False  # the journal misses something that has been applied
        self._next_sweep = now + _SWEEP_NS
        self._joined_at = now
        self.blocking = Blocking(context, store, self._record, lambda: self.alarm.ring())
        self.shared = SharedAddress(expected=bool(settings.trusted_proxies) or settings.proxy_protocol != "off")
        self._journal = self._restore(journal_path, now)
        self.blocking.restore(kept)

    def _restore(self, path: Path, now: int) -> Journal:
        journal, recovered = Journal.open(path, "limiter", boot=boot_id())
        decode = msgspec.msgpack.Decoder(Record).decode
        for data in recovered.records:
            self._apply(decode(data))
        self.counters.journal_cut_bytes = recovered.cut
        if recovered.found:
            self._joined_at = now + _JOINING_NS
        if recovered.damaged:
            log.error("%s is not a journal of the limiter; budgets start anew", path)
        self.leases.table.sweep(now, len(self.leases.table))
        self.rate.table.sweep(now, len(self.rate.table))
        return journal

    def start(self) -> Callable[[], None]:
        """Watch the acceptors. Returns the way to stop it."""
        with ExitStack() as stack:
            for name in self.context.peers("acceptor"):
                stack.callback(self._watch(name))
            stack.callback(self._auth.address.watch(lambda _incarnation: self.alarm.ring()))
            self._stops = stack.pop_all()
        return self._stops.close

    def _watch(self, name: str) -> Callable[[], None]:
        self._acceptors[name] = _Acceptor(self.context.address(name))
        return self._acceptors[name].address.watch(functools.partial(self._changed, name))

    def _running(self, name: str) -> _Acceptor | None:
        """The acceptor of that name, None when it isn't up."""
        acceptor = self._acceptors.get(name)
        return acceptor if acceptor is not None and acceptor.incarnation else None

    def _changed(self, name: str, _incarnation: int) -> None:
        self._follow(name)
        self.alarm.ring()

    def _follow(self, name: str) -> None:
        """Take note of what the address says now; a callback may be older than that."""
        acceptor = self._acceptors[name]
        incarnation = acceptor.address.incarnation
        if incarnation == acceptor.incarnation:
            # Not up yet, as far as is known here: its leases stay until it is, or until they are overdue.
            return
        if acceptor.incarnation:
            self.counters.acceptors_lost += 1
        acceptor.incarnation = incarnation
        self.connections.gone(name)
        if incarnation:
            self.blocking.acceptor_up(name, acceptor.address)
        else:
            self.blocking.acceptor_down(name)
        self._record(self.leases.gone(name, incarnation, time.monotonic_ns()))

    def _follow_auth(self) -> None:
        incarnation = self._auth.address.incarnation
        if incarnation == self._auth.incarnation:
            return
        self._auth.incarnation = incarnation
        if incarnation:
            self.blocking.acceptor_up("auth", self._auth.address)
        else:
            self.blocking.acceptor_down("auth")

    # --- one turn

    def serve(self, batch: Iterable[Delivery]) -> None:
        """Decide everything, write it down, answer it."""
        now = time.monotonic_ns()
        for name in self._acceptors:  # their watches may not have been called yet
            self._follow(name)
        self._follow_auth()
        for delivery in batch:
            self._take(delivery, now)
        self._decide_recalled(now)
        self._recount(now)
        self._commit()
        self.blocking.flush()

    def tick(self) -> None:
        """What happens by the clock: overdue leases, parked questions, idle keys."""
        now = time.monotonic_ns()
        self._follow_auth()
        self._record(self.leases.overdue(now))
        self._decide_recalled(now)
        self._recount(now)
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_NS
            self.leases.table.sweep(now, _SWEEP_KEYS)
            self.rate.table.sweep(now, _SWEEP_KEYS)
            self.blocking.sweep(now)
        self._commit()
        self.blocking.flush()

    def _take(self, delivery: Delivery, now: int) -> None:
        message = delivery.message
        if isinstance(message, LeaseRequest):
            if not self._recall(delivery, message, now):
                self._answer(delivery, self._lease(message, now))
        elif isinstance(message, LeaseReport):
            self._report(message, now)
        elif isinstance(message, Admit):
            self._park(delivery, now)
        elif isinstance(message, Released):
            self.connections.release(message.acceptor, message.sessions)
        elif isinstance(message, Established):
            self.connections.settle(message.acceptor, message.sessions)
        elif isinstance(message, Resync):
            self._resync(message)
        elif isinstance(message, Offences | BlockClient | UnblockClient | ListBlocks):
            answer = self.blocking.take(delivery, now)
            if answer is not None:
                self._answer(delivery, answer)
        elif isinstance(message, Describe):
            self._answer(delivery, Description(self.describe()))
        elif isinstance(message, SettingsChanged):
            self.context.renew()
        elif isinstance(message, Drain):
            self.draining = True
        else:
            log.warning("unexpected %s from %s", type(message).__name__, delivery.sender)

    def _lease(self, message: LeaseRequest, now: int) -> Message:
        acceptor = self._running(message.acceptor)
        if acceptor is None or not message.keys:
            return self._unavailable()
        if not self.enabled:
            return Lease(UNMETERED, message.keys, _UNMETERED_UNITS, now + _UNMETERED_NS)
        granted = self.leases.request(
            message.acceptor, acceptor.incarnation, message.keys, message.want, now, message.least
        )
        if isinstance(granted, Denied):
            self.counters.exhausted += 1
            return Exhausted(message.keys, max(1, math.ceil((granted.retry_at_ns - now) / _MS)))
        self._record(granted)
        self.counters.leases += 1
        self.counters.units_granted += granted.units
        left, more_at, rule = self.leases.outlook(granted.keys, now)
        reset_ms = max(0, math.ceil((more_at - now) / _MS))
        return Lease(
            granted.lease, message.keys, granted.units, granted.until_ns, max(0, left), reset_ms, burst=rule == _BURST
        )

    def _recall(self, delivery: Delivery, message: LeaseRequest, now: int) -> bool:
        """Before anybody is refused: ask back what is held of that budget elsewhere. True: the answer waits."""
        if not self.enabled or self._recalls.is_full or self._running(message.acceptor) is None:
            return False
        if self.leases.has_units(message.keys, message.least, now):
            return False
        wanted: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for holder, keys, lease in self.leases.held_besides(message.acceptor, message.keys):
            wanted.setdefault((holder, keys), []).append(lease)
        asked: list[int] = []
        for (holder, keys), leases in wanted.items():
            acceptor = self._running(holder)
            if acceptor is None:
                continue
            try:
                acceptor.address.control(Recall(keys, leases))
            except (ActorDown, MailboxFull):  # what it holds counts as spent
                continue
            asked += leases
        if not asked:
            return False
        self.counters.recalled += len(asked)
        self._recalls.wait(delivery, asked, now)
        return True

    def _decide_recalled(self, now: int) -> None:
        for delivery in self._recalls.due(self.leases.is_open, now) if self._recalls else ():
            if isinstance(delivery.message, LeaseRequest):
                self._answer(delivery, self._lease(delivery.message, now))

    def _report(self, message: LeaseReport, now: int) -> None:
        self.counters.reports += 1
        if message.lease == UNMETERED:
            return
        record = self.leases.report(message.lease, message.used_at_ns, message.returned, message.closed, now)
        if record is None:
            self.counters.reports_unknown += 1
        else:
            self._record(record)

    # --- connections

    def _resync(self, message: Resync) -> None:
        acceptor = self._running(message.acceptor)
        if acceptor is not None:
            self.connections.resync(message.acceptor, message.connections)
            acceptor.synced = acceptor.incarnation

    def _park(self, delivery: Delivery, now: int) -> None:
        if len(self._parked) >= _MOST_PARKED:
            self._answer(delivery, self._unavailable())
        else:
            self._parked.append((delivery.deadline_ns or now + _PARKED_NS, delivery))

    def _recount(self, now: int) -> None:
        """Decide the parked questions if all that is alive is known."""
        if not self._parked and not self._newcomers:
            return
        if any(self._is_awaited(acceptor, now) for acceptor in self._acceptors.values()):
            late = [delivery for deadline_ns, delivery in self._parked if deadline_ns <= now]
            late += [newcomer.delivery for newcomer in self._newcomers if newcomer.until_ns <= now]
            self._parked = deque(entry for entry in self._parked if entry[0] > now)
            self._newcomers = [newcomer for newcomer in self._newcomers if newcomer.until_ns > now]
            for delivery in late:
                self._answer(delivery, self._unavailable())
            return
        newcomers, self._newcomers = self._newcomers, []
        for newcomer in newcomers:  # first: the places that become free are theirs
            self._seat(newcomer, now)
        while self._parked:
            _, delivery = self._parked.popleft()
            message = delivery.message
            if isinstance(message, Admit):
                answer = self._admit(delivery, message, now)
                if answer is not None:
                    self._answer(delivery, answer)

    def _is_awaited(self, acceptor: _Acceptor, now: int) -> bool:
        if acceptor.incarnation == 0:
            return now < self._joined_at
        return acceptor.synced != acceptor.incarnation

    def _admit(self, delivery: Delivery, message: Admit, now: int) -> Message | None:
        """None: it waits until somebody has made room for it."""
        acceptor = self._running(message.acceptor)
        if acceptor is None or acceptor.synced != acceptor.incarnation:
            return self._unavailable()
        placed = self.connections.is_known(message.acceptor, message.session)
        if placed and not (message.key and self.connections.is_nameless(message.acceptor, message.session)):
            return Admitted()  # asked again because an answer was lost
        if not message.trusted and self.blocking.refuses(message.key, exempt=message.exempt):
            self.counters.refused_block += 1
            return Refused("block")
        if message.key:  # otherwise it is asked again when the client behind the proxy is known
            retry_at = self.rate.retry_at(message.key, now)
            if retry_at > now:
                self.counters.refused_rate += 1
                return Refused("rate", max(1, math.ceil((retry_at - now) / _MS)))
            self._record(self.rate.connected(message.key, now))
        refusal = self._refusal(message)
        if not refusal:
            return self._place(message)
        return self._make_room(delivery, message, refusal, min(delivery.deadline_ns or now + _ROOM_NS, now + _ROOM_NS))

    def _refusal(self, message: Admit) -> str:
        if self.connections.is_known(message.acceptor, message.session):
            return self.connections.address_refusal(message.key)
        return self.connections.refusal(message.listener, message.key)

    def _make_room(self, delivery: Delivery, message: Admit, refusal: str, until_ns: int) -> Refused | None:
        """Have somebody leave who is not authenticated, for this one to take the place when it is free."""
        leaving = self.connections.evict(refusal, message.listener, message.key, time.monotonic_ns())
        acceptor = self._running(leaving[0]) if leaving is not None else None
        if leaving is not None and acceptor is not None:
            try:
                acceptor.address.control(Evict([leaving[1]]))
            except (ActorDown, MailboxFull):
                log.debug("%s can't be told to make room", leaving[0])
            else:
                self.counters.evicted += 1
                self._newcomers.append(_Newcomer(delivery, message, until_ns, leaving))
                return None
        self.counters.refused_limit += 1
        return Refused("limit", _RETRY_MS, refusal)

    def _seat(self, newcomer: _Newcomer, now: int) -> None:
        """Look again whether there is a place for who waits for one."""
        message = newcomer.message
        acceptor = self._running(message.acceptor)
        answer: Message | None
        if acceptor is None or acceptor.synced != acceptor.incarnation:
            answer = self._unavailable()
        elif not (refusal := self._refusal(message)):
            answer = self._place(message)
        elif now >= newcomer.until_ns:
            self.counters.refused_limit += 1
            answer = Refused("limit", _RETRY_MS, refusal)
        elif self.connections.is_leaving(*newcomer.leaving):
            self._newcomers.append(newcomer)
            return
        else:  # that one has authenticated in the last moment, or another took its place: somebody else, then
            answer = self._make_room(newcomer.delivery, message, refusal, newcomer.until_ns)
        if answer is not None:
            self._answer(newcomer.delivery, answer)

    def _place(self, message: Admit) -> Admitted:
        self.connections.add(message.acceptor, message.session, message.listener, message.key, message.ripe_ns)
        self.counters.admitted += 1
        if message.key and self.shared.admitted(message.key):
            log.warning(
                "all connections come from %s: if that is a proxy, name it in TRUSTED_PROXIES, or a block of one of "
                "its clients is a block of all",
                message.key.removeprefix("ip:"),
            )
        return Admitted()

    def _unavailable(self) -> Refused:
        self.counters.refused_unavailable += 1
        return Refused("unavailable", _RETRY_MS)

    # --- writing down, then answering

    def _answer(self, delivery: Delivery, answer: Message) -> None:
        self._answers.append((delivery, answer))

    def _record(self, record: Record | None) -> None:
        if record is not None:
            self._apply(record)
            self._records.append(record)

    def _apply(self, record: Record) -> None:
        if isinstance(record, Connected):
            self.rate.apply(record)
        elif isinstance(record, Offended | Scored | Forgiven):
            self.blocking.scoring.apply(record)
        else:
            self.leases.apply(record)

    def _commit(self) -> None:
        records, self._records = self._records, []
        answers, self._answers = self._answers, []
        try:
            self._write(records)
        except OSError as error:
            self.counters.journal_errors += 1
            if not self._behind:
                log.error("%s: %s; no budget is granted until it can be written", self._journal.path, error)  # noqa: TRY400
            self._behind = True
            answers = [(delivery, self._take_back(delivery, answer)) for delivery, answer in answers]
        for delivery, answer in answers:
            if delivery.wants_reply:
                delivery.reply(answer)

    def _write(self, records: list[Record]) -> None:
        if self._behind or self._journal.is_grown:
            # The state already holds these records.
            now = time.monotonic_ns()
            state = (*self.leases.snapshot(now), *self.rate.snapshot(now), *self.blocking.scoring.snapshot())
            self._journal.rewrite(map(self._encode, state))
            self._behind = False
            self.counters.journal_rewrites += 1
        elif records:
            self._journal.append(map(self._encode, records))

    def _take_back(self, delivery: Delivery, answer: Message) -> Message:
        """What could not be written was not granted."""
        if isinstance(answer, Lease) and answer.lease != UNMETERED:
            self.leases.apply(Reported(answer.lease, [], answer.units, True, time.monotonic_ns()))
            return self._unavailable()
        message = delivery.message
        if isinstance(answer, Admitted) and isinstance(message, Admit):
            self.connections.release(message.acceptor, (message.session,))
            return self._unavailable()
        return answer

    # --- the rest

    @property
    def next_due_ns(self) -> int:
        due = [self._next_sweep]
        if (self._parked or self._newcomers) and time.monotonic_ns() < self._joined_at:
            due.append(self._joined_at)
        if (recalled := self._recalls.next_due_ns) is not None:
            due.append(recalled)
        if (overdue := self.leases.next_overdue_ns) is not None:
            due.append(overdue)
        if (telling := self.blocking.next_due_ns) is not None:
            due.append(telling)
        due.extend(deadline_ns for deadline_ns, _ in self._parked)
        due.extend(newcomer.until_ns for newcomer in self._newcomers)
        return min(due)

    def describe(self) -> bytes:
        return msgspec.json.encode(
            {
                **attrs.asdict(self.counters),
                "enabled": self.enabled,
                "keys": len(self.leases.table),
                "leases_outstanding": self.leases.leases,
                "units_forfeited": self.leases.units_forfeited,
                "units_overspent": self.leases.units_overspent,
                "connections": {"ws": self.connections.totals["ws"], "tcp": self.connections.totals["tcp"]},
                "connection_keys": self.connections.keys,
                "rate_keys": len(self.rate.table),
                "parked": len(self._parked),
                "acceptors": {
                    name: {"incarnation": acceptor.incarnation, "synced": acceptor.synced == acceptor.incarnation}
                    for name, acceptor in self._acceptors.items()
                },
                "journal_bytes": self._journal.size,
                **self.blocking.describe(),
            }
        )

    def close(self) -> None:
        """Questions that still wait are answered; the journal is closed."""
        while self._parked:
            _, delivery = self._parked.popleft()
            self._answer(delivery, self._unavailable())
        for delivery in self._recalls.clear():
            self._answer(delivery, self._unavailable())
        for newcomer in self._newcomers:
            self._answer(newcomer.delivery, self._unavailable())
        self.blocking.close()
        self._commit()
        self._journal.close()

    def commit_blocks(self) -> None:
        """Blocks are on disk now, or could not be written: note what follows."""
        self._commit()


def _window_rules(settings: Settings) -> tuple[WindowRule, ...]:
    return (
        WindowRule(settings.rate_limit_max_requests, settings.rate_limit_window_ms * _MS),
        WindowRule(settings.rate_limit_burst_requests, settings.rate_limit_burst_window_ms * _MS),
    )


async def main(context: Context) -> None:
    """The actor ``limiter``."""
    state_dir = context.settings.state_dir
    store = await trio.to_thread.run_sync(BlockStore, state_file(state_dir, FILE))
    kept = await trio.to_thread.run_sync(store.load)
    limiter = Limiter(context, state_file(state_dir, "limiter.journal"), time.monotonic_ns(), store, kept)
    stop = limiter.start()

    async def tick_on() -> None:
        while True:
            limiter.alarm.at(limiter.next_due_ns)
            await limiter.alarm.wait()
            limiter.tick()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick_on)
            nursery.start_soon(limiter.blocking.write_on, limiter.commit_blocks)
            context.ready()
            while not limiter.draining:
                limiter.serve(await context.mailbox.receive())
                limiter.alarm.at(limiter.next_due_ns)
            await limiter.blocking.audit.settled()
            nursery.cancel_scope.cancel()
    finally:
        stop()
        limiter.close()
