"""``mcp-health``: how the gateway is, one line a component. Exit codes: 0 healthy, 1 degraded, 2 down."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from .api import Api, Reply, add_options, find
from .failure import Refused, Unreachable
from .operate import console, ended, print_json, seconds, table
from .terminal import printable
from .version import version

NAME: Final = "mcp-health"
_EXIT: Final = {"healthy": 0, "degraded": 1, "unhealthy": 2}
_DOWN: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    return ended(NAME, lambda: _command(parser().parse_args(arguments)))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=NAME, description="Show the health of the gateway and its parts.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the gateway's own document")
    parser.epilog = "Exit codes: 0 healthy, 1 degraded, 2 down or out of reach."
    return parser


def _command(options: argparse.Namespace) -> int:
    api = find(options, os.environ, Path.cwd())
    try:
        document = _ask(api).document
    except Unreachable as unreachable:
        if options.json:
            print_json({"status": "down", "reasons": [str(unreachable)]})
        print(f"{NAME}: {printable(str(unreachable))}", file=sys.stderr)
        return _DOWN
    if options.json:
        print_json(document)
    else:
        console().print(table(("component", "state", "details"), _lines(document)))
    return _EXIT.get(str(document.get("status")), _DOWN)


def _ask(api: Api) -> Reply:
    """Without the token first: on loopback it isn't needed, and a wrong one must not make a healthy gateway down."""
    reply = api.get("/health", authenticated=False)
    if "actors" in reply.document or not api.token:
        return reply
    try:
        return api.get("/health")
    except Refused:
        return reply


def _lines(document: dict[str, Any]) -> Iterator[tuple[Any, Any, str]]:
    details = [f"up {seconds(document['uptime'])}"] if "uptime" in document else []
    if document.get("version"):
        details.append(f"version {document['version']}")
    if "restarts" in document:
        details.append(f"restarts {document['restarts']}")
    if document.get("ready") is False:
        details.append("not ready")
    yield "gateway", document.get("status"), ", ".join(details)
    connections = _members(document, "connections")
    if connections:
        counts = ", ".join(f"{transport} {count}" for transport, count in connections.items() if transport != "total")
        yield "connections", connections.get("total", 0), counts
    for name, actor in _members(document, "actors").items():
        notes = [f"restarts {actor.get('restarts', 0)}"]
        if actor.get("state") == "up" and not actor.get("answering", True):
            notes.append("does not answer")
        yield name, actor.get("state"), ", ".join(notes)
    for name, upstream in _members(document, "upstreams").items():
        notes = [f"breaker {upstream.get('breaker')}", f"in flight {upstream.get('in_flight', 0)}"]
        if "retry_in_ms" in upstream:
            notes.append(f"next probe in {seconds(upstream['retry_in_ms'] / 1000)}")
        yield f"server {name}", upstream.get("state"), ", ".join(notes)
    for reason in document.get("reasons", []):
        yield "because", reason, ""


def _members(document: dict[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key)
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
