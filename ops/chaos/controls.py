"""Negative controls: a judge that finds nothing is worth something only if it finds what is there to be found.

The test-only build turns one guard of the gateway off; a short run of faults that need just that guard has to end
with the finding that it prevents.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs
import trio

from .arena import Arena, Ending, Plan
from .plan import Fault


@attrs.frozen
class Control:
    """``faults``: (kind, target, seconds, gap_s). ``expected``: one of these findings has to come. If none of them is
    about what is left behind, the end of the gateway is not looked at."""

    means: str
    faults: tuple[tuple[str, str, float, float], ...]
    expected: frozenset[str]


CONTROLS: Final = {
    "fencing": Control(
        "a worker that hangs is replaced while it still lives",
        (("stop", "edge.0", 0.0, 0.5),),
        frozenset({"left-behind", "unanswered"}),
    ),
    "incarnations": Control(
        "an acceptor's numbers begin anew with each incarnation, and nobody notices",
        (
            ("kill", "edge.0", 0.0, 1.0), ("kill", "edge.1", 0.0, 0.5), ("kill", "edge.0", 0.0, 1.0),
            ("kill", "edge.1", 0.0, 0.5),
        ),
        frozenset({"mixed-sessions", "left-behind", "foreign-answer"}),
    ),
    "leases": Control(
        "what was spent of a lease is forgotten", (("reload", "supervisor", 0.0, 3.0),), frozenset({"over-limit"})
    ),
    "pending": Control(
        "calls are not resolved when what they wait for dies",
        (("upstream-die", "stdio", 1.0, 0.3), ("upstream-die", "tcp", 1.0, 0.3), ("reload", "supervisor", 0.0, 7.0)),
        frozenset({"timed-out", "unanswered"}),
    ),
    "ids": Control(
        "a client's own id goes to the upstream",
        (("upstream-late", "stdio", 2.0, 0.3), ("upstream-late", "tcp", 2.0, 0.3)),
        frozenset({"foreign-answer", "timed-out"}),
    ),
}  # fmt: skip


def run_one(name: str, seed: int, build: Path) -> Counter[str]:
    """The findings of one control, counted."""
    control = CONTROLS[name]
    rows = enumerate(control.faults, 1)
    faults = [Fault(number, kind, target, seconds, gap) for number, (kind, target, seconds, gap) in rows]
    with tempfile.TemporaryDirectory(prefix="portcullis-chaos-") as directory:
        ending: Ending = "quiet" if "left-behind" in control.expected else "killed"
        plan = Plan(len(faults), per_life=len(faults), build=build, control=name, tls=False, endings=(ending,))
        arena = Arena(Path(directory), seed, plan)
        end = Fault(len(faults) + 1, "reload", "supervisor", 0.0, 1.0)
        trio.run(arena.run, iter([*faults, end]))
    return Counter(finding.what for finding in arena.ledger.findings)


def run_all(seed: int, build: Path | None, names: Sequence[str], tell: Callable[[str], None]) -> int:
    """0: every control was red, as it has to be."""
    if build is None:
        tell("the test-only build is not here: it is not part of what is installed")
        return 1
    missed = []
    for name in names:
        found = run_one(name, seed, build)
        red = bool(CONTROLS[name].expected & found.keys())
        tell(f"{'red, as it has to be' if red else 'NOT NOTICED':22} {name:14} {CONTROLS[name].means}: {dict(found)}")
        if not red:
            missed.append(name)
    return 1 if missed else 0
