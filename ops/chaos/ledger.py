"""What the harness knows: every call, connection attempt and fault with its times, and what was found wrong.

All times are CLOCK_MONOTONIC nanoseconds, which the upstreams' own ledger uses too.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal

import attrs

Outcome = Literal["", "result", "error", "cut"]
"""Of a call: none yet; the right answer; an error; the connection ended first."""


@attrs.define(eq=False)
class Call:
    """``budget``: whose limit it is charged to."""

    name: str
    client: str
    budget: str
    sent_ns: int
    done_ns: int = 0
    outcome: Outcome = ""
    code: int = 0
    reason: str = ""


@attrs.frozen
class Attempt:
    """One attempt to connect and authenticate. ``outcome`` is ok, or what came instead."""

    client: str
    began_ns: int
    ended_ns: int
    outcome: str


@attrs.define(eq=False)
class Injected:
    """A fault that was done. ``recovery_s``: until every new client was served again; None: it was not waited for."""

    number: int
    kind: str
    target: str
    began_ns: int
    ended_ns: int = 0
    recovery_s: float | None = None
    note: str = ""
    alone: bool = True
    replaced_s: float | None = None  # of a fault that takes a worker down: until the next one was up

    def covers(self, when_ns: int, margin_s: float) -> bool:
        end = self.ended_ns or time.monotonic_ns()
        return self.began_ns <= when_ns <= end + int(margin_s * 1e9)

    def overlaps(self, first_ns: int, last_ns: int, margin_s: float = 0.0) -> bool:
        end = self.ended_ns or time.monotonic_ns()
        return self.began_ns <= last_ns and first_ns <= end + int(margin_s * 1e9)


@attrs.frozen
class Finding:
    """Something that must not be. ``what`` is one of the judge's words."""

    what: str
    detail: str
    when_ns: int


@attrs.frozen
class Execution:
    """One line of the upstreams' ledger."""

    when_ns: int
    upstream: str
    pid: int
    name: str


@attrs.define(eq=False)
class Ledger:
    calls: dict[str, Call] = attrs.field(factory=dict)
    attempts: list[Attempt] = attrs.field(factory=list)
    faults: list[Injected] = attrs.field(factory=list)
    findings: list[Finding] = attrs.field(factory=list)
    cuts: list[tuple[int, str, str, str]] = attrs.field(factory=list)  # connections that ended: when, kind, whose, how
    endings: list[tuple[int, int]] = attrs.field(factory=list)  # of connections: their token's revocation, their end
    counts: Counter[str] = attrs.field(factory=Counter)
    _numbers: dict[str, int] = attrs.field(factory=lambda: defaultdict(int))

    def name(self, client: str) -> str:
        """A payload that nobody ever uses again."""
        self._numbers[client] += 1
        return f"{client}.{self._numbers[client]}"

    def sent(self, name: str, client: str, budget: str) -> Call:
        call = self.calls[name] = Call(name, client, budget, time.monotonic_ns())
        return call

    def done(self, call: Call, outcome: Outcome, code: int = 0, reason: str = "") -> None:
        call.done_ns, call.outcome, call.code, call.reason = time.monotonic_ns(), outcome, code, reason

    def attempted(self, client: str, began_ns: int, outcome: str) -> None:
        self.attempts.append(Attempt(client, began_ns, time.monotonic_ns(), outcome))
        self.counts[f"connect: {outcome}"] += 1

    def find(self, what: str, detail: str, when_ns: int = 0) -> None:
        self.findings.append(Finding(what, detail[:500], when_ns or time.monotonic_ns()))


def executions(path: Path) -> list[Execution]:
    """The upstreams' ledger."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        when, upstream, pid, name = line.split(" ", 3)
        found.append(Execution(int(when), upstream, int(pid), name))
    return found
