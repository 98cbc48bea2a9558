"""The servers behind the gateway: the ``mcpServers`` file that every MCP host has, or one URL or command line.

Every mistake is reported, each with the server's name and the key. Values are never shown: they may hold secrets.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

import attrs
import msgspec

from ipc.settings import Upstream

from .problems import Problem
from .sources import Raw
from .variables import MCP_CONFIG, MCP_UPSTREAM, edit_distance

Kind = Literal["stdio", "tcp", "ws", "http"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._~-]{0,62}[A-Za-z0-9._~-])?\Z")
"""One path segment of unreserved characters (RFC 3986 §2.3), and spaces, which a client sends as ``%20``."""

_REFERENCE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\{([^}]*)\}?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_OWN_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
     "keep-alive", "last-event-id", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "te", "trailer",
     "transfer-encoding", "upgrade", "user-agent"}
)  # fmt: skip
_OWN_HEADER_PREFIXES = ("sec-websocket-", "mcp-param-", "proxy-")
_MAX_HEADER = 8192  # what most servers take for a whole request head
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SCHEMES: dict[str, Kind] = {"tcp": "tcp", "ws": "ws", "wss": "ws", "http": "http", "https": "http"}
_TYPES: dict[str, Kind] = {
    "stdio": "stdio",
    "tcp": "tcp",
    "ws": "ws",
    "websocket": "ws",
    "http": "http",
    "streamable-http": "http",
    "streamableHttp": "http",
    "streamable_http": "http",
}
_KEYS = frozenset(
    {"command", "args", "env", "cwd", "url", "headers", "type", "disabled", "instance", "timeoutMs", "maxTimeoutMs",
     "slowToolCalls"}
)  # fmt: skip
_MAX_CONFIG = 1 << 20
_MAX_SERVERS = 256
_MAX_TIMEOUT_MS = 86_400_000


def embedded() -> Upstream:
    """The small MCP server that comes with the gateway. ``-P``: nothing is imported from the working directory."""
    return Upstream(name="embedded", kind="stdio", command=sys.executable, args=("-P", "-m", "ops.embedded"))


@attrs.define
class Reading:
    """One source of upstreams while it is read."""

    variable: str
    origin: str
    expansions: Mapping[str, str]
    directory: Path
    problems: list[Problem] = attrs.field(factory=list)
    warnings: list[Problem] = attrs.field(factory=list)

    def wrong(self, where: str, what: str) -> None:
        self.problems.append(Problem(self.variable, self.origin, f"{where}: {what}" if where else what))

    def warn(self, where: str, what: str) -> None:
        self.warnings.append(Problem(self.variable, self.origin, f"{where}: {what}" if where else what))

    def expand(self, text: str, where: str) -> str:
        """``${VAR}``, ``${env:VAR}`` and ``${VAR:-default}``."""

        def value(match: re.Match[str]) -> str:
            name, default, unreadable = match.groups()
            if name is None:
                self.wrong(where, f"${{{unreadable[:40]}}} is no variable's name" if unreadable else "${ is not closed")
                return ""
            found = self.expansions.get(name) or default
            if found is None:
                self.wrong(where, f"${{{name}}} is not set")
                return ""
            return found

        return _REFERENCE.sub(value, text)


def read(
    config: Raw | None, single: Raw | None, expansions: Mapping[str, str], directory: Path
) -> tuple[tuple[Upstream, ...], list[Problem], list[Problem]]:
    """All upstreams, the problems and the warnings. A source that overrides the other wins; of equal rank neither.

    The text of ``config`` is an absolute path, that of ``single`` a URL or a command line.
    """
    if config is not None and single is not None:
        if config.rank == single.rank:
            what = f"is set, and {MCP_UPSTREAM.name} ({single.origin}) too; only one can be"
            return (), [Problem(MCP_CONFIG.name, config.origin, what)], []
        config, single = (config, None) if config.rank < single.rank else (None, single)
    if config is not None:
        reading = Reading(MCP_CONFIG.name, config.origin, expansions, directory)
        upstreams = _config(reading, Path(config.text))
    elif single is not None:
        reading = Reading(MCP_UPSTREAM.name, single.origin, expansions, directory)
        upstreams = _single(reading, single.text)
    else:
        return (embedded(),), [], []
    return upstreams, reading.problems, reading.warnings


def _single(reading: Reading, text: str) -> tuple[Upstream, ...]:
    if _SCHEME.match(text):
        upstream = _network(reading, "default", "", text, {})
    else:
        try:
            words = shlex.split(text)
        except ValueError as error:
            reading.wrong("", f"is no command line: {str(error).lower()}")
            return ()
        if not words:
            reading.wrong("", "is an empty command line")
            return ()
        upstream = Upstream(name="default", kind="stdio", command=words[0], args=tuple(words[1:]))
        _look_up(reading, "", upstream)
    return (upstream,) if upstream is not None else ()


def _config(reading: Reading, path: Path) -> tuple[Upstream, ...]:
    document = _json(reading, path)
    if document is None and reading.problems:
        return ()
    servers = document.get("mcpServers") if isinstance(document, dict) else None
    if not isinstance(servers, dict):
        reading.wrong("", 'must be a JSON object with an object "mcpServers"')
        return ()
    if len(servers) > _MAX_SERVERS:
        reading.wrong("", f"has more than {_MAX_SERVERS} servers")
        return ()
    upstreams: list[Upstream] = []
    disabled = 0
    for name, server in servers.items():
        where = f"server {name[:64]!a}"
        if not _NAME.match(name):
            reading.wrong(where, "its name is part of a path: letters, digits, spaces and . _ ~ - only (64)")
        if not isinstance(server, dict):
            reading.wrong(where, "must be a JSON object")
            continue
        if server.get("disabled") is True:
            disabled += 1
            continue
        upstream = _server(reading, name, where, server)
        if upstream is not None:
            upstreams.append(upstream)
    if not servers or disabled == len(servers):
        reading.wrong("mcpServers", "has no server" if not servers else "every server is disabled")
    return tuple(upstreams)


def _json(reading: Reading, path: Path) -> object:
    """The document. When it can't be read, that is reported, and None is returned."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            names = [name for name, _ in pairs]
            doubled = next(name for name in names if names.count(name) > 1)
            reading.wrong(f"key {doubled[:64]!a}", "stands twice in one object")
        return members

    try:
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG + 1)
        if len(content) > _MAX_CONFIG:
            reading.wrong(str(path), f"is longer than {_MAX_CONFIG} bytes")
            return None
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except OSError as error:
        reading.wrong(str(path), f"can't be read: {error.strerror}")
    except UnicodeDecodeError:
        reading.wrong(str(path), "is not UTF-8")
    except json.JSONDecodeError as error:
        reading.wrong(str(path), f"is not JSON: line {error.lineno} column {error.colno}: {error.msg}")
    except RecursionError:
        reading.wrong(str(path), "is nested too deep")
    except ValueError:  # int() refuses thousands of digits
        reading.wrong(str(path), "holds a number that is too long")
    return None


def _server(reading: Reading, name: str, where: str, server: dict[str, Any]) -> Upstream | None:
    before = len(reading.problems)
    for key in server:
        nearest = min(_KEYS, key=lambda known: edit_distance(key[:40].lower(), known.lower()))
        if key not in _KEYS and edit_distance(key[:40].lower(), nearest.lower()) <= 1:
            reading.warn(where, f"key {key[:40]!a} is ignored; did you mean {nearest}?")
    if not isinstance(server.get("disabled", False), bool):
        reading.wrong(f"{where}, disabled", "must be true or false")
    if ("command" in server) == ("url" in server):
        reading.wrong(where, 'needs "command" or "url"' + (", and not both" if "url" in server else ""))
        return None
    upstream: Upstream | None
    if "command" in server:
        upstream = _stdio(reading, name, where, server)
    else:
        url = server["url"]
        if not isinstance(url, str):
            reading.wrong(f"{where}, url", "must be a text")
            return None
        headers = _texts(reading, f"{where}, headers", server.get("headers", {}))
        for header, value in headers.items():
            _check_header(reading, where, header, value)
        if len({header.lower() for header in headers}) < len(headers):
            reading.wrong(f"{where}, headers", "name one header twice, in different spellings")
        url = reading.expand(url, f"{where}, url")
        upstream = _network(reading, name, where, url, headers) if len(reading.problems) == before else None
    if upstream is None:
        return None
    _check_type(reading, where, server.get("type"), upstream)
    instance = server.get("instance", "shared")
    if instance not in ("shared", "per-session"):
        reading.wrong(f"{where}, instance", 'must be "shared" or "per-session"')
    slow = server.get("slowToolCalls", False)
    if not isinstance(slow, bool):
        reading.wrong(f"{where}, slowToolCalls", "must be true or false")
    timeout = _timeout(reading, where, server, "timeoutMs")
    longest = _timeout(reading, where, server, "maxTimeoutMs")
    if longest and longest < timeout:
        reading.wrong(f"{where}, maxTimeoutMs", "is less than timeoutMs")
    if len(reading.problems) > before:
        return None
    shown = {"stdio": ("command", "cwd"), "tcp": ("url",)}.get(upstream.kind, ())
    written = {key: server[key] for key in shown if _REFERENCE.search(server.get(key, ""))}
    return msgspec.structs.replace(
        upstream, written=written, instance=instance, timeout_ms=timeout, max_timeout_ms=longest, slow_tool_calls=slow
    )


def _stdio(reading: Reading, name: str, where: str, server: dict[str, Any]) -> Upstream | None:
    before = len(reading.problems)
    command, args, cwd = server["command"], server.get("args", []), server.get("cwd", "")
    if not isinstance(command, str) or not command.strip():
        reading.wrong(f"{where}, command", "must be a text that is not empty")
    if not isinstance(args, list) or not all(isinstance(arg, str) for arg in args):
        reading.wrong(f"{where}, args", "must be a list of texts")
    if not isinstance(cwd, str):
        reading.wrong(f"{where}, cwd", "must be a text")
    env = _texts(reading, f"{where}, env", server.get("env", {}))
    for variable in env:
        if not variable or "=" in variable or "\0" in variable:
            reading.wrong(f"{where}, env, {variable[:40]!a}", "can't be a variable's name")
    if "headers" in server:
        reading.wrong(f"{where}, headers", 'only go with "url"')
    if not (isinstance(command, str) and isinstance(args, list) and isinstance(cwd, str)):
        return None
    command = reading.expand(command, f"{where}, command")
    args = tuple(
        reading.expand(arg, f"{where}, args[{index}]") for index, arg in enumerate(args) if isinstance(arg, str)
    )
    cwd = reading.expand(cwd, f"{where}, cwd")
    if cwd:
        cwd = str(reading.directory / Path(cwd).expanduser())
        if "\0" in cwd or not Path(cwd).is_dir():
            reading.wrong(f"{where}, cwd", "is no directory")
    if any("\0" in text for text in (command, *args, *env.values())):
        reading.wrong(where, "a command line and its environment can't hold NUL")
    if len(reading.problems) > before:
        return None
    upstream = Upstream(name=name, kind="stdio", command=command, args=args, env=env, cwd=cwd)
    _look_up(reading, where, upstream)
    return upstream


def _look_up(reading: Reading, where: str, upstream: Upstream) -> None:
    """A command that isn't there is no error: it may be installed later, and the other servers work meanwhile."""
    search = upstream.env.get("PATH") or reading.expansions.get("PATH")
    command = upstream.command
    if "/" in command:
        command = str(Path(upstream.cwd or reading.directory) / command)
    if shutil.which(command, path=search) is None:
        reading.warn(f"{where}, command" if where else "", "is not found, or can't be executed")


def _network(reading: Reading, name: str, where: str, url: str, headers: dict[str, str]) -> Upstream | None:
    key = f"{where}, url" if where else ""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        reading.wrong(key, "is no URL")
        return None
    kind = _SCHEMES.get(parts.scheme.lower())
    if kind is None:
        reading.wrong(key, "must begin with tcp://, ws://, wss://, http:// or https://")
        return None
    if not parts.hostname:
        reading.wrong(key, "names no host")
        return None
    if kind == "tcp":
        return _tcp(reading, name, key, parts, port, headers)
    if "@" in parts.netloc:
        reading.wrong(key, "can't hold a user or password; an Authorization header can")
    elif parts.fragment or "#" in url:
        reading.wrong(key, "can't have a fragment")
    elif port == 0 or not url.isascii() or not url.isprintable() or " " in url:
        reading.wrong(key, "is no URL: all but printable ASCII must be percent-encoded (RFC 3986 §2.1)")
    else:
        return Upstream(name=name, kind=kind, url=url, headers=headers)
    return None


def _check_header(reading: Reading, where: str, name: str, value: str) -> None:
    """What would break a request, or contradict what the gateway itself says in it, is refused here."""
    key = f"{where}, headers, {name[:40]!a}"
    if not _HEADER_NAME.match(name) or not value.isascii() or not value.isprintable():
        reading.wrong(key, "can't be an HTTP header (RFC 9110 §5)")
    elif name.lower() in _OWN_HEADERS or name.lower().startswith(_OWN_HEADER_PREFIXES):
        reading.wrong(key, "is set by the gateway itself")
    elif len(value) > _MAX_HEADER:
        reading.wrong(key, f"is longer than {_MAX_HEADER} bytes")


def _tcp(
    reading: Reading, name: str, key: str, parts: SplitResult, port: int | None, headers: dict[str, str]
) -> Upstream | None:
    if not port:
        reading.wrong(key, "names no port")
        return None
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        reading.wrong(key, "must be tcp://HOST:PORT and nothing more")
        return None
    if headers:
        reading.wrong(key, "TCP has no headers")
        return None
    host = parts.hostname or ""
    netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Upstream(name=name, kind="tcp", url=f"tcp://{netloc}", host=host, port=port)


def _check_type(reading: Reading, where: str, kind: object, upstream: Upstream) -> None:
    key = f"{where}, type"
    if kind is None:
        return
    if kind == "sse":
        reading.wrong(key, "the HTTP+SSE transport was replaced by Streamable HTTP and is not supported")
    elif not isinstance(kind, str) or kind not in _TYPES:
        reading.wrong(key, f"must be one of {', '.join(sorted(set(_TYPES.values())))}")
    elif _TYPES[kind] != upstream.kind:
        reading.wrong(key, f"is {kind}, but the server is given as {upstream.kind}")


def _texts(reading: Reading, where: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        reading.wrong(where, "must be an object of texts")
        return {}
    return {name: reading.expand(text, f"{where}, {name[:40]!a}") for name, text in value.items()}


def _timeout(reading: Reading, where: str, server: dict[str, Any], key: str) -> int:
    if key not in server:
        return 0
    value = server[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_TIMEOUT_MS:
        reading.wrong(f"{where}, {key}", f"must be a whole number of milliseconds, from 1 to {_MAX_TIMEOUT_MS}")
        return 0
    return value
