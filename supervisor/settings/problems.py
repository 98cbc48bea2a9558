"""What is wrong with a configuration: the variable, where its value came from, and what is wrong with it."""

from __future__ import annotations

import attrs


@attrs.frozen
class Problem:
    """``origin`` is where the value came from, empty for what is missing altogether. Never holds a secret."""

    variable: str
    origin: str
    what: str

    def __str__(self) -> str:
        where = f" ({self.origin})" if self.origin else ""
        return f"{self.variable}{where}: {self.what}"


class ConfigurationError(ValueError):
    """Everything that is wrong, at once. ``exit_code`` is the process's."""

    exit_code = 2

    def __init__(self, problems: tuple[Problem, ...], warnings: tuple[Problem, ...] = ()) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
        self.warnings = warnings


def shown(text: str) -> str:
    """A value in a message: quoted, escaped, bounded."""
    return ascii(text if len(text) <= 60 else text[:57] + "…")
