"""A per-session instance: everything passes unchanged, and still nothing is lost or answered twice."""

from __future__ import annotations

import json

import pytest

from actors.policy.jsonrpc import parse_client
from actors.policy.mux import CallLost, Counted, Effect, Mux, Outcome, ToClient, ToUpstream


class Bench:
    def __init__(self, version: str = "", **options: int) -> None:
        self.mux = Mux(version=version, shared=False, **options)
        assert self.mux.start(0) == []
        assert self.mux.ready
        self.mux.attach("a")

    def send(self, raw: bytes, call: int = 0, session: str = "a", now: int = 0) -> list[Effect]:
        return self.mux.from_client(session, call, parse_client(raw), raw, now)

    def up(self, raw: bytes, now: int = 0) -> list[Effect]:
        return self.mux.from_upstream(raw, now)


def test_nothing_is_changed_either_way() -> None:
    """Requests, tokens, progress, notifications and answers pass byte for byte, each with its call."""
    bench = Bench()
    raw = b'{"jsonrpc":"2.0","id":"q","method":"tools/call","params":{"_meta":{"progressToken":"q"}}}'
    assert bench.send(raw, call=4) == [ToUpstream(raw)]
    progress = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"\\u0071","progress":1}}'
    assert bench.up(progress) == [ToClient("a", 4, False, progress)]
    other = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
    assert bench.up(other) == [ToClient("a", 0, False, other)]
    answer = b'{"jsonrpc":"2.0","result":{ },"id":"\\u0071"}'
    assert bench.up(answer) == [ToClient("a", 4, True, answer), Outcome("success")]
    assert bench.up(answer) == [Counted("unknown_answer")]
    assert bench.send(other) == [ToUpstream(other)]


def test_server_requests_are_answered_by_the_client_once() -> None:
    """A response passes only while a request of that id waits for it."""
    bench = Bench()
    request = b'{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{}}'
    reply = b'{"jsonrpc":"2.0","id":1,"result":{}}'
    assert bench.send(reply) == [Counted("unknown_response")]
    assert bench.up(request) == [ToClient("a", 0, False, request)]
    assert bench.send(b'{"jsonrpc":"2.0","id":"1","result":{}}') == [Counted("unknown_response")]
    assert bench.send(reply) == [ToUpstream(reply)]
    assert bench.send(reply) == [Counted("unknown_response")]


def test_a_server_request_can_be_cancelled() -> None:
    """A cancelled one needs no answer any more."""
    bench = Bench()
    bench.up(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}')
    cancel = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}'
    assert bench.up(cancel) == [ToClient("a", 0, False, cancel)]
    assert bench.send(b'{"jsonrpc":"2.0","id":1,"result":{}}') == [Counted("unknown_response")]


def test_server_requests_are_bounded() -> None:
    """A server that asks without end is told so."""
    bench = Bench()
    for number in range(256):
        assert isinstance(bench.up(b'{"jsonrpc":"2.0","id":%d,"method":"roots/list"}' % number)[0], ToClient)
    for number in (256, 0):
        _, reply = bench.up(b'{"jsonrpc":"2.0","id":%d,"method":"roots/list"}' % number)
        assert isinstance(reply, ToUpstream)
        assert json.loads(reply.raw)["error"]["code"] == -32603


def test_one_id_names_one_server_request() -> None:
    """A server that uses an id again before it is answered is told so; the first use stands."""
    bench = Bench()
    request = b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}'
    assert isinstance(bench.up(request)[0], ToClient)
    assert [type(effect) for effect in bench.up(request)] == [Counted, ToUpstream]
    reply = b'{"jsonrpc":"2.0","id":1,"result":{}}'
    assert bench.send(reply) == [ToUpstream(reply)]


def test_batches_are_not_negotiated() -> None:
    """A client that asks for 2025-03-26 asks for 2025-11-25; a server that insists on it becomes an error."""
    bench = Bench()
    raw = (
        b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":'
        b'{"protocolVersion": "%b","capabilities":{"sampling":{}},"note":"2025-03-26"}}'
    )
    assert bench.send(raw % b"2025-03-26", call=1) == [ToUpstream(raw % b"2025-11-25")]
    (error, _) = bench.up(b'{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-03-26"}}')
    assert isinstance(error, ToClient)
    assert (error.call, error.final) == (1, True)
    document = json.loads(error.raw)
    assert (document["id"], document["error"]["code"]) == (0, -32602)

    assert bench.send(raw % b"2024-11-05", call=2) == [ToUpstream(raw % b"2024-11-05")]
    answer = b'{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2024-11-05"}}'
    assert bench.up(answer)[0] == ToClient("a", 2, True, answer)


def test_cancellation() -> None:
    """One's own call in flight, not initialize, nor anything else."""
    bench = Bench()
    bench.send(b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}', call=1)
    bench.send(b'{"jsonrpc":"2.0","id":1,"method":"x"}', call=2)
    cancel = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}'
    assert bench.send(cancel % 0, call=1) == [Counted("unknown_cancellation")]
    assert bench.send(cancel % 7) == [Counted("unknown_cancellation")]
    assert bench.send(b'{"jsonrpc":"2.0","method":"notifications/cancelled"}') == [Counted("unknown_cancellation")]
    assert bench.send(cancel % 1) == [ToUpstream(cancel % 1)]
    assert bench.up(b'{"jsonrpc":"2.0","id":1,"result":{}}') == [Counted("unknown_answer")]
    assert bench.mux.in_flight == 1


def test_the_end_of_a_subscription() -> None:
    """The server's cancellation of a listener is final for its call."""
    bench = Bench()
    bench.send(b'{"jsonrpc":"2.0","id":"L","method":"subscriptions/listen","params":{}}', call=3)
    notice = (
        b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed",'
        b'"params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"L"}}}'
    )
    assert bench.up(notice) == [ToClient("a", 3, False, notice)]
    end = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"L"}}'
    assert bench.up(end) == [ToClient("a", 3, True, end)]
    assert bench.mux.in_flight == 0


@pytest.mark.parametrize(("version", "method"), [("", "server/discover"), ("2025-11-25", "ping")])
def test_silence(version: str, method: str) -> None:
    """The probe's id is none of the client's; unanswered, the call was met with silence."""
    bench = Bench(version, probe_timeout_ns=100)
    bench.send(b'{"jsonrpc":"2.0","id":"portcullis-probe-1","method":"x"}', call=1)
    bench.send(b'{"jsonrpc":"2.0","id":2,"method":"y"}', call=2)
    cancelled, probe = bench.mux.abandon("a", 2, "timeout", 10)
    assert isinstance(cancelled, ToUpstream)
    assert isinstance(probe, ToUpstream)
    assert json.loads(cancelled.raw)["params"]["requestId"] == 2
    document = json.loads(probe.raw)
    assert (document["id"], document["method"]) == ("portcullis-probe-2", method)
    assert bench.mux.tick(110) == [Outcome("silent")]
    assert bench.up(b'{"jsonrpc":"2.0","id":"portcullis-probe-2","result":{}}') == []
    assert bench.mux.in_flight == 1


def test_death_and_detach_leave_nothing() -> None:
    """Calls in flight are lost with 502; a session that has gone is forgotten."""
    bench = Bench()
    bench.send(b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"progressToken":5}}}', call=1)
    assert bench.mux.closed("died", 0) == [CallLost("a", 1, 502, "died", True)]
    again = bench.send(b'{"jsonrpc":"2.0","id":1,"method":"x"}', call=2)
    assert again == [CallLost("a", 2, 503, "upstream down", False)]
    bench.mux.start(0)
    bench.send(b'{"jsonrpc":"2.0","id":1,"method":"x"}', call=3)
    bench.up(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}')
    assert bench.mux.detach("a", 0) == []
    assert set(bench.mux.table_sizes().values()) == {0}
    assert bench.up(b'{"jsonrpc":"2.0","method":"n"}') == [Counted("unattributed")]


def test_only_its_own_session() -> None:
    """There is one; another one's messages don't pass."""
    bench = Bench()
    bench.mux.attach("b")
    lost = bench.send(b'{"jsonrpc":"2.0","id":1,"method":"x"}', 1, "b")
    assert lost == [CallLost("b", 1, 503, "not attached", False)]
    assert bench.send(b'{"jsonrpc":"2.0","method":"x"}', 0, "b") == [Counted("unserved_notification")]
    assert bench.mux.sessions == 1


def test_an_answer_that_can_not_be_read_ends_its_call() -> None:
    """As with shared servers: the client gets an error under its own id in place of it, and doesn't wait."""
    bench = Bench()
    bench.send(b'{"jsonrpc":"2.0","id":"q","method":"m"}', call=3)
    log, garbage, answer, outcome = bench.up(b'{"jsonrpc":"2.0","id":"q","result":{"x":NaN}}')
    assert garbage == Counted("garbage")
    assert isinstance(answer, ToClient)
    assert (answer.session, answer.call, answer.final) == ("a", 3, True)
    assert json.loads(answer.raw)["id"] == "q"
    assert "error" in json.loads(answer.raw)
    assert outcome == Outcome("success")
    assert log is not None
