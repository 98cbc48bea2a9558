"""What becomes of a call: its answer, its progress, its failure, its time running out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from actors.policy import jsonrpc
from ipc.authorization import LIST_METHODS

from .connection import RETRY_MS, Call, Connection, Stage

if TYPE_CHECKING:
    from .hub import Hub


class _Initialized(msgspec.Struct):
    protocolVersion: str = ""  # noqa: N815 - the protocol's own name


class _InitializeAnswer(msgspec.Struct):
    result: _Initialized | msgspec.UnsetType = msgspec.UNSET


_initialize_decoder = msgspec.json.Decoder(_InitializeAnswer)


class Answers:
    """The way back, from the routes to the clients. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def timed_out(self, connection: Connection, call: Call, now: int) -> None:
        """The call's time is over: its client hears 504, its upstream that nobody waits."""
        connection.end_call(call.number, self.hub.now)
        if connection.route is not None:
            connection.route.abandon(connection.session, call.number, "timeout", now)
        connection.send_message(jsonrpc.error_reply(call.id, 504, "the server did not answer in time"))
        self.hub.count("failed_504")
        self.completed(connection, call, "timeout", 0, "504")
        self._after_answer(connection)

    def deliver(self, session: int, number: int, final: bool, raw: bytes) -> None:
        """Bytes from the upstream for one session: an answer, progress, or a notification."""
        connection = self.hub.connections.get(session)
        if connection is None or connection.stage is not Stage.OPEN:
            self.hub.count("late")
            return
        self.hub.step(connection, self._delivered, number, final, raw)

    def _delivered(self, connection: Connection, number: int, final: bool, raw: bytes) -> None:
        call = None
        if number:
            if final:
                call = connection.end_call(number, self.hub.now)
                if call is None:
                    self.hub.count("late")
                    return
                kept = call.entry is not None and self.hub.catalogue.keep(call.entry, raw)
                if call.method == "tools/list":
                    self.hub.screening.listed(connection, raw, kept=kept)
                if call.method == "initialize":
                    self.initialized(connection, raw)
                elif call.method in LIST_METHODS:
                    raw = self.hub.authorising.shown(connection, call, raw)
                self.completed(connection, call, "answered", len(raw))
            else:
                call = connection.calls.get(number)
                if call is None:
                    self.hub.count("late")
                    return
                if call.deadline_ns and connection.route is not None:
                    call.deadline_ns = min(self.hub.now + connection.route.timeout_ns, call.limit_ns)
        self.put(connection, call if final else None, raw)
        self._after_answer(connection)

    def put(self, connection: Connection, call: Call | None, raw: bytes) -> None:
        """Queue one message: the answer to ``call``, or another one."""
        if self.hub.screening.results is not None:
            shown = self.hub.screening.shown(connection, call, raw)
            if shown is None:
                return
            raw = shown
        if connection.out_bytes and connection.out_bytes + len(raw) > self.hub.settings.max_buffer_size:
            # It doesn't read what it asked for. A word about each answer that is dropped still fits; when not even
            # that does, the hub closes the connection.
            self.hub.count("dropped_unread")
            if call is None:
                return
            data: dict[str, object] = {"reason": "unread", "sent": True}
            raw = jsonrpc.error_reply(call.id, 502, "earlier answers have not been read", data)
        connection.send_message(raw)

    def _after_answer(self, connection: Connection) -> None:
        self.hub.dirty[connection.fd] = connection
        if connection.eof and connection.stage < Stage.CLOSING:
            self.hub.dispatch.ended(connection)

    def initialized(self, connection: Connection, raw: bytes) -> None:
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
        self.hub.step(connection, self.fail, number, code, reason, sent, retry_ms)

    def fail(
        self,
        connection: Connection,
        number: int,
        code: int,
        reason: str,
        sent: bool,
        retry_ms: int,
    ) -> None:
        """``failed`` for a connection that is at hand."""
        call = connection.end_call(number, self.hub.now)
        if call is None:
            return
        data: dict[str, object] = {"reason": reason}
        if code == 502:
            data["sent"] = sent
        if code == 503:
            data["retryAfterMs"] = retry_ms or RETRY_MS
        messages = {413: "message too large", 502: "the outcome is unknown", 504: "no answer in time"}
        message = messages.get(code, "not available now")
        connection.send_message(jsonrpc.error_reply(call.id, code, message, data))
        self.hub.count(f"failed_{code}")
        self.completed(connection, call, reason, 0, str(code))
        self._after_answer(connection)

    def lost(self, session: int, reason: str) -> None:
        """The session's own server process is gone, and its state with it."""
        connection = self.hub.connections.get(session)
        if connection is not None and connection.stage is Stage.OPEN:
            self.hub.step(connection, self._lost, reason)

    def _lost(self, connection: Connection, reason: str) -> None:
        for number in list(connection.calls):
            self.fail(connection, number, 502, reason, sent=True, retry_ms=0)
        self.hub.close(connection, 1012, "the server of this session ended")

    def completed(
        self, connection: Connection, call: Call, outcome: str, answered_bytes: int, error: str = ""
    ) -> None:
        """Leave the ``call.completed`` record, where the settings want one. Never an argument or a result.

        ``outcome`` is answered, stale (from the catalogue), or why it failed; ``error`` is empty, or the code that the
        client got, or ``cancelled``."""
        if self.hub.meter.measuring:
            self.hub.meter.ended(call, connection.upstream, error, answered_bytes)
        audited = self.hub.settings.audit_calls
        if audited == "off" or (audited == "tools" and call.method != "tools/call"):
            return
        self.hub.event(
            connection,
            "call.completed",
            outcome="success" if outcome in ("answered", "stale") else "failure",
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
