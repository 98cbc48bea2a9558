"""How many connections there are, over all acceptors together, and how fast one client opens new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

import attrs
import msgspec

from .window import KeyTable, WindowRule

Listener = Literal["ws", "tcp"]


@attrs.frozen
class ConnectionLimits:
    ws: int
    tcp: int
    per_key: int  # over both listeners


class Connections:
    """The live connections of every acceptor. Bounded by the limits: nothing is kept of a refused one."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.totals: Counter[Listener] = Counter()
        # acceptor -> session -> where it came from; ``totals`` and ``_keys`` are its sums
        self._acceptors: dict[str, dict[int, tuple[Listener, str]]] = {}
        self._keys: Counter[str] = Counter()

    def is_known(self, acceptor: str, session: int) -> bool:
        return session in self._acceptors.get(acceptor, ())

    def refusal(self, listener: Listener, key: str) -> str:
        """Why one more may not exist: ``total``, ``address``, or empty when it may."""
        if self.totals[listener] >= (self.limits.ws if listener == "ws" else self.limits.tcp):
            return "total"
        return self.address_refusal(key)

    def address_refusal(self, key: str) -> str:
        """``refusal`` for one that is counted in the totals already. An empty key, not known yet, has no limit."""
        return "address" if key and self._keys[key] >= self.limits.per_key else ""

    def is_nameless(self, acceptor: str, session: int) -> bool:
        """Whether this connection is counted in the totals only, because its client's address wasn't known."""
        entry = self._acceptors.get(acceptor, {}).get(session)
        return entry is not None and not entry[1]

    def add(self, acceptor: str, session: int, listener: Listener, key: str) -> None:
        self.release(acceptor, (session,))
        self._acceptors.setdefault(acceptor, {})[session] = (listener, key)
        self.totals[listener] += 1
        self._keys[key] += 1

    def release(self, acceptor: str, sessions: Iterable[int]) -> None:
        """Sessions that aren't known are passed over: a release may follow the acceptor's own end."""
        known = self._acceptors.get(acceptor, {})
        for session in sessions:
            entry = known.pop(session, None)
            if entry is None:
                continue
            listener, key = entry
            self.totals[listener] -= 1
            self._keys[key] -= 1
            if not self._keys[key]:
                del self._keys[key]

    def resync(self, acceptor: str, connections: Iterable[tuple[int, Listener, str]]) -> None:
        """Take the acceptor's word for what is alive; it may exceed a limit, as these connections exist."""
        self.gone(acceptor)
        for session, listener, key in connections:
            self.add(acceptor, session, listener, key)

    def gone(self, acceptor: str) -> None:
        self.release(acceptor, list(self._acceptors.get(acceptor, ())))
        self._acceptors.pop(acceptor, None)

    @property
    def keys(self) -> int:
        return len(self._keys)


class Connected(msgspec.Struct, frozen=True, array_like=True, tag="c", gc=False):
    """New connections of one key, at these times: a record, as those of leases are."""

    key: str
    at_ns: list[int]


class ConnectionRate:
    """An exact sliding window of new connections per key. ``apply`` is the only way its state changes."""

    def __init__(self, rule: WindowRule, capacity: int = 65_536) -> None:
        self.table = KeyTable((rule,), capacity)

    def retry_at(self, key: str, now: int) -> int:
        """When that key may connect: ``now`` or later."""
        if self.table.left(key, now) < 1:
            return self.table.earliest(key, now)
        if key not in self.table and not self.table.has_room(1, now):
            return now + self.table.longest_ns
        return now

    def apply(self, record: Connected) -> None:
        for at_ns in record.at_ns:
            self.table.touch(record.key, at_ns).log.add(at_ns)

    def snapshot(self, now: int) -> Iterator[Connected]:
        for key, window in self.table.items():
            window.log.forget_until(now - self.table.longest_ns)
            if len(window.log):
                yield Connected(key, window.log.times())
