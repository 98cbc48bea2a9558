"""``python -m ops.bench.content``: what the content detectors find, what they find wrongly, and what they cost.

Data is found at run time, and none of it is part of the project:

- recall: the cases of the OWASP Core Rule Set in ``$CONFORMANCE_DATA/crs`` (941 script, 942 SQL, 93010x traversal):
  the values of each as arguments of one ``tools/call``; for traversal in a field named ``paths``;
- false positives: the standard library of this interpreter and, with ``--more DIRECTORY`` (an npm ``node_modules``),
  other sources, each file the ``content`` of one ``tools/call`` that writes it;
- cost: processor time of the whole stage over those files, and over a short ordinary message.
"""

from __future__ import annotations

import argparse
import json
import os
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from actors.policy.content.effort import LIGHT, Effort
from actors.policy.content.linear import compiled
from actors.policy.content.patterns import TEXT, decoded
from actors.policy.content.screen import Screen
from ipc.content import DETECTORS, GROUPS, ContentRules

from . import crs

# Of 930 only traversal: the rest are lists of file names that nobody should ask a web server for.
GROUPS_OF_RULES = (("path", range(930100, 930120)), ("script", range(941000, 942000)), ("sql", range(942000, 943000)))
SUFFIXES = (".py", ".js", ".cjs", ".mjs", ".ts", ".json", ".md", ".css", ".html", ".sh", ".yml", ".yaml")
LARGEST = 2_000_000
ORDINARY = {"query": "the quick brown fox and the lazy dog", "limit": 10, "verbose": True, "note": "it's fine, or not"}


def call(arguments: object) -> bytes:
    params = {"name": "write_file", "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def found(screen: Screen, raw: bytes) -> tuple[set[str], bool]:
    """The rules of the findings, and whether the message is refused."""
    verdict = screen.check(raw, "tools/call", "write_file")
    if verdict is None:
        return set(), False
    return {finding.rule for finding in verdict.findings}, verdict.refused


def benign(directories: list[Path], most: int) -> Iterator[bytes]:
    for directory in directories:
        count = 0
        for path in sorted(directory.rglob("*")):
            if count >= most:
                break
            if path.suffix not in SUFFIXES or not path.is_file() or path.stat().st_size > LARGEST:
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            count += 1
            yield call({"path": str(path.relative_to(directory)), "content": text})


def recall(screen: Screen, directory: Path) -> None:
    totals: Counter[tuple[str, bool]] = Counter()
    hits: Counter[tuple[str, bool]] = Counter()
    by_detector: Counter[str] = Counter()
    for case in crs.cases(directory):
        group = next((name for name, rules in GROUPS_OF_RULES if case.rule in rules), "")
        if not group or not case.values:
            continue
        key = "paths" if group == "path" else "values"
        rules, _ = found(screen, call({key: list(case.values)}))
        of_group = rules.intersection(GROUPS[group])
        totals[group, case.expected] += 1
        hits[group, case.expected] += bool(of_group)
        if case.expected:
            by_detector.update(of_group)
    print(f"{'Core Rule Set':22}{'should be found':>18}{'found':>8}{'recall':>9}{'should not':>12}{'found':>8}")
    for group, _ in GROUPS_OF_RULES:
        want, got = totals[group, True], hits[group, True]
        wrong = f"{totals[group, False]:>12}{hits[group, False]:>8}"
        print(f"{group:22}{want:>18}{got:>8}{got / max(1, want):>9.1%}{wrong}")
    print("  found by:", ", ".join(f"{name} {count}" for name, count in by_detector.most_common()))


def precision(messages: list[bytes]) -> None:
    flag = Screen("flag", ContentRules(), production=False)
    production = Screen("flag", ContentRules(), production=True)
    counts: Counter[str] = Counter()
    touched = refused = 0
    started = time.process_time()
    for raw in messages:
        rules, _ = found(flag, raw)
        counts.update(rules)
        touched += bool(rules)
    took = time.process_time() - started
    for raw in messages:
        refused += found(production, raw)[1]
    size = sum(map(len, messages))
    print(f"\n{len(messages)} benign files, {size / 1e6:.1f} MB: {1000 * touched / len(messages):.1f} of 1,000 flagged "
          f"in some way, {refused} refused in production's default; {took * 1e6 / (size / 1024):.2f} µs/KB in all")
    print(f"{'detector':22}{'false positives':>18}{'µs/KB':>9}")
    costs = {name: cost(name, messages) for name in TEXT}
    for name in DETECTORS:
        alone = f"{costs[name]:>9.2f}" if name in costs else f"{'–':>9}"
        print(f"{name:22}{1000 * counts[name] / len(messages):>12.1f}/1000{alone}")


def cost(name: str, messages: list[bytes]) -> float:
    """µs a KB of one detector's pattern alone; in the gateway all of them are one automaton."""
    pattern = compiled(decoded(TEXT[name]), ignore_case=True)
    sample = messages[:: max(1, len(messages) // 300)]
    started = time.process_time()
    for raw in sample:
        pattern.search(raw)
    return (time.process_time() - started) * 1e6 / (sum(map(len, sample)) / 1024)


def ordinary() -> None:
    screen = Screen("flag", ContentRules(), production=False)
    raw = call(ORDINARY)
    rounds = 20_000
    started = time.process_time()
    for _ in range(rounds):
        screen.check(raw, "tools/call", "search", Effort(LIGHT))
    print(f"\nan ordinary message of {len(raw)} bytes: {(time.process_time() - started) / rounds * 1e6:.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.content", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CONFORMANCE_DATA", "../shared/data")),
                        help="the folder that holds crs/ (default $CONFORMANCE_DATA)")  # fmt: skip
    parser.add_argument("--more", type=Path, action="append", default=[], metavar="DIRECTORY", help="benign sources")
    parser.add_argument("--most", type=int, default=3000, help="files of each directory (default 3000)")
    options = parser.parse_args()
    ordinary()
    if (options.data / "crs").is_dir():
        recall(Screen("flag", ContentRules(), production=False), options.data / "crs")
    else:
        print(f"no crs/ in {options.data}: recall is not measured")
    precision(list(benign([Path(sysconfig.get_paths()["stdlib"]), *options.more], options.most)))


if __name__ == "__main__":
    main()
