"""What happens to a message: from the codec through the checks to its upstream, and its answer back.

    bytes → codec → parse → grant → budget → breaker → forward ⇢ deliver → bytes

A message that has to wait for something (budget, room at its upstream, the validator of large messages, a policy
actor's answer) is parked at the head of its connection's queue, and the later ones behind it, so that a connection's
messages keep their order; other connections go on.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from actors.policy import eras, jsonrpc, pipeline
from actors.policy.jsonrpc import Refusal
from ipc.address import Reply
from ipc.errors import ActorDown, MailboxFull
from ipc.messages import Envelope, Exhausted, Lease, Refused

from .connection import Call, Connection, Item, Stage
from .large import LARGE_BYTES
from .lines import LineReader, LineTooLong
from .ws import Close, Ping, Pong, WsProtocolError, WsReceiver, encode_close, encode_pong

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

BUDGET_WAIT_NS: Final = 250_000_000  # how long a message may wait for the limiter
ROOM_WAIT_NS: Final = 5_000_000_000  # and for an upstream that doesn't read
MAX_PARKED: Final = 4096  # decoded messages that may wait in one connection; what they hold is bounded by its codec
STRANGERS: Final = 8  # messages before authentication that may not be sent then, until the connection is closed
RETRY_MS: Final = 1000
_ANSWERED_BEFORE_LOGIN: Final = frozenset({"initialize", "server/discover", "ping"})


class _Authenticate(msgspec.Struct):
    token: str
    server: str = ""


class _Login(msgspec.Struct):
    params: _Authenticate


class _Initialized(msgspec.Struct):
    protocolVersion: str = ""  # noqa: N815 - the protocol's own name


class _InitializeAnswer(msgspec.Struct):
    result: _Initialized | msgspec.UnsetType = msgspec.UNSET


_login_decoder = msgspec.json.Decoder(_Login)
_initialize_decoder = msgspec.json.Decoder(_InitializeAnswer)


class Dispatch:
    """The part of the hub that deals with messages. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.settings = hub.settings
        self.leases = hub.leases
        self.waiting: dict[tuple[str, ...], list[Connection]] = {}  # for budget, by the keys that are charged
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # --- bytes in --------------------------------------------------------------------------------------------

    def received(self, connection: Connection, data: bytes, now: int) -> None:
        """Bytes of a WebSocket or TCP client."""
        codec = connection.codec
        items: Sequence[bytes | Ping | Pong | Close]
        if isinstance(codec, WsReceiver):
            before = codec.frames
            try:
                items = codec.receive(data)
            except WsProtocolError as error:
                self._items(connection, error.items, now)
                self.hub.event(
                    connection, "message.invalid", severity="warning", outcome="refused", reason=error.reason[:100]
                )
                self.hub.close(connection, error.code, error.reason)
                return
            if self._floods(connection, codec.frames - before, now):
                return
        else:
            assert isinstance(codec, LineReader)  # noqa: S101 - what transport "tcp" means
            before = codec.empty
            try:
                items = codec.receive(data)
            except LineTooLong as error:
                self._items(connection, error.items, now)
                self._too_long(connection)
                return
            if self._floods(connection, codec.empty - before, now):
                return
        if items:
            self._items(connection, items, now)

    def _items(self, connection: Connection, items: Sequence[bytes | Ping | Pong | Close], now: int) -> None:
        for item in items:
            if connection.stage >= Stage.CLOSING:
                return
            if isinstance(item, bytes):
                connection.messages_in += 1
                connection.last_message_ns = now
                self._message(connection, item, now)
            elif isinstance(item, Ping):
                connection.write(encode_pong(item.payload))
            elif isinstance(item, Close):
                if not connection.close_sent:
                    connection.close_sent = True
                    connection.write(encode_close(item.code if item.code is not None else 1000))
                self.hub.finish(connection, "closed")

    def _floods(self, connection: Connection, frames: int, now: int) -> bool:
        """Meter frames, pings, fragments and empty lines: each costs us far more than its few bytes cost the sender.

        Lines that hold a message are metered by the budget alone.
        """
        if now - connection.second_ns >= 1_000_000_000:
            connection.second_ns = now
            connection.second_frames = 0
        connection.second_frames += frames
        if connection.second_frames <= self.settings.max_frame_rate:
            return False
        self.hub.event(connection, "message.invalid", severity="warning", outcome="refused", reason="frame rate")
        if connection.transport == "tcp":
            connection.send_message(jsonrpc.error_reply(b"null", 429, "too many messages", {"retryAfterMs": 1000}))
        self.hub.close(connection, 1008, "too many frames a second")
        return True

    def _too_long(self, connection: Connection) -> None:
        self.hub.event(connection, "message.invalid", severity="warning", outcome="refused", reason="too large")
        codec = connection.codec
        limit = codec.max_line if isinstance(codec, LineReader) else 0
        connection.send_message(jsonrpc.error_reply(b"null", 413, "message too large", {"limit": limit}))
        self.hub.close(connection, 1009, "message too large")

    def _message(self, connection: Connection, raw: bytes, now: int) -> None:
        item = Item(raw, pipeline.SIZE)
        if connection.parked or connection.waiting_for:
            if len(connection.parked) >= MAX_PARKED:
                self._parse_small(item)
                self._refuse(connection, item, 503, "too many messages wait", _unavailable("overloaded"))
                return
            connection.parked.append(item)
        elif not self._process(connection, item, now):
            connection.parked.append(item)

    def resume(self, connection: Connection) -> None:
        """Go on with what is parked, until something has to wait again."""
        now = self.hub.now
        parked = connection.parked
        while parked and connection.stage < Stage.CLOSING and not connection.waiting_for:
            if not self._process(connection, parked[0], now):
                break
            parked.popleft()
        else:
            connection.parked_for = ""
        self.hub.dirty[connection.fd] = connection
        if connection.eof and connection.stage < Stage.CLOSING:
            self.ended(connection, now)

    # --- the checks ------------------------------------------------------------------------------------------

    def _process(self, connection: Connection, item: Item, now: int) -> bool:
        """Take one message through the checks. False: it waits, and must be tried again from where it stands."""
        if item.envelope is None and item.refusal is None and not self._parse(connection, item, now):
            return False
        envelope = item.envelope
        if connection.stage is Stage.LOGIN:
            self._before_login(connection, item)
            return True
        if connection.grant is None or self.hub.entry.expired(connection):
            self.hub.event(connection, "session.expired", severity="warning", outcome="refused")
            self.hub.close(connection, 3000, "the credential has expired")
            return True
        item.stamps |= pipeline.PRINCIPAL
        if envelope is not None and envelope.method == "authenticate" and envelope.kind == "request":
            self._login(connection, item, envelope)
            return True
        if not item.stamps & pipeline.RATE:
            if self.leases.take(connection.grant.limit_keys, now):
                item.stamps |= pipeline.RATE
            else:
                return self._wait_for_budget(connection, item, now)
        if envelope is None:
            self._invalid(connection, item)
            return True
        if envelope.kind == "request":
            return self._request(connection, item, envelope, now)
        return self._oneway(connection, item, envelope, now)

    def _parse(self, connection: Connection, item: Item, now: int) -> bool:
        if len(item.raw) >= LARGE_BYTES and connection.stage is Stage.OPEN:
            if connection.parked_for != "validator":
                connection.parked_for = "validator"
                self.hub.large.validate(connection, item, now)
            return item.envelope is not None or item.refusal is not None
        try:
            item.envelope = jsonrpc.parse_client(item.raw, max_depth=self.settings.max_json_depth)
            item.stamps |= pipeline.ENVELOPE
        except Refusal as refusal:
            item.refusal = refusal
        return True

    def validated(self, connection: Connection, item: Item) -> None:
        """The validator's verdict on a large message has been put into ``item``."""
        if item.envelope is not None:
            item.stamps |= pipeline.ENVELOPE
        connection.parked_for = ""
        self.resume(connection)

    def _invalid(self, connection: Connection, item: Item) -> None:
        refusal = item.refusal
        assert refusal is not None  # noqa: S101 - an item has an envelope or a refusal
        content = refusal.code == 422
        self.hub.event(
            connection,
            "content.refused" if content else "message.invalid",
            severity="warning",
            outcome="refused",
            rule=refusal.rule,
            reason=refusal.message,
            detail={"code": refusal.code},
        )
        self.count("invalid")
        if not refusal.notification:
            connection.send_message(jsonrpc.error_reply(refusal.id, refusal.code, refusal.message, refusal.data))

    def _refuse(
        self, connection: Connection, item: Item, code: int, message: str, data: dict[str, object] | None = None
    ) -> None:
        """Answer a message that may not pass; a notification or a response gets no answer."""
        self.count(f"refused_{code}")
        envelope, refusal = item.envelope, item.refusal
        if envelope is not None:
            if envelope.kind == "request":
                connection.send_message(jsonrpc.error_reply(envelope.id, code, message, data))
        elif refusal is not None and not refusal.notification:
            connection.send_message(jsonrpc.error_reply(refusal.id, code, message, data))
        elif refusal is None:
            connection.send_message(jsonrpc.error_reply(b"null", code, message, data))

    # --- before authentication -------------------------------------------------------------------------------

    def _before_login(self, connection: Connection, item: Item) -> None:
        envelope = item.envelope
        if envelope is None:
            self._invalid(connection, item)
            self._stranger(connection)
            return
        if envelope.kind == "request":
            if envelope.method == "authenticate":
                self._login(connection, item, envelope)
            elif envelope.method in _ANSWERED_BEFORE_LOGIN:
                self._introduce(connection, envelope)
            else:
                connection.send_message(jsonrpc.error_reply(envelope.id, 401, "authenticate first"))
                self._stranger(connection)
        elif not (envelope.kind == "notification" and envelope.method == "notifications/initialized"):
            self._stranger(connection)

    def _stranger(self, connection: Connection) -> None:
        """Once may be a mistake; a connection that goes on is noted, and closed in the end."""
        connection.strangers += 1
        if connection.strangers == 2:
            self.hub.event(connection, "auth.failed", severity="warning", outcome="refused", reason="not authenticated")
        if connection.strangers >= STRANGERS:
            self.hub.close(connection, 3000, "not authenticated")

    def _introduce(self, connection: Connection, envelope: Envelope) -> None:
        """The gateway's own minimal answers: they say nothing of the servers behind it."""
        if envelope.method == "ping":
            result: dict[str, object] = {}
        elif envelope.method == "initialize":
            connection.early_version = eras.legacy_version(envelope.version)
            result = eras.own_initialize_result(connection.early_version)
        else:
            result = eras.own_discover_result()
        connection.send_message(jsonrpc.result_reply(envelope.id, result))

    def _login(self, connection: Connection, item: Item, envelope: Envelope) -> None:
        try:
            params = _login_decoder.decode(item.raw).params
        except msgspec.DecodeError:
            connection.send_message(jsonrpc.error_reply(envelope.id, -32602, "params must hold a token"))
            self._stranger(connection)
            return
        self.hub.entry.login(connection, envelope.id, params.token, params.server)

    # --- budget ----------------------------------------------------------------------------------------------

    def _wait_for_budget(self, connection: Connection, item: Item, now: int) -> bool:
        assert connection.grant is not None  # noqa: S101 - checked before
        keys = connection.grant.limit_keys
        over_ms = self.leases.retry_after_ms(keys, now)
        if over_ms:
            self._over_limit(connection, item, over_ms)
            return True
        if connection.parked_for != "budget":
            connection.parked_for = "budget"
            self.waiting.setdefault(keys, []).append(connection)
        self._ask_lease(keys, now)
        return False

    def _ask_lease(self, keys: tuple[str, ...], now: int) -> None:
        parked = sum(len(connection.parked) or 1 for connection in self.waiting[keys])
        request = self.leases.want(keys, now, parked)
        if request is None:
            return  # one is under way

        def answered(reply: Reply) -> None:
            self.hub.post(functools.partial(self._leased, keys, reply))

        self.report(now)  # first, so that the limiter answers from what really happened
        self.hub.limiter.request(request, now + BUDGET_WAIT_NS, answered)

    def report(self, now: int) -> None:
        """Account to the limiter for the units that were spent, and return those that were not."""
        reports = self.leases.due_reports(now)
        for index, report in enumerate(reports):
            try:
                self.hub.limiter.control(report)
            except (ActorDown, MailboxFull):
                self.leases.unsent(reports[index:])  # the units stay spent until its next incarnation hears of them
                return

    def _leased(self, keys: tuple[str, ...], reply: Reply) -> None:
        now = self.hub.now
        if isinstance(reply, Lease):
            self.leases.granted(reply, now)
        elif isinstance(reply, Exhausted):
            self.leases.exhausted(reply, now)
        else:
            self.leases.unanswered(keys, now)
        waiting = self.waiting.pop(keys, [])
        for connection in waiting:
            if connection.stage >= Stage.CLOSING or connection.parked_for != "budget":
                continue
            connection.parked_for = ""
            if isinstance(reply, Lease | Exhausted):
                self.hub.step(connection, self.resume)
            else:
                self.hub.step(connection, self._without_limiter)

    def _without_limiter(self, connection: Connection) -> None:
        """No answer from the limiter in time: nothing passes unchecked."""
        parked, connection.parked = list(connection.parked), type(connection.parked)()
        for item in parked:
            self._refuse(connection, item, 503, "limits can't be checked now", _unavailable("policy actor down"))
        self.resume(connection)

    def _over_limit(self, connection: Connection, item: Item, wait_ms: int) -> None:
        self.hub.event(connection, "rate.limited", severity="warning", outcome="refused", reason="rate")
        self._refuse(connection, item, 429, "rate limit exceeded", {"retryAfterMs": wait_ms})

    # --- forwarding ------------------------------------------------------------------------------------------

    def _request(self, connection: Connection, item: Item, envelope: Envelope, now: int) -> bool:
        hub = self.hub
        if hub.draining_until_ns:
            self._refuse(connection, item, 503, "the gateway is shutting down", _unavailable("draining"))
            return True
        if envelope.id in connection.ids:
            self._refuse(connection, item, -32600, "a request with this id is in flight")
            return True
        if hub.audit.full:
            self._refuse(connection, item, 503, "the audit log takes no more", _unavailable("audit"))
            return True
        route = connection.route
        assert route is not None  # noqa: S101 - set when the connection was opened
        retry_ms = route.refused_for(now)
        if retry_ms:
            data: dict[str, object] = {"reason": "breaker open", "retryAfterMs": retry_ms}
            self._refuse(connection, item, 503, "the server is not available", data)
            return True
        item.stamps |= pipeline.CIRCUIT
        pipeline.require(item.stamps)
        number = hub.estate.next_call
        if not route.forward(connection.session, number, envelope, item.raw, now):
            return self._wait_for_room(connection, now)
        hub.estate.next_call = number + 1
        call = Call(
            number=number,
            id=envelope.id,
            method=envelope.method,
            name=envelope.name,
            started_ns=now,
            deadline_ns=0 if eras.is_open_ended(envelope.method) else now + route.timeout_ns,
            limit_ns=now + route.max_timeout_ns,
            size=len(item.raw),
        )
        connection.add_call(call)
        connection.forwarded = True
        if call.deadline_ns:
            hub.wheel.add(call.deadline_ns, functools.partial(self._call_due, connection, number))
        return True

    def _oneway(self, connection: Connection, item: Item, envelope: Envelope, now: int) -> bool:
        """A notification, or a response to a request of the server's own."""
        route = connection.route
        assert route is not None  # noqa: S101 - set when the connection was opened
        if self.hub.draining_until_ns or route.refused_for(now):
            self.count("dropped_oneway")
            return True
        item.stamps |= pipeline.CIRCUIT
        number = 0
        if envelope.method == "notifications/cancelled":
            found = connection.ids.get(envelope.target)
            if found is None:  # answered meanwhile, or never one of its own
                self.count("cancelled_unknown")
                return True
            number = found
        pipeline.require(item.stamps)
        if not route.forward(connection.session, number, envelope, item.raw, now):
            return self._wait_for_room(connection, now)
        connection.forwarded = True
        if number:
            call = connection.end_call(number)
            if call is not None:
                self._completed(connection, call, "cancelled", 0)
        return True

    def _wait_for_room(self, connection: Connection, now: int) -> bool:
        if connection.parked_for != "room":
            connection.parked_for = "room"
            connection.parked_since_ns = now
            self.hub.wheel.add(now + ROOM_WAIT_NS, functools.partial(self._no_room, connection))
            assert connection.route is not None  # noqa: S101 - it has just been tried
            connection.route.on_room(functools.partial(self._room, connection))
        return False

    def _room(self, connection: Connection) -> None:
        def again() -> None:
            if connection.parked_for == "room" and connection.stage < Stage.CLOSING:
                connection.parked_for = ""
                self.hub.step(connection, self.resume)

        self.hub.post(again)

    def _no_room(self, connection: Connection, now: int) -> None:
        if connection.parked_for == "room" and now - connection.parked_since_ns >= ROOM_WAIT_NS and connection.parked:
            connection.parked_for = ""
            item = connection.parked.popleft()
            self.hub.step(connection, self._overloaded, item)

    def _overloaded(self, connection: Connection, item: Item) -> None:
        self._refuse(connection, item, 503, "the server is down or does not keep up", _unavailable("overloaded"))
        self.resume(connection)

    def _call_due(self, connection: Connection, number: int, now: int) -> None:
        call = connection.calls.get(number)
        if call is None:
            return
        if now < call.deadline_ns:  # progress has moved it
            self.hub.wheel.add(call.deadline_ns, functools.partial(self._call_due, connection, number))
            return
        self.hub.step(connection, self._timed_out, call, now)

    def _timed_out(self, connection: Connection, call: Call, now: int) -> None:
        connection.end_call(call.number)
        if connection.route is not None:
            connection.route.abandon(connection.session, call.number, "timeout", now)
        connection.send_message(jsonrpc.error_reply(call.id, 504, "the server did not answer in time"))
        self._completed(connection, call, "timeout", 0)
        self._after_answer(connection)

    # --- answers ---------------------------------------------------------------------------------------------

    def deliver(self, session: int, number: int, final: bool, raw: bytes) -> None:
        """Bytes from the upstream for one session: an answer, progress, or a notification."""
        connection = self.hub.connections.get(session)
        if connection is None or connection.stage is not Stage.OPEN:
            self.count("late")
            return
        self.hub.step(connection, self._delivered, number, final, raw)

    def _delivered(self, connection: Connection, number: int, final: bool, raw: bytes) -> None:
        if number:
            if final:
                call = connection.end_call(number)
                if call is None:
                    self.count("late")
                    return
                if call.method == "initialize":
                    self._initialized(connection, raw)
                self._completed(connection, call, "answered", len(raw))
            else:
                call = connection.calls.get(number)
                if call is None:
                    self.count("late")
                    return
                if call.deadline_ns and connection.route is not None:
                    call.deadline_ns = min(self.hub.now + connection.route.timeout_ns, call.limit_ns)
        connection.send_message(raw)
        self._after_answer(connection)

    def _after_answer(self, connection: Connection) -> None:
        self.hub.dirty[connection.fd] = connection
        if connection.eof and connection.stage < Stage.CLOSING:
            self.ended(connection, self.hub.now)

    def _initialized(self, connection: Connection, raw: bytes) -> None:
        """Remember the version that was negotiated: a bridge that is restarted has to know it."""
        try:
            answer = _initialize_decoder.decode(raw)
        except msgspec.DecodeError:
            return  # an error, or a result of another shape: nothing was negotiated
        if isinstance(answer.result, _Initialized):
            connection.version = answer.result.protocolVersion

    def failed(self, session: int, number: int, code: int, reason: str, sent: bool, retry_ms: int) -> None:
        """No answer will come for this call."""
        connection = self.hub.connections.get(session)
        if connection is None or connection.stage is not Stage.OPEN:
            return
        self.hub.step(connection, self._failed, number, code, reason, sent, retry_ms)

    def _failed(
        self,
        connection: Connection,
        number: int,
        code: int,
        reason: str,
        sent: bool,
        retry_ms: int,
    ) -> None:
        call = connection.end_call(number)
        if call is None:
            return
        data: dict[str, object] = {"reason": reason}
        if code == 502:
            data["sent"] = sent
        if code == 503:
            data["retryAfterMs"] = retry_ms or RETRY_MS
        message = {502: "the outcome is unknown", 504: "no answer in time"}.get(code, "not available now")
        connection.send_message(jsonrpc.error_reply(call.id, code, message, data))
        self._completed(connection, call, reason, 0)
        self._after_answer(connection)

    def lost(self, session: int, reason: str) -> None:
        """The session's own server process is gone, and its state with it."""
        connection = self.hub.connections.get(session)
        if connection is not None and connection.stage is Stage.OPEN:
            self.hub.step(connection, self._lost, reason)

    def _lost(self, connection: Connection, reason: str) -> None:
        for number in list(connection.calls):
            self._failed(connection, number, 502, reason, sent=True, retry_ms=0)
        self.hub.close(connection, 1012, "the server of this session ended")

    def _completed(self, connection: Connection, call: Call, outcome: str, answered_bytes: int) -> None:
        audited = self.settings.audit_calls
        if audited == "off" or (audited == "tools" and call.method != "tools/call"):
            return
        self.hub.event(
            connection,
            "call.completed",
            outcome="success" if outcome == "answered" else "failure",
            method=call.method,
            reason="" if outcome == "answered" else outcome,
            detail={
                "tool": call.name[:128],
                "outcome": outcome,
                "duration_ms": (time.monotonic_ns() - call.started_ns) // 1_000_000,
                "request_bytes": call.size,
                "response_bytes": answered_bytes,
            },
        )

    # --- sessions --------------------------------------------------------------------------------------------

    def attach(self, connection: Connection, upstream: str) -> None:
        """Begin to use an upstream."""
        connection.upstream = upstream
        connection.version = connection.version or connection.early_version
        connection.route = self.hub.routes.of(upstream)
        connection.route.attach(connection.session, upstream, connection.grant, connection.version)

    def change_upstream(self, connection: Connection, upstream: str) -> None:
        """``authenticate`` named another server on an open connection that has not used the first one yet."""
        if connection.route is not None:
            connection.route.detach(connection.session)
        self.attach(connection, upstream)

    def leave(self, connection: Connection) -> None:
        """The connection ends: cancel its calls upstream and free what it holds."""
        connection.parked.clear()
        connection.parked_for = ""
        connection.waiting_for = ""
        for call in list(connection.calls.values()):
            connection.end_call(call.number)
            self._completed(connection, call, "client gone", 0)
        if connection.route is not None:
            connection.route.detach(connection.session)
            connection.route = None

    def ended(self, connection: Connection, _now: int) -> None:
        """The client has sent its last byte. On TCP it may still be waiting for its answers (``nc`` does)."""
        if connection.stage >= Stage.CLOSING:
            return
        if connection.transport != "tcp" or connection.stage is Stage.ENTRY:
            self.hub.close_now(connection, "closed")
        elif not connection.parked and not connection.waiting_for and len(connection.calls) == connection.open_ended:
            self.hub.finish(connection, "closed")

    def recover(self, connection: Connection, _now: int) -> None:
        """After a hub that crashed: what it had in hand for this connection is answered as lost."""
        if connection.stage >= Stage.CLOSING:
            self.hub.close_now(connection, "acceptor restarted")
            return
        if connection.stage is not Stage.OPEN:
            self.hub.entry.recover(connection)
            return
        if connection.login_id:
            self.hub.entry.recover(connection)
        connection.waiting_for = ""
        connection.parked_for = ""
        for number in list(connection.calls):
            self._failed(connection, number, 502, "acceptor restarted", sent=True, retry_ms=0)
        parked, connection.parked = list(connection.parked), type(connection.parked)()
        for item in parked:
            if item.envelope is None and item.refusal is None:
                self._parse_small(item)
            self._refuse(connection, item, 503, "not available now", _unavailable("acceptor restarted"))
        self.attach(connection, connection.upstream)

    def _parse_small(self, item: Item) -> None:
        """Only to know the id of a message that is refused anyway."""
        try:
            item.envelope = jsonrpc.parse_client(item.raw, max_depth=self.settings.max_json_depth)
        except Refusal as refusal:
            item.refusal = refusal

    def going_away(self, connection: Connection) -> None:
        """Drain: end the connection in its own language."""
        if connection.stage >= Stage.CLOSING:
            return
        for number in list(connection.calls):
            call = connection.calls[number]
            if call.deadline_ns:  # an open-ended request ends with its connection
                self._failed(connection, number, 503, "draining", sent=True, retry_ms=RETRY_MS)
        if connection.transport == "ws":
            self.hub.close(connection, 1001, "going away")
        elif connection.stage is Stage.OPEN:
            self.hub.finish(connection, "draining")
        else:
            self.hub.entry.refuse(connection, Refused(reason="draining", retry_after_ms=RETRY_MS))


def _unavailable(reason: str) -> dict[str, object]:
    return {"reason": reason, "retryAfterMs": RETRY_MS}
