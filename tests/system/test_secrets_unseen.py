"""A gateway in use leaves its secrets and its clients' nowhere: not in its output, its files or its command lines."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from http_exchange import exchange, head, upgrade
from wire_clients import tcp_client, ws_client

TYPED = "Content-Type: application/json"


def files_with(directory: Path, wanted: dict[str, str]) -> list[tuple[str, str]]:
    """Which of these is in which file."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [(name, path.name) for path in files for name, text in wanted.items() if text.encode() in path.read_bytes()]


def command_lines(gateway: Any) -> str:
    pids = [gateway.pid, *gateway.workers()]
    return "".join(Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids)


@pytest.mark.parametrize("profile", ["development", "production"])
async def test_no_secret_is_written_anywhere(start_gateway: Callable[..., Any], profile: str) -> None:
    """With the log at debug: configured ones, those that were issued, and those that were refused."""
    own = {name: secrets.token_hex(32) for name in ("JWT_SECRET", "SESSION_SECRET", "ADMIN_TOKEN")}
    environment = {
        **own,
        "SECURITY_PROFILE": profile,
        "SSL_ENABLED": "false",
        "LOG_LEVEL": "debug",
        "AUTO_BLOCK_ENABLED": "false",
        "RATE_LIMIT_BURST_REQUESTS": "100",
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    unseen = {**own, "WS_AUTH_TOKEN": gateway.ws_token, "TCP_AUTH_TOKEN": gateway.tcp_token}
    unseen |= {"refused": secrets.token_hex(32), "argument": secrets.token_hex(32)}
    bearer = f"Authorization: Bearer {gateway.ws_token}"

    async def posted(path: str, document: dict[str, str], *fields: str, status: int) -> dict[str, Any]:
        body = json.dumps(document).encode()
        length = f"Content-Length: {len(body)}"
        answer = await exchange(gateway.ws_port, head("POST", path, TYPED, length, *fields) + body)
        assert answer.status == status, answer.body
        return json.loads(answer.body)

    issued = await posted("/auth/token", {}, bearer, status=200)
    refreshed = await posted("/auth/refresh", {"refresh_token": issued["refresh_token"]}, status=200)
    for number, tokens in enumerate((issued, refreshed)):
        unseen |= {f"{name} {number}": tokens[name] for name in ("access_token", "refresh_token")}
    unseen["ticket"] = (await posted("/auth/ticket", {}, bearer, status=200))["ticket"]
    await posted("/auth/token", {"token": unseen["refused"]}, status=401)
    await posted("/auth/refresh", {"refresh_token": unseen["refused"]}, status=401)
    for request in (
        upgrade(f"Authorization: Bearer {unseen['refused']}"),
        upgrade(f"Sec-WebSocket-Protocol: mcp, bearer.{unseen['refused']}"),
        upgrade(path=f"/?ticket={unseen['refused']}"),
    ):
        assert (await exchange(gateway.ws_port, request)).status == 401
    for client_of in (ws_client, tcp_client):
        async with client_of(gateway) as client:
            await client.initialize()
            echo = {"name": "echo", "arguments": {"text": unseen["argument"]}}
            assert "result" in await client.call("tools/call", echo)
            await client.call("authenticate", {"token": unseen["refused"]})
    await posted("/auth/revoke", {"token": refreshed["access_token"]}, status=200)
    lines = await trio.to_thread.run_sync(command_lines, gateway)
    await trio.to_thread.run_sync(gateway.stop)
    output = "".join([*gateway.log, *gateway.out])
    assert len(output) > 500
    assert [name for name, text in unseen.items() if text in output or text in lines] == []
    assert files_with(gateway.directory, unseen) == []
    if profile == "production":
        assert all(json.loads(line) for line in gateway.log), "the log is JSON, a record a line"
