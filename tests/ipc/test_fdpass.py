"""Descriptors travel with their message or not at all, and none is left open when something is wrong."""

from __future__ import annotations

import array
import fcntl
import os
import resource
import socket
from collections.abc import Iterator

import msgspec
import pytest
import trio
import trio.testing
from arrangement import open_descriptors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc.errors import MalformedFrame
from ipc.fdpass import DescriptorLink
from ipc.messages import Describe, Done, Ticket

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")

TYPES = Describe | Done | Ticket
LinkPair = tuple[DescriptorLink, DescriptorLink]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, DescriptorLink]]:
    """A bare socket for what a link would never send, and the link at the other end."""
    raw, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = DescriptorLink(end, TYPES)
    with raw:
        yield raw, link
        end.close()


@pytest.fixture
def links() -> Iterator[LinkPair]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield DescriptorLink(ends[0], TYPES), DescriptorLink(ends[1], TYPES)
    for end in ends:
        end.close()


def send_raw(raw: socket.socket, payload: bytes, fds: list[int]) -> None:
    raw.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def packet(manifest: object, message: object) -> bytes:
    return msgspec.msgpack.encode((manifest, message))


async def test_descriptors_arrive_with_their_message(links: LinkPair) -> None:
    """Messages come in order, each with exactly its own descriptors, which are close-on-exec and still open for the
    sender."""
    read_end, write_end = os.pipe()
    links[0].send(Ticket("none", 0))
    links[0].send(Ticket("two", 2), [read_end, write_end])
    await links[0].send_wait(Ticket("one", 1), [write_end])
    assert await links[1].receive() == (Ticket("none", 0), [])
    message, [got_read, got_write] = await links[1].receive()
    assert message == Ticket("two", 2)
    for fd in (got_read, got_write):
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.write(got_write, b"through")
    assert os.read(read_end, 100) == b"through"
    message, [again] = links[1].receive_nowait()
    assert message == Ticket("one", 1)
    for fd in (read_end, write_end, got_read, got_write, again):
        os.close(fd)


async def test_as_many_as_the_kernel_allows(links: LinkPair) -> None:
    """253 descriptors go with a message; 254 are refused before anything is sent."""
    with open(os.devnull, "rb") as file:  # noqa: ASYNC230, PTH123
        links[0].send(Describe(), [file.fileno()] * 253)
        with pytest.raises(ValueError, match="254"):
            links[0].send(Describe(), [file.fileno()] * 254)
    _, fds = links[1].receive_nowait()
    assert len(set(fds)) == 253
    for fd in fds:
        os.close(fd)
    with pytest.raises(BlockingIOError):
        links[1].receive_nowait()


def test_a_message_that_is_too_long(links: LinkPair) -> None:
    """A packet above the maximum is refused by the sender."""
    with pytest.raises(ValueError, match="at most"):
        links[0].send(Ticket("x" * 200_000, 1))


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (packet(0, Describe()), 1),
        (packet(2, Describe()), 1),
        (packet(1, Describe()), 0),
        (packet(1, Describe()), 253),
        (packet(-1, Describe()), 1),
        (packet("1", Describe()), 1),
        (packet(1, ["Unknown"]), 1),
        (packet(1, None), 1),
        (msgspec.msgpack.encode([1]), 1),
        (msgspec.msgpack.encode(1), 1),
        (packet(1, Describe()) + b"\0", 1),
        (b"\xc1", 3),
        (b"\x92\x01\xa2\xff\xff", 1),
        (b"\x91" * 100_000, 1),
        (packet(1, Ticket("x" * 150_000, 1)), 1),
        (packet(1, Describe()) + bytes(150_000), 1),
    ],
)
def test_a_packet_that_breaks_the_rules(
    pair: tuple[socket.socket, DescriptorLink], payload: bytes, count: int
) -> None:
    """A wrong number of descriptors, or bytes that are no message: refused, and every descriptor closed."""
    raw, link = pair
    before = open_descriptors()
    with open(os.devnull, "rb") as file:  # noqa: PTH123
        send_raw(raw, payload, [file.fileno()] * count)
    with pytest.raises(MalformedFrame):
        link.receive_nowait()
    assert open_descriptors() == before


def test_a_packet_that_was_cut() -> None:
    """A packet above the receiver's maximum is refused, even if what arrived of it would be a message."""
    raw, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    payload = packet(0, Describe())
    with raw, end:
        link = DescriptorLink(end, TYPES, maximum=len(payload))
        raw.send(payload)
        assert link.receive_nowait() == (Describe(), [])
        raw.send(payload + b"\0")
        with pytest.raises(MalformedFrame, match="more than"):
            link.receive_nowait()


def test_descriptors_that_the_receiver_has_no_room_for(pair: tuple[socket.socket, DescriptorLink]) -> None:
    """At the limit of open files the kernel drops descriptors and only flags it: the packet is refused, and those
    that did arrive are closed."""
    raw, link = pair
    with open(os.devnull, "rb") as file:  # noqa: PTH123
        send_raw(raw, packet(8, Describe()), [file.fileno()] * 8)
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [number for number in range(1000) if str(number) not in before]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[4], hard))  # room for four
    try:
        with pytest.raises(MalformedFrame, match="lost"):
            link.receive_nowait()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_descriptors() == before


@pytest.mark.parametrize("unread", [False, True])
async def test_the_end(unread: bool) -> None:
    """When the peer has closed its end, everything that it sent is received, then EOFError; sending fails."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left, right = DescriptorLink(one, TYPES), DescriptorLink(other, TYPES)
    left.send(Ticket("last", 1))
    if unread:
        right.send(Describe())
    left.close()
    assert await right.receive() == (Ticket("last", 1), [])
    with pytest.raises(EOFError):
        await right.receive()
    with pytest.raises(ConnectionError):
        right.send(Describe())
    right.close()
    right.close()
    assert right.fileno() == -1


async def test_a_full_socket(links: LinkPair) -> None:
    """``send`` refuses when the socket is full; ``send_wait`` waits for room, or sends nothing when cancelled."""
    sent = 0
    while True:
        try:
            links[0].send(Ticket("x" * 1000, sent))
        except BlockingIOError:
            break
        sent += 1
    with trio.CancelScope() as scope:
        scope.cancel()
        await links[0].send_wait(Ticket("cancelled", -1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links[0].send_wait, Ticket("waited", sent))
        await trio.testing.wait_all_tasks_blocked()
        numbers = []
        while len(numbers) <= sent:
            message, _ = await links[1].receive()
            assert isinstance(message, Ticket)
            numbers.append(message.expires_in)
    assert numbers == list(range(sent + 1))


async def test_closing_wakes_the_waiters(links: LinkPair) -> None:
    """A task that waits on a link which is closed here gets ClosedResourceError."""
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await links[1].receive()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        links[1].close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    st.one_of(st.binary(min_size=1, max_size=60), st.builds(packet, st.integers(-1, 5), st.just(["Describe"]))),
    st.integers(0, 5),
)
def test_arbitrary_packets(pair: tuple[socket.socket, DescriptorLink], payload: bytes, count: int) -> None:
    """Any packet is a message with exactly the descriptors that it states, or MalformedFrame and nothing left open."""
    raw, link = pair
    before = open_descriptors()
    with open(os.devnull, "rb") as file:  # noqa: PTH123
        send_raw(raw, payload, [file.fileno()] * count)
    try:
        message, fds = link.receive_nowait()
    except MalformedFrame:
        assert payload != packet(count, Describe())
    else:
        assert payload[1] == count == len(fds)
        assert isinstance(message, msgspec.Struct)
        for fd in fds:
            os.close(fd)
    assert open_descriptors() == before
