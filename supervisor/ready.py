"""Telling the world that every listener accepts: the ready line, READY_FILE, and on a first run how to call."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from ipc.settings import Settings

from .listeners import Kind

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound


def ready_line(ports: Mapping[Kind, int], state_dir: str) -> str:
    listed = ", ".join(f"{kind} {port}" for kind, port in ports.items())
    return f"ready: {listed}, pid {os.getpid()}, STATE_DIR {state_dir}"


def write_ready_file(path: str, ports: Mapping[Kind, int]) -> None:
    """Whole or not at all: written beside it, synced and renamed. Raises OSError."""
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="ascii") as file:
            file.write(json.dumps({**ports, "pid": os.getpid()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise


def remove_ready_file(path: str) -> None:
    """A gateway that is not ready must not look so. Raises OSError."""
    Path(path).unlink(missing_ok=True)


def banner(settings: Settings, ports: Mapping[Kind, int], generated: Collection[str]) -> str:
    """The tokens that were made up for this run, and commands that use them; empty if none were.

    ``generated`` are the names of the settings. This is the only place where a token is ever printed.
    """
    lines: list[str] = []
    client = client_command()
    if "ws_auth_token" in generated and "ws" in ports:
        url = f"{'wss' if settings.ssl_enabled else 'ws'}://{_address(settings.ws_host, ports['ws'])}"
        lines += [
            f"  WebSocket token: {settings.ws_auth_token[0]}",
            f"    WS_AUTH_TOKEN={shlex.quote(settings.ws_auth_token[0])} {client} ws --url {url}",
        ]
    if "tcp_auth_token" in generated and "tcp" in ports:
        host = _reachable(settings.tcp_host)
        lines += [
            f"  TCP token:       {settings.tcp_auth_token[0]}",
            f"    TCP_AUTH_TOKEN={shlex.quote(settings.tcp_auth_token[0])} {client} tcp"
            f" --host {host} --port {ports['tcp']}{' --tls' if settings.ssl_enabled else ''}",
        ]
    if not lines:
        return ""
    return "\n".join(
        (
            "",
            "No tokens are configured, so these were made up; they are shown once and hold until the gateway stops.",
            "The commands list the tools; they work from any directory.",
            *lines,
            "",
        )
    )


def client_command() -> str:
    """The absolute path of the client that belongs to this interpreter, quoted for a shell."""
    beside = Path(sys.executable).parent / "mcp-secure-client"
    if beside.exists():
        return shlex.quote(str(beside))
    return f"{shlex.quote(sys.executable)} -m ops.cli.client"


def _reachable(hosts: tuple[str, ...]) -> str:
    return _WILDCARDS.get(hosts[0], hosts[0])


def _address(hosts: tuple[str, ...], port: int) -> str:
    host = _reachable(hosts)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
