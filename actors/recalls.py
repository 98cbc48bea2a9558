"""Questions for budget that wait while leases which others hold are called back.

A unit that lies unused in one acceptor, or under one principal of an address, is missing for another: without this, a
client would be over its limit a little before it is, and would hear a time that is too late. So before anybody is
refused, whoever holds something for one of the same keys is asked to account for it. That takes a round trip; who
doesn't answer in time is not waited for, and then what he holds counts as spent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from ipc.mailbox import Delivery

# Shorter than an acceptor lets a message wait for its answer, and longer than a turn of a busy one.
PATIENCE_NS: Final = 150_000_000
MOST_WAITING: Final = 4096


@attrs.define
class _Waiting:
    delivery: Delivery
    until_ns: int
    leases: set[int]  # that were called back and are not settled yet


class Recalls:
    """In the order of their asking, which is that of their time running out."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= MOST_WAITING

    def wait(self, delivery: Delivery, leases: Iterable[int], now: int) -> None:
        """``delivery`` is decided when these leases are settled, or when the patience is over."""
        self._waiting.append(_Waiting(delivery, now + PATIENCE_NS, set(leases)))

    def due(self, is_open: Callable[[int], bool], now: int) -> list[Delivery]:
        """The questions that are to be decided now."""
        found: list[Delivery] = []
        left: deque[_Waiting] = deque()
        for one in self._waiting:
            one.leases = {lease for lease in one.leases if is_open(lease)}
            if one.leases and now < one.until_ns:
                left.append(one)
            else:
                found.append(one.delivery)
        self._waiting = left
        return found

    @property
    def next_due_ns(self) -> int | None:
        return self._waiting[0].until_ns if self._waiting else None

    def clear(self) -> list[Delivery]:
        """All that wait: they will not be decided here any more."""
        waiting, self._waiting = self._waiting, deque()
        return [one.delivery for one in waiting]
