"""What the operators' commands share: how they end, and how they print."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .failure import ClientFailure
from .terminal import printable

STYLES = {
    "healthy": "green",
    "up": "green",
    "closed": "green",
    "degraded": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "suspect": "yellow",
    "half_open": "yellow",
    "unhealthy": "red",
    "down": "red",
    "open": "red",
    "failed": "red",
}


def ended(name: str, command: Callable[[], int]) -> int:
    """Run a command; the process's exit code, whatever happens to it."""
    try:
        return command()
    except ClientFailure as failure:
        print(f"{name}: {printable(str(failure))}", file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Who read our output has gone; Python would complain about that again when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE


def print_json(document: object) -> None:
    print(json.dumps(document, indent=2 if sys.stdout.isatty() else None), flush=True)


def console() -> Console:
    """Colour and width of the terminal; plain text, unwrapped, into anything else."""
    made = Console(highlight=False, soft_wrap=True)
    return made if made.is_terminal else Console(highlight=False, soft_wrap=True, width=10_000, no_color=True)


def cell(value: object) -> Text:
    """Any value of a document as one line that can do no harm to a terminal."""
    text = printable("–" if value is None or value == "" else str(value)).replace("\n", "\\n").replace("\t", "\\t")
    return Text(text, style=STYLES.get(text, ""))


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        made.add_column(title, overflow="fold")
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def seconds(value: object) -> str:
    """A duration in its two largest units: ``3d 4h``, ``5m 6s``, ``7s``."""
    if not isinstance(value, int | float):
        return "–"
    left = int(value)
    words: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not words):
            words.append(f"{count}{unit}")
    return " ".join(words[:2])
