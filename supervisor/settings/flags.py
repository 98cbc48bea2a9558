"""The command line. Every variable is a flag: ``--ws-port 0`` or ``--ws-port=0`` is ``WS_PORT``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs

from .problems import Problem, shown
from .values import boolean
from .variables import FILE_SUFFIX, MCP_CONFIG, VARIABLES, Variable, edit_distance

Action = Literal["run", "check", "print", "help", "version"]

_ACTIONS: dict[str, Action] = {
    "--check-config": "check",
    "--print-config": "print",
    "--help": "help",
    "-h": "help",
    "--version": "version",
    "-V": "version",
}
_FILE_FLAG = FILE_SUFFIX.lower().replace("_", "-")
FLAGS: dict[str, Variable] = {
    **{"--" + name.lower().replace("_", "-"): variable for variable in VARIABLES for name in variable.names},
    "--config": MCP_CONFIG,
}


@attrs.frozen
class Given:
    """One flag as it was given. ``in_file``: its value is the path of a file that holds the variable's value."""

    flag: str
    variable: Variable
    text: str
    in_file: bool = False


@attrs.frozen
class CommandLine:
    action: Action
    given: tuple[Given, ...]
    problems: tuple[Problem, ...]


def parse(argv: Sequence[str]) -> CommandLine:
    """``argv`` without the program's name. The last of two equal flags wins, as everywhere."""
    actions: list[Action] = []
    given: list[Given] = []
    problems: list[Problem] = []
    rest = list(argv)
    while rest:
        position = len(argv) - len(rest) + 1
        word = rest.pop(0)
        if not word.startswith("-"):
            # Not shown: it may be a part of a secret that was meant to be quoted.
            what = "nothing but flags and their values is expected; --help lists them"
            problems.append(Problem(f"argument {position}", "command line", what))
            continue
        if word in _ACTIONS:
            actions.append(_ACTIONS[word])
            continue
        flag, equals, text = word.partition("=")
        variable, in_file = _find(flag)
        if variable is None:
            problems.append(Problem(shown(flag), "command line", _unknown(flag)))
            # What follows is most likely its value; it is not to be reported as a second mistake.
            if not equals and rest and not rest[0].startswith("-"):
                rest.pop(0)
            continue
        if not equals:
            if rest and not (rest[0].startswith("--") and (rest[0] in _ACTIONS or _find(rest[0])[0] is not None)):
                text = rest.pop(0)
            elif variable.parser is boolean and not in_file:
                text = "true"
            else:
                problems.append(Problem(variable.name, f"flag {flag}", "has no value"))
                continue
        if not text:
            problems.append(Problem(variable.name, f"flag {flag}", "has an empty value"))
            continue
        given.append(Given(flag, variable, text, in_file))
    # Help before anything else, and what only looks before what starts.
    order: tuple[Action, ...] = ("help", "version", "check", "print")
    action: Action = next((candidate for candidate in order if candidate in actions), "run")
    return CommandLine(action, tuple(given), tuple(problems))


def _find(flag: str) -> tuple[Variable | None, bool]:
    if flag in FLAGS:
        return FLAGS[flag], False
    if flag.endswith(_FILE_FLAG) and flag.removesuffix(_FILE_FLAG) in FLAGS:
        return FLAGS[flag.removesuffix(_FILE_FLAG)], True
    return None, False


def _unknown(flag: str) -> str:
    nearest = min((*FLAGS, *_ACTIONS), key=lambda candidate: edit_distance(flag[:60], candidate))
    if edit_distance(flag[:60], nearest) <= 3:
        return f"is no flag; did you mean {nearest}?"
    return "is no flag; --help lists them all"
