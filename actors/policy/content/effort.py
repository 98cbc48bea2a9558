"""How much work a check may cost. Counted, not timed, so that one message has one verdict.

The unit is about a nanosecond of an ordinary core; each price is that of the worst text that was found for it.
"""

from __future__ import annotations

from typing import Final

LIGHT: Final = 1_500_000
"""What one check may cost between two turns of a loop that serves others."""

_NO_END: Final = 1 << 62


class TooMuch(Exception):
    """The check would take longer than other clients should wait: it belongs into the validator's process."""


class Effort:
    """``left`` is what may still be spent."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    @classmethod
    def unbounded(cls) -> Effort:
        return cls(_NO_END)

    def spend(self, cost: int) -> None:
        """Before the work. Raises TooMuch."""
        if cost > self.left:
            raise TooMuch
        self.left -= cost
