"""Real MCP servers over the network, as processes: the official Python SDK's, of both major versions."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
from requirement import need

HERE = Path(__file__).parent
WITHIN = 60.0
_numbers = itertools.count()


@attrs.define
class SdkServer:
    """One running server. ``url`` is its MCP endpoint."""

    process: subprocess.Popen[bytes]
    port: int
    options: tuple[str, ...]
    environment: str
    directory: Path

    @property
    def url(self) -> str:
        secure = any(option.startswith("cert=") for option in self.options)
        if "websocket" in self.options:
            return f"{'wss' if secure else 'ws'}://localhost:{self.port}/"
        return f"{'https' if secure else 'http'}://localhost:{self.port}/mcp"

    def kill(self) -> None:
        """SIGKILL, and reaped."""
        self.process.kill()
        self.process.wait()

    def again(self) -> SdkServer:
        """After ``kill``: another one on the same port."""
        options = tuple(option for option in self.options if not option.startswith("port="))
        return start(self.directory, self.environment, *options, f"port={self.port}")

    def suspend(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def start(directory: Path, environment: str, *options: str) -> SdkServer:
    """Start one and wait until it listens. ``options`` are the script's."""
    python = HERE / ".envs" / environment / "bin" / "python"
    need(python.exists(), f"the environment {environment} is missing: run ops/test")
    port_file = directory / f"sdk-port-{os.getpid()}-{next(_numbers)}"
    process = subprocess.Popen(
        [str(python), "-W", "ignore", str(HERE / "conformance" / "scripts" / "sdk_server.py"), str(port_file), *options]
    )
    deadline = time.monotonic() + WITHIN
    while not port_file.exists():
        try:
            code = process.wait(0.02)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline, "the SDK's server did not start in time"
        else:
            raise AssertionError(f"the SDK's server ended with {code}")
    return SdkServer(process, int(port_file.read_text()), options, environment, directory)


@contextlib.contextmanager
def running(directory: Path, environment: str, *options: str) -> Iterator[SdkServer]:
    """One that is ended with the block."""
    server = start(directory, environment, *options)
    try:
        yield server
    finally:
        server.kill()
