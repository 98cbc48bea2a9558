"""Where values come from, in this order: flag, environment, ``NAME_FILE``, ``.env``, the default of the profile.

An empty value is as good as none, so that a container file can pass variables on that may be unset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from . import dotenv
from .flags import Given
from .problems import Problem
from .variables import BY_NAME, FILE_SUFFIX, VARIABLES, Variable, known, look_alike

DOTENV = ".env"
_MAX_FILE = 1 << 20  # a secret, or a page of settings; not a device that never ends


@attrs.frozen
class Raw:
    """A variable's text. ``origin`` is said in messages; ``rank`` is lower for what overrides more."""

    text: str
    origin: str
    rank: int


@attrs.frozen
class Layer:
    """One source of names and texts: ``names`` maps a name to its text and to where exactly it stands."""

    rank: int
    names: Mapping[str, tuple[str, str]]


@attrs.frozen
class Found:
    raw: dict[str, Raw]  # by the variable's main name
    problems: list[Problem]
    warnings: list[Problem]
    expansions: dict[str, str]  # what ${VAR} may name: the environment, and .env where that has it not


def collect(given: tuple[Given, ...], environ: Mapping[str, str], directory: Path) -> Found:
    """Find every variable's text. Nothing is parsed yet, except ``.env`` itself."""
    problems: list[Problem] = []
    warnings: list[Problem] = []
    dotenv_names = _read_dotenv(directory / DOTENV, problems, warnings)
    environment = Layer(1, {name: (text, f"environment {name}") for name, text in environ.items()})
    file = Layer(2, dotenv_names)
    raw: dict[str, Raw] = {}
    by_flag = _flags(given, directory, problems)
    for variable in VARIABLES:
        found = by_flag.get(variable.name)
        # A faulty flag was reported; what it would have overridden must not come through in its place.
        if variable.name not in by_flag:
            for layer in (environment, file):
                found = _from_layer(variable, layer, directory, problems, warnings)
                if found is not None:
                    break
        if found is not None:
            raw[variable.name] = found
    warnings.extend(_misspelt(environment, problems=problems))
    warnings.extend(_misspelt(file, problems=problems))
    expansions = {name: text for name, (text, _) in dotenv_names.items()} | dict(environ)
    return Found(raw, problems, warnings, expansions)


def _flags(given: tuple[Given, ...], directory: Path, problems: list[Problem]) -> dict[str, Raw | None]:
    by_name: dict[str, Raw | None] = {}
    for flag in given:
        if flag.in_file:
            origin = f"file {flag.text}, flag {flag.flag}"
            by_name[flag.variable.name] = _read_file(flag.variable, flag.text, origin, 0, directory, problems)
        else:
            by_name[flag.variable.name] = Raw(flag.text, f"flag {flag.flag}", 0)
    return by_name


def _from_layer(
    variable: Variable, layer: Layer, directory: Path, problems: list[Problem], warnings: list[Problem]
) -> Raw | None:
    """The variable's text in one layer: its main name before its aliases, itself or its ``NAME_FILE``, not both."""
    results: list[Raw] = []
    for name in variable.names:
        direct, origin = layer.names.get(name, ("", ""))
        by_file, file_origin = layer.names.get(name + FILE_SUFFIX, ("", ""))
        if direct and by_file:
            problems.append(Problem(name, f"{origin} and {file_origin}", "is set both directly and by a file"))
            return None
        if direct:
            results.append(Raw(direct, origin, layer.rank))
        elif by_file:
            read = _read_file(variable, by_file, f"file {by_file}, {file_origin}", layer.rank, directory, problems)
            if read is None:
                return None
            results.append(read)
    if not results:
        return None
    winner = results[0]
    warnings.extend(
        Problem(variable.name, other.origin, f"is overruled by {winner.origin}")
        for other in results[1:]
        if other.text != winner.text
    )
    return winner


def _read_file(
    variable: Variable, path: str, origin: str, rank: int, directory: Path, problems: list[Problem]
) -> Raw | None:
    text = _read_text(directory / path)
    if isinstance(text, Exception):
        problems.append(Problem(variable.name, origin, f"can't be read: {_reason(text)}"))
        return None
    # Editors and `openssl … > file` end a line; white space around a value is never meant.
    value = text.removeprefix("\ufeff").strip()
    if not value:
        problems.append(Problem(variable.name, origin, "the file is empty"))
        return None
    return Raw(value, origin, rank)


def _read_dotenv(path: Path, problems: list[Problem], warnings: list[Problem]) -> dict[str, tuple[str, str]]:
    text = _read_text(path)
    if isinstance(text, FileNotFoundError | NotADirectoryError):
        return {}
    if isinstance(text, Exception):
        problems.append(Problem(DOTENV, str(path), f"can't be read: {_reason(text)}"))
        return {}
    entries, broken = dotenv.parse(text)
    problems.extend(Problem(DOTENV, f"{path} line {line.line}", line.what) for line in broken)
    names: dict[str, tuple[str, str]] = {}
    for entry in entries:
        origin = f"{path} line {entry.line}"
        if entry.name in names and BY_NAME.get(entry.name) is not None:
            warnings.append(Problem(entry.written, names[entry.name][1], f"is overruled by line {entry.line}"))
        names[entry.name] = (entry.value, origin)
    return names


def _read_text(path: Path) -> str | Exception:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            return ValueError(f"it is longer than {_MAX_FILE} bytes")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:
        return error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _misspelt(layer: Layer, *, problems: list[Problem]) -> Iterator[Problem]:
    reported = {problem.variable for problem in problems}
    for name, (_, origin) in layer.names.items():
        if known(name) or name in reported:
            continue
        meant = look_alike(name)
        if meant is not None:
            yield Problem(name, origin, f"is no variable of the gateway and is ignored; did you mean {meant.name}?")
