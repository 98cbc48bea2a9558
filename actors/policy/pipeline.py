"""The order of the checks that a message passes before it is forwarded, and the proof that it passed them all.

Each check that allows a message stamps it with its bit; the one function that forwards refuses a message that does
not bear every stamp. So a path that forgets a check, or runs after a crash in the middle of one, forwards nothing.
"""

from __future__ import annotations

from typing import Final

SIZE: Final = 1
"""Bounded before it was read: the codec's limit."""
ENVELOPE: Final = 2
"""UTF-8, well-formed JSON, a JSON-RPC 2.0 envelope, nesting, forbidden keys."""
CONTENT: Final = 64
"""The content policy has looked at it, and the tool's schema where arguments are validated."""
PRINCIPAL: Final = 4
"""The connection bears a grant that is valid now."""
RATE: Final = 8
"""A unit of the client's message budget was spent on it."""
AUTHORISATION: Final = 16
"""The scopes of its principal and the rules of the policy file allow it."""
CIRCUIT: Final = 32
"""Its upstream's breaker lets it pass."""

STAGES: Final = (SIZE, ENVELOPE, PRINCIPAL, CONTENT, RATE, AUTHORISATION, CIRCUIT)
FORWARD: Final = SIZE | ENVELOPE | PRINCIPAL | CONTENT | RATE | AUTHORISATION | CIRCUIT
"""What a message bears when it may be forwarded."""

_NAMES: Final = {
    SIZE: "size",
    ENVELOPE: "envelope",
    PRINCIPAL: "principal",
    CONTENT: "content",
    RATE: "rate",
    AUTHORISATION: "authorisation",
    CIRCUIT: "circuit",
}


class NotAllowed(AssertionError):
    """A message reached the point of forwarding without every stamp: a defect of ours, never the peer's."""


def missing(stamps: int) -> tuple[str, ...]:
    """The names of the checks that ``stamps`` lacks, in the order in which they are made."""
    return tuple(_NAMES[stage] for stage in STAGES if not stamps & stage)


def require(stamps: int) -> None:
    """Raises NotAllowed unless every check has stamped the message."""
    if stamps != FORWARD:
        raise NotAllowed(f"not checked for: {', '.join(missing(stamps))}")
