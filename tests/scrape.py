"""What ``/metrics`` of a running gateway says, by sample."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import trio
from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, tuple[tuple[str, str], ...]]
WITHIN_S = 60


def scraped(gateway: Any, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.health_port}{path}", timeout=30) as answer:
        return answer.read().decode()


def samples(text: str) -> dict[Sample, float]:
    """Values by name and labels, empty labels left out."""
    return {
        (sample.name, tuple(sorted((name, value) for name, value in sample.labels.items() if value))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: Mapping[Sample, float], wanted: str, **labels: str) -> float:
    """The sum of all samples of that name with these labels."""
    return sum(value for (name, had), value in found.items() if name == wanted and labels.items() <= dict(had).items())


async def until(gateway: Any, condition: Callable[[dict[Sample, float]], bool]) -> dict[Sample, float]:
    """The first scrape of which this is true."""
    found: dict[Sample, float] = {}
    with trio.move_on_after(WITHIN_S):
        while True:
            text = await trio.to_thread.run_sync(scraped, gateway)
            found = samples(text)
            if condition(found):
                return found
            await trio.sleep(0.05)
    raise AssertionError(f"it did not come to that\n{found}\n{gateway.tail()}")
