"""What every address promises, whether its actor is in this process or behind a channel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from arrangement import Arrangement, settle
from trio.testing import MockClock

from ipc.errors import ActorDown, DeadlineExceeded, MailboxFull
from ipc.mailbox import Mailbox, Share
from ipc.messages import Describe, Description, Disconnect, Done, Ticket


def description(text: str) -> Description:
    return Description(text.encode())


async def test_tell_arrives_in_order(arrangement: Arrangement) -> None:
    """Messages of the data lane arrive complete, in order, with their sender, and want no reply."""
    mailbox = await arrangement.start()
    sent = [description(str(number)) for number in range(100)]
    assert all(arrangement.address.tell(message) for message in sent)
    await settle()
    batch = mailbox.drain()
    assert [delivery.message for delivery in batch] == sent
    assert {delivery.sender for delivery in batch} == {"near"}
    assert not any(delivery.wants_reply for delivery in batch)
    with pytest.raises(RuntimeError):
        batch[0].reply(Done(ok=True))


async def test_control_comes_before_data(arrangement: Arrangement) -> None:
    """What is on the control lane, requests included, is received before data that was sent earlier."""
    mailbox = await arrangement.start()
    arrangement.address.tell(Ticket("data", 1))
    arrangement.address.control(Ticket("control", 2))
    arrangement.address.request(Ticket("request", 3), arrangement.clock.after(1), lambda _reply: None)
    await settle()
    assert [delivery.message.expires_in for delivery in await mailbox.receive()] == [2, 3, 1]


async def test_request_and_reply(arrangement: Arrangement) -> None:
    """Each asker gets the answer to its own request, also when answers come in another order."""
    mailbox = await arrangement.start()
    answers: list[tuple[int, object]] = []
    deadline = arrangement.clock.after(1)
    for number in range(10):
        arrangement.address.request(
            Ticket("", number), deadline, lambda reply, number=number: answers.append((number, reply))
        )
    await settle()
    for delivery in reversed(mailbox.drain()):
        assert delivery.wants_reply
        assert delivery.deadline_ns == deadline
        delivery.reply(description(str(delivery.message.expires_in)))
    assert answers == []  # never from within the answerer's call
    await settle()
    assert answers == [(number, description(str(number))) for number in reversed(range(10))]
    assert arrangement.near.statistics().pending == 0


async def test_ask_returns_the_answer(arrangement: Arrangement) -> None:
    """A task that asks gets the answer of an actor that receives in a loop."""
    mailbox = await arrangement.start()

    async def echo() -> None:
        while True:
            for delivery in await mailbox.receive():
                delivery.reply(delivery.message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        for number in range(3):
            assert await arrangement.address.ask(Ticket("", number), arrangement.clock.after(1)) == Ticket("", number)
        nursery.cancel_scope.cancel()


async def test_second_reply_is_the_answerers_error(arrangement: Arrangement) -> None:
    """A request is answered once; the second reply raises in the answerer and reaches nobody."""
    mailbox = await arrangement.start()
    answers: list[object] = []
    arrangement.address.request(Describe(), arrangement.clock.after(1), answers.append)
    await settle()
    [delivery] = mailbox.drain()
    delivery.reply(Done(ok=True))
    with pytest.raises(RuntimeError):
        delivery.reply(Done(ok=False))
    await settle()
    assert answers == [Done(ok=True)]


async def test_nothing_is_up_yet(arrangement: Arrangement) -> None:
    """Before the first incarnation, tell and control raise ActorDown and a request is answered so at once."""
    address = arrangement.address
    assert address.name == "target"
    assert address.incarnation == 0
    with pytest.raises(ActorDown):
        address.tell(Describe())
    with pytest.raises(ActorDown):
        address.control(Describe())
    answers: list[object] = []
    address.request(Describe(), arrangement.clock.after(1), answers.append)
    assert [type(answer) for answer in answers] == [ActorDown]
    with pytest.raises(ActorDown):
        await address.ask(Describe(), arrangement.clock.after(1))
    rooms: list[str] = []
    address.on_room(lambda: rooms.append("gone"))
    await settle()
    assert rooms == ["gone"]


async def test_a_crash_answers_every_pending_request(arrangement: Arrangement) -> None:
    """When an incarnation ends, requests that wait in its mailbox and requests that it has taken get ActorDown."""
    mailbox = await arrangement.start()
    answers: list[object] = []
    for _ in range(5):
        arrangement.address.request(Describe(), arrangement.clock.after(60), answers.append)
    await settle()
    taken = mailbox.drain()
    for _ in range(5):
        arrangement.address.request(Describe(), arrangement.clock.after(60), answers.append)
    await settle()
    mailbox.close("crashed")
    await settle()
    assert [(type(answer), answer.reason) for answer in answers] == [(ActorDown, "crashed")] * 10
    for delivery in taken:
        delivery.reply(Done(ok=True))
    await settle()
    assert len(answers) == 10
    assert arrangement.near.statistics().late == 5


async def test_any_reason_is_told(arrangement: Arrangement) -> None:
    """Whatever text an actor ends with, its askers are told, in short."""
    mailbox = await arrangement.start()
    answers: list[object] = []
    arrangement.address.request(Describe(), arrangement.clock.after(60), answers.append)
    await settle()
    mailbox.close("\ud800" + "x" * 1_000_000)
    await settle()
    assert [answer.reason for answer in answers] == ["\\ud800" + "x" * 199]


async def test_a_request_on_its_way_when_the_actor_ends(arrangement: Arrangement) -> None:
    """A request that crosses the news of the actor's end is answered with ActorDown and not delivered."""
    mailbox = await arrangement.start()
    answers: list[object] = []
    arrangement.address.request(Describe(), arrangement.clock.after(60), answers.append)
    mailbox.close("crashed")
    again = Mailbox("target")
    arrangement.far.register(again, 2)
    await settle()
    assert [type(answer) for answer in answers] == [ActorDown]
    assert again.drain() == []


async def test_messages_never_reach_the_next_incarnation(arrangement: Arrangement) -> None:
    """What was sent to one incarnation is not delivered to the next, and an answer of the old one ends no new
    request."""
    old = await arrangement.start()
    answers: list[object] = []
    arrangement.address.request(Ticket("old", 1), arrangement.clock.after(60), answers.append)
    await settle()
    [taken] = old.drain()
    arrangement.address.tell(Ticket("old", 1))
    arrangement.address.control(Ticket("old", 1))
    old.close("crashed")
    new = await arrangement.start()
    assert new.drain() == []
    arrangement.address.request(Ticket("new", 2), arrangement.clock.after(60), answers.append)
    await settle()
    taken.reply(Done(ok=False, detail="of the old one"))
    await settle()
    assert [type(answer) for answer in answers] == [ActorDown]
    [delivery] = new.drain()
    assert delivery.message == Ticket("new", 2)
    delivery.reply(Done(ok=True))
    await settle()
    assert answers[1:] == [Done(ok=True)]


async def test_deadline_of_an_actor_that_hangs(autojump_clock: MockClock, arrangement: Arrangement) -> None:
    """Without an answer a request ends at its deadline, not before; an answer after that is dropped and counted."""
    mailbox = await arrangement.start()
    ends: list[tuple[str, int, object]] = []
    clock = arrangement.clock
    deadlines = {"late": clock.after(7), "early": clock.after(2), "middle": clock.after(5)}
    for name, deadline in deadlines.items():
        arrangement.address.request(
            Describe(), deadline, lambda reply, name=name: ends.append((name, clock(), type(reply)))
        )
    await trio.sleep(60)
    assert [(name, answer) for name, _, answer in ends] == [
        ("early", DeadlineExceeded),
        ("middle", DeadlineExceeded),
        ("late", DeadlineExceeded),
    ]
    for name, ended, _ in ends:
        assert 0 <= ended - deadlines[name] < 1_000_000
    for delivery in mailbox.drain():
        delivery.reply(Done(ok=True))
    await settle()
    assert len(ends) == 3
    statistics = arrangement.near.statistics()
    assert (statistics.late, statistics.expired, statistics.pending) == (3, 3, 0)


async def test_an_answer_before_a_later_deadline(autojump_clock: MockClock, arrangement: Arrangement) -> None:
    """A request that is answered does not hold up, or end with, the deadline of another."""
    mailbox = await arrangement.start()
    answers: list[object] = []
    arrangement.address.request(Describe(), arrangement.clock.after(1), answers.append)
    await settle()
    [first] = mailbox.drain()
    arrangement.address.request(Describe(), arrangement.clock.after(2), answers.append)
    first.reply(Done(ok=True))
    await trio.sleep(1.5)
    assert answers == [Done(ok=True)]
    await trio.sleep(1)
    assert [type(answer) for answer in answers] == [Done, DeadlineExceeded]


async def test_ask_raises(autojump_clock: MockClock, arrangement: Arrangement) -> None:
    """A task that asks gets DeadlineExceeded at the deadline, and ActorDown when the actor ends."""
    mailbox = await arrangement.start()
    with pytest.raises(DeadlineExceeded):
        await arrangement.address.ask(Describe(), arrangement.clock.after(1))

    async def crash() -> None:
        await settle()
        mailbox.close("crashed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(crash)
        with pytest.raises(ActorDown, match="crashed"):
            await arrangement.address.ask(Describe(), arrangement.clock.after(1))


async def test_a_cancelled_ask_leaves_nothing(autojump_clock: MockClock, arrangement: Arrangement) -> None:
    """A task that is cancelled while it asks no longer waits; the answer is late, even if it came in the same turn."""
    mailbox = await arrangement.start()
    with trio.move_on_after(1) as scope:
        await arrangement.address.ask(Describe(), arrangement.clock.after(60))
    assert scope.cancelled_caught
    assert arrangement.near.statistics().pending == 0
    mailbox.drain()[0].reply(Done(ok=True))
    await settle()
    assert arrangement.near.statistics().late == 1

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def answer_and_cancel() -> None:
                for delivery in await mailbox.receive():
                    delivery.reply(Done(ok=True))
                scope.cancel()

            nursery.start_soon(answer_and_cancel)
            await arrangement.address.ask(Describe(), arrangement.clock.after(60))
    await settle()
    assert arrangement.near.statistics().pending == 0


async def test_watch(arrangement: Arrangement) -> None:
    """A watcher is told the incarnation at once and at each change, until it stops watching."""
    seen: list[int] = []
    stop = arrangement.address.watch(seen.append)
    assert seen == [0]
    first = await arrangement.start()
    first.close("crashed")
    await settle()
    second = await arrangement.start()
    assert seen == [0, 1, 0, 2]
    other: list[int] = []
    arrangement.address.watch(other.append)
    assert other == [2]
    stop()
    second.close("done")
    await settle()
    assert seen == [0, 1, 0, 2]
    assert other == [2, 0]
    stop()


async def test_a_watcher_that_stops_is_not_called_for_what_is_queued(arrangement: Arrangement) -> None:
    """After stop() returns, the callback is never called, not even for a change that has already happened."""
    mailbox = await arrangement.start()
    stops: list[Callable[[], None]] = []
    first: list[int] = []
    second: list[int] = []

    def stop_both(incarnation: int) -> None:
        first.append(incarnation)
        if not incarnation:
            for stop in stops:
                stop()

    stops.append(arrangement.address.watch(stop_both))
    stops.append(arrangement.address.watch(second.append))
    mailbox.close("crashed")
    await settle()
    assert first == [1, 0]
    assert second == [1]


async def test_a_full_data_lane(arrangement: Arrangement) -> None:
    """A sender that is not drained is stopped at the bound, while control and requests still get through; the room
    comes back with the drain, and is told once."""
    mailbox = await arrangement.start(data=8)
    address = arrangement.address
    taken = 0
    while address.tell(Describe()):
        taken += 1
        assert taken <= 8
        await settle()
    assert taken == 8
    rooms: list[str] = []
    address.on_room(lambda: rooms.append("room"))
    await settle()
    assert rooms == []
    answers: list[object] = []
    address.control(Ticket("control", 1))
    address.request(Ticket("request", 2), arrangement.clock.after(1), answers.append)
    await settle()
    batch = mailbox.drain()
    assert [type(delivery.message) for delivery in batch] == [Ticket, Ticket] + [Describe] * 8
    batch[1].reply(Done(ok=True))
    await settle()
    assert answers == [Done(ok=True)]
    assert rooms == ["room"]
    assert [address.tell(Describe()) for _ in range(9)] == [True] * 8 + [False]
    await settle()
    assert len(mailbox.drain()) == 8
    assert rooms == ["room"]


async def test_on_room_with_room(arrangement: Arrangement) -> None:
    """Whoever asks to be told while there is room is told soon."""
    await arrangement.start()
    rooms: list[str] = []
    arrangement.address.on_room(lambda: rooms.append("room"))
    assert rooms == []
    await settle()
    assert rooms == ["room"]


async def test_on_room_when_the_actor_goes(arrangement: Arrangement) -> None:
    """Whoever waits for room is told when the actor ends."""
    mailbox = await arrangement.start(data=1)
    assert arrangement.address.tell(Describe())
    assert not arrangement.address.tell(Describe())
    rooms: list[int] = []
    arrangement.address.on_room(lambda: rooms.append(arrangement.address.incarnation))
    await settle()
    assert rooms == []
    mailbox.close("crashed")
    await settle()
    assert rooms == [0]


async def test_a_new_incarnation_has_its_own_room(arrangement: Arrangement) -> None:
    """What the last incarnation had not taken does not count against the next."""
    mailbox = await arrangement.start(data=2, control=2)
    for _ in range(2):
        assert arrangement.address.tell(Describe())
        arrangement.address.control(Describe())
    mailbox.close("crashed")
    await arrangement.start(data=2, control=2)
    assert [arrangement.address.tell(Describe()) for _ in range(3)] == [True, True, False]
    for _ in range(2):
        arrangement.address.control(Describe())


async def test_a_full_control_lane(arrangement: Arrangement) -> None:
    """The control lane has a hard bound, shared with requests: MailboxFull, or ActorDown to the asker. Data still
    goes; the bound is free again after a drain."""
    mailbox = await arrangement.start(control=4)
    address = arrangement.address
    answers: list[object] = []
    for _ in range(2):
        address.control(Describe())
        address.request(Describe(), arrangement.clock.after(60), answers.append)
    with pytest.raises(MailboxFull):
        address.control(Describe())
    address.request(Describe(), arrangement.clock.after(60), answers.append)
    assert [(type(answer), answer.reason) for answer in answers] == [(ActorDown, "mailbox full")]
    with pytest.raises(ActorDown):
        await address.ask(Describe(), arrangement.clock.after(60))
    assert address.tell(Describe())
    await settle()
    assert len(mailbox.drain()) == 5
    await settle()
    address.control(Describe())
    assert arrangement.near.statistics().pending == 2


async def test_sustained_traffic(arrangement: Arrangement) -> None:
    """A sender that waits for room whenever there is none gets everything through a narrow lane, in order."""
    mailbox = await arrangement.start(data=7)
    address = arrangement.address
    total = 1000
    received: list[int] = []
    number = 0

    def send() -> None:
        nonlocal number
        while number < total:
            if not address.tell(Ticket("", number)):
                address.on_room(send)
                return
            number += 1

    send()
    while len(received) < total:
        received += [delivery.message.expires_in for delivery in await mailbox.receive()]
    assert received == list(range(total))


async def test_on_arrival(arrangement: Arrangement) -> None:
    """An owner that drains itself is called after something came, not again before it drains, never from within the
    sender's call; what is already there when it starts to listen counts."""
    mailbox = await arrangement.start()
    calls: list[int] = []
    arrangement.address.tell(Describe())
    await settle()

    def arrived() -> None:
        calls.append(len(mailbox.drain()))

    mailbox.on_arrival = arrived
    await settle()
    assert calls == [1]
    arrangement.address.tell(Describe())
    arrangement.address.control(Describe())
    assert calls == [1]
    await settle()
    assert calls == [1, 2]
    mailbox.on_arrival = lambda: calls.append(-1)
    for _ in range(3):
        arrangement.address.tell(Describe())
        await settle()
    assert calls == [1, 2, -1]
    mailbox.drain()
    arrangement.address.tell(Describe())
    await settle()
    assert calls == [1, 2, -1, -1]


async def test_callbacks_may_send(arrangement: Arrangement) -> None:
    """A callback may use the address that it was called for: a chain of requests, each made by the answer before."""
    mailbox = await arrangement.start()
    mailbox.on_arrival = lambda: [delivery.reply(delivery.message) for delivery in mailbox.drain()]
    answers: list[int] = []

    def again(reply: object) -> None:
        assert isinstance(reply, Ticket)
        answers.append(reply.expires_in)
        if reply.expires_in < 50:
            arrangement.address.request(Ticket("", reply.expires_in + 1), arrangement.clock.after(1), again)

    arrangement.address.request(Ticket("", 0), arrangement.clock.after(1), again)
    await settle()
    assert answers == list(range(51))


async def test_a_callback_that_raises_fails_its_owner(arrangement: Arrangement) -> None:
    """What a callback raises goes to the actor that registered it, and everybody else's callbacks run."""
    mailbox = await arrangement.start()
    user = Mailbox("user")
    arrangement.near.register(user, 1)
    failures: list[Exception] = []
    user.owner_failed = failures.append
    user.adopt()
    answers: list[object] = []

    def fail(_reply: object) -> None:
        raise ZeroDivisionError

    arrangement.address.request(Describe(), arrangement.clock.after(1), fail)
    arrangement.address.request(Describe(), arrangement.clock.after(1), answers.append)
    await settle()
    for delivery in mailbox.drain():
        delivery.reply(Done(ok=True))
    await settle()
    assert [type(failure) for failure in failures] == [ZeroDivisionError]
    assert answers == [Done(ok=True)]
    assert arrangement.near.statistics().callback_errors == 1


async def test_callbacks_of_callbacks_have_the_same_owner(arrangement: Arrangement) -> None:
    """What a callback registers belongs to the actor that the callback belongs to, whoever runs it."""
    mailbox = await arrangement.start()
    user = Mailbox("user")
    arrangement.near.register(user, 1)
    failures: list[Exception] = []
    user.owner_failed = failures.append

    def fail(_reply: object) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        user.adopt()
        arrangement.address.request(
            Describe(),
            arrangement.clock.after(1),
            lambda _reply: arrangement.address.request(Describe(), arrangement.clock.after(1), fail),
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
    for _ in range(2):
        for delivery in await mailbox.receive():
            delivery.reply(Done(ok=True))
        await settle()
    assert [type(failure) for failure in failures] == [ZeroDivisionError]


async def test_callbacks_end_with_their_owner(arrangement: Arrangement) -> None:
    """Nothing is called for an incarnation that is over, except that its tasks still wake from ask."""
    mailbox = await arrangement.start()
    user = Mailbox("user")
    arrangement.near.register(user, 1)
    calls: list[object] = []

    async def work() -> None:
        user.adopt()
        arrangement.address.watch(calls.append)
        arrangement.address.request(Describe(), arrangement.clock.after(1), calls.append)
        arrangement.address.on_room(lambda: calls.append("room"))
        calls.append(await arrangement.address.ask(Describe(), arrangement.clock.after(2)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await settle()
        assert calls == [1, "room"]
        user.close("crashed")
        for delivery in mailbox.drain():
            delivery.reply(Done(ok=True))
    mailbox.close("done")
    await settle()
    assert calls == [1, "room", Done(ok=True)]


async def test_an_arrival_callback_that_raises_fails_its_actor(arrangement: Arrangement) -> None:
    """What on_arrival raises goes to the mailbox's owner, not to the sender."""
    mailbox = await arrangement.start()
    failures: list[Exception] = []
    mailbox.owner_failed = failures.append
    mailbox.on_arrival = lambda: mailbox.drain()[99] and None
    arrangement.address.tell(Describe())
    await settle()
    assert [type(failure) for failure in failures] == [IndexError]


async def test_a_closed_mailbox_wakes_its_receiver(arrangement: Arrangement) -> None:
    """A task that receives when the mailbox is closed gets ActorDown, then and afterwards."""
    mailbox = await arrangement.start()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(ActorDown):
                await mailbox.receive()

        nursery.start_soon(receive)
        await settle()
        with pytest.raises(trio.BusyResourceError):
            await mailbox.receive()
        mailbox.close("crashed")
    with pytest.raises(ActorDown):
        await mailbox.receive()
    with pytest.raises(ActorDown):
        arrangement.far.address("target").tell(Describe())


async def test_statistics_show_what_waits(arrangement: Arrangement) -> None:
    """Queued messages, pending requests and the sender's account are visible, and gone after the drain."""
    mailbox = await arrangement.start(data=4, control=4)
    arrangement.address.tell(Describe())
    arrangement.address.control(Disconnect("x"))
    arrangement.address.request(Describe(), arrangement.clock.after(1), lambda _reply: None)
    await settle()
    [inbox] = arrangement.far.statistics().mailboxes
    assert (inbox.data_queued, inbox.control_queued, inbox.data_received, inbox.control_received) == (1, 2, 1, 2)
    accounts = {account.name: account.untaken for account in arrangement.near.statistics().addresses}
    assert (accounts["target"].data, accounts["target"].control) == (1, 2)
    assert arrangement.near.statistics().pending == 1
    for delivery in mailbox.drain():
        if delivery.wants_reply:
            delivery.reply(Done(ok=True))
    await settle()
    accounts = {account.name: account.untaken for account in arrangement.near.statistics().addresses}
    assert accounts["target"] == Share()
    assert arrangement.near.statistics().pending == 0
    assert arrangement.far.statistics().mailboxes[0].data_queued == 0


async def test_names(arrangement: Arrangement) -> None:
    """An address is one object for the life of the exchange; unknown names and wrong registrations are errors."""
    assert arrangement.near.address("target") is arrangement.address
    with pytest.raises(LookupError):
        arrangement.near.address("nobody")
    with pytest.raises(ValueError, match="stranger"):
        arrangement.near.register(Mailbox("stranger"), 1)
    await arrangement.start()
    with pytest.raises(ValueError, match="target"):
        arrangement.far.register(Mailbox("target"), 2)
