"""``python -m ops.bench.idle``: how long the gateway takes to be ready, and what it uses when nobody is connected.

Starts the gateway a few times on free ports with a state of its own, and reports the median and the range of

- the time from the start of the process to the ready file, in seconds of wall time;
- the proportional set size (PSS) of all its processes together, in MiB: shared pages count once;
- the processor time of all its processes together while idle, in percent of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

READY_WITHIN_S = 60.0
SETTLE_S = 2.0  # the standby starts after the gateway is ready


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, ahead = [pid], [pid]
    while ahead:
        children = parents.get(ahead.pop(), [])
        found += children
        ahead += children
    return found


def pss_mib(pids: list[int]) -> float:
    """Proportional set size of these processes together."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def cpu_s(pids: list[int]) -> float:
    """Processor time that these processes have used so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / ticks


def measure(idle_s: float) -> tuple[float, float, float]:
    """One start: seconds until ready, MiB, percent of a core."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ready = directory / "ready.json"
        variables = {
            "STATE_DIR": str(directory / "state"),
            "AUDIT_LOG_DIR": str(directory / "audit"),
            "READY_FILE": str(ready),
            "WS_PORT": "0",
            "TCP_PORT": "0",
            "HEALTH_PORT": "0",
            "LOG_LEVEL": "error",
        }
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "supervisor"],
            cwd=directory,
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not ready.exists():
                if process.poll() is not None or time.monotonic() - started > READY_WITHIN_S:
                    raise SystemExit("the gateway did not become ready")
                time.sleep(0.002)
            took = time.monotonic() - started
            time.sleep(SETTLE_S)
            pids = family(json.loads(ready.read_text())["pid"])
            before = cpu_s(pids)
            time.sleep(idle_s)
            used = cpu_s(pids) - before
            return took, pss_mib(pids), 100 * used / idle_s
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.idle", description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=5, help="how often to start (default 5)")
    parser.add_argument("--idle", type=float, default=5.0, metavar="S", help="seconds of idling measured (default 5)")
    options = parser.parse_args()
    rows = [measure(options.idle) for _ in range(options.starts)]
    load = os.getloadavg()[0]
    print(f"{options.starts} starts, {len(os.sched_getaffinity(0))} processors, load average {load:.1f}")
    for title, column in zip(
        ("ready after, s", "idle memory (PSS), MiB", "idle processor, %"), zip(*rows, strict=True), strict=True
    ):
        print(f"{title:24} median {statistics.median(column):8.2f}   {min(column):.2f} to {max(column):.2f}")


if __name__ == "__main__":
    main()
