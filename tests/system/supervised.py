"""A supervisor with tiny actors as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import msgspec

from ipc.settings import Settings
from supervisor import proc

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

PATIENCE = 30.0
"""Seconds: how long a test waits for what has to come. No test measures time."""


@attrs.define
class Supervised:
    directory: Path
    popen: subprocess.Popen[bytes]
    log: list[str] = attrs.field(factory=list)
    _reader: threading.Thread | None = None
    seen: dict[int, int] = attrs.field(factory=dict)  # every process below it that was ever looked at: start times

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def ports(self) -> dict[str, int]:
        return json.loads((self.directory / "ready.json").read_text())

    def tree(self) -> dict[str, Any]:
        """The last snapshot, as the admin actor got it."""
        try:
            return json.loads((self.directory / "state" / "tree.json").read_bytes())
        except FileNotFoundError:
            return {"workers": []}

    def worker(self, name: str) -> dict[str, Any]:
        return next((worker for worker in self.tree()["workers"] if worker["name"] == name), {})

    def events(self) -> list[dict[str, Any]]:
        path = self.directory / "state" / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def family(self) -> set[int]:
        found = proc.descendants({self.pid})
        self.seen |= {process.pid: process.started for process in found}
        return {process.pid for process in found}

    def survivors(self) -> set[int]:
        """Those ever seen that still run."""
        alive = set()
        for pid, started in self.seen.items():
            found = proc.stat(pid)
            if found is not None and found.started == started and found.state not in "ZX":
                alive.add(pid)
        return alive

    def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited in vain {what}\n{self.tail()}"
            time.sleep(0.01)
        return value

    def ask(self, *words: str, kind: str = "ws") -> Any:
        with self.connection(kind) as ask:
            return ask(*words)

    @contextmanager
    def connection(self, kind: str = "ws") -> Iterator[Callable[..., Any]]:
        with socket.create_connection(("127.0.0.1", self.ports[kind]), timeout=PATIENCE) as sock:
            file = sock.makefile("rwb")

            def ask(*words: str) -> Any:
                file.write(" ".join(words).encode() + b"\n")
                file.flush()
                line = file.readline()
                if not line:
                    raise ConnectionError("closed without an answer")
                return json.loads(line)

            yield ask

    def ask_worker(self, worker: str, *words: str) -> Any:
        """Connections go anywhere; ask until that worker has taken one."""

        def attempt() -> Any:
            with self.connection() as ask:
                return [ask(*words)] if ask("who")["worker"] == worker else None

        return self.until(attempt, f"for an answer of {worker}")[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; everything below it has to be gone then. Returns the exit code."""
        self.family()
        self.popen.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        code = self.popen.wait(PATIENCE)
        self.until(lambda: not self.survivors(), "for the end of its processes")
        if self._reader is not None:
            self._reader.join(PATIENCE)
        return code

    def tail(self) -> str:
        return "".join(self.log[-40:])

    def clean_up(self) -> None:
        self.family()
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        for pid in self.survivors():
            os.kill(pid, signal.SIGKILL)
        if self._reader is not None:
            self._reader.join(PATIENCE)
        if self.popen.stderr is not None:
            self.popen.stderr.close()


@contextmanager
def supervised(
    table: str = "whole", *, wait: bool = True, prefix: tuple[str, ...] = (), **settings: Any
) -> Iterator[Supervised]:
    """Started, and ready if ``wait``; ended without a trace whatever the test does."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "state").mkdir()
        (directory / "settings.json").write_bytes(msgspec.json.encode(make_settings(directory, **settings)))
        popen = subprocess.Popen(
            [*prefix, sys.executable, str(HERE / "gateway_of_test_actors.py"), table, str(directory / "settings.json")],
            env=os.environ | {"PYTHONPATH": str(ROOT), "SECRET_OF_THE_SHELL": "x"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        gateway = Supervised(directory, popen)
        gateway._reader = threading.Thread(target=_collect, args=(popen, gateway.log))
        gateway._reader.start()
        try:
            if wait:
                gateway.until(lambda: (directory / "ready.json").exists() or popen.poll() is not None, "to be ready")
                assert popen.poll() is None, gateway.tail()
                gateway.family()
            yield gateway
        finally:
            gateway.clean_up()


def make_settings(directory: Path, **more: Any) -> Settings:
    defaults: dict[str, Any] = {
        "ws_port": 0,
        "tcp_port": 0,
        "health_port": 0,
        "workers": 2,
        "state_dir": str(directory / "state"),
        "ready_file": str(directory / "ready.json"),
        "heartbeat_timeout_ms": 1_000,
        "drain_timeout_ms": 5_000,
    }
    return Settings(**(defaults | more))


def _collect(popen: subprocess.Popen[bytes], log: list[str]) -> None:
    assert popen.stderr is not None
    for line in popen.stderr:
        log.append(line.decode("utf-8", "replace"))  # noqa: PERF401 - line by line, for those who watch it


def descriptors(pid: int) -> list[str]:
    """What a process's descriptors are, without those that are closed while this looks."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return found


def logged(gateway: Supervised, pattern: str) -> bool:
    return any(re.search(pattern, line) for line in list(gateway.log))
