"""What the files in ``ops/grafana`` ask Prometheus for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

GRAFANA = Path(__file__).parent.parent / "ops" / "grafana"
OUTSIDE = {"job", "instance"}
"""Labels that Prometheus adds."""

_SELECTED = re.compile(r"\b((?:portcullis|mcp_server)_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_SHOWN = re.compile(r"\$labels\.(\w+)|\{\{\s*(\w+)\s*\}\}")


def expressions() -> Iterator[tuple[str, str]]:
    """Each query, and the text in which labels of its result are shown."""
    dashboard = json.loads((GRAFANA / "portcullis.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"], ""
    for rule in (GRAFANA / "alerts.yml").read_text().split("- alert:")[1:]:
        # A scalar of one line, or a folded one: all up to the next key of the rule.
        found = re.search(r"expr: (?:>-\n)?((?:.|\n)*?)\n        (?:for|labels):", rule)
        assert found, rule
        yield found[1], rule


def used() -> Iterator[tuple[str, set[str]]]:
    """Each metric that is asked for, and all labels that are asked of it, in its braces or around it."""
    for expression, shown in expressions():
        around = {label.strip() for group in _GROUPED.findall(expression) for label in group.split(",")} - {""}
        around |= {first or second for first, second in _SHOWN.findall(shown)}
        selected = _SELECTED.findall(expression)
        grouped = bool(_GROUPED.search(expression))
        for name, braces in selected:
            labels = set(_LABEL.findall(braces))
            # What is shown must come from one of the metrics; what is grouped by, from each.
            if grouped or len(selected) == 1:
                labels |= around - ({"le"} if not name.endswith("_bucket") else set())
            yield name, labels - OUTSIDE - {"le"}
