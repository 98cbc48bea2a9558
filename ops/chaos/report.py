"""What a run has shown, as text and as JSON."""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from .arena import Arena
from .judge import FINDINGS, of_worker


def document(arena: Arena, took_s: float) -> dict[str, Any]:
    """Everything, in JSON's types."""
    ledger = arena.ledger
    recoveries: dict[str, list[float]] = defaultdict(list)
    replaced: dict[str, list[float]] = defaultdict(list)
    kinds: Counter[str] = Counter()
    for fault in ledger.faults:
        kinds[f"{fault.kind} {fault.target}"] += 1
        if fault.replaced_s is not None:
            replaced[f"{fault.kind} {of_worker(fault)}"].append(fault.replaced_s)
        if fault.recovery_s is not None and not fault.note:
            what = f"{fault.kind} {fault.target}" if fault.alone else "several at once"
            recoveries[what].append(fault.recovery_s)
    return {
        "seed": arena.seed,
        "green": not ledger.findings,
        "faults": arena.done,
        "lives": arena.lives,
        "load": [round(value, 1) for value in os.getloadavg()],
        "processors": len(os.sched_getaffinity(0)),
        "seconds": round(took_s, 1),
        "calls": len(ledger.calls),
        "outcomes": dict(Counter(f"{call.outcome} {call.code or ''}".strip() for call in ledger.calls.values())),
        "counts": dict(sorted(ledger.counts.items())),
        "recovery_s": _summary(recoveries),
        "replaced_s": _summary(replaced),
        "kinds": dict(sorted(kinds.items())),
        "memory": arena.memory,
        "findings": [
            {"what": found.what, "detail": found.detail, "after_s": _after(arena, found.when_ns)}
            for found in ledger.findings
        ],
        "plan": [
            {
                "number": fault.number, "kind": fault.kind, "target": fault.target,
                "after_s": _after(arena, fault.began_ns), "until_s": _after(arena, fault.ended_ns),
                "recovery_s": fault.recovery_s, "note": fault.note,
            }
            for fault in ledger.faults
        ],
    }  # fmt: skip


def _summary(times: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        kind: {"n": len(row), "median": round(statistics.median(row), 3), "worst": round(max(row), 3)}
        for kind, row in sorted(times.items())
    }


def _after(arena: Arena, when_ns: int) -> float:
    return round(when_ns / 1e9 - arena.began, 3)


def text(document: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"seed {document['seed']}: {document['faults']} faults in {document['lives']} lives of the gateway, "
        f"{document['calls']} calls, {document['seconds']:.0f} s; {document['processors']} processors, load average "
        f"{document['load'][0]:.1f}",
        "",
    ]
    for title, rows in (("new clients served after", "recovery_s"), ("worker replaced after", "replaced_s")):
        lines.append(f"{title:32} {'n':>4} {'median s':>9} {'worst s':>9}")
        for kind, row in document[rows].items():
            lines.append(f"{kind:32} {row['n']:4} {row['median']:9.2f} {row['worst']:9.2f}")
        lines.append("")
    lines += ["", *(f"{what:40} {count}" for what, count in {**document["outcomes"], **document["counts"]}.items()), ""]
    found = Counter(finding["what"] for finding in document["findings"])
    for what, count in found.items():
        lines.append(f"RED {what} ({FINDINGS[what]}): {count}")
        shown = [finding for finding in document["findings"] if finding["what"] == what][:5]
        lines += [f"      after {finding['after_s']:.2f} s: {finding['detail'][:300]}" for finding in shown]
    lines.append("GREEN: nothing found" if not found else f"RED: {sum(found.values())} findings")
    return "\n".join(lines)
