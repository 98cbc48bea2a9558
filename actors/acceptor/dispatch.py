"""What happens to a message: from the codec through the checks to its upstream, and its answer back.

    bytes → codec → parse → grant → budget → authorisation → breaker → forward ⇢ deliver → bytes

A message that has to wait for something (budget, room at its upstream, the validator of large messages, a policy
actor's answer) is parked at the head of its connection's queue, and the later ones behind it, so that a connection's
messages keep their order; other connections go on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from actors.policy import catalogue, eras, jsonrpc, pipeline
from actors.policy.client_ends import id_at_ends, id_at_head
from actors.policy.jsonrpc import Refusal
from actors.policy.own_methods import SESSION_METHODS, is_own
from ipc.inflight import LARGE
from ipc.messages import Envelope, Refused
from ipc.settings import Settings

from .connection import RETRY_MS, Call, Connection, Item, Stage
from .large import LARGE_BYTES, UNAVAILABLE
from .lines import KEPT_HEAD, KEPT_TAIL, LineReader, LineTooLong, Oversize
from .ws import Close, Ping, Pong, WsProtocolError, WsReceiver, encode_close, encode_pong

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

ROOM_WAIT_NS: Final = 5_000_000_000  # how long a message may wait for an upstream that is down or doesn't read
MAX_PARKED: Final = 4096  # decoded messages that may wait in one connection; what they hold is bounded by its codec


class Dispatch:
    """The part of the hub that deals with messages. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    @property
    def settings(self) -> Settings:
        return self.hub.settings

    # --- bytes in --------------------------------------------------------------------------------------------

    def received(self, connection: Connection, data: bytes, now: int) -> None:
        """Bytes of a WebSocket or TCP client."""
        codec = connection.codec
        items: Sequence[bytes | Ping | Pong | Close | Oversize]
        if isinstance(codec, WsReceiver):
            before = codec.frames
            # One read may hold ten thousand frames: past the rate the rest of them is not even looked at.
            codec.most_frames = before + self.settings.max_frame_rate
            try:
                items = codec.receive(data)
            except WsProtocolError as error:
                if error.code == 1008:
                    self._floods(connection, codec.frames - before, now)
                    return
                self._items(connection, error.items, now)
                self.hub.offence(connection, "malformed")
                self.hub.event(
                    connection, "message.invalid", severity="warning", outcome="refused", reason=error.reason[:100]
                )
                self._charge(connection, now)
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
                self._charge(connection, now)
                self._too_long(connection, error.head)
                return
            if self._floods(connection, codec.empty - before, now):
                return
        if items:
            self.hub.meter.arrived += len(items)
            self._items(connection, items, now)
        if codec is connection.codec:
            self.hub.inflight.received(connection, codec)

    def _items(
        self, connection: Connection, items: Sequence[bytes | Ping | Pong | Close | Oversize], now: int
    ) -> None:
        for item in items:
            if connection.stage >= Stage.CLOSING:
                return
            if isinstance(item, bytes):
                connection.messages_in += 1
                connection.idle_since_ns = now
                self._message(connection, item, now)
            elif isinstance(item, Ping):
                connection.write(encode_pong(item.payload))
            elif isinstance(item, Oversize):
                connection.idle_since_ns = now
                self.hub.inflight.discarded(connection, item)
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
        self.hub.offence(connection, "handshake")
        self.hub.event(connection, "message.invalid", severity="warning", outcome="refused", reason="frame rate")
        if connection.transport == "tcp":
            connection.send_message(jsonrpc.error_reply(b"null", 429, "too many messages", {"retryAfterMs": 1000}))
        self.hub.close(connection, 1008, "too many frames a second")
        return True

    def _charge(self, connection: Connection, now: int) -> None:
        """What fails before it is a message counts against the budget all the same."""
        self.hub.budget.charge(connection.grant.limit_keys if connection.grant else (connection.key,), now)

    def _too_long(self, connection: Connection, head: bytes) -> None:
        self.hub.offence(connection, "malformed")
        self.hub.event(connection, "message.invalid", severity="warning", outcome="refused", reason="too large")
        codec = connection.codec
        limit = codec.max_line if isinstance(codec, LineReader) else 0
        known = (connection.grant is not None and id_at_head(head)) or b"null"
        connection.send_message(jsonrpc.error_reply(known, 413, "message too large", {"limit": limit}))
        self.hub.close(connection, 1009, "message too large")

    def _message(self, connection: Connection, raw: bytes, now: int) -> None:
        item = Item(raw, pipeline.SIZE)
        if self.hub.meter.measuring:
            item.received_ns = now
        if len(raw) >= LARGE:
            item.hold = self.hub.inflight.finished(connection, len(raw))
        if connection.parked or connection.waiting_for:
            if len(connection.parked) >= MAX_PARKED:
                self.unavailable(connection, item, "too many messages wait", "overloaded")
                self._done(item)
                return
            connection.parked.append(item)
        elif not self._process(connection, item, now):
            connection.parked.append(item)
        elif item.hold is not None:
            self._done(item)

    def _done(self, item: Item) -> None:
        """Nothing is held of it any more."""
        hold, item.hold = item.hold, None
        if hold is not None:
            self.hub.inflight.release(hold)

    def resume(self, connection: Connection) -> None:
        """Go on with what is parked, until something has to wait again."""
        now = self.hub.now
        parked = connection.parked
        while parked and connection.stage < Stage.CLOSING and not connection.waiting_for:
            item = parked[0]
            if not self._process(connection, item, now):
                break
            if item.hold is not None:
                self._done(item)
            if not parked:
                return  # it was the connection's last: there is nothing left of it
            parked.popleft()
        else:
            connection.parked_for = ""
        self.hub.dirty[connection.fd] = connection
        if connection.eof and connection.stage < Stage.CLOSING:
            self.ended(connection)

    # --- the checks ------------------------------------------------------------------------------------------

    def _process(self, connection: Connection, item: Item, now: int) -> bool:
        """Take one message through the checks. False: it waits, and must be tried again from where it stands."""
        if item.envelope is None and item.refusal is None:
            if len(item.raw) >= LARGE_BYTES and connection.stage is Stage.OPEN:
                if connection.parked_for != "validator":
                    connection.parked_for = "validator"
                    self.hub.large.validate(connection, item, now)
                return False
            self._parse(item)
            connection.introductions += connection.stage is Stage.LOGIN
        envelope = item.envelope
        grant = connection.grant
        if grant is not None:
            if self.hub.revocation.expired(connection):
                self.hub.revocation.expire(connection)
                return True
            item.stamps |= pipeline.PRINCIPAL
        if envelope is not None and envelope.method == "authenticate" and envelope.kind == "request":
            self.hub.login.authenticate(connection, item, envelope)
            return True
        if grant is None and self.hub.login.turned_away(connection):
            return True
        if (
            not item.stamps & pipeline.CONTENT
            and grant is not None
            and envelope is not None
            and item.refusal is None
            and not self.hub.screening.looked_at(connection, item, envelope, now)
        ):
            return False
        if not item.stamps & pipeline.RATE:
            # Whoever isn't authenticated pays from the budget of the address: reconnecting renews nothing.
            keys = grant.limit_keys if grant is not None else (connection.key,)
            cost = self.hub.budget.cost(envelope)
            if not self.hub.budget.spend(keys, now, cost):
                return self.hub.budget.wait(connection, item, keys, now, cost)
            item.stamps |= pipeline.RATE
        if grant is None:
            self.hub.login.before(connection, item)
            return True
        envelope = item.envelope  # anew: what was stripped is gone from it
        if envelope is None or item.refusal is not None:
            self.invalid(connection, item)
            return True
        if item.findings:
            self.hub.screening.record(connection, item, envelope)
        if envelope.kind == "request" and envelope.method in SESSION_METHODS:
            self.hub.login.session_method(connection, item, envelope)
            return True
        if envelope.kind != "response" and is_own(envelope.method):
            self.hub.login.not_forwarded(connection, item, envelope)
            return True
        if not item.stamps & pipeline.AUTHORISATION and not self.hub.authorising.allows(connection, item, envelope):
            return True
        if envelope.kind == "request":
            return self._request(connection, item, envelope, now)
        return self._oneway(connection, item, envelope, now)

    def _parse(self, item: Item) -> None:
        try:
            item.envelope = jsonrpc.parse_client(item.raw, max_depth=self.settings.max_json_depth)
            item.stamps |= pipeline.ENVELOPE
        except Refusal as refusal:
            item.refusal = refusal

    def validated(self, connection: Connection, item: Item) -> None:
        """The validator's verdict on a large message has been put into ``item``."""
        if item.envelope is not None and item.refusal is None:
            item.stamps |= pipeline.ENVELOPE
            self.hub.screening.validated(item)
        connection.parked_for = ""
        self.resume(connection)

    def invalid(self, connection: Connection, item: Item) -> None:
        """Answer a message that the validator refused."""
        refusal = item.refusal
        assert refusal is not None  # noqa: S101 - an item has an envelope or a refusal
        if refusal.code == UNAVAILABLE:  # nobody could say whether it was valid
            self.hub.count("refused_503")
            if refusal.notification:
                self.unanswered(connection, item.envelope, refusal.rule)
            else:
                connection.send_message(jsonrpc.error_reply(refusal.id, refusal.code, refusal.message, refusal.data))
            return
        content = refusal.code == jsonrpc.CONTENT_REFUSED
        detail: dict[str, str | int | float | bool] = {"code": refusal.code}
        if content and refusal.data is not None:
            detail["pointer"] = str(refusal.data.get("pointer", ""))[:256]
        self.hub.offence(connection, "content" if content else "malformed")
        self.hub.event(
            connection,
            "content.refused" if content else "message.invalid",
            severity="warning",
            outcome="refused",
            rule=refusal.rule,
            reason=refusal.message,
            detail=detail,
        )
        self.hub.count("content_refused" if content else "invalid")
        self.hub.count(f"refused_{refusal.code}")
        if content:
            self.hub.count(f"content_refused_{refusal.rule}")
        if not refusal.notification:
            connection.send_message(jsonrpc.error_reply(refusal.id, refusal.code, refusal.message, refusal.data))

    def refuse(
        self, connection: Connection, item: Item, code: int, message: str, data: dict[str, object] | None = None
    ) -> None:
        """Answer a message that may not pass; a notification or a response gets no answer."""
        self.hub.count(f"refused_{code}")
        if item.envelope is None and item.refusal is None:
            if len(item.raw) >= LARGE_BYTES:
                head, tail = item.raw[:KEPT_HEAD], item.raw[-KEPT_TAIL:]
                found = id_at_ends(head, tail)
                if found == b"null" and jsonrpc.has_no_id(head, tail):
                    if code == UNAVAILABLE:
                        self.unanswered(connection, None, str((data or {}).get("reason", message)))
                    return
                connection.send_message(jsonrpc.error_reply(found, code, message, data))
                return
            self._parse(item)  # for its id
        envelope, refusal = item.envelope, item.refusal
        if envelope is not None:
            if envelope.kind == "request":
                connection.send_message(jsonrpc.error_reply(envelope.id, code, message, data))
            elif code == UNAVAILABLE:
                self.unanswered(connection, envelope, str((data or {}).get("reason", message)))
        elif refusal is not None and not refusal.notification:
            connection.send_message(jsonrpc.error_reply(refusal.id, code, message, data))

    def unanswered(self, connection: Connection, envelope: Envelope | None, reason: str) -> None:
        """Leave a record of a notification, or a response, that isn't forwarded: nobody else will tell."""
        self.hub.event(
            connection,
            "message.invalid",
            severity="warning",
            outcome="refused",
            method=envelope.method[:128] if envelope is not None else "",
            reason=reason,
        )

    def unavailable(self, connection: Connection, item: Item, message: str, reason: str) -> None:
        """``refuse`` with 503, to be tried again soon."""
        self.refuse(connection, item, 503, message, {"reason": reason, "retryAfterMs": RETRY_MS})

    # --- forwarding ------------------------------------------------------------------------------------------

    def _request(self, connection: Connection, item: Item, envelope: Envelope, now: int) -> bool:
        hub = self.hub
        if hub.draining_until_ns:
            self.unavailable(connection, item, "the gateway is shutting down", "draining")
            return True
        key = jsonrpc.id_key(envelope.id)
        if key in connection.ids:
            self.refuse(connection, item, -32600, "a request with this id is in flight")
            return True
        if envelope.method.startswith("notifications/"):
            self.refuse(connection, item, -32600, "a notification has no id")
            return True
        if hub.audit.full:
            self.unavailable(connection, item, "the audit log takes no more", "audit")
            return True
        route = connection.route
        assert route is not None  # noqa: S101 - set when the connection was opened
        stays_open = eras.is_open_ended(envelope.method)
        entry = hub.catalogue.entry(connection, envelope, item.raw) if envelope.method in catalogue.METHODS else None
        if not item.stamps & pipeline.CIRCUIT:
            retry_ms = 0 if stays_open else route.refused_for(now)
            if retry_ms:
                if entry is not None and hub.catalogue.answer(connection, envelope, entry, len(item.raw), now):
                    return True
                data: dict[str, object] = {"reason": "breaker open", "retryAfterMs": retry_ms}
                self.refuse(connection, item, 503, "the server is not available", data)
                return True
            item.stamps |= pipeline.CIRCUIT
        pipeline.require(item.stamps)
        number = hub.estate.next_call
        hub.estate.next_call = number + 1
        call = Call(
            number=number,
            id=envelope.id,
            key=key,
            method=envelope.method,
            name=envelope.name,
            started_ns=now,
            deadline_ns=0 if stays_open else now + route.timeout_ns,
            limit_ns=now + route.max_timeout_ns,
            size=len(item.raw),
            probe=not stays_open and route.half_open,
            entry=entry,
        )
        connection.add_call(call)  # first: the answer may come before ``forward`` returns
        if not route.forward(connection.session, number, envelope, item.raw, now):
            connection.end_call(number, now)
            item.stamps &= ~pipeline.CIRCUIT  # it may have opened, and its permits be gone, when there is room
            return self._wait_for_room(connection, now)
        connection.forwarded = True
        if item.hold is not None:
            hold, item.hold = item.hold, None
            self.hub.inflight.forwarded(hold, elsewhere=route.elsewhere)
        if hub.meter.measuring:
            hub.meter.forwarded(call, connection.upstream, item.received_ns or now)
        if call.deadline_ns:
            hub.deadlines.by(connection, call.deadline_ns)
        return True

    def _oneway(self, connection: Connection, item: Item, envelope: Envelope, now: int) -> bool:
        """A notification, or a response to a request of the server's own."""
        route = connection.route
        assert route is not None  # noqa: S101 - set when the connection was opened
        if envelope.kind == "notification" and eras.is_request(envelope.method):
            self.hub.count("invalid")
            self.unanswered(connection, envelope, "a request needs an id")
            return True
        if self.hub.draining_until_ns or route.is_open():
            self.hub.count("dropped_oneway")
            self.unanswered(connection, envelope, "draining" if self.hub.draining_until_ns else "breaker open")
            return True
        item.stamps |= pipeline.CIRCUIT
        number = 0
        if envelope.method == "notifications/cancelled":
            found = connection.ids.get(jsonrpc.id_key(envelope.target))
            if found is None:  # answered meanwhile, or never one of its own
                self.hub.count("cancelled_unknown")
                return True
            number = found
        pipeline.require(item.stamps)
        if not route.forward(connection.session, number, envelope, item.raw, now):
            return self._wait_for_room(connection, now)
        connection.forwarded = True
        if item.hold is not None:
            hold, item.hold = item.hold, None
            self.hub.inflight.forwarded(hold, elsewhere=route.elsewhere)
        if number:
            call = connection.end_call(number, self.hub.now)
            if call is not None:
                self.hub.answers.completed(connection, call, "cancelled", 0, "cancelled")
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
        self.unavailable(connection, item, "the server is down or does not keep up", "overloaded")
        self._done(item)
        self.resume(connection)

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
        self.hub.inflight.forget(connection)
        connection.free()
        if connection.grant is not None:
            self.hub.budget.leave(connection.grant.limit_keys)
        for call in list(connection.calls.values()):
            connection.end_call(call.number, self.hub.now)
            self.hub.answers.completed(connection, call, "client gone", 0, "cancelled")
        if connection.route is not None:
            connection.route.detach(connection.session)
            connection.route = None

    def ended(self, connection: Connection) -> None:
        """The client has sent its last byte. On TCP it may still be waiting for its answers (``nc`` does)."""
        if connection.stage >= Stage.CLOSING:
            return
        if connection.stage is Stage.ENTRY:
            self.hub.entry.ended(connection)
        elif connection.transport != "tcp":
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
        if connection.grant is not None:
            self.hub.budget.join(connection.grant.limit_keys)
        if connection.login_id:
            self.hub.entry.recover(connection)
        connection.waiting_for = ""
        connection.parked_for = ""
        for number in list(connection.calls):
            self.hub.answers.fail(connection, number, 502, "acceptor restarted", sent=True, retry_ms=0)
        self.hub.inflight.recover(connection)
        parked, connection.parked = list(connection.parked), type(connection.parked)()
        for item in parked:
            self.unavailable(connection, item, "not available now", "acceptor restarted")
        self.attach(connection, connection.upstream)

    def going_away(self, connection: Connection) -> None:
        """Drain: end the connection in its own language."""
        if connection.stage >= Stage.CLOSING:
            return
        for number in list(connection.calls):
            call = connection.calls[number]
            if call.deadline_ns:  # an open-ended request ends with its connection
                # Not 503: the server has it, and who tries again would have it run twice.
                self.hub.answers.fail(connection, number, 502, "draining", sent=True, retry_ms=0)
        if connection.transport == "ws":
            self.hub.close(connection, 1001, "going away")
        elif connection.stage is Stage.OPEN:
            self.hub.finish(connection, "draining")
        else:
            self.hub.entry.refuse(connection, Refused(reason="draining", retry_after_ms=RETRY_MS))
