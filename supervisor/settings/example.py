"""Prints ``.env.example``: every variable with its default. Run as ``python -m supervisor.settings.example``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

from .variables import GROUPS, Variable, as_text

_WIDTH = 100
_PREAMBLE = (
    "Every variable of the gateway with its default in the development profile. Copy this file to .env in the "
    "directory where the gateway starts, and remove the # before what you change. A flag overrides the environment, "
    "the environment overrides this file; NAME_FILE=PATH reads the value of NAME from a file, which is the better "
    "place for secrets. Times are milliseconds and sizes bytes where nothing else is said.\n"
    "Secrets: openssl rand -hex 32"
)


def example() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from _comment(_PREAMBLE)
    for title, group in GROUPS.items():
        yield ""
        yield f"# --- {title} ".ljust(_WIDTH, "-")
        for variable in group:
            yield ""
            yield from _comment(f"{variable.meaning} ({variable.parser.shape}){_difference(variable)}")
            yield f"#{variable.name}={as_text(variable.default)}"


def _difference(variable: Variable) -> str:
    notes = []
    if variable.shown:
        notes.append(f"Default: {variable.shown}.")
    production = variable.default_for("production")
    if production != variable.default:
        notes.append(f"In production: {as_text(production) or 'none'}.")
    if variable.aliases:
        notes.append(f"Also {', '.join(variable.aliases)}.")
    return "".join(f" {note}" for note in notes)


def _comment(text: str) -> Iterator[str]:
    for paragraph in text.split("\n"):
        yield from (f"# {line}" for line in textwrap.wrap(paragraph, _WIDTH - 2))


if __name__ == "__main__":
    sys.stdout.write(example())
