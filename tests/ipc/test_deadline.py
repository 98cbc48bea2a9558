"""Pending requests against a plain model: each is answered exactly once, by its own answer, end or deadline."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipc.callbacks import CallbackQueue
from ipc.deadline import PendingRequests
from ipc.errors import ActorDown, DeadlineExceeded
from ipc.messages import Done


class Bench:
    def __init__(self) -> None:
        self.sooner: list[int] = []
        self.errors: list[object] = []
        self.queue = CallbackQueue(lambda: None, lambda _where, error: self.errors.append(error))
        self.pending = PendingRequests(self.queue, self.sooner.append)


ACTIONS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from("ab"), st.integers(1, 2), st.integers(0, 30)),
    st.tuples(st.just("settle"), st.sampled_from("ab"), st.integers(1, 2), st.integers(1, 20)),
    st.tuples(st.just("forget"), st.sampled_from("ab"), st.just(0), st.integers(1, 20)),
    st.tuples(st.just("fail"), st.sampled_from("ab"), st.just(0), st.just(0)),
    st.tuples(st.just("expire"), st.just(""), st.just(0), st.integers(0, 30)),
)


@given(st.lists(ACTIONS, max_size=60))
def test_each_request_ends_once(actions: list[tuple[str, str, int, int]]) -> None:
    """Whatever the order of answers, ends and deadlines, the table does what a list of open requests would do, and
    its next deadline is never later than the earliest open one."""
    bench = Bench()
    model: dict[int, tuple[str, int, int]] = {}
    expected: list[tuple[int, str]] = []
    answers: list[tuple[int, str]] = []
    late = 0
    for action, actor, incarnation, number in actions:
        if action == "open":
            before = min((deadline for _, _, deadline in model.values()), default=None)
            cell: list[int] = []
            cell.append(
                bench.pending.open(
                    actor,
                    incarnation,
                    number,
                    lambda reply, cell=cell: answers.append((cell[0], type(reply).__name__)),
                    None,
                )
            )
            model[cell[0]] = (actor, incarnation, number)
            if before is None or number < before:
                assert min(bench.sooner) <= number
        elif action == "settle":
            if number in model and model[number][:2] == (actor, incarnation):
                del model[number]
                expected.append((number, "Done"))
                assert bench.pending.settle(actor, incarnation, number, Done(ok=True))
            else:
                late += 1
                assert not bench.pending.settle(actor, incarnation, number, Done(ok=True))
        elif action == "forget":
            bench.pending.forget(actor, number)
            if number in model and model[number][0] == actor:
                del model[number]
        elif action == "fail":
            bench.pending.fail(actor, "gone")
            for request in [request for request, entry in model.items() if entry[0] == actor]:
                del model[request]
                expected.append((request, ActorDown.__name__))
        else:
            following = bench.pending.expire(number)
            due = [(entry[2], request) for request, entry in model.items() if entry[2] <= number]
            for _, request in sorted(due):
                del model[request]
                expected.append((request, DeadlineExceeded.__name__))
            assert following == min((entry[2] for entry in model.values()), default=None)
        assert len(bench.pending) == len(model)
    bench.queue.run()
    assert answers == expected
    assert bench.pending.late == late
    assert bench.errors == []


def test_answered_requests_leave_the_heap() -> None:
    """However many requests are answered long before their deadline, memory follows those in flight."""
    bench = Bench()
    for number in range(10_000):
        request = bench.pending.open("a", 1, 10**9 + number, lambda _reply: None, None)
        bench.pending.settle("a", 1, request, Done(ok=True))
    assert len(bench.pending._heap) < 200
    assert bench.pending.expire(0) is None


def test_callbacks_of_one_turn_do_not_run_forever() -> None:
    """What a callback adds waits for the next turn, and the loop is told that there is one."""
    wakes: list[int] = []
    queue = CallbackQueue(lambda: wakes.append(len(wakes)), lambda _where, _error: None)
    calls: list[int] = []

    def again() -> None:
        calls.append(len(calls))
        queue.add(None, "again", again)

    queue.add(None, "again", again)
    queue.add(None, "nothing", lambda: None)
    for turn in range(3):
        assert len(calls) == turn
        seen = len(wakes)
        queue.add(None, "nothing", lambda: None)
        queue.run()
        assert len(wakes) > seen
    assert len(queue) == 1
