"""What can go wrong between actors, split by whose fault it is."""

from __future__ import annotations


class ActorDown(ConnectionError):
    """The actor that should have answered is not running, or ended before it answered.

    Whether it acted on the request before it died is unknown to the caller.
    """

    def __init__(self, actor: str, reason: str = "down") -> None:
        super().__init__(f"{actor}: {reason}")
        self.actor = actor
        self.reason = reason


class DeadlineExceeded(TimeoutError):
    """No answer came before the request's deadline."""

    def __init__(self, actor: str) -> None:
        super().__init__(f"{actor}: no answer before the deadline")
        self.actor = actor


class MailboxFull(BlockingIOError):
    """A bounded lane has no room. The caller still owns the message."""

    def __init__(self, actor: str) -> None:
        super().__init__(f"{actor}: mailbox full")
        self.actor = actor


class MalformedFrame(ValueError):
    """A peer process of ours broke the framing. It is not to be trusted further: fence it."""
