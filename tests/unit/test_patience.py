"""Questions to a policy actor that dies."""

import time
from collections.abc import Callable

from actors.acceptor.patience import Patience
from ipc.address import Reply
from ipc.errors import ActorDown, DeadlineExceeded
from ipc.messages import Admitted, Describe, Message

FAR = time.monotonic_ns() + 3_600_000_000_000


class FakeAddress:
    """An address whose actor the test brings up and down."""

    name = "auth"

    def __init__(self) -> None:
        self.incarnation = 0
        self.asked: list[tuple[Message, Callable[[Reply], None]]] = []
        self.watchers: list[Callable[[int], None]] = []

    def request(self, message: Message, deadline_ns: int, on_reply: Callable[[Reply], None]) -> None:
        if self.incarnation:
            self.asked.append((message, on_reply))
        else:
            on_reply(ActorDown(self.name))

    def watch(self, callback: Callable[[int], None]) -> Callable[[], None]:
        self.watchers.append(callback)
        callback(self.incarnation)
        return lambda: self.watchers.remove(callback)

    def change(self, incarnation: int) -> None:
        self.incarnation = incarnation
        if not incarnation:
            asked, self.asked = self.asked, []
            for _, on_reply in asked:
                on_reply(ActorDown(self.name))
        for watcher in list(self.watchers):
            watcher(incarnation)


class Turn:
    """Posted calls, run when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def __call__(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def run(self) -> None:
        while self.calls:
            self.calls.pop(0)()


def test_a_question_survives_two_deaths_and_is_answered_once() -> None:
    """Neither silence nor a second answer."""
    address, turn, replies = FakeAddress(), Turn(), []
    patience = Patience(address, turn)  # type: ignore[arg-type]
    patience.start()
    patience.ask(Describe(), FAR, replies.append)
    for incarnation in (1, 0, 2):
        address.change(incarnation)
        turn.run()
    assert replies == []
    assert len(address.asked) == 1
    address.asked[0][1](Admitted())
    turn.run()
    assert replies == [Admitted()]
    assert len(patience) == 0


def test_an_actor_that_stays_down_is_a_deadline_exceeded() -> None:
    """Fail closed: the caller hears that there is no answer, at the deadline."""
    address, turn, replies = FakeAddress(), Turn(), []
    patience = Patience(address, turn)  # type: ignore[arg-type]
    patience.start()
    patience.ask(Describe(), FAR, replies.append)
    turn.run()
    patience.expire(FAR - 1)
    assert replies == []
    patience.expire(FAR)
    assert [type(reply) for reply in replies] == [DeadlineExceeded]


def test_the_owner_is_told_of_a_new_incarnation_before_the_questions() -> None:
    """A limiter must have the connections' list before it is asked for another place."""
    address, turn, order = FakeAddress(), Turn(), []
    patience = Patience(address, turn)  # type: ignore[arg-type]
    patience.start(on_up=lambda: order.append("up"))
    patience.ask(Describe(), FAR, lambda _reply: None)
    turn.run()
    address.change(1)
    turn.calls.append(lambda: order.append("end"))
    assert address.asked == []
    turn.run()
    assert order[0] == "up"
    assert len(address.asked) == 1
