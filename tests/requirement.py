"""What a test needs from outside the project. In continuous integration nothing is skipped."""

from __future__ import annotations

import os

import pytest


def need(there: object, what: str) -> None:
    """Skip the test when something it needs is not there, or fail it with CI=true."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} (CI=true: nothing is skipped)")
    pytest.skip(what)
