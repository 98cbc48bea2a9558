"""The supervisor's own events, over several runs on one STATE_DIR."""

from __future__ import annotations

import json
from typing import Any


def test_each_run_leaves_its_own_records(start_gateway: Any, tmp_path: Any) -> None:
    """A second run with the same state records its start and stop as the first one did."""
    places = {"STATE_DIR": str(tmp_path / "state"), "AUDIT_LOG_DIR": str(tmp_path / "audit")}
    for place in places.values():
        (tmp_path / place).mkdir()
    for _ in range(2):
        start_gateway(environment=places).stop()
    text = "".join(file.read_text() for file in sorted((tmp_path / "audit").iterdir()))
    events = [json.loads(line.removeprefix("SECURITY "))["event"] for line in text.splitlines()]
    assert [event for event in events if event.startswith("gateway.")] == ["gateway.started", "gateway.stopped"] * 2
