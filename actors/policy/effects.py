"""What a multiplexer asks of its owner: small values, to be carried out in the order given."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import msgspec

from ipc.messages import LARGE, Envelope


class ToUpstream(msgspec.Struct, frozen=True):
    """One message for the upstream, without a line break in or after it.

    ``about``: what is known of a large message of a client, with the ids that it has now, so that nobody has to read it
    again. Offsets in it mean nothing.
    """

    raw: bytes
    about: Envelope | None = None


class ToClient(msgspec.Struct, frozen=True):
    """One message for a client. ``final`` ends ``call``; a call of 0 is none."""

    session: Hashable
    call: int
    final: bool
    raw: bytes


class CallLost(msgspec.Struct, frozen=True):
    """No answer will come to this call. ``sent``: the upstream may have seen it."""

    session: Hashable
    call: int
    code: int
    reason: str
    sent: bool
    retry_after_ms: int = 0  # what the upstream itself has said of it


class LogLine(msgspec.Struct, frozen=True):
    """For the gateway's log: printable ASCII, bounded. ``level`` is one of MCP's (RFC 5424)."""

    level: str
    text: str


class Counted(msgspec.Struct, frozen=True):
    """Something was dropped; ``what`` comes from a small fixed set."""

    what: str


class Negotiated(msgspec.Struct, frozen=True):
    """The handshake is done; ``version`` is what the upstream chose.

    2025-03-26, the revision with batches, is of no use: then the multiplexer doesn't become ready.
    """

    version: str


class HandshakeFailed(msgspec.Struct, frozen=True):
    """The instance is of no use."""

    reason: str


class Outcome(msgspec.Struct, frozen=True):
    """For the breaker: one call was answered, was answered (or given up) late, went unanswered in silence, or was lost
    on the way (where each call has a way of its own; that of all calls at once is not the multiplexer's to see)."""

    kind: Literal["success", "slow", "silent", "death"]


Effect = ToUpstream | ToClient | CallLost | LogLine | Counted | Negotiated | HandshakeFailed | Outcome

SUCCESS = Outcome("success")
SLOW = Outcome("slow")
SILENT = Outcome("silent")
DEATH = Outcome("death")

_LOG_BYTES = 2048


def pass_on(raw: bytes, envelope: Envelope, **changed: bytes) -> ToUpstream:
    """A client's message on its way; ``changed`` are members of its envelope."""
    if len(raw) < LARGE:
        return ToUpstream(raw)
    return ToUpstream(raw, msgspec.structs.replace(envelope, **changed))


def log_line(level: str, prefix: str, raw: bytes) -> LogLine:
    """A line that quotes an upstream: cut, and escaped so that it can neither break the log nor colour it."""
    text = raw[:_LOG_BYTES].decode(errors="replace").encode("unicode_escape").decode("ascii")
    return LogLine(level, f"{prefix}: {text}{'...' if len(raw) > _LOG_BYTES else ''}")
