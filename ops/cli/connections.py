"""``mcp-connections``: the live client connections of the gateway."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.live import Live
from rich.table import Table

from .api import Api, add_options, find
from .failure import ClientFailure, UsageError
from .operate import console, ended, print_json, seconds, table
from .version import version

NAME: Final = "mcp-connections"
_FIELDS: Final = (
    "id", "transport", "peer", "principal", "age_s", "idle_s", "messages_in", "messages_out", "bytes_in", "bytes_out",
    "upstream", "worker",
)  # fmt: skip
_TITLES: Final = ("id", "transport", "peer", "principal", "age", "idle", "in", "out", "bytes in", "bytes out",
                  "server", "worker")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 usage, 3 the token is missing or wrong, 4 out of reach."""
    return ended(NAME, lambda: _command(parser().parse_args(arguments)))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=NAME, description="List the live client connections.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array; with --watch, one a line")
    parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="with --watch (default: 2)")
    parser.epilog = "Exit codes: 0 done, 1 failed, 2 usage, 3 the token is missing or wrong, 4 out of reach."
    return parser


def _command(options: argparse.Namespace) -> int:
    if not 0.1 <= options.interval <= 3600:
        raise UsageError("--interval: must be between 0.1 and 3600 seconds")
    api = find(options, os.environ, Path.cwd())
    if options.watch:
        _watch(api, options.interval, as_json=options.json)
    rows = connections(api)
    if options.json:
        print_json(rows)
    else:
        console().print(_table(rows))
    return 0


def _watch(api: Api, interval_s: float, *, as_json: bool) -> None:
    """For ever. On a terminal, a gateway that restarts does not end it once it has begun."""
    rows = connections(api)
    screen = console()
    if as_json or not screen.is_terminal:
        while True:
            if as_json:
                print_json(rows)
            else:
                screen.print(_table(rows))
            time.sleep(interval_s)
            rows = connections(api)
    with Live(_table(rows), console=screen, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval_s)
            try:
                live.update(_table(connections(api)), refresh=True)
            except ClientFailure as failure:
                live.update(table(("out of reach",), [(str(failure),)]), refresh=True)


def connections(api: Api) -> list[dict[str, Any]]:
    """Each with the contract's members; those of an acceptor that does not answer are missing, which is said."""
    reply = api.get("/admin/v1/connections")
    found = reply.document.get("connections")
    if reply.status != 200 or not isinstance(found, list):
        raise ClientFailure(reply.detail)
    missing = reply.document.get("missing")
    if missing:
        print(f"{NAME}: the list is incomplete, no answer from: {', '.join(map(str, missing))}", file=sys.stderr)
    return [{field: row.get(field) for field in _FIELDS} for row in found if isinstance(row, dict)]


def _table(rows: list[dict[str, Any]]) -> Table:
    shown = sorted(rows, key=lambda row: row["age_s"] if isinstance(row["age_s"], int | float) else 0.0, reverse=True)
    return table(
        _TITLES,
        ([seconds(row[field]) if field in ("age_s", "idle_s") else row[field] for field in _FIELDS] for row in shown),
    )


if __name__ == "__main__":
    sys.exit(main())
