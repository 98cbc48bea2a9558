"""The dashboard of a real gateway, used in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from browser import CHROMIUM
from devtools import browse
from requirement import need
from session_clients import admin


@pytest.fixture(autouse=True)
def _chromium() -> None:
    need(CHROMIUM, "Chromium is not installed (Debian: apt-get install chromium)")


async def connected(gateway: Any) -> trio.SocketStream:
    """A client on TCP that has authenticated and asked something."""
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
    for number, method, params in ((1, "authenticate", {"token": gateway.tcp_token}), (2, "ping", {})):
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        await stream.send_all(json.dumps(message).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += await stream.receive_some()
        assert "result" in json.loads(answer), answer
    return stream


async def test_an_operator_watches_and_acts(start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    """A client is seen, its events appear as they happen, it is disconnected, an address is blocked and unblocked;
    each is audited and seen as an event; a drain shows."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment={"WORKERS": "2"}))
    with trio.fail_after(300):
        async with browse(tmp_path / "profile") as page:
            await page.open(f"http://127.0.0.1:{gateway.health_port}/dashboard")
            await page.until("document.activeElement.id === 'token'")
            await page.type(gateway.admin_token)
            await page.press("Enter")
            await page.until("document.getElementById('status').textContent === 'healthy'")
            await page.until("document.querySelectorAll('#actors tr.actor').length === 9")
            await page.until("[...document.querySelectorAll('#actors tr.actor')].every((row) => "
                             "row.cells[1].innerText === 'up' && Number(row.cells[4].innerText.replace(',', '')) > 0)")
            client = await connected(gateway)
            await page.until("document.querySelectorAll('#connections tr').length === 1")
            await page.until("document.getElementById('events').textContent.includes('connection.opened')")
            await page.until("document.getElementById('s-in').querySelector('.line').getAttribute('d')")
            await page.click("#connections button:last-of-type")
            await page.click("#confirm-yes")
            assert await client.receive_some() is not None  # an error line or the end
            await page.until("document.querySelectorAll('#connections tr').length === 0")
            await page.click("#block")
            await page.type("203.0.113.9")
            await page.press("Enter")
            await page.until("document.getElementById('blocks').textContent.includes('203.0.113.9')")
            assert [row["ip"] for row in (await admin(gateway, "GET", "/blocks")).document["blocks"]] == ["203.0.113.9"]
            await page.click("[aria-label='Unblock 203.0.113.9']")
            await page.click("#confirm-yes")
            await page.until("document.querySelectorAll('#blocks tr').length === 0")
            for action in ("connection.disconnect", "action=block", "action=unblock"):
                await page.until(f"document.getElementById('events').textContent.includes('{action}')")
            assert gateway.admin_token not in await page.value("document.documentElement.outerHTML")
            assert page.console == []
            await client.aclose()
            await trio.to_thread.run_sync(gateway.stop)
            await page.until("document.getElementById('live').textContent === 'no answer'")
            assert "out of reach" in await page.text("#trouble")
