"""A gateway for a measurement: started on free ports with a state of its own, without rate limits, and ended after."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parent.parent.parent
READY_WITHIN_S = 60.0


@attrs.frozen
class Gateway:
    """One that runs. ``token`` is for both listeners."""

    directory: Path
    ws_port: int
    tcp_port: int
    health_port: int
    token: str

    def workers(self, role: str) -> list[int]:
        """Process ids, from the admin API."""
        admin = (self.directory / "state" / "admin.token").read_text().strip()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.health_port}/admin/v1/actors", headers={"Authorization": f"Bearer {admin}"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310 - http, on loopback
            tree: dict[str, Any] = json.load(answer)
        return [int(worker["pid"]) for worker in tree["workers"] if worker["role"] == role]


@contextlib.contextmanager
def running(environment: Mapping[str, str], servers: tuple[str, ...] = ("embedded",)) -> Iterator[Gateway]:
    """With an embedded server of its own under each of these names. Raises SystemExit when it does not become ready."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ready = directory / "ready.json"
        token = secrets.token_hex(32)
        server = {"command": sys.executable, "args": ["-P", "-m", "ops.embedded"], "env": {"PYTHONPATH": str(ROOT)}}
        (directory / "mcp.json").write_text(json.dumps({"mcpServers": dict.fromkeys(servers, server)}))
        variables = {
            "STATE_DIR": str(directory / "state"),
            "AUDIT_LOG_DIR": str(directory / "audit"),
            "READY_FILE": str(ready),
            "MCP_CONFIG": str(directory / "mcp.json"),
            "WS_PORT": "0",
            "TCP_PORT": "0",
            "HEALTH_PORT": "0",
            "WS_AUTH_TOKEN": token,
            "TCP_AUTH_TOKEN": token,
            "LOG_LEVEL": "error",
            "RATE_LIMIT_ENABLED": "false",
            "AUTO_BLOCK_ENABLED": "false",
            "AUDIT_CALLS": "off",
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "supervisor"],
            cwd=directory,
            env={**os.environ, **variables, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            started = time.monotonic()
            while not ready.exists():
                if process.poll() is not None or time.monotonic() - started > READY_WITHIN_S:
                    raise SystemExit("the gateway did not become ready")
                time.sleep(0.01)
            ports = json.loads(ready.read_text())
            yield Gateway(directory, ports["ws"], ports["tcp"], ports["health"], token)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
