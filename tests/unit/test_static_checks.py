"""Lint and types, as tests: so the test run's last line speaks for them too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    """The whole tree, tests included, by the rules in pyproject.toml."""
    assert run("ruff", "check", "--no-cache", ".") == ""


def test_the_types_hold() -> None:
    """All four packages under mypy --strict."""
    assert run("mypy") == ""
