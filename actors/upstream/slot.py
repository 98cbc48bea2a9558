"""One slot of a pool: a place for one running instance, and the way from one run to the next.

A slot starts an instance when a message comes, lets messages wait until it is up, carries out what the multiplexer
says, and answers everything when the instance dies. What slots there are, and who may use them, is the pool's matter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

from actors.policy import eras
from actors.policy.mux import (
    CallLost,
    Counted,
    Effect,
    HandshakeFailed,
    LogLine,
    Mux,
    Negotiated,
    Outcome,
    ToClient,
    ToUpstream,
)
from actors.policy.silence import Silence
from ipc.messages import Envelope
from ipc.settings import Upstream

from .oversize import too_large_answer
from .quota import LogQuota

if TYPE_CHECKING:
    from .pool import Pool, UpstreamState

MILLISECOND = 1_000_000
SECOND = 1_000_000_000

MAX_BACKLOG = 1024  # messages of our own (cancellations, probes) for an upstream that doesn't read
START_TIMEOUT_NS = 60 * SECOND  # launchers such as npx download the server first
SETTLED_NS = 10 * SECOND  # up for so long: its next failure is a first one again
TICK_NS = 250 * MILLISECOND  # how often the multiplexers look at their own deadlines

OVERLOADED_RETRY_MS = 1000
CANCELLED = "notifications/cancelled"

# So much that is no message, and hardly one that is, within so long: what sends it is no server any more.
GARBAGE = 20_000
GARBAGE_NS = 2 * SECOND
_GARBAGE_TO_MESSAGES = 100

_CHECK_AT_LEAST_NS = SECOND  # a probe has so much time at least, however often probes are sent
_FALLBACK_VERSION = eras.LEGACY_VERSIONS[0]  # for servers that insist on the version after it

_NO_MESSAGE = Counted("garbage")

State = Literal["idle", "starting", "up", "down"]
Change = Literal["up", "down", "restarted"]


class Transport(Protocol):
    """An open way to one upstream."""

    def send(self, raw: bytes, about: Envelope | None = None) -> bool:
        """Take one message and frame it; ``about`` is what is known of a large one.

        False: its bounded buffer is full and nothing was taken.
        """

    def close(self) -> None:
        """End it. Returns at once; ``Instance.closed`` may follow or not."""

    @property
    def unsent(self) -> int:
        """Bytes that it has taken and that are not with the upstream yet."""


class PoolEvents(Protocol):
    """What a pool asks of its owner. None of these may raise, and only ``connect`` may call back into the pool."""

    def connect(self, upstream: Upstream, instance: Instance) -> None:
        """Begin to open a transport: ``instance.opened`` or ``instance.failed`` follows, at once or later."""

    def deliver(self, session: Hashable, call: int, final: bool, raw: bytes) -> None:
        """Bytes for a client; ``call`` is 0 for what it did not ask for."""

    def failed(self, session: Hashable, call: int, code: int, reason: str, sent: bool, retry_after_ms: int) -> None:
        """No answer will come to this call. It may be called before ``forward`` returns."""

    def lost(self, session: Hashable, reason: str) -> None:
        """The session's state upstream is gone; the client has to begin anew."""

    def outcome(self, upstream: str, kind: str) -> None:
        """For the breaker: success, slow, silent or death."""

    def log(self, upstream: str, level: str, text: str) -> None:
        """``text`` is bounded and printable."""


class Instance:
    """One run of a slot, in the hands of whoever opened its transport. Calls after its end do nothing."""

    __slots__ = ("_slot", "pid", "transport")

    def __init__(self, slot: Slot) -> None:
        self._slot: Slot | None = slot
        self.transport: Transport | None = None
        self.pid = 0  # of a stdio server, for ``describe``

    def opened(self, transport: Transport, now: int) -> None:
        """The transport is open."""
        if self._slot is None:
            transport.close()
            return
        self.transport = transport
        self._slot.opened(now)

    def line(self, raw: bytes, now: int) -> None:
        """One message came, without its framing."""
        if self._slot is not None:
            self._slot.line(raw, now)

    def oversize(self, head: bytes, tail: bytes, length: int, now: int) -> None:
        """A message came that was too large to keep; these are its ends."""
        if self._slot is not None:
            self._slot.oversize(head, tail, length, now)

    def room(self) -> None:
        """``send`` may take messages again. (Without this call it is tried again at each tick.)"""
        if self._slot is not None:
            self._slot.work_off()

    def awaits(self, id_raw: bytes) -> bool:
        """Whether the request of that raw id still has to be answered."""
        return self._slot is not None and self._slot.mux.awaits(id_raw)

    def lost(
        self,
        id_raw: bytes,
        code: int,
        reason: str,
        now: int,
        *,
        sent: bool,
        outcome: Literal["", "success", "death"] = "",
        retry_after_ms: int = 0,
    ) -> None:
        """No answer will come to the request of that raw id, but the instance lives. See ``Mux.lost``."""
        if self._slot is not None:
            self._slot.lost(id_raw, code, reason, now, sent=sent, outcome=outcome, retry_after_ms=retry_after_ms)

    def struck(self, reason: str, now: int) -> None:
        """Something broke on the way to a server that can still be reached: one failure for the breaker."""
        if self._slot is not None:
            self._slot.struck(reason, now)

    def expired(self, reason: str, now: int) -> None:
        """The server has ended what it kept for us, and has to be greeted anew. It lives: no failure."""
        if self._slot is not None:
            self._slot.died(reason, now, refused=True)

    def closed(self, reason: str, now: int) -> None:
        """The transport is gone. ``reason`` is for clients and logs: no paths, no secrets."""
        if self._slot is not None:
            self._slot.died(reason, now)

    def failed(self, reason: str, now: int) -> None:
        """The transport could not be opened."""
        self.closed(reason, now)

    def release(self) -> None:
        """The pool wants no more of it."""
        self._slot = None
        if self.transport is not None:
            self.transport.close()
            self.transport = None


@attrs.frozen
class Waiting:
    """A message for an instance that isn't up yet."""

    session: Hashable
    call: int
    envelope: Envelope
    raw: bytes


@attrs.define
class Failures:
    """How often in a row something failed, and when it may be tried again."""

    streak: int = 0
    not_before_ns: int = 0

    def add(self, now: int, *, settled: bool, jitter: float) -> None:
        """At once after a first failure, then 100 ms, doubling up to 5 s, of which jitter takes up to half."""
        if settled:
            self.streak = 0
        full = 0 if self.streak == 0 else min(5 * SECOND, 100 * MILLISECOND << min(self.streak - 1, 16))
        self.not_before_ns = now + int(full * (1 - jitter / 2))
        self.streak += 1

    def wait_ms(self, now: int) -> int:
        return max(0, -((now - self.not_before_ns) // MILLISECOND))


class Slot:
    """See the module. All its methods are for the pool and for instances."""

    def __init__(self, pool: Pool, upstream: UpstreamState, key: str, mux: Mux, owner: Hashable | None) -> None:
        self.upstream = upstream
        self.key = key
        self.mux = mux
        self.state: State = "idle"
        self.instance: Instance | None = None
        self.restarts = 0
        self.last_used_ns = 0
        self.start_deadline_ns = 0
        self.failures = upstream.failures if owner is not None else Failures()
        self._pool = pool
        self._name = upstream.config.name
        self._owner = owner  # per-session: the session
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._backlog: deque[tuple[bytes, Envelope | None]] = deque()
        self._backlog_bytes = 0
        self._up_since_ns = 0
        self._was_up = False
        self._attached: set[Hashable] = set()  # sessions that the multiplexer knows
        self._negotiated = ""
        self._spoke = False  # this run has sent something
        self._works = False  # and it was a message
        self._told = False  # it has been told something by its client, other than initialize
        self._lines = 0  # of all runs, messages or not
        self._garbage = 0  # lines of the present window that are no messages
        self._garbage_since_ns = 0
        self._lines_before = 0  # the window
        self._quota = LogQuota()
        self._silence = Silence(pool.probe_ns(upstream.config))  # of a run that has sent none yet
        self._down_reason = "upstream down"
        self._heard_ns = 0  # when the latest message came
        self._checked_ns = 0  # when it was last probed because it was quiet
        self._silent_since_ns = 0
        self._silences = 0  # calls and checks since then
        self._silent = False  # it did not answer the latest probe, and has said nothing since

    # --- in --------------------------------------------------------------------------------------------------

    def take(self, message: Waiting, now: int) -> None:
        """A client's message. The pool has registered its call."""
        self.last_used_ns = now
        if self.state == "up":
            if self._backlog and (message.envelope.kind == "request" or self._backlog_full(message.raw)):
                self._pool.refuse(message, "overloaded", OVERLOADED_RETRY_MS)
                return
            self._forward(message, now)
            return
        if message.envelope.method == CANCELLED:
            self._drop_waiting(lambda held: held.session == message.session and held.call == message.call)
            return
        if self.state != "starting" and now < self.failures.not_before_ns:
            self._pool.refuse(message, self._down_reason, self.failures.wait_ms(now))
            return
        if self._waiting and self._waiting_bytes + len(message.raw) > self._pool.settings.max_buffer_size:
            self._pool.refuse(message, "overloaded", OVERLOADED_RETRY_MS)
            return
        self._waiting.append(message)
        self._waiting_bytes += len(message.raw)
        if self.state != "starting":
            self.start(now)

    def abandon(self, session: Hashable, call: int, reason: str, now: int) -> None:
        """Nobody waits for the call; the pool has forgotten it."""
        if self._waiting and self._drop_waiting(lambda held: held.session == session and held.call == call):
            connected = self.instance is not None and self.instance.transport is not None
            if reason == "timeout" and connected and not self._spoke:
                self._silence.begin(now)  # the handshake, which is unanswered too, is the probe
            return
        self._apply(self.mux.abandon(session, call, reason, now), now)

    def leave(self, session: Hashable, now: int) -> None:
        """The client has gone."""
        self._drop_waiting(lambda message: message.session == session)
        self.last_used_ns = now
        if session in self._attached:
            self._attached.discard(session)
            self._apply(self.mux.detach(session, now), now)
        if self._owner is not None:
            self.discard()

    def opened(self, now: int) -> None:
        self._apply(self.mux.start(now), now)
        if self.state == "starting" and self.mux.ready:
            self._came_up(now)

    def line(self, raw: bytes, now: int) -> None:
        self._lines += 1
        if not self._spoke:
            self._spoke = True
            self._silence.hear()
        self._heard(now)
        effects = self.mux.from_upstream(raw, now)
        garbled = bool(effects) and effects[-1] == _NO_MESSAGE
        if not garbled:
            self._works = True
        self._apply(effects, now)
        if garbled:
            self._garbled(now)
        if self._backlog:
            self.work_off()

    def _garbled(self, now: int) -> None:
        """A line was no message. End a run that sends little else, and a lot of it."""
        if now - self._garbage_since_ns >= GARBAGE_NS:
            self._garbage, self._garbage_since_ns, self._lines_before = 0, now, self._lines - 1
        self._garbage += 1
        if self._garbage >= GARBAGE and self.instance is not None:
            messages = self._lines - self._lines_before - self._garbage
            if messages * _GARBAGE_TO_MESSAGES <= self._garbage:
                self.died("it sends nothing but garbage", now)
            self._garbage_since_ns = 0

    def oversize(self, head: bytes, tail: bytes, length: int, now: int) -> None:
        """Fail the call that the message answers, if that can be told; the rest of the line is gone."""
        self._pool.count("oversize")
        answer = too_large_answer(head, tail, length)
        whose = "an answer" if answer is not None else "a message that answers nothing"
        self._log("warning", f"{whose} of {length} bytes was too large and is dropped", now)
        if answer is not None:
            self.line(answer, now)

    def lost(
        self,
        id_raw: bytes,
        code: int,
        reason: str,
        now: int,
        *,
        sent: bool,
        outcome: Literal["", "success", "death"],
        retry_after_ms: int,
    ) -> None:
        if outcome == "success":
            self._heard(now)
        self._apply(
            self.mux.lost(id_raw, code, reason, now, sent=sent, outcome=outcome, retry_after_ms=retry_after_ms), now
        )

    def struck(self, reason: str, now: int) -> None:
        self._log("warning", f"{self._label()}{reason}", now)
        self._report("death")

    def _log(self, level: str, text: str, now: int) -> None:
        """What the server makes us log, however much that is."""
        left_out = self._quota.admit(now)
        if left_out > 0:
            self._pool.events.log(self._name, level, f"[{left_out} left out]")
        if left_out >= 0:
            self._pool.events.log(self._name, level, text)

    @property
    def _is_its_clients(self) -> bool:
        """Whether what becomes of this run may be its only client's own doing."""
        return self._owner is not None and (self._works or self._told)

    def _report(self, kind: Literal["success", "slow", "silent", "death"]) -> None:
        """For the breaker, which is for all clients: what befalls a process that one client has for itself says
        nothing of the others', once it has come up."""
        if not self._is_its_clients or kind not in ("silent", "death"):
            self._pool.events.outcome(self._name, kind)

    def _heard(self, now: int) -> None:
        self._heard_ns = now
        self._silent = False
        self._silences = 0

    def work_off(self) -> None:
        """Send what the transport had refused."""
        while self._backlog and self.instance is not None and self.instance.transport is not None:
            raw, about = self._backlog[0]
            if not self.instance.transport.send(raw, about):
                return
            self._backlog.popleft()
            self._backlog_bytes -= len(raw)

    def tick(self, now: int) -> int:
        """Do what is due; when to come back."""
        if self.state == "down":
            if now < self.failures.not_before_ns:
                return self.failures.not_before_ns
            if self._attached:
                self.start(now)
            else:
                self.state = "idle"
        elif self.state == "starting":
            for _ in range(self._silence.expire(now)):
                self._report("silent")
            if now >= self.start_deadline_ns:
                self.died("not ready in time", now)
            elif self.instance is not None and self.instance.transport is not None:
                self._apply(self.mux.tick(now), now)
        elif self.state == "up":
            self.work_off()
            self._apply(self.mux.tick(now), now)
            if self._silent and self._is_stuck(now):
                # No failure for the breaker: it has been told of the silence.
                self.died("it does not answer", now, refused=True)
                return self.failures.not_before_ns
            check_at = self._check(now)
            if not self._backlog and not self.mux.in_flight:
                return min(now + SECOND, check_at) if check_at else now + SECOND
        return now + TICK_NS

    def _is_stuck(self, now: int) -> bool:
        """Whether a silent connection may be replaced by a new one: for as long as any call of it may take.

        A stdio server has no other way to it, HTTP has one for each message, and a session's own is not replaced. First
        the breaker hears of as many silences as it takes to open: a new connection begins with a handshake, and one
        that goes unanswered tells it nothing.
        """
        if self._silences < self._pool.settings.circuitbreaker_failure_threshold:
            return False
        if self.upstream.config.kind not in ("tcp", "ws") or self._owner is not None:
            return False
        longest = self._pool.settings.max_call_timeout_ms(self.upstream.config) * MILLISECOND
        return now - self._silent_since_ns >= longest

    def _check(self, now: int) -> int:
        """Probe it when it has been quiet for so long; when to look again, 0 when it isn't probed."""
        every = self._pool.check_every_ns
        if not every or self._owner is not None:
            return 0
        due = max(self._heard_ns, self._checked_ns, self._up_since_ns) + every
        if now < due:
            return due
        if self.mux.is_quiet():
            self._checked_ns = now
            self._apply(self.mux.check(now, max(every, _CHECK_AT_LEAST_NS)), now)
        return now + every

    # --- its runs ---------------------------------------------------------------------------------------------

    def start(self, now: int) -> None:
        """Begin a run. May come up, or fail, before this returns."""
        self.state = "starting"
        self._spoke = self._works = self._told = False
        self._silent = False
        self._silences = 0
        self._silence.forget()
        self.start_deadline_ns = now + START_TIMEOUT_NS
        self._pool.wake_at(now + TICK_NS)
        self.instance = Instance(self)
        self._pool.events.connect(self.upstream.config, self.instance)

    def died(self, reason: str, now: int, *, refused: bool = False) -> None:
        """The run is over, and not because the pool wanted it to be.

        ``refused``: the server lives, but won't serve clients of this version. That must not trip the breaker, which
        is for all of them.
        """
        before = self.state
        settled = before == "up" and now - self._up_since_ns >= SETTLED_NS
        self._release()
        if not self._is_its_clients:
            # Where each session has a process of its own, only a program that never works may delay the others' start:
            # otherwise one client could, by crashing its own.
            self.failures.add(now, settled=settled, jitter=self._pool.jitter())
        self._down_reason = f"upstream down: {reason}"
        self._pool.events.log(self._name, "warning", f"{self._label()}down: {reason}")
        if not refused:
            self._report("death")
        if before == "up" or not (self._was_up or refused):
            self._pool.changed(self._name, "down", reason)
        restart = self._was_up and self._owner is None and bool(self._attached)
        self.state = "down" if restart else "idle"
        self._pool.wake_at(self.failures.not_before_ns)
        self._apply(self.mux.closed(self._down_reason, now), now)
        self._fail_waiting(self._down_reason, now)
        if self._owner is not None:
            self.discard()
            self._pool.leave(self._owner, self, self._down_reason if self._was_up else "")

    def retire(self) -> None:
        """End a run that nobody uses."""
        self._release()
        self.state = "idle"
        # Nothing was in flight, and nobody is attached: what the multiplexer says now is nobody's business.
        self.mux = self._pool.make_mux(self.upstream.config, self.key, shared=True)
        self._was_up = False
        self._negotiated = ""

    def discard(self) -> None:
        """It will never run again."""
        self._release()
        self.state = "idle"
        self.upstream.slots.discard(self)

    def close(self, reason: str, now: int) -> None:
        """The gateway ends; what is in flight is answered."""
        self._release()
        self.state = "idle"
        self._apply(self.mux.closed(reason, now), now)
        self._fail_waiting(reason, now)

    def move_to(self, other: Slot, now: int) -> None:
        """This upstream has turned out to speak another version, for which there is a slot already."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        self.discard()
        self._pool.moved(self, other)
        for message in waiting:
            self._pool.readdress(message, other)
            other.take(message, now)

    def _came_up(self, now: int) -> None:
        self.state = "up"
        self._up_since_ns = now
        if self._was_up:
            self.restarts += 1
            self._pool.changed(self._name, "restarted", "")
        else:
            self._pool.changed(self._name, "up", "")
        self._was_up = True
        while self._waiting and self.state == "up":
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message.raw)
            self.take(message, now)

    def _release(self) -> None:
        instance, self.instance = self.instance, None
        self._backlog.clear()
        self._backlog_bytes = 0
        if instance is not None:
            instance.release()

    def _fail_waiting(self, reason: str, now: int) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        for message in waiting:
            self._pool.refuse(message, reason, self.failures.wait_ms(now))

    def _drop_waiting(self, unwanted: Callable[[Waiting], bool]) -> bool:
        before = len(self._waiting)
        self._waiting = deque(message for message in self._waiting if not unwanted(message))
        self._waiting_bytes = sum(len(message.raw) for message in self._waiting)
        return len(self._waiting) < before

    # --- effects ----------------------------------------------------------------------------------------------

    def _forward(self, message: Waiting, now: int) -> None:
        if message.session not in self._attached:
            self._attached.add(message.session)
            self._pool.joined(message.session, self)
            self._apply(self.mux.attach(message.session), now)
        if message.envelope.method != "initialize":
            self._told = True
        self._apply(self.mux.from_client(message.session, message.call, message.envelope, message.raw, now), now)

    def _apply(self, effects: list[Effect], now: int) -> None:
        for effect in effects:
            match effect:
                case ToUpstream(raw=raw, about=about):
                    self._send(raw, about)
                case ToClient(session=session, call=call, final=final, raw=raw):
                    if final and call:
                        self._pool.settle(session, call)
                    self._pool.events.deliver(session, call, final, raw)
                case CallLost(session=session, call=call, code=code, reason=reason, sent=sent, retry_after_ms=wait):
                    self._pool.settle(session, call)
                    wait = wait or (self.failures.wait_ms(now) if self.state != "up" else 0)
                    self._pool.events.failed(session, call, code, reason, sent, wait)
                case LogLine(level=level, text=text):
                    self._log(level, text, now)
                case Counted(what=what):
                    self._pool.count(what)
                case Outcome(kind=kind):
                    self._silences += kind == "silent"
                    if kind == "silent" and not self._silent:
                        self._silent = True
                        self._silent_since_ns = now
                        self._pool.events.log(self._name, "warning", f"{self._label()}does not answer")
                    self._report(kind)
                case Negotiated(version=version):
                    self._negotiate(version, now)
                case HandshakeFailed(reason=reason):
                    # The multiplexer answers what waits: ``initialize`` with the server's own error.
                    while self._waiting:
                        self._forward(self._waiting.popleft(), now)
                    self._waiting_bytes = 0
                    self.died(f"no handshake: {reason}", now, refused=True)

    def _send(self, raw: bytes, about: Envelope | None) -> None:
        instance = self.instance
        if instance is None or instance.transport is None:
            return  # the run has just ended, and what was in flight has been answered
        if self._backlog or not instance.transport.send(raw, about):
            if self._backlog and self._backlog_full(raw):
                self._pool.count("backlog full")
                return
            self._backlog.append((raw, about))
            self._backlog_bytes += len(raw)

    def _backlog_full(self, raw: bytes) -> bool:
        most = self._pool.settings.max_buffer_size
        return len(self._backlog) >= MAX_BACKLOG or self._backlog_bytes + len(raw) > most

    def held_bytes(self) -> int:
        """What it keeps of its clients' messages, until the upstream has them."""
        transport = self.instance.transport if self.instance is not None else None
        unsent = transport.unsent if transport is not None else 0
        return self._waiting_bytes + self._backlog_bytes + self.mux.held_bytes + unsent

    def _negotiate(self, version: str, now: int) -> None:
        told = self._negotiated if self._owner is None else self.key
        if (self._was_up or self._owner is not None) and version != told:
            # Its clients were told another version: they must begin anew.
            for session in self._attached | ({self._owner} if self._owner is not None else set()):
                self._pool.lose(session, "the server now speaks another protocol version")
        self._negotiated = version
        if version == eras.BATCHING_VERSION:
            fallback = self._pool.slot(self.upstream, _FALLBACK_VERSION) if self._owner is None else self
            if fallback is self:
                self.died(f"it speaks only protocol version {version}, which the gateway doesn't", now, refused=True)
            else:
                self.move_to(fallback, now)
            return
        if self._owner is None and version != self.key:
            there = self.upstream.keys.get(version)
            if there is not None and there is not self:
                self.move_to(there, now)
                return
            self.upstream.keys[version] = self
        self._came_up(now)

    def _label(self) -> str:
        return f"[{self.key}] " if self.key else ""

    def describe(self) -> dict[str, Any]:
        return {
            "key": self._negotiated or self.key,
            "state": self.state,
            "pid": self.instance.pid if self.instance is not None else 0,
            "sessions": len(self._attached),
            "in_flight": self.mux.in_flight + len(self._waiting),
            "restarts": self.restarts,
            "silent": self._silent,
        }
