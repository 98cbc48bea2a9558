"""Requests to ``/auth/*`` of a running gateway, and what tests do with sessions."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any

import attrs
import trio

WITHIN = 30


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    document: dict[str, Any]


def request_now(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request on a connection of its own. Header names are written with ``_``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        raw = response.read()
    finally:
        connection.close()
    names = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, names, json.loads(raw) if raw else {})


async def ask(gateway: Any, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    return await trio.to_thread.run_sync(lambda: request_now(gateway.ws_port, method, path, body, **headers))


async def post(gateway: Any, path: str, fields: dict[str, str] | None = None, *, token: str = "") -> Answer:
    headers = {"Content_Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    return await ask(gateway, "POST", path, json.dumps(fields or {}).encode(), **headers)


async def post_form(gateway: Any, path: str, fields: dict[str, str]) -> Answer:
    body = urllib.parse.urlencode(fields).encode()
    return await ask(gateway, "POST", path, body, Content_Type="application/x-www-form-urlencoded")


async def session(gateway: Any) -> dict[str, Any]:
    """A new session for the holder of the WebSocket token."""
    answer = await post(gateway, "/auth/token", token=gateway.ws_token)
    assert answer.status == 200, answer
    return answer.document


async def refresh(gateway: Any, refresh_token: str) -> Answer:
    return await post(gateway, "/auth/refresh", {"refresh_token": refresh_token})


async def admin(gateway: Any, method: str, path: str, document: dict[str, Any] | None = None) -> Answer:
    headers = {"Authorization": f"Bearer {gateway.admin_token}", "Content_Type": "application/json"}
    body = json.dumps(document).encode() if document is not None else None
    return await trio.to_thread.run_sync(
        lambda: request_now(gateway.health_port, method, f"/admin/v1{path}", body, **headers)
    )
