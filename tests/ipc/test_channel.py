"""Channels: batching, large frames, full sockets, and peers that break the protocol or go away."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio
import trio.testing
from arrangement import VirtualClock, join, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.channel import Channel
from ipc.errors import ActorDown, MalformedFrame
from ipc.exchange import Exchange
from ipc.frames import Control, Credit, Data, Down, Frame, Reply, Request, Up
from ipc.framing import FrameTooLong
from ipc.mailbox import Mailbox
from ipc.messages import Describe, Description, Done, Ticket

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")

UP = Up("target", 1, data=8, size=100_000, control=8)
PLACEMENT = {"user": "near", "target": "far", "third": "elsewhere"}


def encoded(*frames: object) -> bytes:
    payloads = [msgspec.msgpack.encode(frame) for frame in frames]
    return b"".join(struct.pack(">I", len(payload)) + payload for payload in payloads)


class Bench:
    """An exchange (``near``) whose peer ``far`` is a bare socket in the test's hands."""

    def __init__(self, **options: object) -> None:
        self.malformed: list[tuple[str, MalformedFrame]] = []
        self.near = Exchange(
            "near",
            PLACEMENT,
            on_malformed=lambda peer, error: self.malformed.append((peer, error)),
            clock=VirtualClock(),
            **options,
        )
        ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.near.connect("far", ours)
        self.target = self.near.address("target")

    async def say(self, *frames: object) -> None:
        self.sock.send(encoded(*frames))
        await settle()

    def heard(self) -> list[Frame]:
        data = self.sock.recv(1 << 20)
        decode = msgspec.msgpack.Decoder(Frame).decode
        frames = []
        while data:
            length = struct.unpack_from(">I", data)[0]
            frames.append(decode(data[4 : 4 + length]))
            data = data[4 + length :]
        return frames

    def hung_up(self) -> bool:
        try:
            while self.sock.recv(1 << 20):
                pass
        except ConnectionResetError:
            return True
        except BlockingIOError:
            return False
        return True


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench(maximum=100_000, congested=10_000)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.near.run)
        yield made
        nursery.cancel_scope.cancel()
    made.sock.close()


async def test_one_write_a_turn(bench: Bench) -> None:
    """What is sent to several actors in one turn leaves in one write, at its end."""
    await bench.say(UP)
    before = bench.near.statistics().channels[0]
    for _ in range(5):
        bench.target.tell(Describe())
    bench.target.control(Describe())
    assert bench.near.statistics().channels[0].writes == before.writes
    await settle()
    after = bench.near.statistics().channels[0]
    assert (after.writes - before.writes, after.frames_out - before.frames_out) == (1, 6)
    assert [type(frame) for frame in bench.heard()] == [Data] * 5 + [Control]


async def test_flush_writes_at_once(bench: Bench) -> None:
    """A synchronous turn may flush at its own end, without waiting for the loop."""
    await bench.say(UP)
    bench.target.tell(Ticket("now", 1))
    bench.near.flush()
    assert bench.heard() == [Data("target", 1, Ticket("now", 1))]


async def test_a_batch_is_read_at_once(bench: Bench) -> None:
    """Frames that came together are decoded together and wake their receiver once."""
    mailbox = Mailbox("user")
    bench.near.register(mailbox, 1)
    await bench.say(*[Data("user", 1, Ticket("", number)) for number in range(50)])
    assert [delivery.message.expires_in for delivery in await mailbox.receive()] == list(range(50))
    assert bench.near.statistics().channels[0].largest_batch_in == 50


async def test_a_socket_that_takes_nothing() -> None:
    """When the peer does not read, data stops at the congestion mark while control goes on into the buffer; when it
    reads again everything arrives whole and in order, and the room is told."""
    near = Exchange("near", PLACEMENT, congested=300_000)
    far = Exchange("far", PLACEMENT)
    near_end, far_end = socket.socketpair()
    async with trio.open_nursery() as nursery:
        await nursery.start(near.run)
        near.connect("far", near_end)
        far.connect("near", far_end)
        mailbox = Mailbox("target")
        far.register(mailbox, 1)
        far.flush()  # the news of the target goes over; far reads nothing until it runs
        await settle()
        target = near.address("target")
        sent = 0
        while target.tell(Description(sent.to_bytes(2, "big") * 5000)):
            sent += 1
            near.flush()
            assert sent < 1000
        room = trio.Event()
        target.on_room(room.set)
        await settle()
        assert not room.is_set()
        for _ in range(10):
            target.control(Describe())
        statistics = near.statistics().channels[0]
        assert statistics.blocked >= 1
        assert statistics.backlog >= 300_000
        await nursery.start(far.run)
        await room.wait()
        received = []
        while len(received) < sent + 10:
            received += [delivery.message for delivery in await mailbox.receive()]
        assert [message for message in received if isinstance(message, Description)] == [
            Description(number.to_bytes(2, "big") * 5000) for number in range(sent)
        ]
        assert target.tell(Describe())
        nursery.cancel_scope.cancel()


async def test_large_frames_both_ways() -> None:
    """Messages of 17 MiB, the default maximum less the envelope, cross in both directions at the same time."""
    near, far = Exchange("near", PLACEMENT), Exchange("far", PLACEMENT)
    body = bytes(range(256)) * (17 * 4096)
    async with trio.open_nursery() as nursery:
        await nursery.start(near.run)
        await nursery.start(far.run)
        join(near, far)
        user, target = Mailbox("user"), Mailbox("target")
        near.register(user, 1)
        far.register(target, 1)
        await settle()
        assert near.address("target").tell(Description(body))
        assert far.address("user").tell(Description(body))
        for mailbox in (user, target):
            [delivery] = await mailbox.receive()
            assert delivery.message.data == body
        nursery.cancel_scope.cancel()


async def test_bytes_are_bounded_too(bench: Bench) -> None:
    """A lane that has taken its bytes takes no more until they are credited, however few messages they are."""
    await bench.say(Up("target", 1, data=1000, size=5000, control=1000))
    assert [bench.target.tell(Description(bytes(3000))) for _ in range(3)] == [True, True, False]
    bench.target.control(Description(bytes(6000)))
    with pytest.raises(BlockingIOError):
        bench.target.control(Describe())
    await settle()
    data, _, control = bench.heard()
    size = len(encoded(data)) - 4
    await bench.say(Credit("target", 1, data=1, data_size=size, control=1, control_size=len(encoded(control)) - 4))
    assert [bench.target.tell(Description(bytes(3000))) for _ in range(2)] == [True, False]
    bench.target.control(Describe())
    assert bench.malformed == []


async def test_a_message_that_is_too_long(bench: Bench) -> None:
    """A message above the frame's maximum is its sender's error and leaves no trace in the stream."""
    await bench.say(UP)
    for send in (bench.target.tell, bench.target.control):
        with pytest.raises(FrameTooLong):
            send(Description(bytes(100_001)))
    with pytest.raises(FrameTooLong):
        bench.target.request(Description(bytes(100_001)), VirtualClock().after(1), lambda _reply: None)
    assert bench.near.statistics().pending == 0
    bench.target.tell(Describe())
    await settle()
    assert bench.heard() == [Data("target", 1, Describe())]


async def test_a_reply_that_is_too_long(bench: Bench) -> None:
    """The answerer may still give another answer after one that did not fit."""
    mailbox = Mailbox("user")
    bench.near.register(mailbox, 1)
    await bench.say(Request("user", 1, 7, VirtualClock().after(1), Describe()))
    [delivery] = mailbox.drain()
    with pytest.raises(FrameTooLong):
        delivery.reply(Description(bytes(100_001)))
    delivery.reply(Done(ok=False))
    await settle()
    assert bench.heard()[1:] == [Reply("user", 1, 7, Done(ok=False))]


async def test_credit_comes_back_in_batches(bench: Bench) -> None:
    """A receiver that drains after each message gives credit for a quarter of its lane at a time."""
    mailbox = Mailbox("user", data=8, control=8)
    bench.near.register(mailbox, 1)
    for _ in range(4):
        await bench.say(Data("user", 1, Describe()), Control("user", 1, Describe()))
        assert len(mailbox.drain()) == 2
    await settle()
    sizes = {"data_size": 2 * (len(encoded(Data("user", 1, Describe()))) - 4)}
    sizes["control_size"] = 2 * (len(encoded(Control("user", 1, Describe()))) - 4)
    assert bench.heard()[1:] == [Credit("user", 1, data=2, control=2, **sizes)] * 2


async def test_what_one_incarnation_took_is_not_credited_by_the_next(bench: Bench) -> None:
    """Credit that was owed when an incarnation ended goes with it: its sender has a new account."""
    for incarnation in (1, 2):
        mailbox = Mailbox("user", data=8)
        bench.near.register(mailbox, incarnation)
        await bench.say(Data("user", incarnation, Describe()))
        assert len(mailbox.drain()) == 1
        mailbox.close("crashed")
    await settle()
    assert [type(frame) for frame in bench.heard()] == [Up, Down, Up, Down]


@pytest.mark.parametrize(
    "frames",
    [
        [Up("user", 1, data=8, size=8, control=8)],
        [Up("stranger", 1, data=8, size=8, control=8)],
        [Up("third", 1, data=8, size=8, control=8)],
        [Reply("third", 1, 1, Describe())],
        [UP, UP],
        [UP, Up("target", 2, data=8, size=8, control=8)],
        [Down("target", 1, "never was up")],
        [UP, Down("target", 2, "another one")],
        [Data("target", 1, Describe())],
        [Control("stranger", 1, Describe())],
        [Request("target", 1, 1, 1, Describe())],
        [Reply("user", 1, 1, Describe())],
        [UP, Credit("target", 1, data=1, data_size=1, control=0, control_size=0)],
        [UP, Credit("user", 1, data=0, data_size=0, control=0, control_size=0)],
        [Data("user", 1, Describe())] * 3,
        [Control("user", 1, Describe())] * 3,
        [Request("user", 1, number, 1, Describe()) for number in range(1, 4)],
        [Data("user", 0, Describe())],
        [[3, "user", 1]],
        [[3, "user", 1, ["Describe"], "and more"]],
        [[99, "user", 1]],
        [[3, "user", 1, ["NoSuchMessage"]]],
        [{"a": 1}],
        [None],
        [7],
    ],
    ids=str,
)
async def test_a_peer_that_breaks_the_protocol(bench: Bench, frames: list[object]) -> None:
    """Whatever does not belong in the stream closes the channel, is reported once, and ends what was pending."""
    mailbox = Mailbox("user", data=2, control=2)
    bench.near.register(mailbox, 1)
    answers: list[object] = []
    if frames[0] == UP:
        await bench.say(UP)
        bench.target.request(Describe(), VirtualClock().after(60), answers.append)
        frames = frames[1:]
    await bench.say(*frames)
    assert [peer for peer, _ in bench.malformed] == ["far"]
    assert isinstance(bench.malformed[0][1], MalformedFrame)
    assert bench.hung_up()
    assert all(isinstance(answer, ActorDown) for answer in answers)
    statistics = bench.near.statistics()
    assert (statistics.pending, statistics.malformed, statistics.channels) == (0, 1, ())
    assert bench.target.incarnation == 0


@pytest.mark.parametrize(
    "junk",
    [
        struct.pack(">I", 100_001),
        b"\xff" * 4,
        encoded() + b"\0\0\0\0",
        struct.pack(">I", 1) + b"\xc1",
        struct.pack(">I", 4) + b"\x93\x03\xa4ab"[:4],
        struct.pack(">I", 50_000) + b"\x91" * 50_000,
        struct.pack(">I", 7) + b"\x94\x02\xa2\xff\xff\x01\xa0",
        struct.pack(">I", 50_019) + b"\x94\x03\xa4user\x01\x92\xa8Describe" + b"\x91" * 50_000 + b"\0",
    ],
    ids=["over-long", "all ones", "empty", "reserved byte", "cut short", "nested", "not UTF-8", "nested inside"],
)
async def test_a_peer_that_breaks_the_framing(bench: Bench, junk: bytes) -> None:
    """Bytes that are no frame close the channel and are reported; frames before them count."""
    mailbox = Mailbox("user")
    bench.near.register(mailbox, 1)
    bench.sock.send(encoded(Data("user", 1, Ticket("before", 1))) + junk)
    await settle()
    assert len(bench.malformed) == 1
    assert [delivery.message for delivery in mailbox.drain()] == [Ticket("before", 1)]
    assert bench.hung_up()


async def test_messages_for_an_incarnation_that_is_over_are_no_offence(bench: Bench) -> None:
    """They were sent before their sender could know; they are dropped and counted."""
    mailbox = Mailbox("user")
    bench.near.register(mailbox, 1)
    mailbox.close("crashed")
    again = Mailbox("user")
    bench.near.register(again, 2)
    await bench.say(
        Data("user", 1, Describe()), Control("user", 1, Describe()), Request("user", 1, 1, 1, Describe())
    )
    await bench.say(Credit("target", 1, data=9, data_size=9, control=9, control_size=9))
    assert again.drain() == []
    assert bench.malformed == []
    assert bench.near.statistics().stale == 3
    assert [type(frame) for frame in bench.heard()] == [Up, Down, Up]


async def test_a_reply_under_another_incarnation(bench: Bench) -> None:
    """An answer counts only with the incarnation that was asked."""
    await bench.say(UP)
    answers: list[object] = []
    bench.target.request(Describe(), VirtualClock().after(60), answers.append)
    await settle()
    [request] = bench.heard()
    assert isinstance(request, Request)
    await bench.say(Reply("target", 2, request.id, Done(ok=False)), Reply("target", 1, request.id + 1, Done(ok=False)))
    assert answers == []
    await bench.say(Reply("target", 1, request.id, Done(ok=True)), Reply("target", 1, request.id, Done(ok=False)))
    assert answers == [Done(ok=True)]
    assert bench.near.statistics().late == 3


async def test_the_last_words_of_a_dead_peer(bench: Bench) -> None:
    """What a peer wrote before it died is delivered, even if we notice its death by writing first."""
    await bench.say(UP)
    answers: list[object] = []
    bench.target.request(Describe(), VirtualClock().after(60), answers.append)
    bench.target.request(Describe(), VirtualClock().after(60), answers.append)
    await settle()
    first, _ = bench.heard()
    assert isinstance(first, Request)
    bench.sock.send(encoded(Reply("target", 1, first.id, Done(ok=True))) + b"\0\0")
    bench.sock.close()
    bench.target.tell(Describe())
    bench.near.flush()
    await settle()
    assert [type(answer) for answer in answers] == [Done, ActorDown]
    assert bench.malformed == []


async def test_the_last_words_of_a_peer_that_did_not_listen(bench: Bench) -> None:
    """A peer that dies with our messages unread resets the stream; what it wrote before counts nevertheless."""
    await bench.say(UP)
    bench.target.tell(Describe())
    await settle()
    mailbox = Mailbox("user")
    bench.near.register(mailbox, 1)
    bench.sock.send(encoded(Data("user", 1, Ticket("last words", 1))))
    bench.sock.close()
    await settle()
    assert [delivery.message for delivery in mailbox.drain()] == [Ticket("last words", 1)]
    assert bench.target.incarnation == 0
    assert bench.malformed == []


async def test_a_peer_that_only_stops_reading(bench: Bench) -> None:
    """A peer that shuts down its reading side is a peer that has gone."""
    await bench.say(UP)
    bench.sock.shutdown(socket.SHUT_RD)
    bench.target.tell(Describe())
    await settle()
    assert bench.target.incarnation == 0
    assert bench.near.statistics().channels == ()


async def test_a_new_channel_replaces_the_old_one(bench: Bench) -> None:
    """Pending requests end with the old channel; nothing that comes through it later counts; accounts start anew."""
    await bench.say(UP)
    mailbox = Mailbox("user", data=4)
    bench.near.register(mailbox, 1)
    await bench.say(*[Data("user", 1, Describe())] * 4)
    answers: list[object] = []
    bench.target.request(Describe(), VirtualClock().after(60), answers.append)
    await settle()
    [*_, request] = bench.heard()
    assert isinstance(request, Request)
    old = bench.sock
    ours, bench.sock = socket.socketpair()
    bench.sock.setblocking(False)
    bench.near.connect("far", ours)
    await settle()
    assert [type(answer) for answer in answers] == [ActorDown]
    with pytest.raises(BrokenPipeError):
        old.send(encoded(Reply("target", 1, request.id, Done(ok=True))))
    old.close()
    assert bench.target.incarnation == 0
    await bench.say(UP, *[Data("user", 1, Describe())] * 4)
    assert bench.target.incarnation == 1
    assert len(mailbox.drain()) == 8
    await settle()
    _, credit = bench.heard()
    assert isinstance(credit, Credit)
    assert credit.data == 4
    assert bench.malformed == []


async def test_an_answer_to_a_process_that_was_replaced(bench: Bench) -> None:
    """An answer goes down the channel that its request came through, or nowhere."""
    mailbox = Mailbox("user")
    bench.near.register(mailbox, 1)
    await bench.say(Request("user", 1, 1, VirtualClock().after(60), Describe()))
    [delivery] = mailbox.drain()
    bench.sock.close()
    ours, bench.sock = socket.socketpair()
    bench.sock.setblocking(False)
    bench.near.connect("far", ours)
    delivery.reply(Done(ok=True))
    await settle()
    assert [type(frame) for frame in bench.heard()] == [Up]


async def test_stopping_sends_what_is_left() -> None:
    """What was sent in the last turn before ``run`` is cancelled still goes out, and waiting tasks are answered."""
    bench = Bench()
    outcome: list[object] = []
    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        await nursery.start(bench.near.run)
        await bench.say(UP)

        async def ask() -> None:
            try:
                await bench.target.ask(Describe(), VirtualClock().after(60))
            except ActorDown as error:
                outcome.append(error.reason)

        outer.start_soon(ask)
        await settle()
        bench.heard()
        bench.target.tell(Ticket("last", 1))
        nursery.cancel_scope.cancel()
    assert bench.heard() == [Data("target", 1, Ticket("last", 1))]
    assert outcome == ["the worker stops"]
    assert bench.hung_up()
    bench.sock.close()


def bare_channel(sock: socket.socket, closed: list[str]) -> Channel:
    return Channel(
        "far",
        sock,
        on_frame=lambda _frame, _size: None,
        on_batch=lambda: None,
        on_closed=lambda _channel, reason, error: closed.append(repr(error) if error else reason),
        on_dirty=lambda _channel: None,
        on_room=lambda: None,
        maximum=1000,
    )


async def test_closing_ends_the_tasks() -> None:
    """A channel that is closed here ends by itself, also while it waits for a full socket."""
    closed: list[str] = []
    ours, theirs = socket.socketpair()
    channel = bare_channel(ours, closed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run)
        while not channel.statistics().blocked:
            channel.send(Data("target", 1, Description(bytes(900))))
            channel.flush()
        await settle()
        channel.close("enough")
    assert closed == ["enough"]
    theirs.close()


async def test_a_cancelled_channel_sends_what_it_has() -> None:
    """What is in the buffer when ``run`` is cancelled is written as far as the socket takes it."""
    closed: list[str] = []
    ours, theirs = socket.socketpair()
    channel = bare_channel(ours, closed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run)
        await settle()
        channel.send(Data("target", 1, Describe()))
        nursery.cancel_scope.cancel()
    assert theirs.recv(1000) == encoded(Data("target", 1, Describe()))
    assert closed == ["the worker stops"]
    theirs.close()


def fail(incarnation: int) -> None:
    if incarnation:
        raise ZeroDivisionError


async def test_an_error_that_belongs_to_nobody_stops_the_exchange() -> None:
    """What a callback without an owner raises is never swallowed: ``run`` raises it."""
    bench = Bench()
    bench.target.watch(fail)
    bench.sock.send(encoded(UP))
    with pytest.RaisesGroup(ZeroDivisionError):
        await bench.near.run()
    assert bench.hung_up()
    bench.sock.close()


async def test_an_error_that_belongs_to_nobody_goes_to_the_handler() -> None:
    """With a handler the exchange goes on."""
    errors: list[tuple[str, Exception]] = []
    bench = Bench(on_callback_error=lambda where, error: errors.append((where, error)))
    bench.target.watch(fail)
    seen: list[int] = []
    bench.target.watch(seen.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.near.run)
        await bench.say(UP)
        nursery.cancel_scope.cancel()
    assert [(where, type(error)) for where, error in errors] == [("watch of target", ZeroDivisionError)]
    assert seen == [0, 1, 0]
    bench.sock.close()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=200), max_size=6), st.booleans())
def test_arbitrary_bytes_never_raise_and_never_hang(chunks: list[bytes], framed: bool) -> None:
    """Whatever a peer sends before it goes, the channel ends closed, reported once, and its task without an error."""
    closed: list[str] = []
    stream = b"".join(struct.pack(">I", len(chunk)) + chunk if framed else chunk for chunk in chunks)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        channel = bare_channel(ours, closed)
        theirs.sendall(stream)
        theirs.close()
        await channel.run()
        assert channel.closed

    trio.run(main)
    assert len(closed) == 1


FRAMES = st.one_of(
    st.builds(Data, st.sampled_from(["user", "target"]), st.integers(1, 2), st.just(Describe())),
    st.builds(Control, st.sampled_from(["user", "target"]), st.integers(1, 2), st.just(Describe())),
    st.builds(Request, st.just("user"), st.integers(1, 2), st.integers(1, 9), st.integers(0, 9), st.just(Describe())),
    st.builds(Reply, st.just("target"), st.integers(1, 2), st.integers(1, 9), st.just(Describe())),
    st.builds(Up, st.just("target"), st.integers(1, 2), st.integers(1, 4), st.integers(1, 99), st.integers(1, 4)),
    st.builds(Down, st.just("target"), st.integers(1, 2), st.text(max_size=5)),
    st.builds(
        Credit, st.just("target"), st.integers(1, 2), *[st.integers(0, 2) for _ in range(4)]
    ),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(FRAMES, max_size=12))
def test_arbitrary_conversations_end_clean(frames: list[Frame]) -> None:
    """Whatever frames a peer sends in whatever order, when it has gone nothing is pending and everyone who asked was
    answered exactly once."""

    async def main() -> None:
        bench = Bench()
        answers: list[object] = []
        asked = 0
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.near.run)
            mailbox = Mailbox("user", data=2, control=2)
            bench.near.register(mailbox, 1)
            for frame in frames:
                try:
                    bench.sock.send(encoded(frame))
                except BrokenPipeError:
                    break
                await settle()
                bench.target.request(Describe(), 2**62, answers.append)
                asked += 1
                for delivery in mailbox.drain():
                    if delivery.wants_reply:
                        delivery.reply(Done(ok=True))
            bench.sock.close()
            await settle()
            assert len(answers) == asked
            statistics = bench.near.statistics()
            assert (statistics.pending, statistics.channels) == (0, ())
            assert statistics.malformed == len(bench.malformed) <= 1
            nursery.cancel_scope.cancel()

    trio.run(main)
