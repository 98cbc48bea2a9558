"""The gateway under test, as a process of its own, seen only from outside: its ports, its log, ``/proc``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import attrs

from . import processes
from .processes import Process

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "tests" / "chaos" / "build" / "chaos_gateway.py"
"""The test-only build of the child specs. It isn't part of what is installed."""

READY_WITHIN_S = 60.0
STOPPED_WITHIN_S = 60.0

_UP = re.compile(r"worker (\S+) is up: pid (\d+), incarnation (\d+)")
_DOWN = re.compile(r"worker (\S+) is down \((.*)\), restarted in")
_INHERITED = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "USER")


@attrs.frozen
class Death:
    """A worker that was reported as down."""

    worker: str
    reason: str
    when_ns: int


@attrs.define(eq=False)
class Gateway:
    """One run of it. ``workers`` are process ids by name, as the log told them last."""

    directory: Path
    process: subprocess.Popen[bytes]
    ports: dict[str, int] = attrs.field(factory=dict)
    log: list[str] = attrs.field(factory=list)
    workers: dict[str, int] = attrs.field(factory=dict)
    incarnations: dict[str, int] = attrs.field(factory=dict)
    deaths: list[Death] = attrs.field(factory=list)
    _reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def family(self) -> list[Process]:
        return processes.family(self.pid)

    def interpreters(self) -> list[Process]:
        """The worker processes, the standby included."""
        return [process for process in self.family() if "supervisor.worker" in process.command]

    def pid_of(self, target: str) -> int:
        """Of a worker by its name, of ``standby`` or ``supervisor``; 0: there is none just now."""
        if target == "supervisor":
            return self.pid
        living = {process.pid for process in self.interpreters()}
        if target == "standby":
            spare = living - set(self.workers.values())
            return min(spare, default=0)
        pid = self.workers.get(target, 0)
        return pid if pid in living else 0

    def servers(self) -> list[Process]:
        """The stdio servers."""
        return [process for process in self.family() if "ops.chaos.upstream" in process.command]

    def send(self, pid: int, number: int) -> bool:
        """To one of its processes; False: it has gone. Never to anybody else."""
        if pid <= 1 or (pid != self.pid and pid not in {process.pid for process in self.family()}):
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """Its exit code; None: it did not end in time, and was killed with all its processes."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        self._end_reading()
        return code

    def kill(self) -> None:
        """Everything, at once."""
        family = self.family()
        self.process.kill()
        self.process.wait()
        for process in family:
            if processes.lives(process):
                os.kill(process.pid, signal.SIGKILL)
        self._end_reading()

    def _end_reading(self) -> None:
        if self._reader is not None:
            self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def read(self, stream: IO[bytes]) -> None:
        """Thread: the log, line by line."""
        for line in stream:
            text = line.decode(errors="replace")
            self.log.append(text)
            if found := _UP.search(text):
                self.workers[found[1]] = int(found[2])
                self.incarnations[found[1]] = int(found[3])
            elif found := _DOWN.search(text):
                self.deaths.append(Death(found[1], found[2], time.monotonic_ns()))


def start(directory: Path, environment: Mapping[str, str], *, build: Path | None) -> Gateway:
    """Start it and wait until it is ready; its state is below ``directory`` and outlives it. Raises RuntimeError."""
    for name in ("tmp", "state", "audit", "work"):
        (directory / name).mkdir(exist_ok=True)
    ready = directory / "ready.json"
    ready.unlink(missing_ok=True)
    variables = {name: os.environ[name] for name in _INHERITED if name in os.environ} | {
        "TMPDIR": str(directory / "tmp"),
        "STATE_DIR": str(directory / "state"),
        "AUDIT_LOG_DIR": str(directory / "audit"),
        "READY_FILE": str(ready),
        "WS_PORT": "0",
        "TCP_PORT": "0",
        "HEALTH_PORT": "0",
        "PYTHONPATH": str(ROOT),
        **environment,
    }
    program = ["-P", "-m", "supervisor"] if build is None else [str(build)]
    process = subprocess.Popen(
        [sys.executable, *program],
        cwd=directory / "work",
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    gateway = Gateway(directory, process)
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    gateway._reader = threading.Thread(target=gateway.read, args=(process.stderr,), daemon=True)  # noqa: SLF001
    gateway._reader.start()  # noqa: SLF001 - made here
    deadline = time.monotonic() + READY_WITHIN_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            gateway.kill()
            raise RuntimeError(f"the gateway did not become ready\n{''.join(gateway.log[-30:])}")
        time.sleep(0.01)
    gateway.ports.update(json.loads(ready.read_text()))
    return gateway


def listens(ports: set[int]) -> set[int]:
    """Which of these ports somebody listens on."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A":  # TCP_LISTEN
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found & ports
