"""Why a client command failed, as its user and its exit code see it. No message here ever holds a credential."""

from __future__ import annotations

from typing import ClassVar


class ClientFailure(Exception):
    """The base; ``exit_code`` is the process's."""

    exit_code: ClassVar[int] = 1


class UsageError(ClientFailure, ValueError):
    """The command line itself cannot be meant."""

    exit_code = 2


class Refused(ClientFailure, PermissionError):
    """The gateway does not want this client: no or a wrong credential, a block, a limit."""

    exit_code = 3


class Unreachable(ClientFailure, ConnectionError):
    """No gateway speaks there, or it went away before it answered."""

    exit_code = 4


class CallError(ClientFailure):
    """The peer answered a request with a JSON-RPC error. ``code``, ``message`` and ``data`` are its own."""

    def __init__(self, method: str, code: int, message: str, data: object = None) -> None:
        super().__init__(f"{method}: error {code}: {message}")
        self.code = code
        self.message = message
        self.data = data


class NoAnswer(ClientFailure, TimeoutError):
    """The request was sent, and nothing came back in time: whether it was carried out is unknown."""


class LinkClosed(ClientFailure, ConnectionError):
    """The peer ended the connection.

    ``code`` is a WebSocket close code (RFC 6455 §7.4), 1006 where there was no closing handshake, and 0 on TCP.
    """

    # 3000 and 3003 are registered for "unauthorized" and "forbidden"; 1008 is a policy violation, 1013 "try later".
    REFUSALS: ClassVar[frozenset[int]] = frozenset({1008, 1013, 3000, 3003})

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the gateway closed the connection{f' with code {code}' if code else ''}: {reason}")
        self.code = code
        self.reason = reason

    def meaning(self) -> ClientFailure:
        """The same as seen by someone who was not yet through: a refusal or an unreachable gateway."""
        return (Refused if self.code in self.REFUSALS else Unreachable)(str(self))
