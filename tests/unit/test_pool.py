"""The pool: which instance serves what, when it is started, restarted and ended, and that every call has one end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_rig import META, PoolRig, Wire, private, shared

from actors.upstream.oversize import too_large_answer
from actors.upstream.pool import IDLE_NS, MAX_EARLY
from actors.upstream.slot import SECOND, START_TIMEOUT_NS, Failures
from ipc.settings import Upstream


def test_started_on_demand() -> None:
    """Attaching starts nothing; the first message does; later ones, of other sessions too, use the same instance."""
    rig = PoolRig((shared(),))
    for session in ("a", "b"):
        rig.pool.attach(session, "s")
    assert (rig.wires, rig.state()["state"]) == ([], "idle")
    rig.forward("a", 1, "tools/list")
    rig.forward("b", 1, "tools/list")
    [wire] = rig.wires
    assert len(wire.requests("tools/list")) == 2
    assert rig.changes == [("s", "up")]


def test_calls_wait_while_it_starts() -> None:
    """In order, and a cancelled or abandoned one isn't sent; nothing of one that went away either."""
    rig = PoolRig((shared(),), at_once=False)
    for session in ("a", "gone"):
        rig.pool.attach(session, "s")
    for call in (1, 2, 3, 4):
        rig.forward("a", call, f"m{call}")
    rig.forward("gone", 1, "m5")
    rig.forward("a", 2, "notifications/cancelled", {"requestId": "id-2"})
    rig.pool.abandon("a", 3, "timeout", rig.now)
    rig.pool.detach("gone", rig.now)
    assert rig.pool.in_flight == 2
    wire = rig.open_next()
    assert [message["method"] for message in wire.sent] == ["m1", "m4"]
    assert rig.failures == []


def test_calls_that_time_out_in_an_unanswered_handshake_count() -> None:
    """A server that was started and says nothing is silent: what times out while it waits counts, once the time for
    its handshake's answer is over as well; whatever it says before that clears it."""
    for spoke, outcomes in ((False, [("s", "silent")] * 2), (True, [])):
        rig = PoolRig((shared(),), at_once=False)
        for session in "ab":
            rig.pool.attach(session, "s")
            rig.initialize(session, 1)
        rig.pool.abandon("a", 1, "timeout", rig.now)
        rig.pool.abandon("b", 1, "timeout", rig.now)
        assert rig.outcomes == []
        instance = rig.opening.pop()
        instance.opened(Wire(instance, "s"), rig.now)
        for session in "ab":
            rig.initialize(session, 2)
            rig.pool.abandon(session, 2, "timeout", rig.now)
        if spoke:
            instance.line(b"npm notice", rig.now)
        rig.wait(10)
        assert rig.outcomes == outcomes


def test_waiting_is_bounded_in_time_and_bytes() -> None:
    """Past the buffer calls are refused; past the start's time limit all that wait fail unsent, with the reason."""
    rig = PoolRig((shared(),), at_once=False, settings={"max_buffer_size": 1000})
    rig.pool.attach("a", "s")
    for call in range(1, 30):
        rig.forward("a", call, "m", {"x": "y" * 50})
    overloaded = [failure for failure in rig.failures if failure[3] == "overloaded"]
    assert 10 < len(overloaded) < 29
    rig.wait(START_TIMEOUT_NS / SECOND + 1)
    assert len(rig.failures) == 29
    assert all(code == 503 and not sent for _, _, code, _, sent, _ in rig.failures)
    assert "not ready in time" in rig.failures[-1][3]
    assert rig.pool.in_flight == 0
    late = rig.opening[0]
    wire = Wire(late, "s")
    late.opened(wire, rig.now)
    assert wire.closed


def test_death_answers_everything_once() -> None:
    """502 for what was sent; one death for the breaker; what the dead instance says after that is ignored."""
    rig = PoolRig((shared(),))
    for session in ("a", "b"):
        rig.pool.attach(session, "s")
        rig.initialize(session, 1)
    for session in ("a", "b"):
        rig.forward(session, 2, "m")
    [wire] = rig.wires
    wire.instance.closed("exited with status 1", rig.now)
    wire.instance.closed("again", rig.now)
    wire.instance.line(b'{"jsonrpc":"2.0","id":1,"result":{}}', rig.now)
    assert sorted((f[0], f[1], f[2], f[4]) for f in rig.failures) == [("a", 2, 502, True), ("b", 2, 502, True)]
    assert "exited with status 1" in rig.failures[0][3]
    assert rig.outcomes == [("s", "death")]
    assert rig.pool.in_flight == 0


def test_restart_by_itself_at_once_then_with_backoff() -> None:
    """A shared instance with sessions comes back alone: at once, then later and later up to 5 s; in between calls fail
    at once and say how long to wait. Ten seconds of health begin the count anew."""
    rig = PoolRig((shared(),))
    rig.pool.attach("a", "s")
    rig.initialize("a", 1)
    gaps = []
    for _ in range(10):
        rig.wires[-1].instance.closed("died", rig.now)
        died, count = rig.now, len(rig.wires)
        rig.pool.tick(rig.now)
        if len(rig.wires) == count:
            rig.forward("a", 99, "m")
            _, call, code, _, sent, retry_after_ms = rig.failures[-1]
            assert (call, code, sent) == (99, 503, False)
            assert 0 < retry_after_ms <= 5000
        while len(rig.wires) == count:
            deadline = rig.pool.next_deadline()
            assert deadline is not None
            rig.now = deadline
            rig.pool.tick(rig.now)
        gaps.append((rig.now - died) / SECOND)
    assert gaps == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert all(wire.requests("initialize") for wire in rig.wires)
    rig.wait(11)
    rig.wires[-1].instance.closed("died", rig.now)
    count = len(rig.wires)
    rig.pool.tick(rig.now)
    assert len(rig.wires) == count + 1
    assert rig.changes[:3] == [("s", "up"), ("s", "down"), ("s", "restarted")]


def test_no_restart_without_sessions() -> None:
    """Nobody is attached: it is started again when somebody asks."""
    rig = PoolRig((shared(),))
    rig.pool.attach("a", "s")
    rig.initialize("a", 1)
    rig.pool.detach("a", rig.now)
    rig.wires[0].instance.closed("died", rig.now)
    rig.wait(60)
    assert len(rig.wires) == 1
    rig.pool.attach("b", "s")
    rig.initialize("b", 1)
    assert len(rig.wires) == 2
    assert rig.delivered[-1][3]["result"]["protocolVersion"] == "2025-11-25"


def test_crash_loop_on_demand_is_gated() -> None:
    """However often clients ask, a server that cannot start is tried at most every few seconds."""
    rig = PoolRig((shared(),), at_once=False)
    rig.pool.attach("a", "s")
    tries = 0
    for call in range(1, 601):
        rig.forward("a", call, "m")
        if rig.opening:
            tries += 1
            rig.opening.pop().failed("cannot start: its program does not exist", rig.now)
        rig.wait(0.1)
    assert 10 < tries < 25
    assert len(rig.failures) == 600
    assert all("its program does not exist" in failure[3] for failure in rig.failures)


def test_versions_get_instances_of_their_own() -> None:
    """One instance for each legacy version in use, one for all of the modern era and plain JSON-RPC."""
    rig = PoolRig((shared(),))
    for number, version in enumerate(("2024-11-05", "2025-06-18", "2025-11-25", "2025-11-25", "1999-01-01")):
        rig.pool.attach(number, "s")
        rig.initialize(number, 1, version)
    rig.pool.attach("modern", "s")
    rig.forward("modern", 1, "tools/list", {"_meta": META})
    rig.pool.attach("plain", "s")
    rig.forward("plain", 1, "anything")
    assert [wire.requests("initialize")[0]["params"]["protocolVersion"] for wire in rig.wires[:3]] == [
        "2024-11-05", "2025-06-18", "2025-11-25"
    ]
    assert len(rig.wires) == 4
    assert len(rig.wires[3].sent) == 2


def test_another_version_than_asked_is_an_alias() -> None:
    """Whoever asks for any version is served by the one instance of the version that the server speaks."""
    rig = PoolRig((shared(),), version="2024-11-05")
    for number, version in enumerate(("2025-06-18", "2025-11-25", "2024-11-05", "2025-06-18")):
        rig.pool.attach(number, "s")
        rig.initialize(number, 1, version)
        rig.forward(number, 2, "m")
    assert [wire.closed for wire in rig.wires] == [False, True]
    assert len(rig.wires[0].requests("m")) == 4
    assert all(message["result"]["protocolVersion"] == "2024-11-05" for *_, message in rig.delivered)
    assert [(i["key"], i["sessions"]) for i in rig.state()["instances"]] == [("2024-11-05", 4)]


def test_calls_follow_the_alias() -> None:
    """A call that waited for an instance that turned out to be an alias can still be given up where it went."""
    rig = PoolRig((shared(),), version="2024-11-05", at_once=False)
    rig.pool.attach("a", "s")
    rig.initialize("a", 1, "2024-11-05")
    rig.open_next()
    rig.pool.attach("b", "s", "2025-06-18")
    rig.forward("b", 1, "m")
    rig.open_next()
    [wire, other] = rig.wires
    assert (wire.sent[-1]["method"], other.closed) == ("m", True)
    rig.pool.abandon("b", 1, "timeout", rig.now)
    assert any(message["method"] == "notifications/cancelled" for message in wire.sent)
    assert rig.pool.in_flight == 0


def test_batching_version_is_never_negotiated() -> None:
    """2025-03-26: asked anew for 2024-11-05; a server that insists is no death of the upstream."""
    rig = PoolRig((shared(),), version="2025-03-26")
    rig.pool.attach("a", "s")
    rig.initialize("a", 1, "2025-11-25")
    asked = [wire.requests("initialize")[0]["params"]["protocolVersion"] for wire in rig.wires]
    assert asked == ["2025-11-25", "2024-11-05"]
    assert all(wire.closed for wire in rig.wires)
    assert [(f[1], f[2]) for f in rig.failures] == [(1, 503)]
    assert rig.outcomes == []


def test_version_changes_under_live_sessions() -> None:
    """A restarted server that now speaks another version: who was told the old one has to begin anew."""
    rig = PoolRig((shared(),))
    rig.pool.attach("a", "s")
    rig.initialize("a", 1)
    rig.version = "2025-06-18"
    rig.wires[0].instance.closed("died", rig.now)
    rig.wait(1)
    assert [session for session, _ in rig.losses] == ["a"]
    rig.forward("a", 2, "m")
    assert rig.failures[-1][:3] == ("a", 2, 503)


def test_refused_handshake_reaches_the_client() -> None:
    """A modern-only server's error to ``initialize`` is the client's answer, and no fault of the upstream."""
    rig = PoolRig((shared(),), at_once=False)
    rig.pool.attach("a", "s")
    rig.initialize("a", 1)
    instance = rig.opening.pop()
    wire = Wire(instance, "s")
    instance.opened(wire, rig.now)
    error = {"code": -32601, "message": "speak 2026-07-28"}
    rig.say(wire, {"jsonrpc": "2.0", "id": wire.sent[0]["id"], "error": error})
    assert rig.delivered == [("a", 1, True, {"jsonrpc": "2.0", "id": "id-1", "error": error})]
    assert (rig.outcomes, rig.failures, wire.closed, rig.pool.in_flight) == ([], [], True, 0)


def test_reattached_legacy_session() -> None:
    """A session that was initialised before this pool existed is served at its version without saying so again."""
    rig = PoolRig((shared(), private("p")))
    rig.pool.attach("a", "s", "2025-06-18")
    rig.pool.attach("b", "p", "2025-06-18")
    for session in ("a", "b"):
        rig.forward(session, 1, "tools/list")
    for wire in rig.wires:
        assert wire.requests("initialize")[0]["params"]["protocolVersion"] == "2025-06-18"
        assert wire.requests("tools/list")


def test_per_session_instances() -> None:
    """One for each session, ended with it; its death is told after its calls failed, and it is not restarted."""
    rig = PoolRig((private(),))
    for session in ("a", "b"):
        rig.pool.attach(session, "s")
        rig.initialize(session, 1)
        rig.forward(session, 2, "m")
    one, two = rig.wires
    assert one.sent[0]["id"] == "id-1"
    one.instance.line(b'{"jsonrpc":"2.0","method":"x"}', rig.now)
    one.instance.closed("exited with status 1", rig.now)
    assert [(f[0], f[1], f[2]) for f in rig.failures] == [("a", 1, 502), ("a", 2, 502)]
    assert [session for session, _ in rig.losses] == ["a"]
    rig.wait(60)
    rig.forward("a", 3, "m")
    assert rig.failures[-1][1:3] == (3, 503)
    assert len(rig.wires) == 2
    rig.pool.detach("b", rig.now)
    assert two.closed
    assert rig.state()["instances"] == []


def test_a_client_cannot_delay_others_by_crashing_its_own() -> None:
    """Servers that worked and died don't hold up the start of other sessions'; ones that never say a word do."""
    rig = PoolRig((private(),))
    for number in range(20):
        rig.pool.attach(number, "s")
        rig.initialize(number, 1)
        rig.say(rig.wires[-1], {"jsonrpc": "2.0", "id": "id-1", "result": {}})
        rig.wires[-1].instance.closed("exited with status 1", rig.now)
    assert len(rig.wires) == 20
    for number in range(20, 40):
        rig.pool.attach(number, "s")
        rig.initialize(number, 1)
        if not rig.wires[-1].closed:
            rig.wires[-1].instance.closed("exited with status 1", rig.now)
    assert len(rig.wires) < 25


def test_bulkhead_counts_each_call_once() -> None:
    """Answers, cancellations, abandonment and detachment all give the place back; other upstreams are not touched."""
    rig = PoolRig((shared(), shared("t")), settings={"upstream_max_inflight": 4})
    for session in ("a", "b"):
        rig.pool.attach(session, "s")
    rig.pool.attach("c", "t")
    for call in (1, 2, 3):
        rig.forward("a", call, "m")
    rig.forward("b", 1, "m")
    rig.forward("b", 2, "m")
    assert rig.failures == [("b", 2, 503, "overloaded", False, 1000)]
    rig.forward("c", 1, "m")
    [wire, _] = rig.wires
    rig.answer(wire, wire.requests("m")[0])
    rig.forward("a", 2, "notifications/cancelled", {"requestId": "id-2"})
    rig.pool.abandon("a", 3, "timeout", rig.now)
    rig.pool.abandon("a", 3, "timeout", rig.now)
    assert rig.state()["in_flight"] == 1
    rig.pool.detach("b", rig.now)
    assert rig.state()["in_flight"] == 0
    late = wire.requests("m")[1]
    rig.answer(wire, late)
    assert [(session, call) for session, call, *_ in rig.delivered] == [("a", 1)]


def test_upstream_that_does_not_read() -> None:
    """A refused message is kept and sent later; meanwhile new calls are refused, unsent, and memory is bounded."""
    rig = PoolRig((shared(),))
    rig.pool.attach("a", "s")
    rig.forward("a", 1, "m1")
    [wire] = rig.wires
    wire.room = False
    rig.forward("a", 2, "m2")
    rig.forward("a", 3, "m3")
    assert [(f[1], f[2], f[4]) for f in rig.failures] == [(3, 503, False)]
    for _ in range(5000):
        rig.forward("a", 0, "notifications/x")
    wire.room = True
    wire.instance.room()
    rig.forward("a", 4, "m4")
    methods = [message["method"] for message in wire.sent]
    assert [method for method in methods if method.startswith("m")] == ["m1", "m2", "m4"]
    assert len(methods) < 1100


def test_too_large_answer_fails_its_call() -> None:
    """502 response_too_large under the client's own id, and the place is given back."""
    rig = PoolRig((shared(),))
    rig.pool.attach("a", "s")
    rig.forward("a", 1, "m")
    [wire] = rig.wires
    head = b'{"jsonrpc":"2.0","id":%d,"result":{"x":"' % wire.sent[0]["id"]
    wire.instance.oversize(head, b'yyyy"}}', 10**9, rig.now)
    [(_, call, final, message)] = rig.delivered
    assert (call, final, message["id"]) == (1, True, "id-1")
    assert message["error"]["code"] == 502
    assert message["error"]["data"]["reason"] == "response_too_large"
    assert rig.pool.in_flight == 0
    wire.instance.oversize(b"xxxxxxxx", b"yyyy", 10**9, rig.now)
    assert len(rig.delivered) == 1


@pytest.mark.parametrize(
    ("head", "tail", "found"),
    [
        (b'{"jsonrpc":"2.0","id":12,"result":', b"", b"12"),
        (b'{"id": "a-b" , "jsonrpc": "2.0", "result":', b"", b'"a-b"'),
        (b'{"jsonrpc":"2.0","result":{', b'}},"id":-3}', b"-3"),
        (b'{"result":{', b'}, "id": 4, "jsonrpc": "2.0"}', b"4"),
        (b'{"jsonrpc":"2.0","result":{"id":5,', b"}}", None),
        (b'{"jsonrpc":"2.0","method":"m","params":{"id":5,', b'"id":5}}', None),
        (b"x" * 65536, b"y" * 4096, None),
        (b'{"id":' + b"1" * 1000, b"", None),
        (b" " * 65536, b',"id":' + b" " * 4000, None),
    ],
)
def test_whose_too_large_answer(head: bytes, tail: bytes, found: bytes | None) -> None:
    """The id is taken only from where it belongs to the message itself."""
    answer = too_large_answer(head, tail, 100_000)
    assert (answer is not None and b'"id":%s,' % (found or b"?") in answer) == (found is not None)
    assert (answer is None) == (found is None)


def test_idle_instances_are_ended() -> None:
    """After five minutes without a session; but the default upstream's last used one stays warm."""
    rig = PoolRig((shared(), shared("t")), settings={"health_check_enabled": False})
    for session, upstream in (("a", "s"), ("b", "t")):
        rig.pool.attach(session, upstream)
        rig.initialize(session, 1)
    rig.pool.attach("c", "s")
    rig.forward("c", 1, "m", {"_meta": META})
    rig.answer(rig.wires[2], rig.wires[2].requests("m")[0])
    rig.wait(IDLE_NS / SECOND + 5)
    assert not any(wire.closed for wire in rig.wires)
    rig.now += SECOND
    for session in ("a", "b", "c"):
        rig.pool.detach(session, rig.now)
        rig.now += SECOND
    rig.wait(IDLE_NS / SECOND - 10)
    assert not any(wire.closed for wire in rig.wires)
    rig.wait(30)
    assert [(wire.upstream, wire.closed) for wire in rig.wires] == [("s", True), ("t", True), ("s", False)]
    assert rig.outcomes == [("s", "success")]
    rig.pool.attach("d", "t")
    rig.initialize("d", 1)
    assert rig.delivered[-1][0] == "d"


def test_giving_up_may_come_first() -> None:
    """An abandoned call that arrives afterwards is not sent; what is remembered of it is bounded."""
    rig = PoolRig((shared(),))
    rig.pool.attach("a", "s")
    rig.pool.abandon("a", 1, "timeout", rig.now)
    rig.forward("a", 1, "m1")
    rig.forward("a", 2, "m2")
    assert [message["method"] for message in rig.wires[0].sent] == ["m2"]
    for call in range(100, 100 + 10 * MAX_EARLY):
        rig.pool.abandon("a", call, "timeout", rig.now)
    rig.forward("a", 100, "m3")
    assert rig.wires[0].sent[-1]["method"] == "m3"
    assert rig.failures == []


def test_drain() -> None:
    """New calls are refused as draining, cancellations still pass, and closing ends everything with an answer."""
    rig = PoolRig((shared(), private("p")))
    for session, upstream in (("a", "s"), ("b", "p")):
        rig.pool.attach(session, upstream)
        rig.forward(session, 1, "m")
        rig.forward(session, 2, "m")
    rig.pool.drain()
    rig.forward("a", 3, "m")
    assert rig.failures == [("a", 3, 503, "draining", False, 0)]
    rig.forward("a", 2, "notifications/cancelled", {"requestId": "id-2"})
    assert rig.wires[0].sent[-1]["method"] == "notifications/cancelled"
    assert rig.pool.in_flight == 3
    rig.pool.close_all(rig.now)
    assert all(wire.closed for wire in rig.wires)
    assert rig.pool.in_flight == 0
    assert len(rig.failures) == 4
    assert rig.outcomes == []
    assert rig.pool.next_deadline() is None


def test_changing_the_upstream() -> None:
    """A session attached to another upstream leaves the first; attached again to the same one it stays as it is."""
    rig = PoolRig((private(), shared("t")))
    rig.pool.attach("a", "s")
    rig.initialize("a", 1)
    rig.pool.attach("a", "s", "2025-11-25")
    assert not rig.wires[0].closed
    rig.pool.attach("a", "t")
    assert rig.wires[0].closed
    rig.forward("a", 2, "m")
    assert rig.wires[1].upstream == "t"
    with pytest.raises(KeyError):
        rig.pool.attach("b", "nowhere")


def test_backoff() -> None:
    """Jitter takes up to half of a delay, and a long life in between forgives."""
    failures = Failures()
    for jitter, expected in ((0.9, 0), (0.0, 100), (1.0, 100), (0.5, 300)):
        failures.add(0, settled=False, jitter=jitter)
        assert failures.wait_ms(0) == expected
    failures.add(0, settled=True, jitter=0)
    assert failures.wait_ms(0) == 0


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 3), st.sampled_from(["m", "tools/call", "subscriptions/listen"])),
        st.tuples(st.just("modern"), st.integers(0, 3), st.sampled_from(["m", "subscriptions/listen"])),
        st.tuples(st.just("initialize"), st.integers(0, 3), st.sampled_from(["2024-11-05", "2025-11-25", "x"])),
        st.tuples(st.sampled_from(["cancel", "abandon"]), st.integers(0, 3), st.integers(0, 40)),
        st.tuples(st.sampled_from(["detach", "attach"]), st.integers(0, 3), st.sampled_from(["s", "p"])),
        st.tuples(st.sampled_from(["open", "fail", "greet", "die", "answer", "stall"]), st.integers(0, 9), st.none()),
        st.tuples(st.just("wait"), st.floats(0, 400), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS, st.booleans())
def test_every_call_ends_exactly_once(operations: list[tuple[str, Any, Any]], at_once: bool) -> None:
    """Whatever happens in whatever order: no call is answered twice or after it was given up, and none is left
    unanswered at the end; what is counted in flight is what is in flight."""
    rig = PoolRig((shared(), private("p")), at_once=at_once, settings={"upstream_max_inflight": 5})
    waiting: dict[tuple[Any, int], str] = {}  # (session, call) -> method
    homes: dict[int, tuple[int, str]] = {}  # the client's number -> its session, and its upstream
    calls = 0
    serial = 0
    seen = [0, 0]

    def settle() -> None:
        for session, call, final, _ in rig.delivered[seen[0] :]:
            if call and final:
                del waiting[session, call]
        for session, call, *_ in rig.failures[seen[1] :]:
            del waiting[session, call]
        seen[:] = len(rig.delivered), len(rig.failures)

    for what, who, extra in operations:
        if what in ("call", "modern", "initialize") and who in homes:
            calls += 1
            session, _ = homes[who]
            method = "initialize" if what == "initialize" else extra
            waiting[session, calls] = method
            if what == "initialize":
                rig.initialize(session, calls, extra)
            else:
                rig.forward(session, calls, method, {"_meta": META} if what == "modern" else None)
        elif what in ("cancel", "abandon") and who in homes:
            session, _ = homes[who]
            if (session, extra) in waiting and waiting[session, extra] != "initialize":
                del waiting[session, extra]
                if what == "cancel":
                    rig.forward(session, extra, "notifications/cancelled", {"requestId": f"id-{extra}"})
                else:
                    rig.pool.abandon(session, extra, "timeout", rig.now)
        elif what == "attach" and who not in homes:
            serial += 1
            homes[who] = (serial, extra)
            rig.pool.attach(serial, extra)
        elif what == "detach" and who in homes:
            session, _ = homes.pop(who)
            for key in [key for key in waiting if key[0] == session]:
                del waiting[key]
            rig.pool.detach(session, rig.now)
        elif what == "open" and rig.opening:
            instance = rig.opening.pop(0)
            rig.open(rig.upstreams[0], instance)
        elif what == "fail" and rig.opening:
            rig.opening.pop(0).failed("cannot start", rig.now)
        elif what in ("die", "answer", "stall") and rig.wires:
            wire = rig.wires[who % len(rig.wires)]
            if what == "die":
                wire.instance.closed("died", rig.now)
            elif what == "stall":
                wire.room = not wire.room
            else:
                for request in wire.sent:
                    if "id" in request and "method" in request:
                        rig.answer(wire, request)
        elif what == "wait":
            rig.wait(who)
        settle()
        described = rig.pool.describe()["upstreams"]
        counted = sum(upstream["in_flight"] for upstream in described.values())
        assert counted == sum(method != "subscriptions/listen" for method in waiting.values())
    rig.pool.close_all(rig.now)
    settle()
    assert waiting == {}
    assert all(wire.closed for wire in rig.wires if wire.instance.transport is not None)


@pytest.mark.parametrize("kind", ["tcp", "ws", "http", "stdio"])
def test_a_silent_connection_is_replaced(kind: str) -> None:
    """One that does not answer the probe either is given up when it has been silent for as long as any call may take;
    the breaker hears of the silence, and of no death. What has no connection of its own is left alone."""
    upstream = Upstream(name="s", kind=kind)  # type: ignore[arg-type]
    rig = PoolRig((upstream,), settings={"circuitbreaker_failure_threshold": 1})
    for session in ("a", "b"):
        rig.pool.attach(session, "s")
        rig.initialize(session, 1)
    rig.forward("a", 2, "tools/call", {"name": "x"})
    rig.forward("b", 2, "tools/call", {"name": "long"})
    rig.pool.abandon("a", 2, "timeout", rig.now)
    rig.wait(8)
    assert rig.outcomes == [("s", "silent")]
    assert len(rig.wires) == 1
    rig.pool.abandon("b", 2, "timeout", rig.now)
    rig.wait(400)
    if kind in ("stdio", "http"):
        assert len(rig.wires) == 1
        return
    assert rig.wires[0].closed
    assert ("s", "death") not in rig.outcomes
    old, new = rig.wires
    assert old is not new
    rig.forward("a", 3, "m")
    assert new.requests("m")
