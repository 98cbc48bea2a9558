"""Fuzz one target, or all of them one after the other, guided by coverage (atheris, libFuzzer). Run by ops/fuzz.

libFuzzer ends its process, so each target runs in a process of its own, and so does the minimising after it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris
from fuzz.targets import CORPUS, NAMES, packed, target

TOKENS = Path(__file__).parent.parent / "tokens.dict"
MOST_KEPT = 150
LONGEST = 4096


def fuzz(name: str, arguments: list[str]) -> None:
    """Never returns."""
    atheris.enabled_hooks.add("str")  # its hook of patterns breaks those of the standard library's json
    with atheris.instrument_imports(include=["actors"]):
        one = target(name)
    atheris.Setup(arguments, lambda data: one.check(bytes(data)))
    atheris.Fuzz()


def run(name: str, seconds: int, *, keep: bool) -> bool:
    """Whether nothing failed."""
    one = target(name)
    sys.stdout.write(f"\n{name}: {one.invariant.partition(chr(10))[0]}\n")
    with tempfile.TemporaryDirectory(prefix="portcullis-fuzz-") as work:
        # libFuzzer starts itself anew to minimise, by its first argument.
        program = Path(work) / "program"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} --child {name} "$0" "$@"\n')
        program.chmod(0o700)
        seeds, found, kept = (Path(work) / part for part in ("seeds", "found", "kept"))
        for directory in (seeds, found, kept):
            directory.mkdir()
        for data in {*one.seeds, *one.corpus}:
            (seeds / hashlib.sha256(data).hexdigest()).write_bytes(data)
        options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", f"-dict={TOKENS}"]
        prefix = f"-artifact_prefix={tempfile.gettempdir()}/portcullis-{name}-"
        passed = _run(name, [str(program), *options, "-print_final_stats=1", prefix, str(found), str(seeds)])
        if keep:
            merge = [str(program), "-merge=1", f"-max_len={LONGEST}", str(kept), str(found), str(seeds)]
            _run(name, merge, quiet=True)
            inputs = sorted((file.read_bytes() for file in kept.iterdir()), key=len)
            new = [data for data in inputs if data not in one.seeds][:MOST_KEPT]
            CORPUS.mkdir(exist_ok=True)
            (CORPUS / name).write_text(packed(new))
            sys.stdout.write(f"{name}: {len(new)} of {len(inputs)} inputs kept\n")
    return passed


def _run(name: str, arguments: list[str], *, quiet: bool = False) -> bool:
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode and not quiet:
        told = [line for line in output.splitlines() if not re.match(r"#\d|INFO|WARNING|\[INFO\]", line)]
        sys.stdout.write("\n".join(told)[-6000:] + f"\n{name}: FAILED\n")
    elif not quiet:
        covered = re.findall(r"cov: (\d+) ft: (\d+)", output)
        runs = re.search(r"number_of_executed_units: (\d+)", output)
        cov, features = covered[-1] if covered else ("?", "?")
        sys.stdout.write(f"{name}: {runs[1] if runs else '?'} executions, {cov} branches, {features} features\n")
    sys.stdout.flush()
    return done.returncode == 0


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2], sys.argv[3:])
        return 1
    parser = argparse.ArgumentParser(prog="ops/fuzz", description="Fuzz the parsers, guided by coverage.")
    parser.add_argument("target", nargs="?", choices=[*NAMES, "all"])
    parser.add_argument("seconds", nargs="?", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="write the minimised corpus to tests/fuzz/corpus")
    options = parser.parse_args()
    if options.target is None:
        for name in NAMES:
            sys.stdout.write(f"{name:20}{target(name).invariant.partition(chr(10))[0]}\n")
        return 0
    names = NAMES if options.target == "all" else (options.target,)
    failed = [name for name in names if not run(name, options.seconds, keep=options.keep)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
