"""The documents, dashboards and alerts speak of the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import dashboards
import pytest
from requirement import need

from actors.admin.families import FAMILIES
from actors.admin.metrics import SOURCES, ZEROS

ROOT = Path(__file__).parent.parent.parent
SAMPLES = {
    sample: set(family.labels) | ({"le"} if sample.endswith("_bucket") else set())
    for family in FAMILIES.values()
    for sample in family.samples
}


def test_every_metric_has_its_line_in_the_documentation() -> None:
    """Name, kind, labels and meaning as in the table of the program, and no line for anything else."""
    text = (ROOT / "ops" / "docs" / "metrics.md").read_text()
    documented = [line for line in text.splitlines() if re.match(r"\| `(portcullis|mcp)_", line)]
    assert documented == [
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |"
        for family in FAMILIES.values()
    ]


def test_names_follow_the_conventions() -> None:
    """Prometheus': base units at the end, ``total`` only where the library adds it, no label that holds a client."""
    for family in FAMILIES.values():
        assert re.fullmatch(r"(portcullis|mcp_server)_[a-z]+(_[a-z]+)*", family.name)
        assert not family.name.endswith(("_total", "_ms", "_milliseconds", "_kb", "_ns"))
        assert not {"ip", "peer", "address", "principal", "method", "tool", "session", "le"} & set(family.labels)
        assert family.help.endswith((".", "…"))
    for source in SOURCES:
        assert len(FAMILIES[source.family].labels) == len(source.labels), source
    for name, *labels in ZEROS:
        assert len(FAMILIES[name].labels) == len(labels)


def test_dashboards_and_alerts_use_metrics_that_exist() -> None:
    """Every name and every label. (That the program exports what is in the table is another test.)"""
    found = list(dashboards.used())
    assert len(found) > 40
    for name, labels in found:
        assert name in SAMPLES, name
        assert labels <= SAMPLES[name], (name, labels)


def test_the_dashboard_has_a_place_for_everything() -> None:
    """Panels have ids of their own and none lies over another; a Prometheus is chosen, not named."""
    dashboard = json.loads((dashboards.GRAFANA / "portcullis.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        covered = {(x, y) for x in columns for y in rows}
        assert place["x"] + place["w"] <= 24
        assert not covered & cells, panel["title"]
        cells |= covered
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize(
    "arguments", [("check", "config", "../prometheus/prometheus.yml"), ("check", "rules", "alerts.yml")]
)
def test_prometheus_takes_the_examples(arguments: tuple[str, ...]) -> None:
    """Its own tool reads configuration and rules without a complaint."""
    promtool = shutil.which("promtool")
    need(promtool, "promtool is not installed (Debian: apt-get install prometheus)")
    command = [str(promtool), *arguments]
    run = subprocess.run(command, cwd=dashboards.GRAFANA, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
