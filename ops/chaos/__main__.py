"""``python -m ops.chaos``: break a gateway on purpose, under load, and judge it from outside.

    python -m ops.chaos --faults 1000           a thousand faults, from a seed that is printed
    python -m ops.chaos --seed 7 --seconds 60   the plan of that seed again, for a minute
    python -m ops.chaos --only kill:edge.0      one kind of fault, or one of it
    python -m ops.chaos --controls              guards are turned off, one at a time: the judge has to notice

All traffic is on loopback; nothing is touched that this command did not start. Exit code 0: green, 1: findings.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from . import controls, report
from .arena import Arena, Plan
from .gateway import BUILD
from .plan import KINDS, draw


def run(seed: int, plan: Plan, *, only: tuple[str, ...], keep: Path | None) -> dict[str, Any]:
    """One run in a directory of its own, which is kept only for a run with findings, and only if ``keep`` is given."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="portcullis-chaos-") as name:
        arena = Arena(Path(name), seed, plan)
        trio.run(arena.run, draw(seed, build=plan.build is not None, only=only))
        document = report.document(arena, time.monotonic() - began)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / "gateway.log").write_text("".join(arena.log))
            (keep / "report.json").write_text(json.dumps(document, indent=1))
            for kept in ("executed", "audit"):
                shutil.move(Path(name, kept), keep)
    return document


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ops.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="of the plan; a new one if it is not given, and printed in any case")
    parser.add_argument("--faults", type=int, default=40, metavar="N", help="at most so many (default 40)")
    parser.add_argument("--seconds", type=float, default=math.inf, metavar="S", help="begin no fault after so long")
    parser.add_argument("--per-life", type=int, default=25, metavar="N", help="faults until the gateway is restarted")
    parser.add_argument("--only", action="append", default=[], metavar="KIND[:TARGET]", help="may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the whole report")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the gateway's log and the ledger there")
    parser.add_argument("--list", action="store_true", help="the kinds of faults, and their targets")
    parser.add_argument("--plan", action="store_true", help="print the plan, and do nothing")
    parser.add_argument("--controls", action="store_true", help="negative controls: each has to turn the judge red")
    parser.add_argument("--control", choices=sorted(controls.CONTROLS), help="this one only")
    parser.add_argument("--quiet", action="store_true", help="only the summary")
    options = parser.parse_args(argv)
    build = BUILD if BUILD.exists() else None
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    if options.list:
        for kind in KINDS:
            print(f"{kind.name:18} {', '.join(kind.targets)}{'  (test-only build)' if kind.build else ''}")
        return 0
    if options.plan:
        drawn = draw(seed, build=build is not None, only=options.only)
        for _, fault in zip(range(options.faults), drawn, strict=False):
            print(f"{fault.number:5} {fault.kind:18} {fault.target:12} {fault.seconds:5.2f} s +{fault.gap_s:.2f} s")
        return 0
    print(f"seed {seed}", flush=True)
    tell = (lambda _line: None) if options.quiet else (lambda line: print(line, flush=True))
    if options.controls or options.control:
        return controls.run_all(seed, build, [options.control] if options.control else sorted(controls.CONTROLS), tell)
    if build is None:
        print("the test-only build is not here: faults within actors are left out", flush=True)
    plan = Plan(options.faults, options.seconds, options.per_life, build, tell=tell)
    document = run(seed, plan, only=tuple(options.only), keep=options.keep)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))
    print(report.text(document))
    return 0 if document["green"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
