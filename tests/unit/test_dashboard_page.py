"""The dashboard in a real browser, over an admin actor whose neighbours say and do as a test wants."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from admin_bench import ADMIN_TOKEN, SETTINGS, Bench, bench
from browser import CHROMIUM
from devtools import Page, browse
from requirement import need

from actors.audit_log import AuditLog, Entry
from ipc.messages import (
    AuditEvent,
    BlockClient,
    BlockListing,
    Disconnect,
    Done,
    ListBlocks,
    Message,
    ResetBreaker,
    UnblockClient,
)

MARKUP = "<img src=x onerror='globalThis.hurt=1'>\u202e\"'&<script>hurt=1</script>"
LATE_S = 240.0  # a browser's cold start on a busy machine is slow


@pytest.fixture(autouse=True)
def _chromium() -> None:
    need(CHROMIUM, "Chromium is not installed (Debian: apt-get install chromium)")


def row(name: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name, "transport": "ws", "peer": "192.0.2.5:4711", "principal": "", "age_s": 5.0, "idle_s": 1.0,
        "messages_in": 3, "messages_out": 2, "bytes_in": 30, "bytes_out": 20, "worker": "edge.0", "upstream": "time",
        **more,
    }  # fmt: skip


@asynccontextmanager
async def shown(tmp_path: Path) -> AsyncIterator[tuple[Bench, Page]]:
    """A gateway full of what its clients would like to do to whoever looks, and the page, not signed in."""
    log = AuditLog(tmp_path, str(tmp_path / "state"), max_bytes=1 << 20, keep=5, counted=list)
    members: dict[str, Any] = {"severity": "warning", "outcome": "failure", "time_ns": time.time_ns()}
    members |= {"principal": MARKUP, "reason": MARKUP, "detail": {"tool": MARKUP, MARKUP: 1}}
    log.write(Entry([AuditEvent("auth.failed", peer_ip="192.0.2.5", **members)]))
    log.close()
    settings = msgspec.structs.replace(SETTINGS, audit_log_dir=str(tmp_path))
    blocks = {f"principal:{MARKUP}": ("operator", False), "ip:192.0.2.9": (MARKUP, True)}

    def limiter(message: Message) -> Message:
        if isinstance(message, ListBlocks):
            rows = [(key, 1, 2**52, 1, automatic, reason) for key, (reason, automatic) in sorted(blocks.items())]
            return BlockListing(rows, len(rows), more=False)
        if isinstance(message, UnblockClient):
            return Done(ok=blocks.pop(f"ip:{message.target}", None) is not None, detail="no block of it")
        assert isinstance(message, BlockClient)
        if message.target == "not an address":
            return Done(ok=False, detail=f"{MARKUP} is no address")
        blocks[f"ip:{message.target}"] = ("operator", False)
        return Done(ok=True)

    async with bench(settings, within_s=LATE_S) as made:
        for name in ("acceptor.0", "breaker"):
            made.actors[name].answer = lambda _message: Done(ok=True)
        made.actors["acceptor.1"].answer = lambda _message: Done(ok=False)
        made.actors["limiter"].answer = limiter
        connections = [row("c1", principal=MARKUP, upstream=MARKUP), row("c2", peer="[2001:db8::1]:9")]
        made.actors["acceptor.0"].data = {"connections": connections, "totals": {}}
        circuits = {"time": {"state": "open", "retry_at_ns": 2**62, "openings": 2}, "far": {"state": "closed"}}
        made.actors["breaker"].data = {"circuits": circuits}
        worker = {"name": MARKUP, "pid": 1, "state": MARKUP, "actors": [{"name": "limiter", "state": "up"}]}
        made.tree(workers=[worker], degraded=[MARKUP])
        async with browse(tmp_path / "profile") as page:
            await page.open(f"http://127.0.0.1:{made.port}/")
            await page.until("document.activeElement.id === 'token'")
            yield made, page


async def sign_in(page: Page) -> None:
    await page.type(ADMIN_TOKEN)
    await page.press("Enter")
    await page.until("document.querySelectorAll('#connections tr').length === 2")


async def test_what_clients_have_chosen_is_shown_as_text(tmp_path: Path) -> None:
    """In every table and list; nothing of it becomes markup, and the page breaks its own policy nowhere."""
    async with shown(tmp_path) as (_, page):
        await sign_in(page)
        await page.until("document.querySelectorAll('#events tr').length === 2")
        for selector in ("#connections", "#events", "#blocks", "#actors", "#reasons"):
            text = await page.value(f"document.querySelector({json.dumps(selector)}).textContent")
            # What the audit log escapes arrives as it was; there are two places for it in each of some rows.
            assert MARKUP in text, selector
        assert await page.value("document.querySelectorAll('main img, main script').length") == 0
        assert await page.value("typeof hurt") == "undefined"
        allowed = {"index.html": 0, "script": 1}
        assert await page.value("document.scripts.length") == allowed["script"]
        assert page.console == []
        # And the policy would hold if the script did otherwise.
        assert await page.value("(() => { try { document.body.innerHTML = 'x' } catch (e) { return e.name } })()") == (
            "TypeError"
        )
        refused = "fetch('https://127.0.0.1:1/').then(() => 'sent', (error) => error.name)"
        assert await page.value(refused) == "TypeError"
        assert any("Content Security Policy" in line for line in page.console)


async def test_each_action_wants_a_confirmation_and_does_what_it_says(tmp_path: Path) -> None:
    """Disconnect, reset, unblock, block: nothing is sent before the button in the dialog, nothing after Cancel or
    Escape; a refusal is shown in the dialog, as text."""
    async with shown(tmp_path) as (made, page):
        await sign_in(page)

        def sent(kind: type[Message]) -> list[Message]:
            return [
                message
                for name in ("acceptor.0", "breaker", "limiter")
                for message in made.actors[name].received
                if isinstance(message, kind)
            ]

        await page.click("[aria-label='Disconnect c2']")
        await page.until("document.getElementById('confirm').open")
        assert "c2" in await page.text("#confirm-target")
        assert await page.value("document.activeElement.id") == "confirm-no"
        await page.press("Enter")
        await page.until("!document.getElementById('confirm').open")
        await page.click("[aria-label='Disconnect c2']")
        await page.until("document.getElementById('confirm').open")
        await page.press("Escape")
        await page.until("!document.getElementById('confirm').open")
        assert sent(Disconnect) == []
        await page.click("[aria-label='Disconnect c2']")
        await page.click("#confirm-yes")
        await page.until("document.getElementById('said').textContent === 'Disconnected c2.'")
        assert sent(Disconnect) == [Disconnect("c2")]

        assert await page.value("document.querySelectorAll('#servers button').length") == 1  # only the open one
        await page.click("[aria-label='Reset the breaker of time']")
        await page.click("#confirm-yes")
        await page.until("document.getElementById('said').textContent === 'The breaker of time is closed.'")
        assert sent(ResetBreaker) == [ResetBreaker("time")]

        await page.click("[aria-label='Unblock 192.0.2.9']")
        await page.click("#confirm-yes")
        await page.until("document.getElementById('said').textContent === 'Unblocked 192.0.2.9.'")
        assert sent(UnblockClient) == [UnblockClient("192.0.2.9")]
        await page.until("document.querySelectorAll('#blocks tr').length === 1")

        await page.click("[aria-label='Block the address of [2001:db8::1]:9']")
        assert await page.value("document.getElementById('block-target').value") == "2001:db8::1"
        await page.value("document.getElementById('block-target').value = ''")
        await page.type("not an address")
        await page.press("Enter")
        await page.until("document.getElementById('block-error').textContent")
        assert MARKUP in await page.value("document.getElementById('block-error').textContent")
        await page.value("document.getElementById('block-target').value = ''")
        await page.value("document.getElementById('block-for').value = '600000'")
        await page.type("192.0.2.77")
        await page.press("Enter")
        await page.until("!document.getElementById('block-dialog').open")
        assert sent(BlockClient)[-1] == BlockClient("192.0.2.77", 600_000)
        await page.until("document.getElementById('blocks').textContent.includes('192.0.2.77')")
        (complaint,) = page.console  # the browser's own, of the block that was refused
        assert "409" in complaint


async def test_the_token_stays_in_the_page(tmp_path: Path) -> None:
    """A wrong one is refused and said so; a right one is in no address, no storage unless that was asked for, and
    gone with a sign-out, with everything that was shown."""
    async with shown(tmp_path) as (_, page):
        await page.type("wrong-token")
        await page.press("Enter")
        await page.until("document.getElementById('sign-in-error').textContent.includes('not the gateway')")
        await page.value("document.getElementById('token').value = ''")
        await sign_in(page)
        everywhere = "JSON.stringify([location.href, document.cookie, {...localStorage}, {...sessionStorage}])"
        assert ADMIN_TOKEN not in await page.value(everywhere)
        assert ADMIN_TOKEN not in await page.value("document.documentElement.outerHTML")
        assert await page.value("document.getElementById('token').value") == ""
        addresses = await page.value("performance.getEntriesByType('resource').map((one) => one.name)")
        assert any("/admin/v1/overview" in address for address in addresses)
        assert not any(ADMIN_TOKEN in address for address in addresses)
        await page.open(await page.value("location.href"))
        await page.until("!document.getElementById('sign-in').hidden")  # a reload forgets it
        await page.value("document.getElementById('keep').checked = true")
        await sign_in(page)
        await page.open(await page.value("location.href"))
        await page.until("document.querySelectorAll('#connections tr').length === 2")  # unless it was to be kept
        await page.click("#leave")
        await page.until("!document.getElementById('sign-in').hidden")
        assert await page.value("JSON.stringify({...sessionStorage})") == "{}"
        assert await page.value("document.querySelectorAll('#board td, #board dd, #board path').length") == 0
        figures = "[...document.querySelectorAll('.figure, .sub, #facts')].map((node) => node.textContent).join('')"
        assert await page.value(figures) == ""


async def test_it_fits_wide_and_narrow_light_and_dark(tmp_path: Path) -> None:
    """Nothing sticks out sideways; text is readable on its background in both colour schemes (WCAG: 4.5 to 1); every
    control has a name, and every table and field its label (the confirmation gets its own when it opens)."""
    async with shown(tmp_path) as (_, page):
        await sign_in(page)
        for dark in (False, True):
            for width in (1600, 1024, 360):
                await page.look(width, 800, dark=dark, narrow=width < 600)
                await page.until(f"document.documentElement.clientWidth <= {width}")
                assert await page.value("document.documentElement.scrollWidth <= innerWidth"), (width, dark)
            assert await page.value(CONTRASTS) == [], dark
        assert await page.value(NAMELESS) == []


CONTRASTS = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  for (const node of document.querySelectorAll("header *, #board *")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim());
    if (!own || !node.checkVisibility()) continue;
    const [one, two] = [light(parse(getComputedStyle(node).color)), light(back(node))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) found.add(`${node.tagName}.${node.className} ${ratio.toFixed(2)}`);
  }
  return [...found];
})()"""

NAMELESS = """(() => {
  const named = (node) => node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim();
  const labelled = (node) => document.getElementById(node.getAttribute("aria-labelledby"))?.textContent;
  return [
    ...[...document.querySelectorAll("button, input, select")].filter((node) => !named(node)),
    ...[...document.querySelectorAll("[role=region], dialog")].filter((node) => !labelled(node)),
    ...[...document.querySelectorAll("th")].filter((node) => !node.scope || !node.textContent),
  ].filter((node) => !node.id.startsWith("confirm")).map((node) => node.outerHTML);
})()"""
