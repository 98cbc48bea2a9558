"""What the command line prints: help, the version, the effective settings, problems. Secrets are never shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

from ipc.settings import Upstream

from .flags import parse
from .load import Loaded, load
from .problems import ConfigurationError
from .variables import GROUPS, UPSTREAM_SOURCES, Variable, as_text, shown_default

REDACTED = "(set, not shown)"
_WIDTH = 100


def answer(
    argv: Sequence[str],
    environ: Mapping[str, str],
    cwd: str | Path,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> Loaded | int:
    """Settings to run with; or the process's exit code, everything having been printed.

    Warnings are printed for every action but a run: a run's belong into the log.
    """
    out, err = out or sys.stdout, err or sys.stderr
    action = parse(argv).action
    if action == "help":
        print(help_text(), file=out)
        return 0
    if action == "version":
        print(f"portcullis {gateway_version()}", file=out)
        return 0
    try:
        loaded = load(argv, environ, cwd)
    except ConfigurationError as error:
        print(problems_text(error), file=err)
        return error.exit_code
    if action == "run":
        return loaded
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=err)
    print(settings_text(loaded) if action == "print" else summary_text(loaded), file=out)
    return 0


def gateway_version() -> str:
    try:
        return version("portcullis")
    except PackageNotFoundError:
        return "unknown"


def problems_text(error: ConfigurationError) -> str:
    """One line a problem, the number of them first."""
    count = len(error.problems)
    lines = [f"portcullis: {count} configuration error{'s' if count > 1 else ''}"]
    lines += [f"  error: {problem}" for problem in error.problems]
    lines += [f"  warning: {warning}" for warning in error.warnings]
    return "\n".join(lines)


def summary_text(loaded: Loaded) -> str:
    settings = loaded.settings
    servers = ", ".join(upstream.name for upstream in settings.upstreams)
    count = len(loaded.warnings)
    warned = f", {count} warning{'s' if count > 1 else ''}" if count else ""
    return f"portcullis: the configuration is good{warned} (profile {settings.security_profile}, servers: {servers})"


def settings_text(loaded: Loaded) -> str:
    """The effective settings as lines that an ``.env`` file could hold, each with its origin."""
    return "\n".join(_settings_lines(loaded))


def _settings_lines(loaded: Loaded) -> Iterator[str]:
    for title, group in GROUPS.items():
        yield f"# {title}"
        for variable in group:
            if variable in UPSTREAM_SOURCES:
                continue
            value = getattr(loaded.settings, variable.field)
            text = as_text(value)
            origin = loaded.origins.get(variable.field, "")
            if not text:
                yield f"# {variable.name} is unset"
            elif variable.secret:
                yield f"# {variable.name} {_redacted(value)}  # {origin}"
            elif not variable.showable and "?" in text:
                yield f"# {variable.name} {text.partition('?')[0]} (and a query, not shown)  # {origin}"
            else:
                yield f"{variable.name}={_quoted(text)}  # {origin}"
        if UPSTREAM_SOURCES[0] in group:
            sources = [variable for variable in UPSTREAM_SOURCES if "default" not in loaded.origins[variable.field]]
            yield f"# servers: {', '.join(loaded.origins[source.field] for source in sources) or 'the embedded one'}"
            yield from (f"# {line}" for upstream in loaded.settings.upstreams for line in _upstream_lines(upstream))
        yield ""


def _redacted(value: object) -> str:
    return f"({len(value)} set, not shown)" if isinstance(value, tuple) and len(value) > 1 else REDACTED


def _quoted(text: str) -> str:
    plain = text.isprintable() and not any(character in text for character in " #'\"\\$")
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'


def _upstream_lines(upstream: Upstream) -> Iterator[str]:
    """Arguments, environment, headers and URL paths can hold keys: only their number or names are shown. So can what a
    variable stands for: its name is shown."""
    written = upstream.written
    if upstream.kind == "stdio":
        where = f"{written.get('command', upstream.command)} ({len(upstream.args)} arguments)"
    elif upstream.kind == "tcp":
        where = written.get("url", f"tcp://{upstream.host}:{upstream.port}")
    else:
        where = upstream.kind
    yield f"server {upstream.name}: {upstream.kind}, {upstream.instance}, {where}"
    for label, mapping in (("environment", upstream.env), ("headers", upstream.headers)):
        if mapping:
            yield f"  {label}: {', '.join(mapping)} (values not shown)"
    if upstream.cwd:
        yield f"  directory: {written.get('cwd', upstream.cwd)}"


def help_text() -> str:
    return "\n".join(_help_lines())


def _help_lines() -> Iterator[str]:
    yield from (
        "Usage: python -m supervisor [FLAG …]",
        "",
        "A security gateway for MCP and other JSON-RPC services. With nothing configured it starts on this machine",
        "only, with random tokens and a small MCP server of its own behind it.",
        "",
        "  --config FILE     the servers behind the gateway, as {\"mcpServers\": {…}} (MCP_CONFIG)",
        "  --check-config    check everything, print all errors, exit with 0 or 2",
        "  --print-config    print the effective settings and where each came from, secrets left out",
        "  --version         print the version",
        "  --help            print this",
        "",
        "Every variable below is also a flag: WS_PORT=0 is --ws-port 0. A flag overrides the environment, which",
        "overrides .env in the working directory. NAME_FILE=PATH reads NAME from a file. Times are milliseconds.",
        "Exit codes: 0 ended as asked, 1 failed to start, 2 the configuration is wrong.",
    )  # fmt: skip
    for title, group in GROUPS.items():
        yield f"\n{title}:"
        for variable in group:
            yield from _variable_lines(variable)


def _variable_lines(variable: Variable) -> Iterator[str]:
    also = f" (also {', '.join(variable.aliases)})" if variable.aliases else ""
    yield f"  {variable.name}{also}  {variable.parser.shape}"
    default = "; ".join(shown_default(variable))
    line = f"      {variable.meaning} [{default}]"
    if len(line) <= _WIDTH:
        yield line
    else:
        yield f"      {variable.meaning}"
        yield f"      [{default}]"
