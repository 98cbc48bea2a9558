"""Reading the configuration anew, by SIGHUP and by ``mcp-admin reload``, under live connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

import attrs
import trio
from gateway import Gateway
from wire_clients import request, tcp_client, ws_client

ADDRESS = {"WORKERS": "2", "WS_AUTH_TOKEN": None, "TCP_AUTH_TOKEN": None}


@attrs.define
class Written:
    """A gateway whose settings are in the ``.env`` of its working directory."""

    gateway: Gateway
    settings: dict[str, str]

    @property
    def file(self) -> Path:
        return self.gateway.directory / "work" / ".env"

    def write(self, **settings: str) -> None:
        """``.env`` with these settings changed."""
        self.settings |= settings
        self.file.write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))

    def reloads(self, event: str = "config.reloaded") -> list[dict[str, Any]]:
        text = "".join(file.read_text() for file in self.gateway.audit_dir.iterdir())
        records = [json.loads(line.removeprefix("SECURITY ")) for line in text.splitlines()]
        return [record for record in records if record["event"] == event]

    async def reload(self, event: str = "config.reloaded") -> dict[str, Any]:
        """SIGHUP, and the audit record of what became of it."""
        before = len(self.reloads(event))
        self.gateway.process.send_signal(signal.SIGHUP)
        return await self.recorded(event, before)

    async def recorded(self, event: str, before: int) -> dict[str, Any]:
        """The next record of that event, beyond so many."""
        with trio.move_on_after(30):
            while len(self.reloads(event)) == before:
                await trio.sleep(0.02)
        assert len(self.reloads(event)) > before, self.gateway.tail()
        return self.reloads(event)[-1]


async def written(start_gateway: Any, tmp_path: Path, **settings: str) -> Written:
    values = {"WS_AUTH_TOKEN": secrets.token_hex(32), "TCP_AUTH_TOKEN": secrets.token_hex(32), **settings}
    work = tmp_path / "gateway0" / "work"
    work.mkdir(parents=True)
    (work / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=ADDRESS))
    gateway.ws_token, gateway.tcp_token = values["WS_AUTH_TOKEN"], values["TCP_AUTH_TOKEN"]
    return Written(gateway, values)


async def ping(client: Any) -> dict[str, Any]:
    """The answer to a ping. On a loaded machine the limiter may take longer to start anew than a message waits for it:
    then it is asked again."""
    with trio.fail_after(30):
        while True:
            answer = await client.call("ping")
            if answer.get("error", {}).get("code") != 503:
                return answer
            await trio.sleep(0.05)


async def until_limited(client: Any) -> None:
    """Ping until it is refused."""
    while "result" in (answer := await ping(client)):
        pass
    assert answer["error"]["code"] == 429


async def test_limits_change_under_live_connections(start_gateway: Any, tmp_path: Path) -> None:
    """A client that is over its limit passes again under a higher one; the call in flight is answered; nobody is
    disconnected, and no worker is restarted."""
    gate = await written(start_gateway, tmp_path, RATE_LIMIT_MAX_REQUESTS="20")
    workers = set(gate.gateway.workers())
    async with tcp_client(gate.gateway) as slow, ws_client(gate.gateway) as client:
        await slow.initialize()
        call = {"name": "sleep", "arguments": {"seconds": 1.5}}
        await slow.send(request("tools/call", call, id=b'"slow"'))
        await until_limited(client)
        gate.write(RATE_LIMIT_MAX_REQUESTS="500")
        record = await gate.reload()
        assert record["detail"]["changed"] == "RATE_LIMIT_MAX_REQUESTS"
        with trio.fail_after(30):
            while "error" in await ping(client):
                await trio.sleep(0.05)
        assert "result" in await slow.answer_to(b'"slow"')
        gate.write(RATE_LIMIT_MAX_REQUESTS="30")
        await gate.reload()
        with trio.fail_after(30):
            await until_limited(client)
    assert set(gate.gateway.workers()) == workers


async def test_a_rotated_token_ends_who_bears_the_old_one(start_gateway: Any, tmp_path: Path) -> None:
    """While both are listed both hold; once the old one is gone its connections end with 401 and 3000, the others
    and those of the other listener do not."""
    gate = await written(start_gateway, tmp_path)
    gateway = gate.gateway
    old, new = gateway.tcp_token, secrets.token_hex(32)
    async with tcp_client(gateway) as leaving, ws_client(gateway) as other:
        gate.write(TCP_AUTH_TOKEN=f"{new},{old}")
        await gate.reload()
        with trio.fail_after(30):
            while True:
                try:
                    async with tcp_client(gateway, token=new) as probe:
                        assert "result" in await ping(probe)
                    break
                except (KeyError, EOFError):  # auth has not started anew yet
                    await trio.sleep(0.05)
        async with tcp_client(gateway, token=new) as staying:
            assert "result" in await ping(leaving)
            gate.write(TCP_AUTH_TOKEN=new)
            await gate.reload()
            ended = json.loads(await leaving.next())
            assert ended["error"]["code"] == 401
            assert "result" in await ping(staying)
            assert "result" in await ping(other)


async def test_a_broken_configuration_changes_nothing(start_gateway: Any, tmp_path: Path) -> None:
    """All errors are named, in the log and the audit log, without the values of secrets; the old settings stay. What
    only a restart can change is named too."""
    gate = await written(start_gateway, tmp_path)
    gateway = gate.gateway
    secret = "short-secret"
    gate.write(RATE_LIMIT_MAX_REQUESTS="many", JWT_SECRET=secret, TCP_AUTH_TOKEN=secrets.token_hex(32))
    record = await gate.reload("config.refused")
    assert "RATE_LIMIT_MAX_REQUESTS" in record["reason"]
    assert "JWT_SECRET" in record["reason"]
    await trio.to_thread.run_sync(gateway.await_line, "was not reloaded, the old one stays")
    async with tcp_client(gateway) as client:  # the old token
        assert "result" in await ping(client)
    admin = [sys.executable, "-m", "ops.cli.admin", "reload", "--url", f"http://127.0.0.1:{gateway.health_port}"]
    variables = {"ADMIN_TOKEN": gateway.admin_token, "PATH": "/usr/bin:/bin"}
    refused = await trio.run_process(admin, capture_stdout=True, capture_stderr=True, check=False, env=variables)
    assert refused.returncode == 1
    assert b"RATE_LIMIT_MAX_REQUESTS" in refused.stderr
    del gate.settings["JWT_SECRET"]
    gate.write(RATE_LIMIT_MAX_REQUESTS="777", TCP_AUTH_TOKEN=gateway.tcp_token, LOG_LEVEL="info", WORKERS="1")
    gate.write(DRAIN_TIMEOUT_MS="9000")
    done = await trio.run_process(admin, capture_stdout=True, capture_stderr=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    assert b"RATE_LIMIT_MAX_REQUESTS" in done.stdout
    record = await gate.recorded("config.reloaded", 0)
    assert record["detail"] == {"changed": "LOG_LEVEL, RATE_LIMIT_MAX_REQUESTS", "kept": "DRAIN_TIMEOUT_MS"}
    assert secret not in "".join(gateway.log)


async def test_what_the_new_settings_forbid_ends(start_gateway: Any, tmp_path: Path) -> None:
    """An address that is listed in IP_BLOCKLIST by now is disconnected, and stays out; nobody else is."""
    gate = await written(start_gateway, tmp_path)
    async with ws_client(gate.gateway) as client:
        stream = await trio.open_tcp_stream("127.0.0.1", gate.gateway.tcp_port, local_address="127.0.0.7")
        async with stream:
            await stream.send_all(request("ping", id=b"1") + b"\n")
            assert b'"result"' in await stream.receive_some(4096)
            gate.write(IP_BLOCKLIST="127.0.0.7")
            await gate.reload()
            with trio.fail_after(30), contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some(4096):
                    pass
        assert "result" in await ping(client)


def admin_status(gateway: Gateway, token: str) -> int:
    """What the admin API says to this bearer."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.health_port, timeout=30)
    try:
        connection.request("GET", "/admin/v1/blocks", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status
    finally:
        connection.close()


async def test_a_new_admin_token_takes_the_place_of_the_old_one(start_gateway: Any, tmp_path: Path) -> None:
    """After the reload the old one is refused and the new one good. Wrong tokens there, signed ones too, block nobody
    on the other ports."""
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    gate = await written(start_gateway, tmp_path, ADMIN_TOKEN=old)
    assert admin_status(gate.gateway, old) == 200
    gate.write(ADMIN_TOKEN=new)
    assert "ADMIN_TOKEN" in (await gate.reload())["detail"]["changed"]
    with trio.fail_after(30):
        while admin_status(gate.gateway, new) != 200:
            await trio.sleep(0.05)
    assert admin_status(gate.gateway, old) == 401
    for _ in range(5):
        assert admin_status(gate.gateway, "eyJhbGciOiJIUzI1NiJ9.e30.AA") in (401, 503)
    async with tcp_client(gate.gateway) as client:
        assert "result" in await ping(client)
