"""The gateway's health listener as the operators' commands use it: where it is, with which token, and one request.

The commands read the same variables as the gateway (environment, ``NAME_FILE``, ``.env`` in the working directory) and
the same ``STATE_DIR/admin.token``, so that beside a running gateway they need no options.
"""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote, urlsplit

import attrs

from supervisor.settings import ConfigurationError, load_some
from supervisor.settings.tokens import ADMIN_TOKEN_FILE, read_admin_token

from .failure import Refused, Unreachable, UsageError

PATIENCE_S: Final = 5.0
_LONGEST: Final = 64 * 1024 * 1024
_UNAUTHENTICATED: Final = frozenset({401, 403})
_VARIABLES: Final = ("HEALTH_HOST", "HEALTH_PORT", "READY_FILE", "ADMIN_TOKEN", "STATE_DIR")


@attrs.frozen
class Reply:
    """An answer of the gateway, whatever its status."""

    status: int
    document: dict[str, Any]

    @property
    def detail(self) -> str:
        """Why it was refused, in the gateway's words."""
        return str(self.document.get("detail") or f"HTTP status {self.status}")


@attrs.frozen
class Api:
    """One gateway. ``token`` is empty where none was found; ``token_hint`` says then what is missing."""

    scheme: str
    host: str
    port: int
    token: str = attrs.field(repr=False)
    token_hint: str = ""

    def get(self, path: str, *, authenticated: bool = True) -> Reply:
        """Raises Unreachable, and for what is ours to know Refused: see ``request``."""
        return self.request("GET", path, authenticated=authenticated)

    def post(self, path: str, document: Mapping[str, object] | None = None) -> Reply:
        return self.request("POST", path, document=document)

    def delete(self, path: str) -> Reply:
        return self.request("DELETE", path)

    def request(
        self, method: str, path: str, *, authenticated: bool = True, document: Mapping[str, object] | None = None
    ) -> Reply:
        """Raises Unreachable if nobody answers in time or in HTTP, Refused if the token is missing or wrong."""
        reply = self._exchange(method, path, self.token if authenticated else "", document)
        if authenticated and reply.status in _UNAUTHENTICATED:
            hint = f" ({self.token_hint})" if not self.token and self.token_hint else ""
            raise Refused(f"{self.where} refuses: {reply.detail}{hint}")
        return reply

    @property
    def where(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def _exchange(self, method: str, path: str, token: str, document: Mapping[str, object] | None) -> Reply:
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=PATIENCE_S)
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            body = None
            if document is not None:
                body = json.dumps(document).encode()
                headers["Content-Type"] = "application/json"
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            body = response.read(_LONGEST + 1)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(f"no gateway answers at {self.where}: {reason}") from None
        finally:
            connection.close()
        return Reply(response.status, self._document(body))

    def _document(self, body: bytes) -> dict[str, Any]:
        try:
            document = json.loads(body) if len(body) <= _LONGEST else None
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise Unreachable(f"what answers at {self.where} is no gateway")
        return document


def segment(text: str) -> str:
    """One path segment, escaped. Raises UsageError for what can't be one."""
    if not text or text in (".", ".."):
        raise UsageError("the name is empty" if not text else f"{text} is no name")
    return quote(text, safe="")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", metavar="URL", help="the health listener; otherwise from HEALTH_PORT or READY_FILE")
    parser.add_argument("--state-dir", metavar="DIR", help="the gateway's STATE_DIR, which holds admin.token")


def find(options: argparse.Namespace, environment: Mapping[str, str], directory: Path) -> Api:
    """The gateway that the options, or the variables that it was started with, point to. Raises UsageError."""
    if options.state_dir is not None:
        environment = {**environment, "STATE_DIR": options.state_dir}
    try:
        settings = load_some(_VARIABLES, environment, directory)
    except ConfigurationError as error:
        raise UsageError(str(error)) from None
    token, hint = _token(settings)
    if options.url is not None:
        return _from_url(options.url, token, hint)
    hosts = cast("tuple[str, ...]", settings["health_host"])
    port = _port(cast("int", settings["health_port"]), str(settings["ready_file"]))
    return Api("http", _reachable(hosts[0]), port, token, hint)


def state_directory(options: argparse.Namespace, environment: Mapping[str, str], directory: Path) -> Path:
    """The gateway's STATE_DIR, for what works on its files. Raises UsageError."""
    if options.state_dir is not None:
        return directory / str(options.state_dir)
    try:
        return Path(str(load_some(("STATE_DIR",), environment, directory)["state_dir"]))
    except ConfigurationError as error:
        raise UsageError(str(error)) from None


def _from_url(url: str, token: str, hint: str) -> Api:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("--url: is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise UsageError("--url: must be http://HOST:PORT or https://HOST:PORT")
    return Api(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), token, hint)


def _port(configured: int, ready_file: str) -> int:
    """The port in use is in the ready file, which matters where port 0 let the system choose."""
    if ready_file:
        try:
            port = json.loads(Path(ready_file).read_bytes()).get("health")
        except (OSError, ValueError, AttributeError):
            port = None
        if isinstance(port, int) and 0 < port < 65536:
            return port
    if not configured:
        raise UsageError("HEALTH_PORT is 0, so the port is only known to the gateway: give --url or READY_FILE")
    return configured


def _reachable(host: str) -> str:
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return host


def _token(settings: Mapping[str, object]) -> tuple[str, str]:
    """The token, or nothing and what there was instead."""
    if settings["admin_token"]:
        return str(settings["admin_token"]), ""
    path = Path(str(settings["state_dir"])) / ADMIN_TOKEN_FILE
    try:
        return read_admin_token(path), ""
    except OSError as error:
        return "", f"no token: ADMIN_TOKEN is not set, and {path}: {error.strerror}; --state-dir names another place"
    except ConfigurationError as error:
        return "", str(error)
