"""Fixtures for every folder of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gateway as gateways
import pytest
from hypothesis import HealthCheck, settings

# The machines are shared: how long an example takes says nothing about the program.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[Callable[..., gateways.Gateway]]:
    """Start gateways (``gateway.start``); each is stopped at the end of the test, and must leave nothing behind.

    Blocks until the gateway is ready: a test in trio calls it by ``trio.to_thread.run_sync`` where its own loop has to
    go on meanwhile.
    """
    running: list[gateways.Gateway] = []

    def start(**options: Any) -> gateways.Gateway:
        running.append(gateways.start(tmp_path / f"gateway{len(running)}", **options))
        return running[-1]

    yield start
    try:
        for one in running:
            if one.process.returncode is None:
                one.stop()
    finally:
        for one in running:
            if one.process.returncode is None:
                one.kill()


@pytest.fixture
def gateway(start_gateway: Callable[..., gateways.Gateway]) -> gateways.Gateway:
    """A gateway with the embedded server behind it."""
    return start_gateway()
