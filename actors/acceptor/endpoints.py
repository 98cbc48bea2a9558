"""The HTTP resources of the WebSocket port, and the methods that each of them takes."""

from __future__ import annotations

from typing import Final

METHODS: Final[dict[str, tuple[str, ...]]] = {
    "/health": ("GET", "HEAD", "OPTIONS"),
    "/auth/refresh": ("POST", "OPTIONS"),
    "/auth/revoke": ("POST", "OPTIONS"),
    "/auth/session": ("GET", "HEAD", "OPTIONS"),
    "/auth/ticket": ("POST", "OPTIONS"),
    "/auth/token": ("POST", "OPTIONS"),
    "*": ("OPTIONS",),  # RFC 9110 §9.3.7: the server as a whole
}


def is_websocket(path: str) -> bool:
    """``/``, ``/ws`` and ``/ws/NAME`` begin with an upgrade."""
    return path in ("/", "/ws") or path.startswith("/ws/")


def allow(path: str) -> str:
    """The value of ``Allow`` for a path of the table."""
    return ", ".join(METHODS[path])
