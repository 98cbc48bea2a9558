"""HTTP said byte for byte over a socket, and everything that is answered, read by h11."""

from __future__ import annotations

import json
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import Any

import attrs
import h11
import trio

WITHIN = 60.0  # seconds for one exchange; far above what is promised: a loaded machine must not fail a test


@attrs.frozen
class Answer:
    """One answer, after which the connection was closed. Header names are in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} stands twice"
        return values[0] if values else None

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 document that this answer has to be."""
        assert self.get("content-type") == "application/problem+json"
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert document["type"] == "about:blank"
        assert document["title"]
        assert document["detail"]
        return document


def head(method: str, path: str, *fields: str, host: str = "localhost", version: str = "1.1") -> bytes:
    """A request head of this client's own words."""
    lines = [f"{method} {path} HTTP/{version}", *([f"Host: {host}"] if host else []), *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def upgrade(*fields: str, path: str = "/", host: str = "localhost", version: str = "1.1") -> bytes:
    """A WebSocket handshake."""
    own = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    return head("GET", path, *own, key, *fields, host=host, version=version)


async def exchange(port: int, *parts: bytes, pause: float = 0.0) -> Answer:
    """Send these bytes, ``pause`` seconds after each part, and read the one answer up to the end of the connection."""
    with trio.fail_after(WITHIN):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            received = bytearray()

            async def send() -> None:
                try:
                    for part in parts:
                        await stream.send_all(part)
                        if pause:
                            await trio.sleep(pause)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # it was answered, and closed, before all was said

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                received += await until_end(stream)
                nursery.cancel_scope.cancel()
    method = parts[0].partition(b" ")[0]
    return only_answer(bytes(received), head_only=method == b"HEAD")


async def until_end(stream: trio.SocketStream) -> bytes:
    """Everything up to the peer's FIN. A reset after that is an end too: the peer need not read on for ever."""
    received = bytearray()
    while True:
        try:
            data = await stream.receive_some(65536)
        except trio.BrokenResourceError:
            return bytes(received)
        if not data:
            return bytes(received)
        received += data


def only_answer(data: bytes, *, head_only: bool = False) -> Answer:
    """These bytes are one whole answer, and not a byte more."""
    client = h11.Connection(our_role=h11.CLIENT)
    client.send(h11.Request(method="HEAD" if head_only else "GET", target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response = client.next_event()
    assert isinstance(response, h11.Response), data[:200]
    body = bytearray()
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage), f"the answer is not complete: {data[-200:]!r}"
    assert client.trailing_data[0] == b"", f"more than one answer: {client.trailing_data[0][:200]!r}"
    fields = [(name.decode(), value.decode()) for name, value in response.headers]
    return Answer(response.status_code, fields, bytes(body))


def check_common(answer: Answer) -> None:
    """What stands on every answer of the WebSocket port, errors before a head was read included."""
    assert answer.get("connection") == ("Upgrade, close" if answer.get("upgrade") else "close")
    assert answer.get("x-content-type-options") == "nosniff"
    assert answer.get("x-frame-options") == "DENY"
    assert answer.get("content-security-policy") == "default-src 'none'"
    assert answer.get("referrer-policy") == "no-referrer"
    assert answer.get("cache-control") == "no-store"
    assert answer.get("vary") == "Origin"
    date = answer.get("date")
    assert date is not None
    assert date.endswith("GMT")
    assert parsedate_to_datetime(date).tzinfo is not None
    assert answer.get("server") is None


def fields_of(answers: Iterable[Answer], name: str) -> list[str | None]:
    return [answer.get(name) for answer in answers]
