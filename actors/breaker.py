"""The actor ``breaker``: one circuit an upstream, published to whoever forwards calls, fed by their outcomes.

What a circuit has become is in the journal before anyone is told. A journal that can't be read leaves every circuit
half-open; one that isn't there is the first start, and leaves them closed.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import attrs
import msgspec
import trio

from ipc.address import Address
from ipc.context import Context
from ipc.errors import ActorDown, MailboxFull
from ipc.mailbox import Delivery
from ipc.messages import (
    AuditEvent,
    BreakerSnapshot,
    BreakerSubscribe,
    Circuit,
    Describe,
    Description,
    Done,
    Drain,
    ListAnswer,
    ListAnswers,
    Message,
    Outcomes,
    ProbesInFlight,
    ResetBreaker,
    SettingsChanged,
)
from ipc.settings import Settings

from .alarm import Alarm
from .audit_ring import AuditRing
from .journal import Journal, boot_id, state_file
from .policy.catalogue import Catalogue, Key
from .policy.circuit import CircuitBreaker, CircuitRecord, CircuitRules, Transition

log = logging.getLogger("portcullis.breaker")

_MS = 1_000_000
_RETRY_NS = 100 * _MS
# Of list answers in one message: far below what a frame and a control lane hold.
_ANSWERS_BYTES = 2 << 20


@attrs.define
class Counters:
    opened: int = 0
    half_opened: int = 0
    closed: int = 0
    reports: int = 0
    unknown_upstreams: int = 0
    undelivered: int = 0
    journal_errors: int = 0


@attrs.define
class _Subscriber:
    address: Address
    incarnation: int
    stop: Callable[[], None]
    permits: dict[str, int] = attrs.field(factory=dict)  # by upstream: dealt to it and not withdrawn
    probes: dict[str, int] = attrs.field(factory=dict)  # by upstream: those in flight, as it said last
    wants: set[str] = attrs.field(factory=set)  # upstreams for which it had no permit
    greeted: bool = False  # the answer to its subscription is out: changes may follow
    owed: set[str] = attrs.field(factory=set)  # circuits that it could not be told of
    owed_answers: dict[Key, None] = attrs.field(factory=dict)  # and list answers


class Breaker:
    """The state and its publication; the trio part is in ``main``."""

    def __init__(self, context: Context, audit: AuditRing, now: int) -> None:
        settings = context.settings
        self.context = context
        self.audit = audit
        self.enabled = settings.circuitbreaker_enabled
        self.alarm = Alarm()
        self.counters = Counters()
        self._transitions: dict[str, dict[str, int]] = {}  # by upstream and new state
        self.draining = False
        # Only spreads probes over time.
        jitter = random.random
        rules = _rules(settings)
        self.circuits = {upstream.name: CircuitBreaker(upstream.name, rules, jitter) for upstream in settings.upstreams}
        self.catalogue = Catalogue(len(settings.upstreams))
        self._subscribers: dict[str, _Subscriber] = {}
        self._changed: set[str] = set()
        self._encode = msgspec.msgpack.Encoder().encode
        self._written: dict[str, CircuitRecord] = {name: c.remember() for name, c in self.circuits.items()}
        self._behind = False
        self._journal = self._restore(now)

    def _restore(self, now: int) -> Journal:
        path = state_file(self.context.settings.state_dir, "breaker.journal")
        journal, recovered = Journal.open(path, "breaker", boot=boot_id())
        decode = msgspec.msgpack.Decoder(CircuitRecord).decode
        for data in recovered.records:
            record = decode(data)
            if record.upstream in self.circuits and self.enabled:
                self.circuits[record.upstream].restore(record, now)
                self._written[record.upstream] = record
        if recovered.damaged and self.enabled:
            log.error("%s is not a journal of the breaker; all circuits are half-open", path)
            for circuit in self.circuits.values():
                self._publish(circuit.doubt())
        return journal

    # --- one turn

    def serve(self, batch: Iterable[Delivery]) -> None:
        now = time.monotonic_ns()
        answers = [(delivery, answer) for delivery in batch if (answer := self._take(delivery, now)) is not None]
        self._commit(now)
        for delivery, answer in answers:
            if delivery.wants_reply:
                delivery.reply(self._snapshot(answer.subscriber) if isinstance(answer, BreakerSubscribe) else answer)

    def tick(self) -> None:
        now = time.monotonic_ns()
        for name, subscriber in list(self._subscribers.items()):
            if subscriber.address.incarnation != subscriber.incarnation:
                self._leave(name)
        for circuit in self.circuits.values():
            self._publish(circuit.tick(now))
            due = circuit.deal_due_ns()
            if due is not None and now >= due:
                self._changed.add(circuit.upstream)
        self._commit(now)
        self.audit.flush()

    def _take(self, delivery: Delivery, now: int) -> Message | None:
        message = delivery.message
        if isinstance(message, Outcomes):
            self._outcomes(message, now)
        elif isinstance(message, ProbesInFlight):
            self._probes(message)
        elif isinstance(message, ListAnswers):
            self._learn(message)
        elif isinstance(message, BreakerSubscribe):
            self._subscribe(message.subscriber)
            return message  # answered when everything of this turn is known
        elif isinstance(message, ResetBreaker):
            return self._reset(message)
        elif isinstance(message, Describe):
            return Description(self.describe())
        elif isinstance(message, SettingsChanged):
            self.context.renew()
        elif isinstance(message, Drain):
            self.draining = True
        else:
            log.warning("unexpected %s from %s", type(message).__name__, delivery.sender)
        return None

    def _outcomes(self, message: Outcomes, now: int) -> None:
        self.counters.reports += 1
        for upstream, successes, deaths, silent, slow in message.rows:
            circuit = self.circuits.get(upstream)
            if circuit is None:
                self.counters.unknown_upstreams += 1
            elif self.enabled:
                self._publish(circuit.record(successes, deaths, silent, slow, now, message.source))

    def _probes(self, message: ProbesInFlight) -> None:
        subscriber = self._subscribers.get(message.subscriber)
        if subscriber is None:  # it will subscribe, and be dealt to
            return
        for upstream, in_flight, wants in message.rows:
            circuit = self.circuits.get(upstream)
            if circuit is None:
                continue
            subscriber.probes[upstream] = in_flight
            if circuit.state == "half_open" and wants:
                subscriber.wants.add(upstream)
                self._changed.add(upstream)

    def _reset(self, message: ResetBreaker) -> Done:
        circuit = self.circuits.get(message.upstream)
        if circuit is None:
            return Done(ok=False, detail="no such upstream")
        self._publish(circuit.reset())
        return Done(ok=True)

    def _publish(self, transitions: list[Transition]) -> None:
        for transition in transitions:
            self._changed.add(transition.upstream)
            passed = self._transitions.setdefault(transition.upstream, {})
            passed[transition.state] = passed.get(transition.state, 0) + 1
            opened = transition.state == "open"
            if opened:
                self.counters.opened += 1
            elif transition.state == "half_open":
                self.counters.half_opened += 1
            else:
                self.counters.closed += 1
            self.audit.record(
                AuditEvent(
                    event={"open": "breaker.opened", "half_open": "breaker.half_open", "closed": "breaker.closed"}[
                        transition.state
                    ],
                    severity="error" if opened else "info",
                    outcome="failure" if opened else "success",
                    time_ns=time.time_ns(),
                    upstream=transition.upstream,
                    reason=transition.why,
                    detail={"open_for_ms": transition.open_for_ms} if opened else {},
                )
            )

    # --- subscribers

    def _subscribe(self, name: str) -> None:
        if name in self._subscribers:
            self._leave(name)
        address = self.context.address(name)
        self._subscribers[name] = _Subscriber(
            address, address.incarnation, address.watch(lambda _incarnation: self.alarm.ring())
        )
        self._changed.update(circuit.upstream for circuit in self.circuits.values() if circuit.state == "half_open")

    def _leave(self, name: str) -> None:
        subscriber = self._subscribers.pop(name)
        subscriber.stop()
        self._changed.update(upstream for upstream, permits in subscriber.permits.items() if permits)

    def _snapshot(self, name: str) -> BreakerSnapshot:
        subscriber = self._subscribers[name]
        subscriber.greeted = True
        subscriber.owed.clear()
        subscriber.owed_answers = dict.fromkeys(self.catalogue.keys())
        return BreakerSnapshot([self._circuit(upstream, subscriber) for upstream in self.circuits])

    def _circuit(self, upstream: str, subscriber: _Subscriber) -> Circuit:
        circuit = self.circuits[upstream]
        if not self.enabled:
            return Circuit(upstream, "closed")
        return Circuit(upstream, circuit.state, circuit.retry_at_ns, subscriber.permits.get(upstream, 0))

    # --- writing down, then telling

    def _commit(self, now: int) -> None:
        self._write()
        changed, self._changed = self._changed, set()
        for upstream in changed:
            self._deal(upstream, now)
        for subscriber in self._subscribers.values():
            if subscriber.owed and subscriber.greeted:
                self._tell(subscriber)
            if subscriber.owed_answers and subscriber.greeted:
                self._tell_answers(subscriber, now)

    def _deal(self, upstream: str, now: int) -> None:
        known = self._subscribers
        in_flight = {name: subscriber.probes.get(upstream, 0) for name, subscriber in known.items()}
        wanting = [name for name, subscriber in known.items() if upstream in subscriber.wants]
        for name, count in self.circuits[upstream].deal(list(known), in_flight, wanting, now).items():
            known[name].permits[upstream] = count
            known[name].owed.add(upstream)
            known[name].wants.discard(upstream)

    def _tell(self, subscriber: _Subscriber) -> None:
        try:
            subscriber.address.control(
                BreakerSnapshot([self._circuit(upstream, subscriber) for upstream in sorted(subscriber.owed)])
            )
        except (ActorDown, MailboxFull):  # gone, which the next tick sees; or full, which passes
            self.counters.undelivered += 1
        else:
            subscriber.owed.clear()

    # --- list answers

    def _learn(self, message: ListAnswers) -> None:
        """Keep them, and owe what is new to everybody else."""
        for row in message.rows:
            if row.upstream not in self.circuits or not self.catalogue.learn(row):
                continue
            key = (row.upstream, row.method, row.cursor, row.era)
            for name, subscriber in self._subscribers.items():
                if name == message.source:
                    subscriber.owed_answers.pop(key, None)
                else:
                    subscriber.owed_answers[key] = None

    def _tell_answers(self, subscriber: _Subscriber, now: int) -> None:
        rows: list[ListAnswer] = []
        size = 0
        for key in subscriber.owed_answers:
            row = self.catalogue.row(key, whole=True, now=now)
            size += len(row.result)
            if rows and size > _ANSWERS_BYTES:
                break
            rows.append(row)
        try:
            subscriber.address.control(ListAnswers(self.context.name, rows))
        except (ActorDown, MailboxFull):
            self.counters.undelivered += 1
            return
        for row in rows:
            del subscriber.owed_answers[row.upstream, row.method, row.cursor, row.era]

    def _write(self) -> None:
        now_known = {name: circuit.remember() for name, circuit in self.circuits.items()}
        changed = [record for name, record in now_known.items() if record != self._written[name]]
        if not changed and not self._behind:
            return
        try:
            if self._behind or self._journal.is_grown:
                self._journal.rewrite(map(self._encode, now_known.values()))
            else:
                self._journal.append(map(self._encode, changed))
        except OSError as error:
            # A breaker that forgets in the next crash is better than none now.
            self.counters.journal_errors += 1
            if not self._behind:
                log.error("%s: %s; circuits are not remembered", self._journal.path, error)  # noqa: TRY400
            self._behind = True
        else:
            self._behind = False
        self._written = now_known

    # --- the rest

    def next_due_ns(self, now: int) -> int | None:
        due = [circuit.retry_at_ns for circuit in self.circuits.values() if circuit.state == "open"]
        due.extend(at for circuit in self.circuits.values() if (at := circuit.deal_due_ns()) is not None)
        if (flush := self.audit.next_due_ns) is not None:
            due.append(flush)
        if self._behind or any(
            (known.owed or known.owed_answers) and known.greeted for known in self._subscribers.values()
        ):
            due.append(now + _RETRY_NS)
        return max(min(due), now + _MS) if due else None

    def describe(self) -> bytes:
        return msgspec.json.encode(
            {
                **attrs.asdict(self.counters),
                "enabled": self.enabled,
                "circuits": {
                    name: {
                        "state": circuit.state if self.enabled else "closed",
                        "openings": circuit.openings,
                        "transitions": self._transitions.get(name, {}),
                        "retry_at_ns": circuit.retry_at_ns,
                    }
                    for name, circuit in self.circuits.items()
                },
                "catalogue": self.catalogue.statistics(),
                "subscribers": sorted(self._subscribers),
                "audit": attrs.asdict(self.audit.statistics()),
            }
        )

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._journal.close)
            for subscriber in self._subscribers.values():
                stack.callback(subscriber.stop)


def _rules(settings: Settings) -> CircuitRules:
    return CircuitRules(
        failure_threshold=settings.circuitbreaker_failure_threshold,
        reset_timeout_ns=settings.circuitbreaker_reset_timeout * _MS,
        failure_rate=settings.circuitbreaker_failure_rate,
        minimum_calls=settings.circuitbreaker_minimum_calls,
        half_open_calls=settings.circuitbreaker_half_open_calls,
        successes_to_close=settings.circuitbreaker_successes_to_close,
    )


async def main(context: Context) -> None:
    """The actor ``breaker``."""
    ring = AuditRing.kept(
        context.keep, context.address("audit"), context.name, policy=context.settings.audit_on_full
    )
    breaker = Breaker(context, ring, time.monotonic_ns())

    async def tick_on() -> None:
        while True:
            breaker.alarm.at(breaker.next_due_ns(time.monotonic_ns()))
            await breaker.alarm.wait()
            breaker.tick()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick_on)
            context.ready()
            while not breaker.draining:
                breaker.serve(await context.mailbox.receive())
                ring.flush()
                breaker.alarm.at(breaker.next_due_ns(time.monotonic_ns()))
            await ring.settled()
            nursery.cancel_scope.cancel()
    finally:
        breaker.close()
