"""What has to be true whatever was broken: findings from the ledgers, the audit log, and what is left behind.

Nothing here asks the gateway for its opinion. Where a fault explains what was seen (a connection of a worker that was
killed ends), the fault's time has to cover it; nothing else is excused.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from . import processes
from .gateway import ROOT, Gateway, listens
from .hostile import MARK
from .ledger import Attempt, Call, Execution, Injected, Ledger, executions
from .plan import BY_NAME, EDGES, HOMES, TAKES_DOWN

FINDINGS: Final = {
    "refused-connection": "the kernel refused a connection: nobody listened",
    "unanswered": "neither an answer nor an error came, on a connection that lives",
    "foreign-answer": "an answer came that was another's, or that nobody asked for, or twice",
    "mixed-sessions": "a server that is one client's alone was used by another",
    "wrong-error": "an error came that nothing justifies",
    "timed-out": "a call ran into its timeout although nothing hung",
    "invented-answer": "an answer came to a call that no server executed",
    "executed-twice": "a server executed a call twice",
    "executed-though-refused": "a call was refused as never sent, and a server executed it",
    "unauthorised": "something passed that no stage may let pass",
    "over-limit": "more calls passed in a window than the limit",
    "block-forgotten": "a blocked address got in",
    "revocation-forgotten": "a revoked token was worth something",
    "session-ended": "a credential that is good was refused",
    "connection-cut": "a connection ended that no fault touched",
    "worker-lost": "a worker went down that no fault was aimed at",
    "not-recovered": "new clients were not served again in time",
    "audit-broken": "the chain of the audit log does not verify",
    "audit-missing": "a call's outcome is not in the audit log",
    "audit-twice": "a call's outcome is in the audit log more than once",
    "left-behind": "a process, descriptor, connection, socket or file was left behind",
    "bad-exit": "the gateway did not stop in order",
}
"""The judge's words."""

PRIVATE: Final = "own"
"""The upstream of which each client has a process of its own."""

SETTLING_S = 8.0
"""After a fault that takes a worker down: until everything of it has been noticed everywhere."""

HANGS: Final = frozenset({"stop", "block", "spin"})
HEARTBEAT_S: Final = 3.0
"""How the gateway is configured."""

_REVOKED_WITHIN_S = 1.0
_SLACK_S = 4.0  # of a loaded machine, on top of what is promised
_STRAINS = frozenset({"descriptors", "full-disk", "pause", "answer-late"})
_DEATH_BED_S = 6.0
"""Records that an edge had not handed over when it was killed are lost with it: those of its last seconds, if audit
was down then."""


@attrs.frozen
class Limits:
    """What the gateway is configured with: (calls, seconds) pairs that hold for every client."""

    windows: tuple[tuple[int, float], ...]


def of_worker(fault: Injected) -> str:
    """Whose process it hurts; empty for none."""
    return HOMES.get(fault.target, fault.target)


def takes_down(fault: Injected, workers: Sequence[str]) -> bool:
    """Whether it rightly ends the process of one of these."""
    return fault.kind in TAKES_DOWN and of_worker(fault) in workers


@attrs.define(eq=False)
class Judge:
    """Judges a ledger once nothing moves any more."""

    ledger: Ledger
    limits: Limits

    def judge_all(self, executed: Path, audit_dir: Path, state_dir: Path) -> None:
        runs = executions(executed)
        self.calls(runs)
        self.windows(runs)
        self.connections()
        self.audit(audit_dir, state_dir)

    # --- calls

    def calls(self, runs: Sequence[Execution]) -> None:
        counted = Counter(run.name for run in runs)
        for run in runs:
            if run.name.startswith(MARK):
                self._find("unauthorised", f"{run.upstream} executed {run.name}", run.when_ns)
            elif run.name not in self.ledger.calls:
                self._find("foreign-answer", f"{run.upstream} executed {run.name}, which nobody sent", run.when_ns)
        for pid, name, other in _shared([run for run in runs if run.upstream == PRIVATE]):
            self._find("mixed-sessions", f"server {pid} ran {name} and {other}")
        for name, count in counted.items():
            if count > 1:
                self._find("executed-twice", f"{name}: {count} times")
        for call in self.ledger.calls.values():
            self._call(call, ran=counted[call.name] > 0)

    def _call(self, call: Call, *, ran: bool) -> None:
        if call.outcome == "result" and not ran:
            self._find("invented-answer", call.name, call.done_ns)
        if call.outcome == "error" and ran and call.code not in (502, 504):
            self._find("executed-though-refused", f"{call.name}: {call.code} {call.reason}", call.done_ns)
        if call.outcome == "error" and call.code == 504 and not any(
            fault.overlaps(call.sent_ns, call.done_ns, 1.0)
            for fault in self.ledger.faults
            if fault.kind == "restart" or BY_NAME[fault.kind].hangs
        ):
            self._find("timed-out", f"{call.name}: {call.reason}", call.done_ns)
        if not call.outcome:
            self._find("unanswered", f"{call.name}: the harness never learnt its outcome", call.sent_ns)

    # --- limits

    def windows(self, runs: Sequence[Execution]) -> None:
        """Each executed call was admitted between its sending and its execution: those whose span lies within one
        window were surely admitted in it."""
        ran = {run.name: run.when_ns for run in runs}
        spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for call in self.ledger.calls.values():
            if call.name in ran:
                spans[call.budget].append((call.sent_ns, ran[call.name]))
        for budget, admitted in spans.items():
            for most, seconds in self.limits.windows:
                count, when_ns = _fullest(sorted(admitted), int(seconds * 1e9))
                self.ledger.counts[f"fullest window of {seconds:g} s"] = max(
                    count, self.ledger.counts[f"fullest window of {seconds:g} s"]
                )
                if count > most:
                    self._find("over-limit", f"{budget}: {count} of {most} within {seconds:g} s", when_ns)

    # --- connections

    def connections(self) -> None:
        faults = self.ledger.faults
        for attempt in self.ledger.attempts:
            if any(fault.kind == "restart" and fault.covers(attempt.ended_ns, 0) for fault in faults):
                continue  # nobody is there, and that is right
            if attempt.outcome == "connection refused":
                self._find("refused-connection", attempt.client, attempt.began_ns)
            elif attempt.outcome == "refused: 401" and "ticket" in attempt.client and self._voids_tickets(attempt):
                self.ledger.counts["tickets voided by a crash"] += 1
            elif attempt.outcome in ("refused: 401", "refused: 403"):
                self._find("session-ended", f"{attempt.client}: {attempt.outcome}", attempt.ended_ns)
            elif attempt.outcome == "no answer":
                self._find("unanswered", f"{attempt.client}: neither let in nor refused", attempt.ended_ns)
        for when_ns, kind, client, how in self.ledger.cuts:
            excused = any(
                fault.covers(when_ns, SETTLING_S)
                for fault in faults
                if takes_down(fault, EDGES)
                or (fault.kind in _STRAINS and of_worker(fault) in EDGES)
                or (kind == PRIVATE and of_worker(fault) == "bridge")
                or (kind == "proxied" and fault.kind.startswith("net-"))
                or fault.kind == "restart"
            )
            if not excused:
                self._find("connection-cut", f"{client}: {how}", when_ns)
        for fault in faults:
            if fault.kind in HANGS and fault.alone and fault.replaced_s is not None:
                bound_s = 2 * HEARTBEAT_S + _SLACK_S
                if fault.replaced_s > bound_s:
                    self._find("not-recovered", f"{fault.kind} {fault.target}: replaced after {fault.replaced_s:.1f} s")
        for revoked_ns, ended_ns in self.ledger.endings:
            took_s = (ended_ns - revoked_ns) / 1e9
            self.ledger.counts["revoked connections ended"] += 1
            strained = any(fault.overlaps(revoked_ns, ended_ns) for fault in faults)
            if took_s > _REVOKED_WITHIN_S + _SLACK_S + (5.0 if strained else 0.0):
                self._find("revocation-forgotten", f"a live connection ended only {took_s:.1f} s after it", ended_ns)

    def _voids_tickets(self, attempt: Attempt) -> bool:
        """A ticket lives in auth's memory, and is used up by the question that a crashed acceptor asks again."""
        return any(
            of_worker(fault) in ("policy", *EDGES)
            and fault.kind in (TAKES_DOWN | {"raise"})
            and fault.overlaps(attempt.began_ns, attempt.ended_ns, SETTLING_S)
            for fault in self.ledger.faults
        )

    def workers(self, gateway: Gateway) -> None:
        """A worker that goes down without a reason is a fault of its own."""
        for death in gateway.deaths:
            aimed = any(
                fault.covers(death.when_ns, SETTLING_S)
                for fault in self.ledger.faults
                if of_worker(fault) == death.worker and fault.kind in (TAKES_DOWN | _STRAINS)
            )
            if not aimed:
                self._find("worker-lost", f"{death.worker}: {death.reason}", death.when_ns)

    # --- the audit log

    def audit(self, audit_dir: Path, state_dir: Path) -> None:
        found = subprocess.run(
            [sys.executable, "-P", "-c", "import sys; from ops.cli.audit import main; sys.exit(main())",
             "--json", "--log-dir", str(audit_dir), "--state-dir", str(state_dir), "verify"],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )  # fmt: skip
        if found.returncode:
            self._find("audit-broken", (found.stdout + found.stderr).decode(errors="replace"))
        else:
            verified = json.loads(found.stdout)
            self.ledger.counts["audit records"] = verified["records"]
            self.ledger.counts["audit gaps"] = len(verified["gaps"])
        recorded: Counter[str] = Counter()
        for path in sorted(audit_dir.glob("security-*.log*")):
            for line in path.read_text(errors="replace").splitlines():
                if '"call.completed"' in line:
                    record = json.loads(line.removeprefix("SECURITY "))
                    recorded[record["detail"]["tool"]] += 1
        for call in self.ledger.calls.values():
            times = recorded[call.name]
            if times > 1:
                self._find("audit-twice", f"{call.name}: {times} times", call.done_ns)
            elif not times and call.outcome == "result" and not self._lost_with_its_edge(call.done_ns):
                self._find("audit-missing", f"{call.name}: answered", call.done_ns)

    def _lost_with_its_edge(self, when_ns: int) -> bool:
        return any(
            fault.overlaps(when_ns, when_ns + int(_DEATH_BED_S * 1e9), 1.0)
            for fault in self.ledger.faults
            if takes_down(fault, EDGES) or (fault.kind == "restart" and fault.target == "killed")
        )

    def _find(self, what: str, detail: str, when_ns: int = 0) -> None:
        assert what in FINDINGS  # noqa: S101 - the judge's words are all written down
        self.ledger.find(what, detail, when_ns)


def _shared(runs: Sequence[Execution]) -> Iterator[tuple[int, str, str]]:
    """Processes that ran calls of two clients: which, and one call of each."""
    first: dict[int, str] = {}
    for run in runs:
        known = first.setdefault(run.pid, run.name)
        if known.partition(".")[0] != run.name.partition(".")[0]:
            yield run.pid, known, run.name


def _fullest(spans: Sequence[tuple[int, int]], length_ns: int) -> tuple[int, int]:
    """Of all windows of that length, the most spans that lie wholly in one, and where it begins."""
    best, where = 0, 0
    for index, (start, _) in enumerate(spans):
        if index and spans[index - 1][0] == start:
            continue
        upto = bisect_right(spans, (start + length_ns, 0))
        # Exactly a window's length apart is two windows; a span ends before its window does.
        count = sum(end < start + length_ns for _, end in spans[index:upto])
        if count > best:
            best, where = count, start
    return best, where


@attrs.define(eq=False)
class Footprint:
    """What a gateway holds when nobody is connected."""

    descriptors: dict[str, Counter[str]] = attrs.field(factory=dict)
    resident_kib: int = 0


def footprint(gateway: Gateway) -> Footprint:
    held = {"supervisor": processes.descriptors(gateway.pid)}
    held |= {name: processes.descriptors(pid) for name, pid in gateway.workers.items()}
    return Footprint(held, processes.resident_kib(gateway.pid))


def left_behind(before: Footprint, now: Footprint) -> list[str]:
    """What there is more of than at the beginning. A worker's own number varies by a few: files are opened lazily."""
    found = []
    for name, kinds in now.descriptors.items():
        known = before.descriptors.get(name, Counter())
        room = 0 if name == "supervisor" else 6
        for kind, count in kinds.items():
            if count > known[kind] + room:
                found.append(f"{name} holds {count} of {kind}, {known[kind]} at first")
    return found


def processes_left(gateway: Gateway, expected: int) -> list[str]:
    """Worker processes beyond those that there should be, and servers of clients that have gone."""
    living = gateway.interpreters()
    known = set(gateway.workers.values())
    private = [process for process in gateway.servers() if f"--name {PRIVATE}" in process.command]
    if private:
        return [f"server process {process.pid}, whose client has gone" for process in private]
    if len(living) <= expected:
        return []
    strays = [process for process in living if process.pid not in known]
    return [f"worker process {process.pid}, one of {len(strays)} without a role" for process in strays]


def after_the_end(gateway: Gateway, family: Sequence[processes.Process]) -> list[str]:
    """What outlived the gateway."""
    found = [f"pid {process.pid}: {process.command[:100]}" for process in family if processes.lives(process)]
    deadline = time.monotonic() + 10
    while found and time.monotonic() < deadline:
        time.sleep(0.05)
        found = [f"pid {process.pid}: {process.command[:100]}" for process in family if processes.lives(process)]
    ports = {gateway.ports[name] for name in ("ws", "tcp", "health") if name in gateway.ports}
    found += [f"port {port} is still listened on" for port in listens(ports)]
    found += [f"temporary file {path.name}" for path in (gateway.directory / "tmp").iterdir()]
    return found
