"""Leases of message budget: units of a sliding window handed to an acceptor ahead of their use.

Decisions are values. ``LeasePolicy.request`` and its siblings only decide; what they return is a *record*, and
``apply`` is the only way the state changes. A journal of the records, applied in order, is the state: whoever writes
each record down before acting on it forgets nothing in a crash.

Every unit of a lease ends in exactly one way: reported used (it enters the log of all its keys at that time),
returned, or *forfeited*: its acceptor is gone, closed the lease without a word on it, or stayed silent past the end
of the lease. A forfeited unit counts as used at the last moment at which it can have been used. For an acceptor that
is gone that is the end of the lease, not now: a channel may break a while before its process is fenced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs
import msgspec

from .window import KeyTable, WindowRule

LARGEST_LEASE = 256
# A lease takes at most this fraction of what is left, so that other acceptors find something too.
_SHARE = 8
# How long a report may be late before its lease is forfeited. Longer than any delay of a live channel, shorter than
# it would take to matter for a window of a minute.
REPORT_GRACE_NS = 2_000_000_000
_SHORTEST_LEASE_NS = 50_000_000
_LONGEST_LEASE_NS = 500_000_000


class Granted(msgspec.Struct, frozen=True, array_like=True, tag="g", gc=False):
    lease: int
    acceptor: str
    incarnation: int
    keys: tuple[str, ...]
    units: int
    at_ns: int
    until_ns: int


class Reported(msgspec.Struct, frozen=True, array_like=True, tag="r", gc=False):
    lease: int
    used_at_ns: list[int]
    returned: int
    closed: bool
    at_ns: int


class Forfeited(msgspec.Struct, frozen=True, array_like=True, tag="f", gc=False):
    leases: list[int]
    at_ns: int


class Logged(msgspec.Struct, frozen=True, array_like=True, tag="l", gc=False):
    """A key's log as a snapshot keeps it."""

    key: str
    used_at_ns: list[int]


LeaseRecord = Granted | Reported | Forfeited | Logged


@attrs.frozen
class Denied:
    """No unit can be granted before ``retry_at_ns``."""

    retry_at_ns: int


@attrs.define
class _Outstanding:
    acceptor: str
    incarnation: int
    keys: tuple[str, ...]
    units: int  # not yet accounted for
    at_ns: int
    until_ns: int


class LeasePolicy:
    """The one truth of who may still send how much.

    Args:
      rules: the windows, all of which hold for every key.
      capacity: how many principals are tracked at most, and half as many addresses of each kind; past it, unknown
        principals are denied until a tracked one falls idle, and addresses share windows.
    """

    def __init__(self, rules: Sequence[WindowRule], capacity: int = 65_536) -> None:
        self.table = KeyTable(rules, capacity)
        shortest = min(rule.length_ns for rule in rules)
        # Units that wait unused in one acceptor are missing in the others: for a small part of the window only.
        self.lifetime_ns = max(_SHORTEST_LEASE_NS, min(_LONGEST_LEASE_NS, shortest // 4))
        self.units_forfeited = 0
        self.units_overspent = 0
        self._leases: dict[int, _Outstanding] = {}  # in the order of granting, which is the order of ending
        self._last_lease = 0

    @property
    def leases(self) -> int:
        return len(self._leases)

    def request(
        self, acceptor: str, incarnation: int, keys: tuple[str, ...], want: int, now: int, least: int = 1
    ) -> Granted | Denied:
        """Up to ``want`` units, charged to all ``keys`` or to none; not fewer than ``least``."""
        charged = tuple(dict.fromkeys(self.table.window_key(key, now) for key in keys))
        if not charged:
            raise ValueError("a lease without a key would be a budget without a limit")
        left = min(self.table.left(key, now) for key in charged)
        least = max(1, least)
        if left < least:
            return Denied(max(self.table.earliest(key, now, least) for key in charged))
        if not self.table.has_room(sum(map(self.table.needs_room, charged)), now):
            return Denied(now + self.table.longest_ns)
        return Granted(
            # Never an id that was used before, even if the journal was lost: a stale report must not hit a new lease.
            lease=max(self._last_lease + 1, now),
            acceptor=acceptor,
            incarnation=incarnation,
            keys=charged,
            units=max(least, min(want, left // _SHARE, LARGEST_LEASE)),
            at_ns=now,
            until_ns=now + self.lifetime_ns,
        )

    def has_units(self, keys: tuple[str, ...], least: int, now: int) -> bool:
        """Whether that many could be granted now."""
        return all(self.table.left(key, now) >= least for key in keys)

    def held_besides(self, acceptor: str, keys: tuple[str, ...]) -> list[tuple[str, tuple[str, ...], int]]:
        """Leases of any of these keys but those of this acceptor for them all: whose, of which keys, and which."""
        asking = acceptor, tuple(dict.fromkeys(keys))
        found: dict[int, _Outstanding] = {}
        for key in keys:
            window = self.table.get(key)
            for lease in window.grants if window is not None else ():
                known = self._leases.get(lease)
                if known is not None and (known.acceptor, known.keys) != asking:
                    found[lease] = known
        return [(known.acceptor, known.keys, lease) for lease, known in found.items()]

    def is_open(self, lease: int) -> bool:
        """Whether units of it are not accounted for."""
        return lease in self._leases

    def report(self, lease: int, used_at_ns: Sequence[int], returned: int, closed: bool, now: int) -> Reported | None:
        """What an acceptor says of a lease, cut to what it can be; None for a lease that is settled already."""
        known = self._leases.get(lease)
        if known is None:
            return None
        used = [min(max(at, known.at_ns), now) for at in used_at_ns[: known.units]]
        self.units_overspent += len(used_at_ns) - len(used)
        return Reported(lease, used, max(0, min(returned, known.units - len(used))), closed, now)

    def gone(self, acceptor: str, incarnation: int, now: int) -> Forfeited | None:
        """Forfeit the leases of all incarnations of that acceptor but the one that runs now (0: none does)."""
        return self._forfeit(
            (
                lease
                for lease, known in self._leases.items()
                if known.acceptor == acceptor and known.incarnation != incarnation
            ),
            now,
        )

    def overdue(self, now: int) -> Forfeited | None:
        """Forfeit the leases whose acceptor is silent although they ended a while ago."""
        late = []
        for lease, known in self._leases.items():
            if known.until_ns + REPORT_GRACE_NS > now:
                break
            late.append(lease)
        return self._forfeit(late, now)

    def outlook(self, keys: tuple[str, ...], now: int) -> tuple[int, int, int]:
        """Of the key and the rule that bind first: units left, when there are more, and the number of the rule."""
        return min(self.table.outlook(key, now) for key in keys)

    @property
    def next_overdue_ns(self) -> int | None:
        first = next(iter(self._leases.values()), None)
        return None if first is None else first.until_ns + REPORT_GRACE_NS

    def apply(self, record: LeaseRecord) -> None:
        if isinstance(record, Granted):
            self._last_lease = max(self._last_lease, record.lease)
            self._leases[record.lease] = _Outstanding(
                record.acceptor, record.incarnation, record.keys, record.units, record.at_ns, record.until_ns
            )
            for key in record.keys:
                self.table.touch(key, record.at_ns).grant(record.lease, record.units, record.at_ns)
        elif isinstance(record, Reported):
            known = self._leases.get(record.lease)
            if known is None:
                return
            for at_ns in record.used_at_ns:
                self._use(record.lease, known, 1, at_ns, record.at_ns)
            if record.returned:
                self._settle(record.lease, known, record.returned, record.at_ns)
            if record.closed and known.units:
                self.units_forfeited += known.units
                self._use(record.lease, known, known.units, min(record.at_ns, known.until_ns), record.at_ns)
            if known.units == 0:
                del self._leases[record.lease]
        elif isinstance(record, Forfeited):
            for lease in record.leases:
                known = self._leases.pop(lease, None)
                if known is not None:
                    self.units_forfeited += known.units
                    self._use(lease, known, known.units, known.until_ns, record.at_ns)
        else:
            log = self.table.touch(record.key, 0).log
            for at_ns in record.used_at_ns:
                log.add(at_ns)

    def snapshot(self, now: int) -> Iterator[LeaseRecord]:
        """Records that, applied to a new policy, give this state."""
        for key, window in self.table.items():
            window.log.forget_until(now - self.table.longest_ns)
            if len(window.log):
                yield Logged(key, window.log.times())
        for lease, known in self._leases.items():
            yield Granted(
                lease, known.acceptor, known.incarnation, known.keys, known.units, known.at_ns, known.until_ns
            )

    def _forfeit(self, leases: Iterable[int], now: int) -> Forfeited | None:
        found = list(leases)
        return Forfeited(found, now) if found else None

    def _use(self, lease: int, known: _Outstanding, units: int, at_ns: int, now: int) -> None:
        for key in known.keys:
            window = self.table.touch(key, now)
            window.log.add(at_ns, units)
            window.settle(lease, units)
        known.units -= units

    def _settle(self, lease: int, known: _Outstanding, units: int, now: int) -> None:
        for key in known.keys:
            self.table.touch(key, now).settle(lease, units)
        known.units -= units
