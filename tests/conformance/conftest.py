"""Real MCP clients and servers: where they are, and gateways in front of the servers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway import Gateway
from real_clients import HERE, environment
from requirement import need


@pytest.fixture(scope="session")
def sdk1() -> Path:
    return environment("sdk1")


@pytest.fixture(scope="session")
def sdk2() -> Path:
    return environment("sdk2")


@pytest.fixture(scope="session")
def node_client() -> list[str]:
    """The command that runs the TypeScript SDK's client."""
    node = shutil.which("node")
    need(node, "node is not installed")
    need((HERE / "node" / "node_modules" / "ws").exists(), "the TypeScript SDK is missing: run ops/test")
    return [str(node), str(HERE / "node" / "client.mjs")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small git repository with one commit."""
    need(shutil.which("git"), "git is not installed")
    directory = tmp_path / "repository"
    identity = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    for name in ("AUTHOR", "COMMITTER"):
        identity |= {f"GIT_{name}_NAME": "Test", f"GIT_{name}_EMAIL": "test@example.org"}

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], check=True, capture_output=True, env=os.environ | identity)

    git("init", "--initial-branch=main", str(directory))
    (directory / "file.txt").write_text("one\n")
    git("-C", str(directory), "add", "file.txt")
    git("-C", str(directory), "commit", "--message", "The first commit of this repository")
    return directory


@pytest.fixture
def real_servers(start_gateway: Callable[..., Gateway], sdk1: Path, repository: Path) -> Gateway:
    """A gateway in front of mcp-server-time and mcp-server-git."""
    return start_gateway(
        servers={
            "time": {"command": str(sdk1 / "mcp-server-time"), "args": ["--local-timezone", "UTC"]},
            "git": {"command": str(sdk1 / "mcp-server-git"), "args": ["--repository", str(repository)]},
        }
    )
