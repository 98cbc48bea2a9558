"""One instance of a per-session upstream: one client, so ids and everything else pass unchanged, both ways.

What remains is to know which calls are in flight, so that none goes unanswered, and which requests of the server are,
so that a client answers only what it was asked.
"""

from __future__ import annotations

import re
from collections.abc import Hashable

import attrs

from ipc.messages import Envelope

from . import own_messages
from .answer_id import invalid_answer
from .effects import (
    DEATH,
    SILENT,
    SLOW,
    SUCCESS,
    CallLost,
    Counted,
    Effect,
    Outcome,
    ToClient,
    ToUpstream,
    log_line,
    pass_on,
)
from .eras import BATCHING_VERSION, LEGACY_VERSIONS, NEWEST_LEGACY, is_open_ended
from .jsonrpc import INTERNAL_ERROR, error_reply, flatten, id_key, splice
from .members import STRING
from .server_message import UpstreamMessage, negotiated_version, parse_upstream
from .silence import Silence

MAX_SERVER_REQUESTS = 256  # sampling, elicitation and roots requests that the client has not answered
_INVALID_PARAMS = -32602
_STRING = re.compile(STRING, re.DOTALL)
_NEWEST = b'"%b"' % NEWEST_LEGACY.encode()

Key = str | int | bytes  # what an id stands for, however it is written


@attrs.define(eq=False)
class Call:
    """A request of the client that the upstream has been sent."""

    number: int
    id: bytes
    token: Key | None
    method: str
    sent_ns: int
    heard: int
    open_ended: bool


class PrivateInstance:
    """See the module; the interface is Mux's."""

    def __init__(
        self, version: str, *, probe_timeout_ns: int, slow_call_ns: int, slow_tool_calls: bool, max_calls: int
    ) -> None:
        self._legacy = version != ""
        self._slow_call_ns = slow_call_ns
        self._never_slow = () if slow_tool_calls else ("tools/call",)
        self._max_calls = max_calls
        self._down = False
        self._session: Hashable | None = None
        self._calls: dict[int, Call] = {}
        self._by_id: dict[Key, Call] = {}
        self._by_token: dict[Key, Call] = {}
        self._server_requests: set[Key] = set()
        self._probes = 0
        self._probe_id: Key | None = None
        self._silence = Silence(probe_timeout_ns)

    # --- facts --------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    @property
    def sessions(self) -> int:
        return int(self._session is not None)

    @property
    def ready(self) -> bool:
        return not self._down

    @property
    def held_bytes(self) -> int:
        return 0

    @property
    def table_sizes(self) -> dict[str, int]:
        return {
            "sessions": self.sessions,
            "calls": len(self._calls),
            "ids": len(self._by_id),
            "tokens": len(self._by_token),
            "server_requests": len(self._server_requests),
        }

    # --- the instance's life ------------------------------------------------------------------------------------

    def start(self, now: int) -> list[Effect]:  # noqa: ARG002 - the interface is Mux's
        self._down = False
        return []

    def closed(self, reason: str) -> list[Effect]:
        effects: list[Effect] = [
            CallLost(self._session, call.number, 502, reason, True) for call in self._calls.values()
        ]
        self._forget_all()
        self._down = True
        return effects

    def tick(self, now: int) -> list[Effect]:
        return [SILENT] * self._silence.expire(now)

    def attach(self, session: Hashable) -> list[Effect]:
        if self._session is None:
            self._session = session
        return []

    def detach(self, session: Hashable) -> list[Effect]:
        """The instance ends with its session, so there is nobody to tell."""
        if session == self._session:
            self._session = None
            self._forget_all()
        return []

    def _forget_all(self) -> None:
        self._calls.clear()
        self._by_id.clear()
        self._by_token.clear()
        self._server_requests.clear()
        self._probe_id = None
        self._silence.forget()

    # --- from the client ----------------------------------------------------------------------------------------

    def from_client(self, session: Hashable, call: int, envelope: Envelope, raw: bytes, now: int) -> list[Effect]:
        if session != self._session or self._down:
            if envelope.kind == "request":
                return [CallLost(session, call, 503, "upstream down" if self._down else "not attached", False)]
            return [Counted("unserved_notification")]
        if envelope.kind == "request":
            return self._request(session, call, envelope, raw, now)
        if envelope.kind == "response":
            key = id_key(envelope.id)
            if key not in self._server_requests:
                return [Counted("unknown_response")]
            self._server_requests.remove(key)
        elif envelope.method == "notifications/cancelled":
            if not envelope.target:
                return [Counted("unknown_cancellation")]
            named = self._calls.get(call) if call else self._by_id.get(id_key(envelope.target))
            if named is None or named.method == "initialize":
                return [Counted("unknown_cancellation")]
            self._end(named)
        return [pass_on(flatten(raw), envelope)]

    def _request(self, session: Hashable, number: int, envelope: Envelope, raw: bytes, now: int) -> list[Effect]:
        key = id_key(envelope.id)
        if len(self._calls) >= self._max_calls or key in self._by_id or number in self._calls:
            return [CallLost(session, number, 503, "overloaded", False)]
        call = Call(
            number,
            envelope.id,
            id_key(envelope.progress) if envelope.progress else None,
            envelope.method,
            now,
            self._silence.heard,
            is_open_ended(envelope.method),
        )
        self._calls[number] = call
        self._by_id[key] = call
        if call.token is not None:
            self._by_token[call.token] = call
        if envelope.method == "initialize" and envelope.version_at >= 0:
            self._legacy = True
            if envelope.version == BATCHING_VERSION:
                asked = _STRING.match(raw, envelope.version_at)
                assert asked is not None  # noqa: S101 - the envelope says that a string stands there
                raw = splice(raw, [(asked.start(), asked.end(), _NEWEST)])
        return [pass_on(flatten(raw), envelope)]

    def _end(self, call: Call) -> None:
        del self._calls[call.number]
        del self._by_id[id_key(call.id)]
        if call.token is not None and self._by_token.get(call.token) is call:
            del self._by_token[call.token]

    def abandon(self, call: int, reason: str, now: int) -> list[Effect]:
        given_up = self._calls.get(call)
        if given_up is None:
            return []
        self._end(given_up)
        effects: list[Effect] = [ToUpstream(own_messages.cancelled(given_up.id, reason))]
        if reason == "timeout" and not given_up.open_ended:
            if self._silence.suspect(given_up.heard):
                if self._silence.begin(now):
                    effects.append(ToUpstream(own_messages.probe(self._fresh_id(), legacy=self._legacy)))
            elif given_up.method not in self._never_slow:
                effects.append(SLOW)
        return effects

    def awaits(self, id_raw: bytes) -> bool:
        key = id_key(id_raw)
        return key in self._by_id or key == self._probe_id

    @property
    def is_quiet(self) -> bool:
        return all(call.open_ended for call in self._calls.values())

    def lost(self, id_raw: bytes, loss: CallLost, outcome: Outcome | None, now: int) -> list[Effect]:  # noqa: ARG002
        effects: list[Effect] = [] if outcome is None else [outcome]
        if outcome == SUCCESS:
            self._silence.hear()
        key = id_key(id_raw)
        call = self._by_id.get(key)
        if call is None:
            if key != self._probe_id:
                return []
            self._probe_id = None
            return [SILENT] * self._silence.give_up() if outcome == DEATH else effects
        self._end(call)
        lost = CallLost(self._session, call.number, loss.code, loss.reason, loss.sent, loss.retry_after_ms)
        return [lost, *([] if call.open_ended else effects)]

    def _fresh_id(self) -> bytes:
        """An id for a probe, which must be none of the client's."""
        while True:
            self._probes += 1
            text = f"portcullis-probe-{self._probes}"
            if text not in self._by_id:
                self._probe_id = text
                return b'"%b"' % text.encode()

    # --- from the upstream --------------------------------------------------------------------------------------

    def from_upstream(self, raw: bytes, now: int) -> list[Effect]:
        try:
            message = parse_upstream(raw)
        except ValueError as error:
            effects: list[Effect] = [log_line("warning", f"not a message ({error})", raw), Counted("garbage")]
            instead = invalid_answer(raw)
            return effects if instead is None else [*effects, *self.from_upstream(instead, now)]
        self._silence.hear()
        if message.kind == "response":
            return self._answer(message, raw, now)
        if self._session is None:
            return [Counted("unattributed")]
        if message.kind == "request":
            key = id_key(message.id)
            if key in self._server_requests or len(self._server_requests) >= MAX_SERVER_REQUESTS:
                return [
                    Counted("server_request"),
                    ToUpstream(error_reply(message.id, INTERNAL_ERROR, "too many requests are unanswered")),
                ]
            self._server_requests.add(key)
            return [ToClient(self._session, 0, False, raw)]
        return self._announce(message, raw)

    def _answer(self, message: UpstreamMessage, raw: bytes, now: int) -> list[Effect]:
        key = id_key(message.id)
        call = self._by_id.get(key)
        if call is None:
            if key == self._probe_id:
                self._probe_id = None
                return []
            return [Counted("unknown_answer")]
        self._end(call)
        if call.method == "initialize" and not message.error and negotiated_version(raw) == BATCHING_VERSION:
            data = {"requested": BATCHING_VERSION, "supported": list(LEGACY_VERSIONS)}
            raw = error_reply(call.id, _INVALID_PARAMS, "the server speaks an unsupported protocol version", data)
        effects: list[Effect] = [ToClient(self._session, call.number, True, raw)]
        if not call.open_ended:
            slow = now - call.sent_ns > self._slow_call_ns and call.method not in self._never_slow
            effects.append(SLOW if slow else SUCCESS)
        return effects

    def _announce(self, message: UpstreamMessage, raw: bytes) -> list[Effect]:
        call: Call | None = None
        final = False
        if message.progress:
            call = self._by_token.get(id_key(message.progress))
        elif message.target:
            key = id_key(message.target)
            self._server_requests.discard(key)
            ended = self._by_id.get(key)
            if ended is not None and ended.open_ended:
                self._end(ended)
                call = ended
                final = True
        elif message.subscription:
            call = self._by_id.get(id_key(message.subscription))
        return [ToClient(self._session, 0 if call is None else call.number, final, raw)]
