"""The judge of the chaos harness, over ledgers made by hand: each thing that must not be, it notices; nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from ops.chaos.judge import FINDINGS, Footprint, Judge, Limits, left_behind
from ops.chaos.ledger import Attempt, Call, Execution, Injected, Ledger
from ops.chaos.plan import BY_NAME, KINDS, draw

SECOND = 1_000_000_000
LIMITS = Limits(((3, 1.0),))


def judge() -> Judge:
    return Judge(Ledger(), LIMITS)


def call(judging: Judge, name: str, at: float, outcome: str = "result", code: int = 0, *, took: float = 0.01) -> Call:
    made = Call(name, name.partition(".")[0], "127.0.0.1", int(at * SECOND))
    made.done_ns, made.outcome, made.code = int((at + took) * SECOND), outcome, code  # type: ignore[assignment]
    judging.ledger.calls[name] = made
    return made


def ran(name: str, at: float, *, upstream: str = "stdio", pid: int = 1) -> Execution:
    return Execution(int(at * SECOND), upstream, pid, name)


def found(judging: Judge) -> list[str]:
    return [finding.what for finding in judging.ledger.findings]


def fault(judging: Judge, kind: str, target: str, at: float, until: float) -> None:
    judging.ledger.faults.append(Injected(1, kind, target, int(at * SECOND), int(until * SECOND)))


def test_what_is_right_is_not_found() -> None:
    """Answers, refusals, lost connections and unknown outcomes that agree with what ran are no findings."""
    judging = judge()
    call(judging, "a.1", 1)
    call(judging, "a.2", 5, "error", 503)
    call(judging, "a.3", 10, "error", 502)
    call(judging, "a.4", 15, "cut")
    call(judging, "a.5", 20, "error", 502)
    judging.calls([ran("a.1", 1), ran("a.3", 10), ran("a.4", 15)])
    judging.windows([ran("a.1", 1)])
    assert found(judging) == []


@pytest.mark.parametrize(
    ("outcome", "code", "runs", "what"),
    [
        ("result", 0, 0, "invented-answer"),
        ("result", 0, 2, "executed-twice"),
        ("cut", 0, 2, "executed-twice"),
        ("error", 503, 1, "executed-though-refused"),
        ("error", 429, 1, "executed-though-refused"),
        ("error", 504, 1, "timed-out"),
        ("", 0, 0, "unanswered"),
    ],
)
def test_calls(outcome: str, code: int, runs: int, what: str) -> None:
    """What a call's client was told has to agree with what its server did."""
    judging = judge()
    call(judging, "a.1", 1, outcome, code)
    judging.calls([ran("a.1", 1)] * runs)
    assert found(judging) == [what]


def test_a_timeout_is_excused_by_what_hangs_and_by_nothing_else() -> None:
    """504 is right while a server hangs, and wrong while one only dies."""
    for kind, target, expected in (("upstream-hang", "stdio", []), ("upstream-kill", "stdio", ["timed-out"])):
        judging = judge()
        call(judging, "a.1", 1, "error", 504, took=6)
        fault(judging, kind, target, 1, 2)
        judging.calls([ran("a.1", 1)])
        assert found(judging) == expected


def test_hostile_and_unknown_calls() -> None:
    """A hostile call that a server ran, and one that nobody sent."""
    judging = judge()
    judging.calls([ran("H-villain.1", 1), ran("b.7", 1)])
    assert found(judging) == ["unauthorised", "foreign-answer"]


def test_a_private_server_is_one_clients() -> None:
    """Two clients on one process are found; one client on two is none of it."""
    judging = judge()
    for name in ("a.1", "a.2", "b.1"):
        call(judging, name, 1, "cut")
    judging.calls([ran("a.1", 1, upstream="own", pid=7), ran("a.2", 1, upstream="own", pid=8)])
    assert found(judging) == []
    judging.calls([ran("a.1", 1, upstream="own", pid=7), ran("b.1", 1, upstream="own", pid=7)])
    assert found(judging) == ["mixed-sessions"]


@pytest.mark.parametrize(("spread", "expected"), [(0.2, ["over-limit"]), (0.34, [])])
def test_windows(spread: float, expected: list[str]) -> None:
    """Four calls surely within one second are one too many; four over more than one second are not."""
    judging = judge()
    for number in range(4):
        call(judging, f"a.{number}", 1 + number * spread)
    judging.windows([ran(f"a.{number}", 1 + number * spread + 0.01) for number in range(4)])
    assert found(judging) == expected


def test_a_late_execution_proves_nothing_of_the_window() -> None:
    """Calls that ran together long after they were sent may have been let in at different times."""
    judging = judge()
    for number in range(4):
        call(judging, f"a.{number}", 1 + number)
    judging.windows([ran(f"a.{number}", 6) for number in range(4)])
    assert found(judging) == []


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        ("kill", "edge.0", []),
        ("kill", "policy", ["connection-cut"]),
        ("raise", "acceptor.0", ["connection-cut"]),
        ("net-reset", "proxied", ["connection-cut"]),
        ("reload", "supervisor", ["connection-cut"]),
    ],
)
def test_connections_end_only_with_their_edge(kind: str, target: str, expected: list[str]) -> None:
    """A direct connection's end is excused by the death of an edge worker alone."""
    judging = judge()
    fault(judging, kind, target, 1, 1)
    judging.ledger.cuts.append((2 * SECOND, "stdio", "a", "reset"))
    judging.connections()
    assert found(judging) == expected


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("ok", []),
        ("refused: 503", []),
        ("connection refused", ["refused-connection"]),
        ("refused: 401", ["session-ended"]),
        ("refused: 403", ["session-ended"]),
        ("no answer", ["unanswered"]),
    ],
)
def test_attempts(outcome: str, expected: list[str]) -> None:
    """A good credential is let in or asked to come later."""
    judging = judge()
    judging.ledger.attempts.append(Attempt("a", SECOND, 2 * SECOND, outcome))
    judging.connections()
    assert found(judging) == expected


def test_nobody_is_refused_but_while_the_gateway_is_restarted() -> None:
    """Between a stop and the next start there is no port."""
    judging = judge()
    fault(judging, "restart", "busy", 1, 3)
    judging.ledger.attempts.append(Attempt("a", SECOND, 2 * SECOND, "connection refused"))
    judging.ledger.attempts.append(Attempt("a", 4 * SECOND, 5 * SECOND, "connection refused"))
    judging.connections()
    assert found(judging) == ["refused-connection"]


def test_an_audit_log_that_is_missing_or_cut(tmp_path: Path) -> None:
    """A directory without a chain is a finding, and so is each answered call that has no record."""
    judging = judge()
    call(judging, "a.1", 1)
    (tmp_path / "audit").mkdir()
    judging.audit(tmp_path / "audit", tmp_path / "state")
    assert found(judging) == ["audit-broken", "audit-missing"]


def test_what_is_left() -> None:
    """The supervisor holds exactly what it held; a worker a few files more, not many."""
    before = Footprint({"supervisor": Counter(socket=5), "policy": Counter({"/file": 3})})
    assert left_behind(before, Footprint({"supervisor": Counter(socket=5), "policy": Counter({"/file": 5})})) == []
    now = Footprint({"supervisor": Counter(socket=6), "policy": Counter({"/file": 30})})
    assert len(left_behind(before, now)) == 2


def test_the_judge_has_a_meaning_for_each_word() -> None:
    """The words are those that the findings use."""
    assert all(FINDINGS.values())
    with pytest.raises(AssertionError):
        judge()._find("something", "")


def test_a_seed_is_a_plan() -> None:
    """The same seed draws the same faults; another one others; each kind is drawn, those of the build only with it."""
    first, again, other = (list(islice(draw(seed, build=True), 2000)) for seed in (7, 7, 8))
    assert first == again != other
    assert {drawn.kind for drawn in first} == BY_NAME.keys()
    assert all(drawn.target in BY_NAME[drawn.kind].targets for drawn in first)
    without = {drawn.kind for drawn in islice(draw(7, build=False), 2000)}
    assert without == {kind.name for kind in KINDS if not kind.build}
    assert {(d.kind, d.target) for d in islice(draw(7, build=True, only=["kill:edge.0"]), 9)} == {("kill", "edge.0")}
    with pytest.raises(ValueError, match="no such fault"):
        next(draw(7, build=False, only=["raise"]))
