"""From the sources to Settings: everything is found, parsed and checked, and all problems are reported together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from ipc.settings import Profile, Settings

from . import authorization, content, flags, upstreams
from .checks import check
from .flags import Action
from .problems import ConfigurationError, Problem, shown
from .profiles import derive
from .sources import Found, Raw, collect
from .variables import (
    AUTHORIZATION_POLICY,
    BY_NAME,
    CONTENT_POLICY_RULES,
    MCP_CONFIG,
    MCP_UPSTREAM,
    PROFILE,
    UPSTREAM_SOURCES,
    VARIABLES,
    Variable,
)


@attrs.frozen
class Loaded:
    """``origins`` says of each field where its value came from; ``action`` is what the command line asks for."""

    settings: Settings
    warnings: tuple[Problem, ...]
    origins: dict[str, str]
    action: Action = "run"


def load(argv: Sequence[str], environ: Mapping[str, str], cwd: str | Path) -> Loaded:
    """The effective settings. ``argv`` is without the program's name.

    Raises ConfigurationError, which holds every problem that there is.
    """
    directory = Path(cwd).absolute()
    line = flags.parse(argv)
    found = collect(line.given, environ, directory)
    problems = [*line.problems, *found.problems]
    warnings = found.warnings
    profile, given = _parse(found, directory, problems)
    config, single = (_parsed(variable, found, given) for variable in (MCP_CONFIG, MCP_UPSTREAM))
    servers, wrong, doubtful = upstreams.read(config, single, found.expansions, directory)
    problems.extend(wrong)
    warnings.extend(doubtful)
    fields = {**derive(given, profile, directory), "upstreams": servers}
    policy = authorization.read(fields, found.raw.get(AUTHORIZATION_POLICY.name), servers)
    problems.extend(policy.problems)
    warnings.extend(policy.warnings)
    rules = content.read(fields, found.raw.get(CONTENT_POLICY_RULES.name))
    problems.extend(rules.problems)
    warnings.extend(rules.warnings)
    settings = Settings(**fields, authorization=policy.authorization, content=rules.content)
    origins = _origins(found, given, profile)
    # Values that could not be parsed stand at their defaults here: what is found wrong with those is not the
    # operator's doing, and is left out.
    unparsed = {problem.variable for problem in problems}
    for finding in check(settings, origins):
        if finding.problem.variable not in unparsed:
            (problems if finding.severity == "error" else warnings).append(finding.problem)
    warnings.extend(_exposed(line.given))
    if problems:
        raise ConfigurationError(_ordered(problems), _ordered(warnings))
    return Loaded(settings, _ordered(warnings), origins, line.action)


def load_some(names: Iterable[str], environ: Mapping[str, str], cwd: str | Path) -> dict[str, object]:
    """Only these variables, by field, for tools beside the gateway: what is wrong with others is not their concern.

    Raises ConfigurationError for what is wrong with these.
    """
    directory = Path(cwd).absolute()
    wanted = {BY_NAME[name].name for name in names}
    found = collect((), environ, directory)
    problems: list[Problem] = []
    profile, given = _parse(found, directory, problems)
    problems = [problem for problem in (*found.problems, *problems) if problem.variable in wanted]
    if problems:
        raise ConfigurationError(tuple(problems))
    fields = derive(given, profile, directory)
    return {BY_NAME[name].field: fields[BY_NAME[name].field] for name in wanted}


def _parsed(variable: Variable, found: Found, given: dict[str, object]) -> Raw | None:
    """Taken out of ``given``: the source of upstreams as parsed, or None where it is unset or was refused."""
    value = given.pop(variable.field, None)
    return attrs.evolve(found.raw[variable.name], text=str(value)) if value is not None else None


def _parse(found: Found, directory: Path, problems: list[Problem]) -> tuple[Profile, dict[str, object]]:
    """Parse every text that was found. The profile is production when it can't be told: the stricter one."""
    given: dict[str, object] = {}
    for variable in VARIABLES:
        raw = found.raw.get(variable.name)
        if raw is None:
            continue
        try:
            value = variable.parser.parse(raw.text, directory)
        except ValueError as error:
            got = f", not {shown(raw.text)}" if variable.showable else ""
            problems.append(Problem(variable.name, raw.origin, f"{error}{got}"))
            continue
        given[variable.field] = value
    chosen = given.pop(PROFILE.field, "development" if PROFILE.name not in found.raw else "production")
    return ("production" if chosen == "production" else "development"), given


def _origins(found: Found, given: Mapping[str, object], profile: Profile) -> dict[str, str]:
    origins: dict[str, str] = {}
    for variable in VARIABLES:
        raw: Raw | None = found.raw.get(variable.name)
        if raw is not None and (variable.field in given or variable in (PROFILE, *UPSTREAM_SOURCES)):
            origins[variable.field] = raw.origin
        else:
            origins[variable.field] = f"default, {profile}" if variable is not PROFILE else "default"
    return origins


def _exposed(given: Iterable[flags.Given]) -> list[Problem]:
    return [
        Problem(flag.variable.name, f"flag {flag.flag}", "a secret on the command line is seen by every local user")
        for flag in given
        if flag.variable.secret and not flag.in_file
    ]


def _ordered(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Without repetition, in the order of the table; what is about no variable comes first."""
    position = {variable.name: index for index, variable in enumerate(VARIABLES)}
    return tuple(sorted(dict.fromkeys(problems), key=lambda problem: position.get(problem.variable, -1)))
