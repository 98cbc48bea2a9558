"""HTTP answers of the WebSocket port: what every one of them carries, put together in one place.

``answer`` writes a whole answer and ends the connection in order (``Connection: close``: there is no second request
whose beginning anybody could disagree about, so nothing can be smuggled behind the first). It adds, where the caller
hasn't: the CORS fields that this request's ``Origin`` is due, ``RateLimit`` and ``RateLimit-Policy``, the security
headers, ``Date`` and ``Content-Length``; to a HEAD request it sends no body.

    answer(hub, connection, request, 200, JSON, b'{"ok":true}')
    problem(hub, connection, request, 401, "…", [("WWW-Authenticate", REALM)])

``request`` is None only when no head could be read. Whoever charged the client for this request leaves what remains in
``connection.quota`` (``actors.policy.rate_headers.Quota``) before it is answered, also before a refusal.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from actors.policy import cors
from actors.policy.cors import VARY, answer_fields, preflight_fields
from actors.policy.rate_headers import rate_fields

from . import http
from .connection import Connection
from .http import Request

if TYPE_CHECKING:
    from .hub import Hub

Fields = Sequence[tuple[str, str]]

JSON: Final = (("Content-Type", "application/json"),)
"""``headers`` of an answer whose body is JSON."""

_MERGED: Final = "vary"  # a list over several lines, so the caller's and ours both stand


def answer(
    hub: Hub, connection: Connection, request: Request | None, status: int, headers: Fields = (), body: bytes = b""
) -> None:
    """Answer this request, and close the connection once that is written. To be called in the hub's turn.

    Args:
        request: whose answer it is; None: its head could not be read.
        headers: what is particular to this answer, its ``Content-Type`` included. They win over the common ones.
        body: empty for 204.

    Raises:
        ValueError: for a header that would break the head, or a body where there can't be one.
    """
    fields = _complete(hub, connection, request, headers)
    head_only = request is not None and request.method == "HEAD"
    connection.write(http.response(status, fields, body, close=True, head_only=head_only))
    hub.finish(connection, f"http {status}")


def problem(
    hub: Hub,
    connection: Connection,
    request: Request | None,
    status: int,
    detail: str,
    headers: Fields = (),
    members: Mapping[str, object] | None = None,
) -> None:
    """The same with an RFC 9457 problem document. ``detail`` and ``members`` hold nothing secret."""
    fields = _complete(hub, connection, request, headers)
    head_only = request is not None and request.method == "HEAD"
    connection.write(http.problem(status, detail, headers=fields, members=members, head_only=head_only))
    hub.finish(connection, f"http {status}")


def is_preflight(hub: Hub, request: Request) -> bool:
    """Whether a browser asks what a page may do here; with CORS switched off it is an OPTIONS as any other."""
    method = request.get("access-control-request-method")
    return hub.settings.cors_enabled and cors.is_preflight(request.method, request.get("origin"), method)


def preflight(hub: Hub, connection: Connection, request: Request) -> None:
    """Answer it, whatever the path: 204 or 403."""
    method = request.get("access-control-request-method") or b""
    names = request.get_all("access-control-request-headers")
    fields = preflight_fields(request.get("origin"), method, names, hub.settings)
    if fields is None:
        problem(hub, connection, None, 403, "this cross-origin request is not allowed")
        return
    answer(hub, connection, request, 204, fields)


def upgrade_fields(hub: Hub, connection: Connection) -> list[tuple[str, str]]:
    """What a 101 carries besides the handshake: what is on every answer, which no WebSocket client minds."""
    return [*_rate_fields(hub, connection), *http.security_headers(hub.settings), http.date_header(time.time()), VARY]


def unread_fields(hub: Hub) -> list[tuple[str, str]]:
    """What an answer carries to whom speaks in the clear where TLS is spoken: no HSTS there (RFC 6797 §7.2)."""
    settings = msgspec.structs.replace(hub.settings, hsts_enabled=False)
    return [*rate_fields(settings, None), *http.security_headers(settings), http.date_header(time.time()), VARY]


def _rate_fields(hub: Hub, connection: Connection) -> list[tuple[str, str]]:
    """Who was not charged, or not here, has the budget of its address, as far as that is known."""
    quota = connection.quota
    if quota is None and connection.key:
        quota = hub.budget.quota((connection.key,))
    return rate_fields(hub.settings, quota)


def _complete(hub: Hub, connection: Connection, request: Request | None, headers: Fields) -> list[tuple[str, str]]:
    settings = hub.settings
    given = {name.lower() for name, _ in headers}
    common = [
        *_rate_fields(hub, connection),
        *http.security_headers(settings),
        http.date_header(time.time()),
    ]
    if "access-control-allow-origin" not in given:
        common += answer_fields(request.get("origin") if request is not None else None, settings)
    return [*headers, *(field for field in common if field[0].lower() == _MERGED or field[0].lower() not in given)]
