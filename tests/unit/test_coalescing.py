"""Like refusals become one record a second, and their sum stays exact."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.policy.coalescing import WINDOW_NS, Coalescer, count_of
from ipc.messages import AuditEvent


def _refusal(ip: str = "192.0.2.7", event: str = "connection.refused", **fields: Any) -> AuditEvent:
    fields = {"severity": "warning", "outcome": "refused", **fields}
    return AuditEvent(event=event, time_ns=0, peer_ip=ip, **fields)


def test_the_first_passes_and_the_rest_is_summed_up_once_a_second() -> None:
    """Of a flood one record comes at once and one at the end of each second, with how many it stands for."""
    coalescer = Coalescer()
    assert coalescer.offer(_refusal(), 0) is not None
    assert all(coalescer.offer(_refusal(), now) is None for now in range(1, 100))
    assert coalescer.due(WINDOW_NS - 1) == []
    (summary,) = coalescer.due(WINDOW_NS)
    assert summary.detail["count"] == 99
    assert coalescer.offer(_refusal(), WINDOW_NS + 1) is None  # the summary was this second's record
    assert [count_of(event) for event in coalescer.due(2 * WINDOW_NS)] == [1]
    assert coalescer.due(3 * WINDOW_NS) == []
    assert len(coalescer) == 0
    assert coalescer.offer(_refusal(), 4 * WINDOW_NS) is not None


def test_only_what_is_alike_is_merged() -> None:
    """Another address, reason or event has its own record; what isn't a refusal is never merged."""
    coalescer = Coalescer()
    unlike = [_refusal(), _refusal("192.0.2.8"), _refusal(reason="tls"), _refusal(event="rate.limited")]
    assert all(coalescer.offer(event, 0) is not None for event in unlike)
    call = _refusal(event="call.completed", outcome="failure")
    assert all(coalescer.offer(call, now) is not None for now in range(50))


def test_single_failed_authentications_are_all_listed() -> None:
    """The first ten of a second have records of their own; a flood is summed up."""
    coalescer = Coalescer()
    failed = _refusal(event="auth.failed", outcome="failure")
    assert sum(coalescer.offer(failed, now) is not None for now in range(100)) == 10
    assert [count_of(event) for event in coalescer.due(WINDOW_NS)] == [90]


def test_many_addresses_do_not_fill_the_memory() -> None:
    """Past the bound addresses are no longer told apart, but still counted."""
    coalescer = Coalescer(capacity=10)
    passed = sum(coalescer.offer(_refusal(str(number)), 0) is not None for number in range(1000))
    assert passed == 10
    assert len(coalescer) <= 11
    assert sum(count_of(event) for event in coalescer.everything()) == 990


@given(st.lists(st.tuples(st.integers(0, 700_000_000), st.sampled_from("abc"), st.integers(1, 5)), max_size=60))
def test_the_sum_is_exact(steps: list[tuple[int, str, int]]) -> None:
    """Whatever comes when, also already summed up, what is recorded adds up to what was offered."""
    coalescer = Coalescer(capacity=2)
    now = offered = recorded = 0
    for wait, ip, count in steps:
        now += wait
        event = _refusal(ip, detail={"count": count})
        offered += count
        passed = coalescer.offer(event, now)
        recorded += count_of(passed) if passed else 0
        recorded += sum(map(count_of, coalescer.due(now)))
    assert sum(map(count_of, coalescer.pending())) == offered - recorded
    assert recorded + sum(map(count_of, coalescer.everything())) == offered
