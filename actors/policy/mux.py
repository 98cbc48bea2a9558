"""The multiplexer: what stands between the clients of one upstream instance and its one process or connection.

Pure: bytes and envelopes in, effects out, ``now`` (CLOCK_MONOTONIC nanoseconds) as an argument. The owner carries the
effects out in order and calls ``tick`` now and then. One multiplexer outlives the runs of its instance: after
``closed`` it may be started again; its sessions stay attached, and its ids go on.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

from ipc.messages import Envelope

from .effects import (
    CallLost,
    Counted,
    Effect,
    HandshakeFailed,
    LogLine,
    Negotiated,
    Outcome,
    ToClient,
    ToUpstream,
)
from .private_instance import PrivateInstance
from .shared_instance import SharedInstance

__all__ = [
    "CallLost",
    "Counted",
    "Effect",
    "HandshakeFailed",
    "LogLine",
    "Mux",
    "Negotiated",
    "Outcome",
    "ToClient",
    "ToUpstream",
]

_SECOND = 1_000_000_000


class Mux:
    """One upstream instance.

    Args:
        version: the legacy protocol version that this instance negotiates for its clients; ``""``: no handshake
            (the modern era, and plain JSON-RPC).
        shared: several clients; otherwise there is one, and everything passes through.
        probe_timeout_ns: how long a probe of a silent upstream may go unanswered.
        handshake_timeout_ns: the same of ``initialize``; launchers such as npx download the server first.
        slow_call_ns: an answer that took longer counts as slow for the breaker.
        slow_tool_calls: whether that is so of ``tools/call`` too.
        max_held, max_held_bytes: messages held during the handshake.
        max_calls: calls in flight, those that stay open included: a last bound behind the owner's own.

    Sessions are any hashable values. A call's number is unique in its session while the call is in flight.
    """

    def __init__(
        self,
        *,
        version: str,
        shared: bool,
        probe_timeout_ns: int = 5 * _SECOND,
        handshake_timeout_ns: int = 60 * _SECOND,
        slow_call_ns: int = 10 * _SECOND,
        slow_tool_calls: bool = False,
        max_held: int = 1024,
        max_held_bytes: int = 16 * 1024 * 1024,
        max_calls: int = 65_536,
    ) -> None:
        self.version = version
        self.shared = shared
        self._instance: SharedInstance | PrivateInstance
        if shared:
            self._instance = SharedInstance(
                version,
                probe_timeout_ns=probe_timeout_ns,
                handshake_timeout_ns=handshake_timeout_ns,
                slow_call_ns=slow_call_ns,
                slow_tool_calls=slow_tool_calls,
                max_held=max_held,
                max_held_bytes=max_held_bytes,
                max_calls=max_calls,
            )
        else:
            self._instance = PrivateInstance(
                version,
                probe_timeout_ns=probe_timeout_ns,
                slow_call_ns=slow_call_ns,
                slow_tool_calls=slow_tool_calls,
                max_calls=max_calls,
            )

    @property
    def in_flight(self) -> int:
        """Calls of clients that wait for an answer, or for the handshake."""
        return self._instance.in_flight

    @property
    def sessions(self) -> int:
        """How many are attached."""
        return self._instance.sessions

    @property
    def ready(self) -> bool:
        """Whether messages pass: the handshake, where there is one, is done, and the upstream lives."""
        return self._instance.ready

    @property
    def held_bytes(self) -> int:
        """Of messages that wait for the handshake."""
        return self._instance.held_bytes

    def table_sizes(self) -> dict[str, int]:
        """How much is kept, by table; without sessions, nothing is."""
        return self._instance.table_sizes

    def start(self, now: int) -> list[Effect]:
        """There is a fresh upstream."""
        return self._instance.start(now)

    def closed(self, reason: str, now: int) -> list[Effect]:  # noqa: ARG002 - every event carries its time
        """The upstream died. Each call in flight is lost: 502 if it was sent, 503 if it was held."""
        return self._instance.closed(reason)

    def attach(self, session: Hashable) -> list[Effect]:
        """A client that will speak to this instance. Again is no error."""
        return self._instance.attach(session)

    def detach(self, session: Hashable, now: int) -> list[Effect]:  # noqa: ARG002 - every event carries its time
        """The client has gone: what it has in flight is cancelled upstream, and everything of it forgotten."""
        return self._instance.detach(session)

    def from_client(self, session: Hashable, call: int, envelope: Envelope, raw: bytes, now: int) -> list[Effect]:
        """One checked message of a client.

        Args:
            call: the request's number; for ``notifications/cancelled`` the call that it names, 0 if that isn't
                known; 0 for everything else.
            envelope: what ``jsonrpc.parse_client`` says of ``raw``.
        """
        return self._instance.from_client(session, call, envelope, raw, now)

    def abandon(self, session: Hashable, call: int, reason: str, now: int) -> list[Effect]:
        """Nobody waits for that call any more. ``reason``: "timeout" may start a probe, "closed" doesn't."""
        if isinstance(self._instance, PrivateInstance):
            return self._instance.abandon(call, reason, now)
        return self._instance.abandon(session, call, reason, now)

    def awaits(self, id_raw: bytes) -> bool:
        """Whether the request that the upstream knows by this raw id still has to be answered by it."""
        return self._instance.awaits(id_raw)

    def lost(
        self,
        id_raw: bytes,
        code: int,
        reason: str,
        now: int,
        *,
        sent: bool,
        outcome: Literal["", "success", "death"],
        retry_after_ms: int = 0,
    ) -> list[Effect]:
        """One request, by the raw id that the upstream knows it by, will not be answered: where each has a way of its
        own. ``outcome``: what that says of the upstream; "" says nothing."""
        return self._instance.lost(
            id_raw, CallLost(None, 0, code, reason, sent, retry_after_ms), Outcome(outcome) if outcome else None, now
        )

    def is_quiet(self) -> bool:
        """Whether nobody waits for an answer; requests that stay open don't count."""
        return self._instance.is_quiet

    def check(self, now: int, timeout_ns: int) -> list[Effect]:
        """Nothing has come for a while: ask the upstream whether it lives, unless that has been asked already. A shared
        one only: what one client does to an instance of its own says nothing about the others'."""
        if isinstance(self._instance, PrivateInstance):
            return []
        return self._instance.check(now, timeout_ns)

    def from_upstream(self, raw: bytes, now: int) -> list[Effect]:
        """One message of the upstream, without its framing; anything that it may have printed."""
        return self._instance.from_upstream(raw, now)

    def tick(self, now: int) -> list[Effect]:
        """Handshake and probe whose time is over."""
        return self._instance.tick(now)
