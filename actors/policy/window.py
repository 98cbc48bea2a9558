"""An exact sliding window for one client: how many units may still be given out now, and when the next one may.

A unit of budget is in one of three states::

    free  --granted-->  outstanding  --used at t-->  logged at t  --length of the window-->  free
                             |
                             +--returned-->  free

The rule, for every window (limit, length) of a client: a grant of n units at time g is allowed only if

    (logged units with t > g - length)  +  (outstanding units)  +  n   <=   limit

which keeps the limit in *every* interval of that length, wherever it starts. Take the units used in some interval
and among them the one that was granted last, at g, and used at u >= g. Each of the others was, at g, either
outstanding still, or logged at a time within one length of u and so later than g - length. All of them were counted.

For that to hold, a logged time must never be earlier than the true time of use. Later is safe, merely stricter.

Times are monotonic nanoseconds.
"""

from __future__ import annotations

import ipaddress
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import attrs

# A front of dead entries is cut off only when it is worth a memmove.
_COMPACT_AT = 64


@attrs.frozen
class WindowRule:
    """At most ``limit`` units in any ``length_ns`` nanoseconds."""

    limit: int
    length_ns: int


class UsageLog:
    """Times at which units were used, ascending; eight bytes each."""

    __slots__ = ("_head", "_times")

    def __init__(self, times: Iterable[int] = ()) -> None:
        self._times = array("q", sorted(times))
        self._head = 0  # everything before it is forgotten

    def __len__(self) -> int:
        return len(self._times) - self._head

    def add(self, at_ns: int, count: int = 1) -> None:
        """Log ``count`` uses at that time. Times may come a little out of order: reports are batched."""
        times = self._times
        if len(times) == self._head or at_ns >= times[-1]:
            if count == 1:
                times.append(at_ns)
            else:
                times.extend([at_ns] * count)
            return
        place = bisect_right(times, at_ns, self._head)
        times[place:place] = array("q", [at_ns] * count)

    def count_after(self, at_ns: int) -> int:
        """How many uses are later than that time."""
        return len(self._times) - bisect_right(self._times, at_ns, self._head)

    def forget_until(self, at_ns: int) -> None:
        """Drop all uses at or before that time."""
        self._head = bisect_right(self._times, at_ns, self._head)
        if self._head >= _COMPACT_AT and self._head * 2 >= len(self._times):
            del self._times[: self._head]
            self._head = 0

    def first_after(self, at_ns: int, count: int) -> list[int]:
        """The ``count`` oldest uses later than that time, or as many as there are."""
        start = bisect_right(self._times, at_ns, self._head)
        return self._times[start : start + count].tolist()

    @property
    def last(self) -> int | None:
        return self._times[-1] if len(self) else None

    def times(self) -> list[int]:
        return self._times[self._head :].tolist()


@attrs.define
class KeyWindow:
    """The state of one key under all rules: one log serves them all.

    The log holds at most as many entries as the largest limit, because each was within the rule when granted and is
    forgotten when no window can reach it any more.
    """

    log: UsageLog = attrs.field(factory=UsageLog)
    outstanding: int = 0
    # lease id -> [granted at, units not yet accounted for]; their sum is ``outstanding``
    grants: dict[int, list[int]] = attrs.field(factory=dict)

    def left(self, rules: Sequence[WindowRule], now: int) -> int:
        """How many units may be granted now; negative when a limit was lowered."""
        log = self.log
        return min(rule.limit - log.count_after(now - rule.length_ns) for rule in rules) - self.outstanding

    def earliest(self, rules: Sequence[WindowRule], now: int, units: int = 1) -> int:
        """The earliest time at which that many may be granted if all that is outstanding was used when granted."""
        best = now
        for rule in rules:
            since = now - rule.length_ns
            missing = self.log.count_after(since) + self.outstanding + units - rule.limit
            if missing <= 0:
                continue
            times = self.log.first_after(since, missing)
            for granted_at, granted in self.grants.values():
                times.extend([granted_at] * min(granted, missing))
            times.sort()
            leaves = times[missing - 1] if missing <= len(times) else now
            best = max(best, leaves + rule.length_ns)
        return best

    def outlook(self, rules: Sequence[WindowRule], now: int) -> tuple[int, int, int]:
        """Of the rule that binds first: units left, when there are more of them, and which rule it is."""
        log = self.log
        left, index = min(
            (rule.limit - log.count_after(now - rule.length_ns), index) for index, rule in enumerate(rules)
        )
        length = rules[index].length_ns
        first = log.first_after(now - length, 1)
        oldest = min([*first, *(granted_at for granted_at, _ in self.grants.values())], default=now - length)
        return left - self.outstanding, oldest + length, index

    def grant(self, lease: int, units: int, now: int) -> None:
        self.grants[lease] = [now, units]
        self.outstanding += units

    def settle(self, lease: int, units: int) -> None:
        """That many units of the lease are no longer outstanding. The caller logs those that were used."""
        grant = self.grants[lease]
        grant[1] -= units
        self.outstanding -= units
        if grant[1] == 0:
            del self.grants[lease]

    def is_empty(self, now: int, longest_ns: int) -> bool:
        last = self.log.last
        return self.outstanding == 0 and (last is None or last <= now - longest_ns)


_COARSER = {4: (24, 16, 8, 0), 6: (56, 48, 32, 0)}
"""Prefix lengths of windows that addresses share when there is no room for one each."""


def _family(key: str) -> int:
    """4 or 6 for the client key of an address (``client_key``), 0 for any other."""
    if not key.startswith("ip:"):
        return 0
    return 6 if ":" in key[3:] else 4


def _levels(key: str, family: int) -> list[str]:
    """The keys of the wider ranges that an address key's own belongs to; they have no other use than to be told apart
    from each other and from those of clients."""
    address = key[3:].partition("/")[0].partition("%")[0]
    length, mark = (128, ":") if family == 6 else (32, "")
    number = int(ipaddress.ip_address(address))
    return [f"ip:{number >> (length - bits):x}{mark}/{bits}" for bits in _COARSER[family]]


def _is_shared(key: str) -> bool:
    """Whether it is one of ``_levels``: an IPv6 client's own key ends with its /64, an IPv4 one's has no length."""
    family = _family(key)
    return bool(family) and "/" in key and not key.endswith("/64")


class KeyTable:
    """The windows of all tracked keys: at most ``capacity`` that are no addresses, and half of that of IPv4 addresses
    and of IPv6 prefixes each.

    So neither family of addresses crowds out the other. Within one, the fuller its part is, the coarser are the keys
    that are new: ever wider ranges of addresses share one window, and in the end all that are left do. So whoever has
    a million addresses shares a window with himself before long, and there always is one for a newcomer. Whoever is
    in a shared window stays there until that is empty, so that nobody ever has two.

    Only a key whose window is empty is ever evicted, so that eviction renews nobody's budget. Keys are kept in the
    order of their last change, so the empty ones gather at the front.
    """

    def __init__(self, rules: Sequence[WindowRule], capacity: int) -> None:
        if not rules:
            raise ValueError("a window needs at least one rule")
        self.rules = tuple(rules)
        self.capacity = capacity
        self.longest_ns = max(rule.length_ns for rule in rules)
        self._keys: OrderedDict[str, KeyWindow] = OrderedDict()
        self._counts = {0: 0, 4: 0, 6: 0}  # of keys, by family
        self._shared = 0  # of keys that stand for ranges

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def get(self, key: str) -> KeyWindow | None:
        return self._keys.get(key)

    def items(self) -> Iterable[tuple[str, KeyWindow]]:
        return self._keys.items()

    def has_room(self, new: int, now: int) -> bool:
        """Whether that many keys can be added that are no addresses; empty ones make room."""
        if self._counts[0] + new > self.capacity:
            self.sweep(now, 64)
        return self._counts[0] + new <= self.capacity

    def needs_room(self, key: str) -> bool:
        """Whether ``has_room`` is to be asked for this key: it is new, and no address's."""
        return key not in self._keys and not _family(key)

    def window_key(self, key: str, now: int) -> str:
        """The key of the window that this key is counted in."""
        family = _family(key)
        if not family or key in self._keys:
            return key
        part = max(1, self.capacity // 2)
        # As long as half of the part is free nothing has been shared for a while, if ever: most of the time.
        if self._counts[family] * 2 < part and not self._shared:
            return key
        if self._is_empty(next(iter(self._keys)), now):  # the one that has not changed for longest
            self.sweep(now, 16)
        levels = _levels(key, family)
        for level in levels:
            if level in self._keys:
                return level
        free = part // 2
        for candidate in (key, *levels[:-1]):
            if self._counts[family] < part - free:
                return candidate
            free //= 2
        return levels[-1]

    def touch(self, key: str, now: int) -> KeyWindow:
        """The window of that key, made when there is none, with what no rule can reach forgotten."""
        window = self._keys.get(key)
        if window is None:
            window = self._keys[key] = KeyWindow()
            self._counts[_family(key)] += 1
            self._shared += _is_shared(key)
            return window
        self._keys.move_to_end(key)
        window.log.forget_until(now - self.longest_ns)
        return window

    def left(self, key: str, now: int) -> int:
        window = self._keys.get(key)
        if window is None:
            return min(rule.limit for rule in self.rules)
        window.log.forget_until(now - self.longest_ns)
        return window.left(self.rules, now)

    def earliest(self, key: str, now: int, units: int = 1) -> int:
        window = self._keys.get(key)
        return now if window is None else window.earliest(self.rules, now, units)

    def outlook(self, key: str, now: int) -> tuple[int, int, int]:
        window = self._keys.get(key) or KeyWindow()
        return window.outlook(self.rules, now)

    def sweep(self, now: int, most: int) -> int:
        """Evict empty keys among the ``most`` least recently changed ones. Returns how many went."""
        gone = [key for key, _ in zip(self._keys, range(most), strict=False) if self._is_empty(key, now)]
        for key in gone:
            del self._keys[key]
            self._counts[_family(key)] -= 1
            self._shared -= _is_shared(key)
        return len(gone)

    def _is_empty(self, key: str, now: int) -> bool:
        return self._keys[key].is_empty(now, self.longest_ns)
