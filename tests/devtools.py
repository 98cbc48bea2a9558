"""A headless Chromium under remote control (the Chrome DevTools Protocol): a page is used as its user would use it.

One page at a time. Keys and clicks come from the browser's input pipeline, so that what a person can't reach can't be
reached here either.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from browser import WITHIN, _chromium
from trio_websocket import WebSocketConnection, open_websocket_url

KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), "Escape": ("", 27)}


class ScriptFailed(AssertionError):
    """The page's own code, or the expression that was to be evaluated, threw."""


@attrs.define
class Page:
    """``console`` is what the page complained about: errors, and violations of its policy."""

    wire: WebSocketConnection
    console: list[str] = attrs.field(factory=list)
    _last: int = 0
    _answers: dict[int, dict[str, Any]] = attrs.field(factory=dict)
    _came: trio.Event = attrs.field(factory=trio.Event)

    async def call(self, method: str, **parameters: Any) -> Any:
        self._last += 1
        number = self._last
        await self.wire.send_message(json.dumps({"id": number, "method": method, "params": parameters}))
        while number not in self._answers:
            await self._came.wait()
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def listen(self) -> None:
        while True:
            message = json.loads(await self.wire.get_message())
            if "id" in message:
                self._answers[message["id"]] = message
            elif message["method"] == "Log.entryAdded":
                self.console.append(message["params"]["entry"]["text"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.console.append(json.dumps(message["params"]["exceptionDetails"]))
            self._came.set()
            self._came = trio.Event()

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to, as JSON."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise ScriptFailed(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def until(self, expression: str) -> Any:
        """The first true value of it; looks again and again, also over a navigation."""
        with trio.move_on_after(WITHIN):
            while True:
                if found := await self.value(expression):
                    return found
                await trio.sleep(0.05)
        shown = await self.value("document.body.innerText")
        raise AssertionError(f"never: {expression}\n{shown}\n{self.console}")

    async def text(self, selector: str) -> str:
        return str(await self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def click(self, selector: str) -> None:
        """In the middle of the element, once it is there and nothing is in front of it."""
        place = await self.until(f"""(() => {{
            const node = document.querySelector({json.dumps(selector)});
            if (!node) return null;
            node.scrollIntoView({{block: "center"}});
            const box = node.getBoundingClientRect();
            const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
            const hit = document.elementFromPoint(x, y);
            return box.width && hit && (node === hit || node.contains(hit)) ? [x, y] : null;
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        text, code = KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def look(self, width: int, height: int, *, dark: bool = False, narrow: bool = False) -> None:
        """Set the size of the window, and the colours that its reader prefers."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=narrow
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """The whole page as PNG."""
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])


@asynccontextmanager
async def browse(profile: Path) -> AsyncIterator[Page]:
    """A browser with a new profile and one empty page."""
    with _chromium(profile, "--remote-debugging-port=0", "about:blank"):
        address = await _address(profile)
        async with open_websocket_url(address, max_message_size=64 * 1024 * 1024) as wire, trio.open_nursery() as tasks:
            page = Page(wire)
            tasks.start_soon(page.listen)
            for domain in ("Page", "Runtime", "Log"):
                await page.call(f"{domain}.enable")
            yield page
            tasks.cancel_scope.cancel()


async def _address(profile: Path) -> str:
    """Of the page's own debugger: the browser's is in a file, the page's in a list that it serves."""
    told = profile / "DevToolsActivePort"
    with trio.fail_after(WITHIN):
        while not (told.exists() and told.read_text().count("\n")):
            await trio.sleep(0.05)
        port = int(told.read_text().split("\n")[0])
        while True:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /json/list HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
                answer = b""
                while not answer.rstrip().endswith(b"]") and (data := await stream.receive_some()):
                    answer += data
            body = answer.partition(b"\r\n\r\n")[2]
            for target in json.loads(body or b"[]"):
                if target["type"] == "page":
                    return str(target["webSocketDebuggerUrl"])
            await trio.sleep(0.05)
