"""The validator actor: sealed messages in, verdicts out, whatever comes with them."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from actors import validator
from ipc.context import Context
from ipc.fdpass import DescriptorLink
from ipc.mailbox import Delivery, Mailbox
from ipc.messages import (
    AnyMessage,
    Checking,
    Describe,
    Description,
    Drain,
    Invalid,
    LinksChanged,
    Message,
    Valid,
    Validate,
)
from ipc.settings import Settings

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
MAXIMUM = 1 << 20


def sealed(raw: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, raw)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Bench:
    def __init__(self, links: dict[str, DescriptorLink], mailbox: Mailbox) -> None:
        self.links = links
        self.mailbox = mailbox
        self.ours: list[DescriptorLink] = []

    def connect(self, key: str) -> DescriptorLink:
        """A new link under that key. Returns the acceptor's end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.links[key] = DescriptorLink(theirs, AnyMessage)
        link = DescriptorLink(ours, AnyMessage)
        self.ours.append(link)
        return link

    def tell(self, message: Message, answer: Callable[[Message], None] | None = None) -> None:
        self.mailbox.offer(Delivery(message, "edge", answer), control=True)

    async def ask(self, link: DescriptorLink, raw: bytes, *, ticket: int = 1, fd: int | None = None) -> Any:
        descriptor = sealed(raw) if fd is None else fd
        try:
            await link.send_wait(Validate(ticket, len(raw), 64), [descriptor])
        finally:
            os.close(descriptor)
        return await self.verdict(link)

    async def verdict(self, link: DescriptorLink) -> Any:
        """The next one; it has been said before which message is being checked."""
        with trio.fail_after(10):
            begun, fds = await link.receive()
            assert isinstance(begun, Checking)
            assert fds == []
            message, fds = await link.receive()
        assert fds == []
        assert message.ticket == begun.ticket  # type: ignore[attr-defined]
        return message


async def to_the_end(link: DescriptorLink) -> None:
    """It may have said what it begins with, and nothing else."""
    while True:
        assert isinstance((await link.receive())[0], Checking)


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    """The actor with one link, ``edge``; on leaving it has ended after a Drain, and nothing is left open."""
    before = open_descriptors()
    mailbox = Mailbox("validator")
    ready = trio.Event()
    context = Context(
        name="validator",
        worker="validator",
        incarnation=1,
        settings=Settings(max_request_size=MAXIMUM),
        mailbox=mailbox,
        address=cast("Any", None),
        peers=lambda kind: (),
        ready=ready.set,
        renew=lambda: None,
    )
    bench = Bench(context.links, mailbox)
    bench.connect("edge")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(validator.main, context)
            await ready.wait()
            yield bench
            bench.tell(Drain(0))
    for link in [*bench.ours, *bench.links.values()]:
        link.close()
    assert open_descriptors() == before


async def test_verdicts() -> None:
    """A valid message gives its envelope, an invalid one its refusal with the request's own id."""
    async with running() as bench:
        link = bench.ours[0]
        text = b"x" * 300_000
        raw = b'{"jsonrpc":"2.0","id":"q","method":"tools/call","params":{"name":"t","arguments":{"a":"%b"}}}' % text
        valid = await bench.ask(link, raw, ticket=7)
        assert isinstance(valid, Valid)
        assert (valid.ticket, valid.envelope.id, valid.envelope.name) == (7, b'"q"', "t")

        raw = b'{"jsonrpc":"2.0","id":5,"method":"x","params":{"__proto__":"%b"}}' % text
        invalid = await bench.ask(link, raw, ticket=8)
        assert isinstance(invalid, Invalid)
        assert (invalid.ticket, invalid.code, invalid.id, invalid.notification) == (8, 422, b"5", False)
        assert invalid.rule == "prototype-pollution"
        assert msgspec.json.decode(invalid.data)["pointer"] == "/params/__proto__"

        replies: list[Message] = []
        bench.tell(Describe(), replies.append)
        await trio.testing.wait_all_tasks_blocked()
        (description,) = replies
        assert isinstance(description, Description)
        assert msgspec.json.decode(description.data)["valid"] == 1


async def test_many_messages_leave_no_descriptor() -> None:
    """Each message's descriptor is closed, whatever the verdict."""
    async with running() as bench:
        await bench.ask(bench.ours[0], b"{}")
        before = open_descriptors()
        for raw in (b"{}", b'{"jsonrpc":"2.0","method":"n"}', b"[" * 5000) * 5:
            await bench.ask(bench.ours[0], raw)
        assert open_descriptors() == before


@pytest.mark.parametrize("field", ["id", "method", "name"])
async def test_a_verdict_too_long_for_a_packet(field: str) -> None:
    """An id, method or name of half a megabyte is refused, not dropped."""
    long = "x" * 500_000
    values = {"id": "1", "method": "tools/call", "name": "t"} | {field: long}
    raw = (
        f'{{"jsonrpc":"2.0","id":"{values["id"]}","method":"{values["method"]}","params":{{"name":"{values["name"]}"}}}}'
    )
    async with running() as bench:
        invalid = await bench.ask(bench.ours[0], raw.encode())
        assert isinstance(invalid, Invalid)
        own = b"null" if field == "id" else b'"1"'
        assert (invalid.code, invalid.id, invalid.rule) == (-32600, own, "field-length")
        raw = f'{{"jsonrpc":"1.0","id":"{long}","method":"m"}}'
        invalid = await bench.ask(bench.ours[0], raw.encode())
        assert isinstance(invalid, Invalid)
        assert (invalid.code, invalid.id, invalid.rule) == (-32600, b"null", "version")


async def test_a_long_pointer_is_cut() -> None:
    """It says roughly where, and the refusal has the message's own id."""
    async with running() as bench:
        raw = b'{"jsonrpc":"2.0","id":5,"method":"x","params":{"%b":{"__proto__":1}}}' % (b"k" * 300_000)
        invalid = await bench.ask(bench.ours[0], raw)
        assert isinstance(invalid, Invalid)
        assert (invalid.code, invalid.id, invalid.rule) == (422, b"5", "prototype-pollution")
        pointer = msgspec.json.decode(invalid.data)["pointer"]
        assert pointer == "/params/" + "k" * 64 + "/__proto__"


async def test_no_memory_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that needs more memory than there is gets 413; the actor goes on."""

    def no_memory(raw: bytes, **_: int) -> None:
        raise MemoryError

    async with running() as bench:
        with monkeypatch.context() as patch:
            patch.setattr(validator, "parse_client", no_memory)
            invalid = await bench.ask(bench.ours[0], b"{}")
        assert isinstance(invalid, Invalid)
        assert invalid.code == 413
        assert isinstance(await bench.ask(bench.ours[0], b'{"jsonrpc":"2.0","method":"n"}'), Valid)


@pytest.mark.parametrize("kind", ["unsealed", "writable", "size", "file", "none", "too large", "another message"])
async def test_a_peer_that_breaks_the_rules_loses_its_link(kind: str, tmp_path: Path) -> None:
    """What could change under the parser, or isn't what it says, is not read; other links go on."""
    raw = b'{"jsonrpc":"2.0","method":"n"}'
    async with running() as bench:
        bad = bench.ours[0]
        good = bench.connect("other")
        bench.tell(LinksChanged("other"))
        fds: list[int] = []
        message: Message = Validate(1, len(raw), 64)
        if kind == "unsealed":
            fds = [sealed(raw, 0)]
        elif kind == "writable":
            fds = [sealed(raw, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)]
        elif kind == "size":
            fds = [sealed(raw + b" ")]
        elif kind == "file":
            (tmp_path / "f").write_bytes(raw)
            fds = [os.open(tmp_path / "f", os.O_RDONLY)]
        elif kind == "too large":
            raw = b" " * (MAXIMUM + 1)
            fds = [sealed(raw)]
            message = Validate(1, len(raw), 64)
        elif kind == "another message":
            message = Describe()
        await bad.send_wait(message, fds)
        for fd in fds:
            os.close(fd)
        with trio.fail_after(10), pytest.raises(EOFError):
            await to_the_end(bad)
        assert isinstance(await bench.ask(good, b'{"jsonrpc":"2.0","method":"n"}'), Valid)


async def test_links_come_and_go() -> None:
    """A replaced link is served, and the old one's end harms nothing."""
    async with running() as bench:
        old = bench.ours[0]
        await bench.ask(old, b"{}")
        new = bench.connect("edge")
        bench.tell(LinksChanged("edge"))
        old.close()
        assert isinstance(await bench.ask(new, b"{}"), Invalid)
