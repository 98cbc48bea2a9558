"""A mailbox by itself, without an exchange around it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ipc.errors import ActorDown
from ipc.mailbox import Delivery, Mailbox, Share
from ipc.messages import Describe, Done, Message, Ticket


def delivery(number: int, sender: str = "near") -> Delivery:
    return Delivery(Ticket("", number), sender)


def test_lanes_are_bounded_each_by_itself() -> None:
    """A full data lane refuses data and takes control, and the reverse; refused messages are counted, not queued."""
    mailbox = Mailbox("actor", data=2, control=3)
    assert [mailbox.offer(delivery(number)) for number in range(3)] == [True, True, False]
    assert [mailbox.offer(delivery(number), control=True) for number in range(10, 14)] == [True, True, True, False]
    assert mailbox.statistics().refused == 2
    assert [entry.message.expires_in for entry in mailbox.drain()] == [10, 11, 12, 0, 1]
    assert mailbox.drain() == []
    assert mailbox.offer(delivery(0))


def test_bounds_hold_for_each_sender() -> None:
    """One sender that fills its part takes no room from another."""
    mailbox = Mailbox("actor", data=1)
    assert mailbox.offer(delivery(1, "one"))
    assert not mailbox.offer(delivery(2, "one"))
    assert not mailbox.has_room("one")
    assert mailbox.has_room("two")
    assert mailbox.offer(delivery(3, "two"))
    assert len(mailbox.drain()) == 2


@pytest.mark.parametrize("control", [False, True])
def test_bytes_are_bounded(control: bool) -> None:
    """The message that crosses the bound in bytes is taken, the next one is not."""
    mailbox = Mailbox("actor", size=100)
    assert [mailbox.offer(delivery(1), control=control, size=60) for _ in range(3)] == [True, True, False]
    mailbox.drain()
    assert mailbox.offer(delivery(1), control=control, size=60)


def test_a_lane_without_room_makes_no_sense() -> None:
    """A bound below one message is refused."""
    with pytest.raises(ValueError, match="room"):
        Mailbox("actor", data=0)


def test_each_drain_reports_what_each_sender_gets_back() -> None:
    """Room comes back for what was drained, by sender and lane; what a dead sender had sent is owed to nobody."""
    mailbox = Mailbox("actor")
    drained: list[tuple[str, Share]] = []
    mailbox.attach(
        schedule=lambda _mailbox, callback: callback(),
        drained=lambda _mailbox, sender, share: drained.append((sender, share)),
        on_close=lambda _mailbox, _reason: None,
    )
    mailbox.offer(delivery(1, "one"), size=10)
    mailbox.offer(delivery(2, "one"), size=20)
    mailbox.offer(delivery(3, "two"), control=True, size=5)
    mailbox.offer(delivery(4, "dead"), size=7)
    mailbox.forget("dead")
    assert mailbox.share("one") == Share(data=2, data_size=30)
    assert len(mailbox.drain()) == 4
    assert drained == [("one", Share(data=2, data_size=30)), ("two", Share(control=1, control_size=5))]
    assert mailbox.share("one") == Share()


def test_a_delivery_is_answered_once() -> None:
    """The first reply goes to the asker, the second raises; an answer that could not be sent was not given."""
    answers: list[Message] = []
    request = Delivery(Describe(), "near", answers.append, 5)
    assert request.wants_reply
    request.reply(Done(ok=True))
    with pytest.raises(RuntimeError, match="already"):
        request.reply(Done(ok=True))
    assert answers == [Done(ok=True)]
    assert request.wants_reply

    def refuse(_message: Message) -> None:
        raise ValueError

    request = Delivery(Describe(), "near", refuse)
    for _ in range(2):
        with pytest.raises(ValueError):
            request.reply(Done(ok=True))


async def test_receive_waits_and_loses_nothing_when_cancelled() -> None:
    """A cancelled receive takes nothing: the next one gets it, or a drain."""
    mailbox = Mailbox("actor")
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.receive()
    assert scope.cancelled_caught
    mailbox.offer(delivery(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.receive()
    assert scope.cancelled_caught
    assert [entry.message.expires_in for entry in await mailbox.receive()] == [1]

    got: list[Delivery] = []

    async def receive() -> None:
        got.extend(await mailbox.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.offer(delivery(2))
        mailbox.offer(delivery(3))
    assert [entry.message.expires_in for entry in got] == [2, 3]


def test_closing_drops_and_refuses() -> None:
    """Nothing comes out of a closed mailbox and nothing goes in; the first reason counts."""
    mailbox = Mailbox("actor")
    mailbox.offer(delivery(1))
    mailbox.close("first")
    mailbox.close("second")
    assert mailbox.drain() == []
    with pytest.raises(ActorDown, match="first"):
        mailbox.offer(delivery(2))
    assert mailbox.statistics().closed
