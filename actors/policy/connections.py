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


@attrs.define
class _Place:
    """``ripe_ns`` is when it may have to make room, 0 for one that is authenticated; ``leaving``: it has to."""

    listener: Listener
    key: str
    ripe_ns: int = 0
    leaving: bool = False


class Connections:
    """The live connections of every acceptor. Bounded by the limits: nothing is kept of a refused one.

    Whoever has not authenticated after half of its time for that (``ripe_ns``) may keep its place only while nobody
    else wants it: otherwise a hundred slow handshakes shut everybody out for as long as they last. It still counts
    until it has gone, so the limits hold.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.totals: Counter[Listener] = Counter()
        # acceptor -> session -> where it came from; ``totals`` and ``_keys`` are its sums
        self._acceptors: dict[str, dict[int, _Place]] = {}
        self._keys: Counter[str] = Counter()
        # Those that aren't authenticated; none of them is ripe before ``_none_ripe_until``.
        self._strangers: dict[tuple[str, int], _Place] = {}
        self._none_ripe_until = 0

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
        return entry is not None and not entry.key

    def add(self, acceptor: str, session: int, listener: Listener, key: str, ripe_ns: int = 0) -> None:
        """``ripe_ns``: from when on it may have to make room unless it has been ``settle``d; 0: never."""
        self.release(acceptor, (session,))
        place = self._acceptors.setdefault(acceptor, {})[session] = _Place(listener, key, ripe_ns)
        self.totals[listener] += 1
        self._keys[key] += 1
        if ripe_ns:
            self._strangers[acceptor, session] = place
            self._none_ripe_until = min(self._none_ripe_until, ripe_ns)

    def settle(self, acceptor: str, sessions: Iterable[int]) -> None:
        """These have authenticated, and keep their places."""
        for session in sessions:
            place = self._strangers.pop((acceptor, session), None)
            if place is not None:
                place.ripe_ns = 0
                place.leaving = False

    def evict(self, refusal: str, listener: Listener, key: str, now: int) -> tuple[str, int] | None:
        """The acceptor and session of the one that has to make room for a newcomer which met that ``refusal``; None:
        nobody has to. Of the address that holds most of those who may be asked, it is the oldest."""
        if now < self._none_ripe_until:
            return None
        self._none_ripe_until = min((place.ripe_ns for place in self._strangers.values()), default=now)
        ripe = [
            (name, place)
            for name, place in self._strangers.items()
            if place.ripe_ns <= now
            and not place.leaving
            and (place.key == key if refusal == "address" else place.listener == listener)
        ]
        if not ripe:
            return None
        held = Counter(place.key for _, place in ripe)
        name, place = min(ripe, key=lambda each: (-held[each[1].key], each[1].ripe_ns))
        place.leaving = True
        return name

    def is_leaving(self, acceptor: str, session: int) -> bool:
        """Whether it was asked to go and still is there."""
        place = self._strangers.get((acceptor, session))
        return place is not None and place.leaving

    def release(self, acceptor: str, sessions: Iterable[int]) -> None:
        """Sessions that aren't known are passed over: a release may follow the acceptor's own end."""
        known = self._acceptors.get(acceptor, {})
        for session in sessions:
            entry = known.pop(session, None)
            if entry is None:
                continue
            self._strangers.pop((acceptor, session), None)
            self.totals[entry.listener] -= 1
            self._keys[entry.key] -= 1
            if not self._keys[entry.key]:
                del self._keys[entry.key]

    def resync(self, acceptor: str, connections: Iterable[tuple[int, Listener, str, int]]) -> None:
        """Take the acceptor's word for what is alive; it may exceed a limit, as these connections exist."""
        self.gone(acceptor)
        for session, listener, key, ripe_ns in connections:
            self.add(acceptor, session, listener, key, ripe_ns)

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
        key = self.table.window_key(key, now)
        if self.table.left(key, now) < 1:
            return self.table.earliest(key, now)
        if self.table.needs_room(key) and not self.table.has_room(1, now):
            return now + self.table.longest_ns
        return now

    def connected(self, key: str, now: int) -> Connected:
        """What to record of a new connection."""
        return Connected(self.table.window_key(key, now), [now])

    def apply(self, record: Connected) -> None:
        for at_ns in record.at_ns:
            self.table.touch(record.key, at_ns).log.add(at_ns)

    def snapshot(self, now: int) -> Iterator[Connected]:
        for key, window in self.table.items():
            window.log.forget_until(now - self.table.longest_ns)
            if len(window.log):
                yield Connected(key, window.log.times())
