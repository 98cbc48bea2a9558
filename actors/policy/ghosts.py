"""Calls that were given up, and sessions that have left: a server may still speak of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator

REMEMBERED_NS = 30_000_000_000  # a server that still works on a cancelled call for longer is not to be helped
MOST = 1024


class Ghosts:
    """Whom an unattributed message may be about besides those who are there. Bounded; the oldest go first."""

    def __init__(self) -> None:
        self._calls: deque[tuple[int, Hashable]] = deque(maxlen=MOST)
        self._asking: deque[tuple[int, Hashable]] = deque(maxlen=MOST)
        self._left: deque[tuple[int, Hashable]] = deque(maxlen=MOST)

    def gave_up(self, session: Hashable, now: int, *, asked: bool) -> None:
        """A call of that session was cancelled or abandoned, and is perhaps still being worked on.

        ``asked``: for log messages, by itself.
        """
        self._calls.append((now + REMEMBERED_NS, session))
        if asked:
            self._asking.append((now + REMEMBERED_NS, session))

    def left(self, session: Hashable, now: int) -> None:
        """The session is over."""
        self._left.append((now + REMEMBERED_NS, session))

    def of_calls(self, now: int) -> Iterator[Hashable]:
        """The sessions of calls that were given up lately."""
        return self._living(self._calls, now)

    def of_asking_calls(self, now: int) -> Iterator[Hashable]:
        """Those of them that asked for log messages."""
        return self._living(self._asking, now)

    def all(self, now: int) -> Iterator[Hashable]:
        """And those that left lately."""
        yield from self._living(self._calls, now)
        yield from self._living(self._left, now)

    @staticmethod
    def _living(entries: deque[tuple[int, Hashable]], now: int) -> Iterator[Hashable]:
        while entries and entries[0][0] <= now:
            entries.popleft()
        return iter([session for _, session in entries])
