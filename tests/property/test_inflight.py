"""Several workers share MAX_INFLIGHT_BYTES by the rules of ``actors.policy.inflight``, whatever their clients do."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from actors.policy.inflight import Share, may_take, must_yield, next_in_line, total

LIMIT = 100
LARGEST = 60


@attrs.define(eq=False)
class Message:
    place: int
    size: int
    held: int = 0
    wants: int = 0


@attrs.define(eq=False)
class Worker:
    unfinished: list[Message] = attrs.field(factory=list)  # oldest first
    finished: list[int] = attrs.field(factory=list)

    def share(self) -> Share:
        waiting = min((m for m in self.unfinished if m.wants), key=lambda m: m.place, default=None)
        return Share(
            sum(self.finished) + sum(m.held for m in self.unfinished),
            waiting.place if waiting else 0,
            waiting.wants if waiting else 0,
            self.unfinished[-1].place if self.unfinished else 0,
        )


class Gateway:
    def __init__(self, workers: int) -> None:
        self.workers = [Worker() for _ in range(workers)]
        self.time = 0
        self.given_up: list[int] = []

    def others(self, worker: Worker) -> list[Share]:
        return [other.share() for other in self.workers if other is not worker]

    def grow(self, worker: Worker, message: Message, size: int) -> None:
        message.wants = size
        self.settle()

    def settle(self) -> None:
        moved = True
        while moved:
            moved = False
            for worker in self.workers:
                for message in [m for m in worker.unfinished if m.wants]:
                    own = worker.share().held
                    if may_take(message.place, message.wants, self.others(worker), own, LIMIT):
                        message.held += message.wants
                        message.wants = 0
                        moved = True
                    else:
                        break
                if must_yield(worker.share(), self.others(worker), LIMIT, len(worker.unfinished)):
                    self.given_up.append(worker.unfinished.pop().place)
                    moved = True
            assert total(worker.share() for worker in self.workers) <= LIMIT

    def all_unfinished(self) -> list[Message]:
        return sorted((m for worker in self.workers for m in worker.unfinished), key=lambda m: m.place)


steps = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(1, LARGEST)), max_size=80)


@given(steps)
def test_the_bound_holds_and_the_oldest_progresses(script: list[tuple[int, int, int]]) -> None:
    """Never more than the limit is held; the oldest unfinished message is never given up, and gets what it wants as
    soon as what is finished has gone; and no two wait for each other for ever."""
    gateway = Gateway(3)
    for action, where, size in script:
        gateway.time += 1
        worker = gateway.workers[where]
        oldest = gateway.all_unfinished()[:1]
        if action <= 1:
            message = Message(gateway.time, size)
            worker.unfinished.append(message)
            oldest = oldest or [message]
            gateway.grow(worker, message, size if action else max(1, size // 3))
        elif action <= 3 and worker.unfinished:
            message = worker.unfinished[size % len(worker.unfinished)]
            if message.wants:
                continue
            if message.held < message.size:
                gateway.grow(worker, message, message.size - message.held)
            else:
                worker.unfinished.remove(message)
                worker.finished.append(message.held)
                oldest = []
        elif action == 4 and worker.finished:
            worker.finished.pop()
            gateway.settle()
        elif action == 5:  # it is killed
            gateway.workers[where] = Worker()
            oldest = []
            gateway.settle()
        if oldest:
            assert oldest[0].place not in gateway.given_up
    for worker in gateway.workers:
        worker.finished.clear()
    gateway.settle()
    waiting = next_in_line(worker.share() for worker in gateway.workers)
    assert waiting is None, "with nothing finished in the way, nobody waits"
