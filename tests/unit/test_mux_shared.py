"""A shared instance: what each client and the upstream get to see of each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.policy.jsonrpc import parse_client
from actors.policy.mux import (
    CallLost,
    Counted,
    Effect,
    HandshakeFailed,
    LogLine,
    Mux,
    Negotiated,
    Outcome,
    ToClient,
    ToUpstream,
)

LEGACY = "2025-11-25"
RESULT = b'{"protocolVersion":"2025-11-25" ,"capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1e0"}}'
META = '"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"%s}'


class Bench:
    """A multiplexer with some sessions, and short ways to drive it."""

    def __init__(self, version: str = "", sessions: str = "ab", **options: int) -> None:
        self.mux = Mux(version=version, shared=True, **options)
        self.now = 1
        self.call = 0
        self.effects: list[Effect] = []
        for session in sessions:
            self.mux.attach(session)
        self.start()

    def start(self) -> None:
        sent = self.mux.start(self.now)
        if self.mux.version:
            (hello,) = sent
            assert isinstance(hello, ToUpstream)
            self.hello = json.loads(hello.raw)

    def greet(self, result: bytes = RESULT) -> list[Effect]:
        return self.up(b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (self.hello["id"], result))

    def send(self, session: str, raw: bytes | str, call: int | None = None) -> list[Effect]:
        text = raw.encode() if isinstance(raw, str) else raw
        envelope = parse_client(text)
        if call is None:
            call = 0
            if envelope.kind == "request":
                self.call += 1
                call = self.call
        return self.mux.from_client(session, call, envelope, text, self.now)

    def up(self, raw: bytes | str) -> list[Effect]:
        return self.mux.from_upstream(raw.encode() if isinstance(raw, str) else raw, self.now)

    def request(self, session: str, raw: bytes | str) -> Any:
        """Send a request that must go upstream as it is; gives the minted id."""
        (sent,) = self.send(session, raw)
        assert isinstance(sent, ToUpstream)
        return json.loads(sent.raw)["id"]

    def ask(self, session: str, method: str, params: str, id: str = "1") -> list[Effect]:
        return self.send(session, f'{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{{params}}}}}')

    def answer(self, minted: int, result: str = "{}") -> list[Effect]:
        return self.up(f'{{"jsonrpc":"2.0","id":{minted},"result":{result}}}')

    def fail(self, minted: int) -> list[Effect]:
        return self.up(f'{{"jsonrpc":"2.0","id":{minted},"error":{{"code":-32601,"message":"no"}}}}')

    def notify(self, method: str, params: str = "{}") -> list[Effect]:
        return self.up(f'{{"jsonrpc":"2.0","method":"{method}","params":{params}}}')


def legacy(sessions: str = "ab", **options: int) -> Bench:
    """A bench whose handshake is done and whose sessions are initialised."""
    bench = Bench(LEGACY, sessions, **options)
    bench.greet()
    for session in sessions:
        bench.ask(session, "initialize", '"protocolVersion":"2025-11-25","capabilities":{}')
        assert bench.send(session, '{"jsonrpc":"2.0","method":"notifications/initialized"}') == []
    return bench


def upstream_messages(effects: list[Effect]) -> list[Any]:
    return [json.loads(effect.raw) for effect in effects if isinstance(effect, ToUpstream)]


def received(effects: list[Effect]) -> list[tuple[Any, int, bool]]:
    return [(effect.session, effect.call, effect.final) for effect in effects if isinstance(effect, ToClient)]


# --- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_id", [b"1", b'"1"', b"-0", b"9007199254740993", b'"\\u0041"', b"1" * 200])
@pytest.mark.parametrize(
    "layout", [b'{"jsonrpc":"2.0","id":%b,"result":{"id":1}}', b'{"result":[%%],"jsonrpc":"2.0","id":%b}']
)
def test_ids_are_minted_and_restored_to_the_byte(client_id: bytes, layout: bytes) -> None:
    """Two clients with the same id get their own answers, with nothing but the id changed, in both directions."""
    bench = Bench()
    raw = b'{"jsonrpc":"2.0", "id" : %b,"method":"x","params":{"a":[1, 2.0]}}' % client_id
    minted = {}
    for session in "ab":
        (sent,) = bench.send(session, raw)
        assert isinstance(sent, ToUpstream)
        own = json.loads(sent.raw)["id"]
        assert sent.raw == raw.replace(client_id, b"%d" % own, 1)
        minted[session] = own
    assert minted["a"] != minted["b"]
    layout = layout.replace(b"%%", b"1")
    for session, number in (("b", 2), ("a", 1)):
        effects = bench.up(layout % b"%d" % minted[session])
        assert effects == [ToClient(session, number, True, layout % client_id), Outcome("success")]
    assert bench.mux.in_flight == 0


def test_answers_to_nobody_are_counted() -> None:
    """An answer to an id that was never minted, was answered already or is written as a string goes nowhere."""
    bench = Bench()
    minted = bench.request("a", '{"jsonrpc":"2.0","id":5,"method":"x"}')
    for wrong in ("5", '"5"', "null", f'"{minted}"', str(minted + 1), f"-{minted}"):
        assert bench.answer(wrong) == [Counted("unknown_answer")]  # type: ignore[arg-type]
    assert received(bench.answer(minted)) == [("a", 1, True)]
    assert bench.answer(minted) == [Counted("unknown_answer")]


def test_upstream_lines_are_one_line() -> None:
    """A client's line breaks between tokens never reach a line-framed upstream."""
    bench = Bench()
    (sent,) = bench.send("a", b'{"jsonrpc":"2.0",\r\n"id":1,\n"method":"x"}')
    assert isinstance(sent, ToUpstream)
    assert sent.raw == b'{"jsonrpc":"2.0",  "id":1, "method":"x"}'


def test_garbage_is_logged_escaped_and_bounded() -> None:
    """What isn't a message goes to the log, where it can do no harm."""
    bench = Bench()
    line, counted = bench.up(b"\x1b[31mred\x07\n" + b"x" * 100_000)
    assert isinstance(line, LogLine)
    assert counted == Counted("garbage")
    assert line.text.isascii()
    assert line.text.isprintable()
    assert len(line.text) < 10_000


# --- progress and cancellation --------------------------------------------------------------------------------------


def test_progress_goes_to_its_owner_while_the_call_is_in_flight() -> None:
    """The token is minted and restored; a token that belongs to no call in flight is dropped."""
    bench = Bench()
    raw = '{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"progressToken":"t\\u0041"}}}'
    minted = {}
    for session in "ab":
        (sent,) = upstream_messages(bench.send(session, raw))
        assert sent["params"]["_meta"]["progressToken"] == sent["id"]
        minted[session] = sent["id"]
    assert bench.notify("notifications/progress", f'{{"progressToken":{minted["b"]},"progress":1}}') == [
        ToClient(
            "b",
            2,
            False,
            b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t\\u0041","progress":1}}',
        )
    ]
    bench.answer(minted["b"])
    for token in (str(minted["b"]), '"t\\u0041"', f'"{minted["a"]}"', "null"):
        effects = bench.notify("notifications/progress", f'{{"progressToken":{token},"progress":2}}')
        assert effects == [Counted("unknown_progress")]


def test_id_and_token_in_any_order() -> None:
    """The official SDKs write params, and the token in it, in front of the id."""
    bench = Bench()
    raw = b'{"method":"x","params":{"_meta":{"progressToken":7},"a":7},"jsonrpc":"2.0","id":7}'
    (sent,) = bench.send("a", raw)
    assert sent == ToUpstream(b'{"method":"x","params":{"_meta":{"progressToken":1},"a":7},"jsonrpc":"2.0","id":1}')


def test_no_progress_without_a_token() -> None:
    """A server that invents a token from the request's id is not listened to."""
    bench = Bench()
    minted = bench.request("a", '{"jsonrpc":"2.0","id":5,"method":"x"}')
    assert bench.notify("notifications/progress", f'{{"progressToken":{minted}}}') == [Counted("unknown_progress")]


def test_a_token_in_a_notification_is_nobodys() -> None:
    """A client can't name another's token by way of a notification."""
    bench = Bench()
    victim = bench.request("b", '{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"progressToken":1}}}')
    raw = '{"jsonrpc":"2.0","method":"n","params":{"_meta":{"progressToken":%d}}}'
    (sent,) = upstream_messages(bench.send("a", raw % victim))
    assert sent["params"]["_meta"]["progressToken"] != victim


def test_cancel_only_ones_own() -> None:
    """A cancellation is mapped to the call of the same session; its late answer is swallowed."""
    bench = Bench()
    ids = {session: bench.request(session, '{"jsonrpc":"2.0","id":"q","method":"x"}') for session in "ab"}
    raw = '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId": %s ,"reason":"r"}}'
    for target in ('"other"', str(ids["b"]), '"Q"'):
        assert bench.send("a", raw % target) == [Counted("unknown_cancellation")]
    (sent,) = bench.send("a", raw % '"q"', call=1)
    assert isinstance(sent, ToUpstream)
    assert sent.raw == (raw % ids["a"]).encode()
    assert bench.mux.in_flight == 1
    assert bench.answer(ids["a"]) == [Counted("unknown_answer")]
    assert received(bench.answer(ids["b"])) == [("b", 2, True)]


def test_cancel_finds_the_call_by_id() -> None:
    """Where the owner doesn't know which call is named, the id says it, however it is spelt."""
    bench = Bench()
    minted = bench.request("a", '{"jsonrpc":"2.0","id":"q","method":"x"}')
    raw = '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"\\u0071"}}'
    assert upstream_messages(bench.send("a", raw))[0]["params"]["requestId"] == minted


def test_clients_cannot_speak_out_of_turn() -> None:
    """Responses, progress and roots changes of a client mean nothing on a shared instance."""
    bench = Bench()
    assert bench.send("a", '{"jsonrpc":"2.0","id":1,"result":{}}') == [Counted("unknown_response")]
    for method in ("notifications/progress", "notifications/roots/list_changed"):
        raw = f'{{"jsonrpc":"2.0","method":"{method}","params":{{"progressToken":1}}}}'
        assert bench.send("a", raw) == [Counted("meaningless_notification")]


def test_server_requests_are_answered_here() -> None:
    """ping gets its answer, anything else an error; no client sees any of it."""
    bench = legacy()
    assert bench.up('{"jsonrpc":"2.0","id":"p","method":"ping"}') == [
        ToUpstream(b'{"jsonrpc":"2.0","id":"p","result":{}}')
    ]
    effects = bench.up('{"jsonrpc":"2.0","id":9,"method":"sampling/createMessage","params":{}}')
    assert received(effects) == []
    (reply,) = upstream_messages(effects)
    assert (reply["id"], reply["error"]["code"]) == (9, -32601)


# --- timeouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "method"), [("", "server/discover"), (LEGACY, "ping")])
def test_silence_is_probed_and_reported(version: str, method: str) -> None:
    """Calls that time out with nothing heard since share one probe; each counts as silent when it fails."""
    bench = legacy(probe_timeout_ns=100) if version else Bench(probe_timeout_ns=100)
    before = bench.call
    first = bench.request("a", '{"jsonrpc":"2.0","id":1,"method":"tools/call"}')
    bench.request("b", '{"jsonrpc":"2.0","id":1,"method":"x"}')
    cancelled, probe = upstream_messages(bench.mux.abandon("a", before + 1, "timeout", 10))
    assert cancelled["params"] == {"requestId": first, "reason": "timeout"}
    assert probe["method"] == method
    if not version:
        meta = probe["params"]["_meta"]
        assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
        assert meta["io.modelcontextprotocol/clientCapabilities"] == {}
    assert len(bench.mux.abandon("b", before + 2, "timeout", 20)) == 1  # no second probe
    assert bench.mux.tick(109) == []
    assert bench.mux.tick(110) == [Outcome("silent"), Outcome("silent")]
    assert bench.mux.tick(999) == []


def test_an_answered_probe_ends_the_suspicion() -> None:
    """Any well-formed answer counts, an error too; and the answer goes to nobody."""
    bench = Bench(probe_timeout_ns=100)
    bench.request("a", '{"jsonrpc":"2.0","id":1,"method":"x"}')
    _, probe = upstream_messages(bench.mux.abandon("a", 1, "timeout", 10))
    assert bench.fail(probe["id"]) == []
    assert bench.mux.tick(1000) == []


def test_each_suspicion_gets_its_own_probe() -> None:
    """After an answer, the next call that meets silence is probed for anew."""
    bench = Bench(probe_timeout_ns=100)
    for call in (1, 2):
        bench.request("a", '{"jsonrpc":"2.0","id":1,"method":"x"}')
        _, probe = upstream_messages(bench.mux.abandon("a", call, "timeout", 10))
        bench.answer(probe["id"])
    assert bench.mux.tick(1000) == []


def test_a_slow_call_is_not_silence() -> None:
    """Where something came since the call was sent, no probe is sent; a slow tool isn't even slow."""
    bench = Bench()
    bench.request("a", '{"jsonrpc":"2.0","id":1,"method":"tools/call"}')
    bench.request("a", '{"jsonrpc":"2.0","id":2,"method":"tools/list"}')
    bench.notify("notifications/whatever")
    assert [type(effect) for effect in bench.mux.abandon("a", 1, "timeout", 10)] == [ToUpstream]
    assert bench.mux.abandon("a", 2, "timeout", 10)[1:] == [Outcome("slow")]


def test_late_answers_are_slow() -> None:
    """An answer after the threshold counts as slow, except for a tool's."""
    bench = Bench(slow_call_ns=100)
    for method, kind in (("tools/list", "slow"), ("tools/call", "success")):
        minted = bench.request("a", f'{{"jsonrpc":"2.0","id":1,"method":"{method}"}}')
        bench.now += 101
        assert bench.answer(minted)[1:] == [Outcome(kind)]  # type: ignore[arg-type]


def test_slow_tools_count_where_the_server_asks_for_it() -> None:
    """Then a tool's late answer is slow, and so is a call of one that was given up while the server spoke."""
    bench = Bench(slow_call_ns=100, slow_tool_calls=True)
    minted = bench.request("a", '{"jsonrpc":"2.0","id":1,"method":"tools/call"}')
    bench.now += 101
    assert bench.answer(minted)[1:] == [Outcome("slow")]
    bench.request("a", '{"jsonrpc":"2.0","id":2,"method":"tools/call"}')
    bench.notify("notifications/whatever")
    assert bench.mux.abandon("a", 2, "timeout", bench.now)[1:] == [Outcome("slow")]


def test_abandon_is_idempotent() -> None:
    """A call that has ended, or never was, can be given up without effect."""
    bench = Bench()
    minted = bench.request("a", '{"jsonrpc":"2.0","id":1,"method":"x"}')
    assert len(bench.mux.abandon("a", 1, "closed", 5)) == 1
    assert bench.mux.abandon("a", 1, "closed", 5) == []
    assert bench.mux.abandon("b", 1, "timeout", 5) == []
    assert bench.answer(minted) == [Counted("unknown_answer")]


# --- the end of the upstream or of a session --------------------------------------------------------------------------


def test_the_upstreams_death_loses_every_call_once() -> None:
    """Sent calls are lost with 502; afterwards new ones fail at once, until it is started again."""
    bench = Bench()
    for session in "ab":
        bench.request(session, '{"jsonrpc":"2.0","id":1,"method":"tools/call"}')
    assert bench.mux.closed("died", 5) == [CallLost("a", 1, 502, "died", True), CallLost("b", 2, 502, "died", True)]
    assert bench.mux.closed("died", 5) == []
    assert not bench.mux.ready
    (lost,) = bench.send("a", '{"jsonrpc":"2.0","id":2,"method":"x"}')
    assert isinstance(lost, CallLost)
    assert (lost.code, lost.sent) == (503, False)
    bench.start()
    assert bench.request("a", '{"jsonrpc":"2.0","id":2,"method":"x"}') > 2  # ids go on: none is used twice


def test_detach_cancels_and_forgets() -> None:
    """A client that goes leaves nothing behind, and hears nothing more."""
    bench = Bench()
    minted = bench.request("a", '{"jsonrpc":"2.0","id":1,"method":"x"}')
    (cancelled,) = upstream_messages(bench.mux.detach("a", 5))
    assert cancelled["params"]["requestId"] == minted
    assert bench.answer(minted) == [Counted("unknown_answer")]
    assert bench.mux.detach("a", 5) == []
    bench.mux.detach("b", 5)
    assert set(bench.mux.table_sizes().values()) == {0}


def test_calls_are_bounded() -> None:
    """Past the hard bound a call is refused before anything is sent."""
    bench = Bench(max_calls=1)
    bench.request("a", '{"jsonrpc":"2.0","id":1,"method":"x"}')
    assert bench.send("b", '{"jsonrpc":"2.0","id":1,"method":"x"}') == [CallLost("b", 2, 503, "overloaded", False)]


def test_a_call_number_in_use_is_refused() -> None:
    """Whatever its owner does, a call that is in flight is not replaced by another one."""
    bench = Bench()
    minted = bench.request("a", '{"jsonrpc":"2.0","id":"first","method":"x"}')
    again = bench.send("a", '{"jsonrpc":"2.0","id":"second","method":"x"}', call=1)
    assert [type(effect) for effect in again] == [CallLost]
    (answer, _) = bench.answer(minted)
    assert isinstance(answer, ToClient)
    assert json.loads(answer.raw)["id"] == "first"


# --- subscriptions/listen -------------------------------------------------------------------------------------------


def test_listen_is_mapped_both_ways() -> None:
    """Each listener gets its own notifications and the end of its own stream, under the id that it chose."""
    bench = Bench()
    key = "io.modelcontextprotocol/subscriptionId"
    ids = {s: upstream_messages(bench.ask(s, "subscriptions/listen", META % "", '"L"'))[0]["id"] for s in "ab"}
    for number, session in enumerate("ab", 1):
        effects = bench.notify(
            "notifications/tools/list_changed", f'{{"_meta":{{"x":1,"{key}":{ids[session]}}}}}'
        )
        assert received(effects) == [(session, number, False)]
        assert isinstance(effects[0], ToClient)
        assert json.loads(effects[0].raw)["params"]["_meta"] == {"x": 1, key: "L"}
    for wrong in ('"L"', "99", f'"{ids["a"]}"'):
        effects = bench.notify("notifications/tools/list_changed", f'{{"_meta":{{"{key}":{wrong}}}}}')
        assert effects == [Counted("unknown_subscription")]
    effects = bench.answer(ids["b"], f'{{"resultType":"complete","_meta":{{"{key}":{ids["b"]}}}}}')
    (end,) = effects
    assert isinstance(end, ToClient)
    assert (end.session, end.call, end.final) == ("b", 2, True)
    document = json.loads(end.raw)
    assert document["id"] == document["result"]["_meta"][key] == "L"
    effects = bench.notify("notifications/tools/list_changed", f'{{"_meta":{{"{key}":{ids["b"]}}}}}')
    assert effects == [Counted("unknown_subscription")]


def test_a_subscription_id_of_an_ordinary_call_is_none() -> None:
    """Only calls that listen have subscriptions."""
    bench = Bench()
    minted = bench.request("a", '{"jsonrpc":"2.0","id":5,"method":"x"}')
    params = f'{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{minted}}}}}'
    assert bench.notify("notifications/message", params) == [Counted("unknown_subscription")]


def test_a_server_ends_a_subscription() -> None:
    """notifications/cancelled of the server ends a listener's call, and no other call."""
    bench = Bench()
    (listen,) = upstream_messages(bench.ask("a", "subscriptions/listen", META % "", '"L"'))
    other = bench.request("b", '{"jsonrpc":"2.0","id":5,"method":"x"}')
    assert bench.notify("notifications/cancelled", f'{{"requestId":{other}}}') == [Counted("unknown_cancellation")]
    (end,) = bench.notify("notifications/cancelled", f'{{"requestId":{listen["id"]}}}')
    assert end == ToClient(
        "a", 1, True, b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"L"}}'
    )
    assert bench.mux.in_flight == 1


def test_a_listener_cancels_or_goes() -> None:
    """Both end the subscription upstream."""
    bench = Bench()
    ids = [upstream_messages(bench.ask(s, "subscriptions/listen", META % ""))[0]["id"] for s in "ab"]
    raw = '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}'
    (cancel,) = upstream_messages(bench.send("a", raw, call=1))
    (gone,) = upstream_messages(bench.mux.detach("b", 5))
    assert [cancel["params"]["requestId"], gone["params"]["requestId"]] == ids
    assert bench.mux.in_flight == 0


# --- what belongs to nobody -----------------------------------------------------------------------------------------


def test_unknown_notifications_are_never_broadcast() -> None:
    """With one client attached it is meant for that one; with more it goes to the log."""
    assert received(Bench(sessions="a").notify("notifications/custom")) == [("a", 0, False)]
    effects = Bench(sessions="ab").notify("notifications/custom", '{"secret":1}')
    assert received(effects) == []
    assert [type(effect) for effect in effects] == [LogLine, Counted]


def test_list_changed_goes_to_all_who_are_initialised() -> None:
    """It says nothing of anybody; a session that hasn't finished its handshake isn't told."""
    bench = legacy("ab")
    bench.mux.attach("new")
    assert received(bench.notify("notifications/tools/list_changed")) == [("a", 0, False), ("b", 0, False)]


def test_modern_log_messages_need_a_request_that_asked() -> None:
    """Only a call that carries a log level can have caused one; if two sessions have such calls, nobody gets it."""
    bench = Bench()
    level = ',"io.modelcontextprotocol/logLevel":"warning"'
    bench.ask("b", "tools/call", META % "")
    assert received(bench.notify("notifications/message", '{"level":"error"}')) == []
    bench.ask("a", "tools/call", META % level)
    assert received(bench.notify("notifications/message", '{"level":"error"}')) == [("a", 0, False)]
    assert bench.notify("notifications/message", '{"level":"info"}') == [Counted("filtered_log_message")]
    bench.ask("b", "tools/call", META % level, "2")
    effects = bench.notify("notifications/message", '{"level":"error"}')
    assert [type(effect) for effect in effects] == [LogLine, Counted]


def test_a_level_that_is_set_asks_for_nothing_yet() -> None:
    """Without a handshake, logging/setLevel is a request like any other: its level isn't its own wish."""
    bench = Bench()
    bench.ask("a", "tools/call", META % "")
    bench.ask("b", "logging/setLevel", '"level":"debug"')
    assert received(bench.notify("notifications/message", '{"level":"error"}')) == []


# --- the legacy handshake -------------------------------------------------------------------------------------------


def test_the_handshake_is_the_gateways_own() -> None:
    """initialize declares nothing that couldn't be routed; initialized follows before any client's message."""
    bench = Bench(LEGACY)
    assert bench.hello["method"] == "initialize"
    assert bench.hello["params"]["protocolVersion"] == LEGACY
    assert bench.hello["params"]["capabilities"] == {}
    assert bench.hello["params"]["clientInfo"]["name"] == "portcullis"
    assert bench.ask("a", "initialize", '"protocolVersion":"2025-11-25"') == []
    assert bench.ask("a", "tools/list", "") == []
    assert not bench.mux.ready
    assert bench.mux.in_flight == 2
    effects = bench.greet()
    assert [type(effect) for effect in effects] == [ToUpstream, Negotiated, ToClient, ToUpstream]
    assert upstream_messages(effects)[0] == {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert effects[1] == Negotiated(LEGACY)
    assert upstream_messages(effects)[1]["method"] == "tools/list"
    assert bench.mux.ready


def test_every_client_gets_the_servers_own_answer() -> None:
    """Byte for byte, but for the id; the server hears of no second client."""
    bench = Bench(LEGACY)
    bench.greet()
    for session, client_id in (("a", "0"), ("b", '"x\\n"'), ("a", "7")):
        effects = bench.ask(session, "initialize", '"protocolVersion":"2025-06-18"', client_id)
        assert effects == [
            ToClient(session, bench.call, True, b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (client_id.encode(), RESULT))
        ]


def test_a_refused_handshake_is_passed_on() -> None:
    """Clients get the server's own error; what else waits fails unsent."""
    bench = Bench(LEGACY)
    bench.ask("a", "initialize", '"protocolVersion":"2025-11-25"', '"i"')
    bench.ask("b", "tools/call", '"name":"x"')
    effects = bench.fail(bench.hello["id"])
    assert effects[0] == ToClient(
        "a", 1, True, b'{"jsonrpc":"2.0","id":"i","error":{"code":-32601,"message":"no"}}'
    )
    assert isinstance(effects[1], CallLost)
    assert (effects[1].session, effects[1].code, effects[1].sent) == ("b", 503, False)
    assert isinstance(effects[2], HandshakeFailed)
    assert len(effects) == 3
    assert received(bench.ask("b", "initialize", '"protocolVersion":"2025-11-25"')) == [("b", 3, True)]
    assert bench.mux.in_flight == 0


@pytest.mark.parametrize("result", [b"{}", b"[]", b"null", b'{"protocolVersion":7}'])
def test_a_handshake_without_a_version_fails(result: bytes) -> None:
    """An answer that names no version is none."""
    bench = Bench(LEGACY)
    assert [type(effect) for effect in bench.greet(result)] == [HandshakeFailed]
    assert not bench.mux.ready


def test_a_server_that_insists_on_batches_is_of_no_use() -> None:
    """2025-03-26 is reported, and not used."""
    bench = Bench(LEGACY)
    bench.ask("a", "initialize", '"protocolVersion":"2025-11-25"')
    effects = bench.greet(b'{"protocolVersion":"2025-03-26"}')
    assert [type(effect) for effect in effects] == [CallLost, Negotiated]
    assert not bench.mux.ready


def test_a_handshake_has_its_time() -> None:
    """Past the deadline waiting calls fail unsent; an answer after that changes nothing."""
    bench = Bench(LEGACY, handshake_timeout_ns=100)
    bench.ask("a", "tools/list", "")
    assert bench.mux.tick(100) == []
    lost, failed = bench.mux.tick(101)
    assert isinstance(lost, CallLost)
    assert (lost.code, lost.sent) == (503, False)
    assert isinstance(failed, HandshakeFailed)
    assert bench.mux.tick(500) == []
    assert bench.greet() == [Counted("unknown_answer")]


def test_what_waits_is_bounded_and_can_be_given_up() -> None:
    """Messages and bytes are bounded; cancelled, abandoned and detached ones go; initialize can't be cancelled."""
    bench = Bench(LEGACY, max_held=3)
    cancel = '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%s}}'
    bench.ask("a", "initialize", "", '"i"')
    bench.ask("a", "x", "", "2")
    bench.ask("b", "x", "", "2")
    assert bench.ask("a", "x", "", "3") == [CallLost("a", 4, 503, "overloaded", False)]
    assert bench.send("a", cancel % '"i"', call=1) == [Counted("unknown_cancellation")]
    assert bench.send("a", cancel % "2", call=2) == []
    assert bench.mux.in_flight == 2
    assert bench.mux.abandon("b", 3, "timeout", 5) == []
    bench.mux.detach("a", 5)
    assert bench.mux.in_flight == 0
    assert bench.mux.table_sizes()["held_bytes"] == 0
    tight = Bench(LEGACY, max_held_bytes=100)
    assert isinstance(tight.ask("a", "x", f'"y":"{"z" * 100}"')[0], CallLost)


def test_death_during_the_handshake() -> None:
    """What waited was never sent."""
    bench = Bench(LEGACY)
    bench.ask("a", "tools/list", "")
    assert bench.mux.closed("died", 5) == [CallLost("a", 1, 503, "died", False)]


# --- legacy: resource subscriptions ----------------------------------------------------------------------------------


def test_resource_subscriptions_are_counted_by_uri() -> None:
    """Updates go to the subscribers of the URI or of what it is a part of; the last one to leave ends it upstream."""
    bench = legacy("abc")
    for session, uri in (("a", "file:///d"), ("b", "file:///d"), ("b", "file:///x")):
        (sent,) = upstream_messages(bench.ask(session, "resources/subscribe", f'"uri":"{uri}"'))
        bench.answer(sent["id"])

    def told(uri: str) -> set[Any]:
        effects = bench.notify("notifications/resources/updated", f'{{"uri":"{uri}"}}')
        return {session for session, _, _ in received(effects)}

    assert told("file:///d") == {"a", "b"}
    assert told("file:///d/e/f") == {"a", "b"}
    assert told("file:///x") == {"b"}
    assert told("file:///dd") == told("file://") == told("") == told("/" * 100_000) == set()
    effects = bench.ask("a", "resources/unsubscribe", '"uri":"file:///d"', '"u"')
    assert effects == [ToClient("a", bench.call, True, b'{"jsonrpc":"2.0","id":"u","result":{}}')]
    assert told("file:///d") == {"b"}
    (sent,) = upstream_messages(bench.ask("b", "resources/unsubscribe", '"uri":"file:///d"'))
    assert sent["method"] == "resources/unsubscribe"
    assert told("file:///d") == set()


def test_leaving_unsubscribes_if_last() -> None:
    """A session that goes is followed by an own unsubscribe only where nobody else is interested."""
    bench = legacy()
    for session, uri in (("a", "u:1"), ("a", "u:2"), ("b", "u:2")):
        bench.answer(upstream_messages(bench.ask(session, "resources/subscribe", f'"uri":"{uri}"'))[0]["id"])
    (sent,) = upstream_messages(bench.mux.detach("a", 5))
    assert (sent["method"], sent["params"]) == ("resources/unsubscribe", {"uri": "u:1"})
    assert bench.answer(sent["id"]) == []


def test_a_failed_subscription_is_none() -> None:
    """An error takes the subscription back."""
    bench = legacy()
    (sent,) = upstream_messages(bench.ask("a", "resources/subscribe", '"uri":"u:1"'))
    effects = bench.fail(sent["id"])
    assert received(effects) == [("a", bench.call, True)]
    assert received(bench.notify("notifications/resources/updated", '{"uri":"u:1"}')) == []


def test_a_second_subscription_that_fails_leaves_the_first() -> None:
    """Only what a request has changed is taken back."""
    bench = legacy()
    for fails in (False, True):
        (sent,) = upstream_messages(bench.ask("a", "resources/subscribe", '"uri":"u:1"'))
        (bench.fail if fails else bench.answer)(sent["id"])
    assert received(bench.notify("notifications/resources/updated", '{"uri":"u:1"}')) == [("a", 0, False)]


def test_subscriptions_are_bounded() -> None:
    """One session can't fill the table, with entries or with one long entry."""
    bench = legacy()
    for number in range(1024):
        bench.answer(upstream_messages(bench.ask("a", "resources/subscribe", f'"uri":"u:{number}"'))[0]["id"])
    for uri, session in (("u:more", "a"), ("u" * 9000, "b")):
        (refused,) = bench.ask(session, "resources/subscribe", f'"uri":"{uri}"')
        assert isinstance(refused, ToClient)
        assert json.loads(refused.raw)["error"]["code"] == 429


# --- legacy: log levels ---------------------------------------------------------------------------------------------


def set_level(bench: Bench, session: str, level: str) -> list[str]:
    """Returns the levels that the upstream was told."""
    effects = bench.ask(session, "logging/setLevel", f'"level":"{level}"')
    told = upstream_messages(effects)
    for message in told:
        effects = effects + bench.answer(message["id"])
    assert (session, bench.call, True) in received(effects)
    return [message["params"]["level"] for message in told]


def logged(bench: Bench, level: str) -> list[Any]:
    return [session for session, _, _ in received(bench.notify("notifications/message", f'{{"level":"{level}"}}'))]


def test_a_call_that_was_given_up_may_still_be_spoken_of() -> None:
    """After a cancellation the server may still log about the call: that goes to nobody else."""
    bench = legacy("ab")
    bench.request("a", '{"jsonrpc":"2.0","id":9,"method":"tools/call"}')
    bench.request("b", '{"jsonrpc":"2.0","id":9,"method":"tools/call"}')
    assert bench.send("a", '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":9}}')
    assert logged(bench, "error") == []
    bench.now += 31_000_000_000
    assert logged(bench, "error") == ["b"]


def test_the_most_verbose_level_is_kept_upstream() -> None:
    """The upstream is told only what changes for all; each session sees what it asked for."""
    bench = legacy("abc")
    assert set_level(bench, "a", "warning") == ["warning"]
    assert set_level(bench, "b", "error") == []
    assert set_level(bench, "b", "debug") == ["debug"]
    assert set_level(bench, "b", "critical") == ["warning"]
    for session, levels in (("a", ["warning", "alert"]), ("b", ["critical"]), ("c", ["info", "error"])):
        minted = bench.request(session, '{"jsonrpc":"2.0","id":9,"method":"tools/call"}')
        for level in ("debug", "info", "warning", "error", "critical", "alert"):
            wanted = {"a": "warning", "b": "critical", "c": "info"}[session]
            order = ["debug", "info", "warning", "error", "critical", "alert"]
            assert logged(bench, level) == ([session] if order.index(level) >= order.index(wanted) else [])
        assert all(logged(bench, level) == [session] for level in levels)
        bench.answer(minted)
    (sent,) = upstream_messages(bench.mux.detach("a", 5))
    assert (sent["method"], sent["params"]["level"]) == ("logging/setLevel", "critical")
    (sent,) = upstream_messages(bench.mux.detach("b", 5))
    assert sent["params"]["level"] == "info"


def test_a_refused_level_is_not_kept() -> None:
    """Where the upstream has no logging, nobody has a level."""
    bench = legacy()
    (sent,) = upstream_messages(bench.ask("a", "logging/setLevel", '"level":"error"'))
    effects = bench.fail(sent["id"])
    assert received(effects) == [("a", bench.call, True)]
    assert upstream_messages(effects) == []
    assert bench.mux.table_sizes()["levels"] == 0
    assert set_level(bench, "b", "error") == ["error"]


def test_an_unknown_level_is_the_servers_business() -> None:
    """It is forwarded and changes nothing here."""
    bench = legacy()
    (sent,) = upstream_messages(bench.ask("a", "logging/setLevel", '"level":"loud"'))
    assert sent["params"] == {"level": "loud"}
    assert bench.mux.table_sizes()["levels"] == 0


def test_a_log_message_is_given_to_one_session_or_none() -> None:
    """To the one that has calls in flight; with no calls, to the only one there is; otherwise to the log."""
    bench = legacy("ab")
    assert logged(bench, "error") == []
    ids = [bench.request(session, '{"jsonrpc":"2.0","id":9,"method":"tools/call"}') for session in "ab"]
    effects = bench.notify("notifications/message", '{"level":"error","data":"of whom?"}')
    assert [type(effect) for effect in effects] == [LogLine, Counted]
    bench.answer(ids[0])
    assert logged(bench, "error") == ["b"]
    bench.answer(ids[1])
    bench.mux.detach("b", 5)
    assert logged(bench, "error") == []  # it may still be about the one that left
    bench.now += 31_000_000_000
    assert logged(bench, "error") == ["a"]


# --- legacy: a restart ----------------------------------------------------------------------------------------------


def test_a_restarted_upstream_is_told_what_its_predecessor_knew() -> None:
    """After the handshake, before any client's message: the level and the subscriptions of those still here."""
    bench = legacy()
    set_level(bench, "a", "debug")
    bench.answer(upstream_messages(bench.ask("b", "resources/subscribe", '"uri":"u:1"'))[0]["id"])
    pending = upstream_messages(bench.ask("b", "resources/subscribe", '"uri":"u:2"'))
    assert len(pending) == 1
    assert [type(effect) for effect in bench.mux.closed("died", 5)] == [CallLost]
    bench.start()
    effects = bench.greet()
    told = [(message["method"], message.get("params")) for message in upstream_messages(effects)]
    assert told == [
        ("notifications/initialized", None),
        ("logging/setLevel", {"level": "debug"}),
        ("resources/subscribe", {"uri": "u:1"}),
    ]
    assert received(bench.notify("notifications/resources/updated", '{"uri":"u:1"}')) == [("b", 0, False)]
