"""How the tests here run real MCP clients, and let them in."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gateway import ROOT, Gateway
from requirement import need

HERE = Path(__file__).parent


def environment(name: str) -> Path:
    """The ``bin`` of one of the environments that ops/test makes."""
    directory = ROOT / "tests" / ".envs" / name / "bin"
    need((directory / "python").exists(), f"the environment {name} is missing: run ops/test")
    return directory


def run_client(command: list[str], job: dict[str, Any]) -> dict[str, Any]:
    """Run a client script with its job; what it reports. Its stderr is shown when it fails."""
    done = subprocess.run([*command, json.dumps(job)], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


def ticket(gateway: Gateway) -> str:
    """A one-time ticket for the holder of the gateway's WebSocket token."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.ws_port, timeout=30)
    connection.request("POST", "/auth/ticket", headers={"Authorization": f"Bearer {gateway.ws_token}"})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, (response.status, body)
    document = json.loads(body)
    assert document["expires_in"] > 0
    return str(document["ticket"])


def bridge_job(gateway: Gateway, server: str, calls: list[Any]) -> dict[str, Any]:
    """How a stdio-only host names the gateway in its ``mcpServers``."""
    return {
        "command": sys.executable,
        "args": ["-m", "ops.cli.client", "stdio", "--url", gateway.ws_url(server)],
        "env": {"WS_AUTH_TOKEN": gateway.ws_token},
        "calls": calls,
    }
