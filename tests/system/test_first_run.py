"""What somebody sees who starts the gateway with nothing configured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway import Gateway
from requirement import need

NOTHING = {"WS_AUTH_TOKEN": None, "TCP_AUTH_TOKEN": None}


def shell(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """As pasted into a shell that was just opened somewhere."""
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=directory, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("transport", ["ws", "tcp"])
def test_the_printed_command_works_from_any_directory(
    start_gateway: Callable[..., Gateway], transport: str, tmp_path: Path
) -> None:
    """Pasted as it is printed, it lists the embedded server's tools; with --call it calls one."""
    gateway = start_gateway(environment=NOTHING)
    command = gateway.await_line(rf"^\s+(\S.*mcp-secure-client {transport} .*)$")[1]
    listed = shell(command, tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "echo" in listed.stdout
    called = shell(command + """ --call echo '{"text":"it works"}'""", tmp_path)
    assert called.returncode == 0, called.stderr
    assert "it works" in called.stdout


def test_the_tokens_are_printed_once_and_differ(start_gateway: Callable[..., Gateway]) -> None:
    """One for each listener, long and random, and in no other place: neither the log nor a file has them."""
    gateway = start_gateway(environment=NOTHING)
    tokens = [gateway.await_line(rf"{name} token:\s+(\S+)$")[1] for name in ("WebSocket", "TCP")]
    gateway.stop()
    assert tokens[0] != tokens[1]
    for token in tokens:
        assert len(token) >= 32
        mentions = [line for line in gateway.log if token in line]
        assert len(mentions) == 2  # the token, and the command that uses it
        for path in gateway.directory.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes()


@pytest.mark.parametrize("transport", ["ws", "tcp"])
@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_client_speaks_both_eras_through_the_gateway(gateway: Gateway, transport: str, era: str) -> None:
    """The embedded server answers in either era over either transport."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli.client", *gateway.client(transport), "--era", era, "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["protocolVersion"] == {"legacy": "2025-11-25", "modern": "2026-07-28"}[era]
    assert document["call"]["result"]["content"] == [{"type": "text", "text": "hello"}]


def test_ops_run_starts_the_same(tmp_path: Path) -> None:
    """The one command of the README passes flags and exit codes on: here, of a check that fails."""
    root = Path(__file__).parents[2]
    need((root / ".venv" / ".portcullis-run").exists(), "this tree was not set up by ops/run or ops/test")
    done = subprocess.run(
        [str(root / "ops" / "run"), "--check-config", "--ws-port", "-1"],
        cwd=tmp_path, env=os.environ | {"STATE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "WS_PORT" in done.stderr


def test_the_audit_log_of_a_run_verifies(start_gateway: Callable[..., Gateway]) -> None:
    """mcp-security-audit reads what the gateway wrote: refusals included, and the chain is whole."""
    gateway = start_gateway()
    subprocess.run(
        [sys.executable, "-m", "ops.cli.client", "ws", "--url", gateway.ws_url(), "--token", "wrong"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    gateway.stop()
    places = ["--log-dir", str(gateway.audit_dir), "--state-dir", str(gateway.state_dir)]
    audit = [sys.executable, "-m", "ops.cli.audit", *places]
    listed = subprocess.run([*audit, "--json"], capture_output=True, text=True, check=True)
    events = [json.loads(line)["event"] for line in listed.stdout.splitlines()]
    assert events[0] == "audit.anchor"
    assert {"gateway.started", "auth.failed", "gateway.stopped"} <= set(events)
    verified = subprocess.run([*audit, "verify"], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout
