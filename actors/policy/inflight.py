"""How all workers share MAX_INFLIGHT_BYTES: who may hold more, and whose message is given up for it.

Every worker publishes its own share and reads those of all others. A message has a place in line, the time when it
first held anything. Rules:

- Nobody takes what doesn't fit, or what an older message waits for.
- When there is no room for a message, the youngest unfinished ones of all are given up, one by one, until there is;
  that may be the message itself.
- A finished message is never given up: it is forwarded, or refused by somebody else's deadline, in bounded time. So
  the only unfinished one waits for those instead of being given up, and the oldest always progresses.

Times are monotonic nanoseconds, of one clock for all processes; 0: none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Share(NamedTuple):
    """One worker's.

    ``held`` are its bytes. ``want_ns`` is the place of its oldest message that waits, and ``want_bytes`` what that
    waits for. ``youngest_ns`` is the place of its youngest unfinished message.
    """

    held: int
    want_ns: int = 0
    want_bytes: int = 0
    youngest_ns: int = 0


def total(shares: Iterable[Share]) -> int:
    return sum(share.held for share in shares)


def next_in_line(shares: Iterable[Share]) -> Share | None:
    """The share whose message waits longest for room; None: nothing waits."""
    return min((share for share in shares if share.want_ns), key=lambda share: share.want_ns, default=None)


def may_take(place_ns: int, size: int, others: Iterable[Share], own_held: int, limit: int) -> bool:
    """Whether the message at that place may hold ``size`` bytes more.

    ``own_held`` is what its worker holds without them. The oldest message of the worker itself comes first anyhow.
    """
    others = tuple(others)
    if own_held + size + total(others) > limit:
        return False
    return not any(share.want_ns and share.want_ns < place_ns for share in others)


def must_yield(own: Share, others: Iterable[Share], limit: int, unfinished: int) -> bool:
    """Whether a worker has to give up its youngest unfinished message, of ``unfinished`` ones that it has."""
    others = tuple(others)
    shares = (own, *others)
    waiting = next_in_line(shares)
    if waiting is None or not own.youngest_ns or total(shares) + waiting.want_bytes <= limit:
        return False
    if any(share.youngest_ns > own.youngest_ns for share in others):
        return False  # there is a younger one
    alone = unfinished == 1 and not any(share.youngest_ns for share in others)
    return not alone
