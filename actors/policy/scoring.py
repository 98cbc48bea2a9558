"""How much trouble a client has made lately: a score that decays, and failed authentications within a time.

Every offence adds its weight to the score of a *subject*: the client key of an address, or a principal. The score
halves with each half-life. At or past the threshold the subject is *due* for a block; so it is at the
``max_failed_attempts``-th failed authentication within its window, whatever the score.

``note`` only decides and returns a record; ``apply`` is the only way the state changes, so that a journal of the
records is the state. Who is due stays due until ``Forgiven``: a crash between the decision and the block that is
written down finds it again.

Each subject is forgotten at a time that is known when it offends: when its score has become negligible and its
failures have left the window. That order decides who goes when the table is full: the one that would have been
forgotten first. So neither a million new addresses with one offence each, nor time, forgets a worse one sooner.

Times are monotonic nanoseconds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Final, Literal, get_args

import attrs
import msgspec

Offence = Literal["auth", "malformed", "rate", "content", "probe", "handshake"]
OFFENCES: Final[frozenset[str]] = frozenset(get_args(Offence))

NEGLIGIBLE: Final = 0.5
"""Below this a score is forgotten: half of the lightest thing that could be told from nothing."""
CAPACITY: Final = 65_536
_MOST_AT_ONCE: Final = 1_000_000  # offences in one record; far more than any threshold needs
_FAILURES_KEPT: Final = 64  # moments of failure told apart; past it neighbours are counted as the later one
_AUTH_TOTAL: Final = 100


class Offended(msgspec.Struct, frozen=True, array_like=True, tag="o", gc=False):
    key: str
    kind: Offence
    count: int
    at_ns: int


class Scored(msgspec.Struct, frozen=True, array_like=True, tag="s", gc=False):
    """A subject's state as a snapshot keeps it."""

    key: str
    score: float
    at_ns: int
    failures: list[tuple[int, int]]
    due: str


class Forgiven(msgspec.Struct, frozen=True, array_like=True, tag="n", gc=False):
    """What was held against this subject has been paid for by a block, or lifted by an operator."""

    key: str


ScoreRecord = Offended | Scored | Forgiven


@attrs.frozen
class ScoringRule:
    """``threshold`` and weights are points; the others are as their variables say."""

    threshold: int = 100
    half_life_ns: int = 600_000_000_000
    max_failed_attempts: int = 3
    failed_window_ns: int = 600_000_000_000

    @property
    def weights(self) -> dict[Offence, int]:
        return {
            "auth": math.ceil(_AUTH_TOTAL / self.max_failed_attempts),
            "handshake": 10,
            "content": 10,
            "malformed": 5,
            "probe": 5,
            "rate": 2,
        }


@attrs.define
class _Subject:
    """``score`` is that of ``at_ns``. ``failures`` are (time, count), ascending, within the window at ``at_ns``."""

    score: float
    at_ns: int
    failures: list[tuple[int, int]]
    due: str = ""  # why a block is due; empty: none is
    forgotten_ns: int = 0


class Scoring:
    """All subjects that have offended lately, at most ``capacity`` of them.

    Invariant: each subject has an entry in ``_order`` whose time is its ``forgotten_ns`` or an earlier one (offences
    only ever move that later), so whoever pops it looks again. Entries of the forgiven stay until their time, or
    until they are as many as the subjects.
    """

    def __init__(self, rule: ScoringRule, capacity: int = CAPACITY) -> None:
        self.rule = rule
        self.capacity = capacity
        self.evicted = 0  # before their time, for want of room
        self._weights = rule.weights
        self._subjects: dict[str, _Subject] = {}
        self._order: list[tuple[int, str]] = []  # a heap

    def __len__(self) -> int:
        return len(self._subjects)

    def note(self, key: str, kind: Offence, count: int, now: int) -> Offended:
        """What to record of ``count`` offences."""
        return Offended(key, kind, max(1, min(count, _MOST_AT_ONCE)), now)

    def apply(self, record: ScoreRecord) -> None:
        if isinstance(record, Offended):
            self._offend(record)
        elif isinstance(record, Scored):
            self._put(
                record.key, _Subject(record.score, record.at_ns, list(record.failures), record.due), record.at_ns
            )
        else:
            self._subjects.pop(record.key, None)

    def score(self, key: str, now: int) -> float:
        subject = self._subjects.get(key)
        return 0.0 if subject is None else self._decayed(subject, now)

    def due(self, key: str) -> str:
        """Why this subject is to be blocked; empty when it isn't."""
        subject = self._subjects.get(key)
        return "" if subject is None else subject.due

    def all_due(self) -> list[tuple[str, str]]:
        return [(key, subject.due) for key, subject in self._subjects.items() if subject.due]

    def sweep(self, now: int, most: int) -> int:
        """Forget subjects whose time has come, looking at ``most`` at the utmost. Returns how many went."""
        before = len(self._subjects)
        for _ in range(most):
            if not self._order or self._order[0][0] > now:
                break
            self._pop_or_put_back(now)
        return before - len(self._subjects)

    def snapshot(self) -> Iterator[Scored]:
        for key, subject in self._subjects.items():
            yield Scored(key, subject.score, subject.at_ns, subject.failures, subject.due)

    # --- inside

    def _offend(self, record: Offended) -> None:
        rule, now = self.rule, record.at_ns
        subject = self._subjects.get(record.key)
        if subject is None:
            subject = _Subject(0.0, now, [])
        score = self._decayed(subject, now) + self._weights[record.kind] * record.count
        subject.score = min(score, 1e9)
        subject.at_ns = max(subject.at_ns, now)
        if record.kind == "auth":
            self._fail(subject, record.count, now)
        # Points are whole: twenty times five in a few seconds are a hundred, although some of it has decayed by then.
        if round(score) >= rule.threshold and not subject.due:
            subject.due = "threat score"
        self._put(record.key, subject, now)

    def _fail(self, subject: _Subject, count: int, now: int) -> None:
        since = now - self.rule.failed_window_ns
        failures = [(at, n) for at, n in subject.failures if at > since]
        failures.append((max(now, failures[-1][0]) if failures else now, count))
        if len(failures) > _FAILURES_KEPT:
            (_, first), (at, second), *rest = failures
            failures = [(at, first + second), *rest]  # remembered longer than it was, never shorter
        subject.failures = failures
        if sum(n for _, n in failures) >= self.rule.max_failed_attempts:
            subject.due = "failed authentication"

    def _decayed(self, subject: _Subject, now: int) -> float:
        halvings = max(0, now - subject.at_ns) / self.rule.half_life_ns
        return math.ldexp(subject.score, -int(halvings)) * 2.0 ** -(halvings % 1.0) if halvings < 2000 else 0.0

    def _forgotten(self, subject: _Subject) -> int:
        """When nothing of it counts any more."""
        halvings = math.log2(max(subject.score, NEGLIGIBLE) / NEGLIGIBLE)
        at = subject.at_ns + int(halvings * self.rule.half_life_ns)
        return max(at, subject.failures[-1][0] + self.rule.failed_window_ns) if subject.failures else at

    def _put(self, key: str, subject: _Subject, now: int) -> None:
        subject.forgotten_ns = self._forgotten(subject)
        if key in self._subjects:
            return
        while len(self._subjects) >= self.capacity:
            self._make_room(now)
        self._subjects[key] = subject
        heapq.heappush(self._order, (subject.forgotten_ns, key))
        if len(self._order) > 2 * self.capacity:  # half of it are places of those who were forgiven
            self._order = [(known.forgotten_ns, each) for each, known in self._subjects.items()]
            heapq.heapify(self._order)

    def _make_room(self, now: int) -> None:
        count = len(self._subjects)
        when = self._order[0][0]
        self._pop_or_put_back(max(now, when))
        if len(self._subjects) < count and when > now:
            self.evicted += 1

    def _pop_or_put_back(self, now: int) -> None:
        """Take the first of the order. It goes if its own time is not later than ``now``."""
        _, key = self._order[0]
        subject = self._subjects.get(key)
        if subject is not None and subject.forgotten_ns > now:
            heapq.heapreplace(self._order, (subject.forgotten_ns, key))
            return
        heapq.heappop(self._order)
        if subject is not None:
            del self._subjects[key]
