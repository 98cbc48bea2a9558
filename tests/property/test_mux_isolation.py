"""Random interleavings of several clients, which all use the same ids, and an upstream that isn't always kind.

Every request carries a tag that names its session and its place; the upstream puts the tag of a request in whatever
it says because of it. So a message that reaches the wrong client shows itself.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.policy.jsonrpc import parse_client, parse_upstream
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

SESSIONS = ["a", "b", "c"]
IDS = [b"0", b"1", b'"1"', b"-7", b"9007199254740993", b'"\\u0031"', b'""']
TOKENS = [None, b"1", b'"1"', b"2", b'"\\t"', b"1e0"]
URIS = ["u:/a", "u:/a/b", "u:/c"]
LEVELS = ["debug", "info", "warning", "error"]
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
GREETING = b'{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"model"}}'

sessions = st.sampled_from(SESSIONS)
picks = st.integers(0, 1000)


@attrs.define(eq=False)
class Call:
    session: str
    number: int
    id: bytes
    token: bytes | None
    method: str
    uri: str = ""
    asks: bool = False  # for log messages, in the modern way
    minted: int = 0  # as the upstream saw it; 0: not yet

    @property
    def tag(self) -> str:
        return f"{self.session}/{self.number}"


class SharedUpstream(RuleBasedStateMachine):
    """The model: which calls are live, what the upstream knows, who subscribed to what."""

    @initialize(version=st.sampled_from(["", "2025-11-25"]))
    def begin(self, version: str) -> None:
        self.mux = Mux(version=version, shared=True, probe_timeout_ns=50, handshake_timeout_ns=1 << 60)
        self.legacy = version != ""
        self.now = 1
        self.numbers = 0
        self.attached: set[str] = set()
        self.live: dict[tuple[str, int], Call] = {}
        self.gone: set[str] = set()  # whose calls asked for log messages, and were given up lately
        self.by_minted: dict[int, Call] = {}  # all that the upstream has seen of clients, ever
        self.seen_ids: set[int] = set()
        self.own: dict[int, str] = {}  # the gateway's own requests, unanswered
        self.subscribed: dict[str, set[str]] = {}
        self.running = False
        self.start_upstream()

    # --- what effects mean --------------------------------------------------------------------------------------

    def apply(self, effects: list[Effect]) -> list[ToClient]:
        given: list[ToClient] = []
        for effect in effects:
            match effect:
                case ToUpstream(raw=raw):
                    assert b"\n" not in raw
                    self.upstream_gets(json.loads(raw))
                case ToClient():
                    self.client_gets(effect)
                    given.append(effect)
                case CallLost(session=session, call=number, sent=sent, code=code):
                    lost = self.live.pop((session, number))  # type: ignore[arg-type]
                    assert sent == (lost.minted != 0)
                    assert code == (502 if sent else 503)
                    self.unsubscribe_failed(lost)
                case Counted() | LogLine() | Negotiated() | Outcome():
                    pass
                case HandshakeFailed():
                    raise AssertionError("the model's handshake is sound")
        return given

    def upstream_gets(self, message: Any) -> None:
        if "method" not in message:
            return
        if message["method"] == "notifications/cancelled":
            call = self.by_minted[message["params"]["requestId"]]
            assert (call.session, call.number) not in self.live, "only a call that has ended is cancelled"
            return
        if "id" not in message:
            return
        minted = message["id"]
        assert type(minted) is int
        assert minted not in self.seen_ids, "no id is used twice"
        self.seen_ids.add(minted)
        params = message.get("params", {})
        if "tag" not in params:
            self.own[minted] = message["method"]
            return
        session, number = params["tag"].split("/")
        call = self.live[session, int(number)]
        call.minted = minted
        self.by_minted[minted] = call
        token = params.get("_meta", {}).get("progressToken")
        assert (token is None) == (call.token is None)
        assert token is None or (type(token) is int and (token == minted or token not in self.seen_ids))

    def client_gets(self, effect: ToClient) -> None:
        assert effect.session in self.attached
        message = parse_upstream(effect.raw)
        document = json.loads(effect.raw)
        body = document.get("result", document.get("params", document.get("error")))
        tag = body.get("tag") if isinstance(body, dict) else None
        if tag is not None:
            assert tag.split("/")[0] == effect.session, "somebody else's"
            assert effect.call in (0, int(tag.split("/")[1]))
        if effect.call:
            call = self.live[effect.session, effect.call]  # type: ignore[index]
            if message.kind == "response":
                assert effect.final
                assert message.id == call.id, "to the byte"
            if message.progress:
                assert message.progress == call.token
            if message.subscription:
                assert message.subscription == call.id
            if effect.final:
                del self.live[call.session, call.number]
        else:
            assert message.kind == "notification"

    # --- sessions and calls -------------------------------------------------------------------------------------

    @rule(session=sessions)
    def attach(self, session: str) -> None:
        self.apply(self.mux.attach(session))
        self.attached.add(session)

    @rule(session=sessions)
    def detach(self, session: str) -> None:
        for key in [key for key in self.live if key[0] == session]:
            self.give_up(key)
        for holders in self.subscribed.values():
            holders.discard(session)
        self.attached.discard(session)
        self.apply(self.mux.detach(session, self.now))

    def give_up(self, key: tuple[str, int]) -> None:
        """The upstream may still be working on it."""
        call = self.live.pop(key)
        if call.asks and call.minted:
            self.gone.add(call.session)

    def send(
        self,
        session: str,
        method: str,
        params: bytes,
        pick: int,
        token: bytes | None = None,
        uri: str = "",
        asks: bool = False,
    ) -> None:
        taken = {call.id for call in self.live.values() if call.session == session}
        free = [choice for choice in IDS if choice not in taken]
        if session not in self.attached or not free:
            return
        self.numbers += 1
        call = Call(session, self.numbers, free[pick % len(free)], token, method, uri, asks)
        meta = b"" if token is None else b',"progressToken":%b' % token
        meta += b',"io.modelcontextprotocol/logLevel":"warning"' if asks else b""
        meta = b',"_meta":{"x":[1.0]%b}' % meta if meta else b""
        raw = b'{"jsonrpc":"2.0", "id":%b,"method":"%b","params":{"tag":"%b"%b%b}}' % (
            call.id, method.encode(), call.tag.encode(), params, meta
        )
        self.live[session, call.number] = call
        self.apply(self.mux.from_client(session, call.number, parse_client(raw), raw, self.now))

    @rule(session=sessions, pick=picks, token=st.sampled_from(TOKENS), asks=st.booleans())
    def request(self, session: str, pick: int, token: bytes | None, asks: bool) -> None:
        self.send(session, "tools/call", b"", pick, token, asks=asks)

    @rule(session=sessions, pick=picks)
    def listen(self, session: str, pick: int) -> None:
        self.send(session, "subscriptions/listen", b"", pick)

    @rule(session=sessions, pick=picks)
    def initialize_client(self, session: str, pick: int) -> None:
        if self.legacy:
            self.send(session, "initialize", b',"protocolVersion":"2025-11-25"', pick)

    @rule(session=sessions, pick=picks, level=st.sampled_from(LEVELS))
    def set_level(self, session: str, pick: int, level: str) -> None:
        self.send(session, "logging/setLevel", b',"level":"%b"' % level.encode(), pick)

    @rule(session=sessions, pick=picks, uri=st.sampled_from(URIS), leave=st.booleans())
    def subscribe(self, session: str, pick: int, uri: str, leave: bool) -> None:
        if not (self.legacy and self.mux.ready and session in self.attached):
            return
        if len({call.id for call in self.live.values() if call.session == session}) == len(IDS):
            return
        method = "resources/unsubscribe" if leave else "resources/subscribe"
        holders = self.subscribed.setdefault(uri, set())
        fresh = not leave and session not in holders
        (holders.discard if leave else holders.add)(session)
        self.send(session, method, b',"uri":"%b"' % uri.encode(), pick, uri=uri if fresh else "")

    def unsubscribe_failed(self, call: Call) -> None:
        if call.uri:
            self.subscribed[call.uri].discard(call.session)

    @rule(session=sessions, pick=picks, known=st.booleans())
    def cancel(self, session: str, pick: int, known: bool) -> None:
        """A client cancels a call of its own, or tries to cancel what isn't."""
        if session not in self.attached:
            return
        target = IDS[pick % len(IDS)]
        own = [call for call in self.live.values() if call.session == session]
        named = next((call for call in own if call.id == target), None)
        alike = [call for call in own if json.loads(call.id) == json.loads(target)]
        if not known and alike and (named is None or len(alike) > 1):
            return  # spelt in another way: which one is meant, only the owner of the call can say
        raw = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%b}}' % target
        number = named.number if known and named is not None else 0
        if number == 0 and named is None and alike:
            return
        if named is not None and named.method != "initialize":
            self.give_up((session, named.number))
        self.apply(self.mux.from_client(session, number, parse_client(raw), raw, self.now))

    @rule(pick=picks, reason=st.sampled_from(["timeout", "closed"]))
    @precondition(lambda self: self.live)
    def abandon(self, pick: int, reason: str) -> None:
        call = list(self.live.values())[pick % len(self.live)]
        self.give_up((call.session, call.number))
        self.apply(self.mux.abandon(call.session, call.number, reason, self.now))

    # --- the upstream -------------------------------------------------------------------------------------------

    def up(self, raw: bytes) -> list[ToClient]:
        return self.apply(self.mux.from_upstream(raw, self.now))

    def start_upstream(self) -> None:
        self.own.clear()
        self.running = True
        self.apply(self.mux.start(self.now))

    def seen(self, pick: int) -> Call | None:
        calls = list(self.by_minted.values())
        return calls[pick % len(calls)] if calls else None

    def in_flight(self, call: Call) -> bool:
        return self.live.get((call.session, call.number)) is call

    @rule(pick=picks)
    @precondition(lambda self: self.own and self.running)
    def answer_own(self, pick: int) -> None:
        minted = list(self.own)[pick % len(self.own)]
        result = GREETING if self.own.pop(minted) == "initialize" else b"{}"
        assert all(not given.call or given.final for given in self.up(
            b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (minted, result)
        ))

    @rule(pick=picks, fails=st.booleans(), layout=st.booleans())
    @precondition(lambda self: self.running)
    def answer(self, pick: int, fails: bool, layout: bool) -> None:
        """Any call that it has ever seen, answered before or not."""
        call = self.seen(pick)
        if call is None:
            return
        expected = self.in_flight(call)
        meta = b',"_meta":{"%b":%d}' % (SUBSCRIPTION.encode(), call.minted) if "listen" in call.method else b""
        body = b'"result":{"tag":"%b"%b}' % (call.tag.encode(), meta)
        if fails:
            body = b'"error":{"code":-1,"message":"","tag":"%b"}' % call.tag.encode()
        text = b'{"jsonrpc":"2.0","id":%d,%b}' if layout else b'{%b,"jsonrpc":"2.0","id":%d}'
        if expected and fails:
            self.unsubscribe_failed(call)
        given = self.up(text % ((call.minted, body) if layout else (body, call.minted)))
        assert [(to.session, to.call, to.final) for to in given] == (
            [(call.session, call.number, True)] if expected else []
        )

    @rule(pick=picks)
    @precondition(lambda self: self.running)
    def progress(self, pick: int) -> None:
        call = self.seen(pick)
        if call is None:
            return
        given = self.up(
            b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%d,"tag":"%b"}}'
            % (call.minted, call.tag.encode())
        )
        assert len(given) == (self.in_flight(call) and call.token is not None)

    @rule(pick=picks, ends=st.booleans())
    @precondition(lambda self: self.running)
    def subscription_notice(self, pick: int, ends: bool) -> None:
        call = self.seen(pick)
        if call is None:
            return
        expected = self.in_flight(call) and "listen" in call.method
        head = b'{"jsonrpc":"2.0","method":"notifications/%b","params":{"tag":"%b",'
        if ends:
            raw = head % (b"cancelled", call.tag.encode()) + b'"requestId":%d}}' % call.minted
        else:
            raw = head % (b"x", call.tag.encode()) + b'"_meta":{"%b":%d}}}' % (SUBSCRIPTION.encode(), call.minted)
        given = self.up(raw)
        assert len(given) == expected

    @rule(uri=st.sampled_from([*URIS, "u:/a/b/c", "u:/", "v"]))
    @precondition(lambda self: self.running and self.legacy and self.mux.ready)
    def updated(self, uri: str) -> None:
        head = b'{"jsonrpc":"2.0","method":"notifications/resources/updated",'
        given = self.up(head + b'"params":{"uri":"%b"}}' % uri.encode())
        expected = {
            session
            for subscribed, holders in self.subscribed.items()
            if uri == subscribed or uri.startswith(subscribed + "/")
            for session in holders
        }
        assert sorted(str(to.session) for to in given) == sorted(expected)

    @rule(level=st.sampled_from([*LEVELS, "loud"]))
    @precondition(lambda self: self.running)
    def log_message(self, level: str) -> None:
        """It reaches at most one client, and none while it could be another one's."""
        given = self.up(b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"%b"}}' % level.encode())
        assert len(given) <= 1
        if self.legacy:
            busy = {call.session for call in self.live.values() if call.minted and "listen" not in call.method}
            assert all({to.session} == (busy or self.attached) for to in given)
        else:
            asking = {call.session for call in self.live.values() if call.asks}
            expected = asking if len(asking | self.gone) == 1 and level in ("warning", "error") else set()
            assert {to.session for to in given} == expected

    @rule(raw=st.sampled_from([
        b"", b"garbage", b"[]", b'{"jsonrpc":"2.0","id":"1","result":{}}', b'{"jsonrpc":"2.0","id":null,"result":{}}',
        b'{"jsonrpc":"2.0","id":99999999,"result":{}}', b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"1"}}',
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"1"}}',
    ]))
    @precondition(lambda self: self.running)
    def nonsense(self, raw: bytes) -> None:
        assert self.up(raw) == []

    @rule(later=st.integers(1, 100))
    def time_passes(self, later: int) -> None:
        self.now += later
        self.apply(self.mux.tick(self.now))

    @rule()
    @precondition(lambda self: self.running)
    def dies(self) -> None:
        """Nothing is lost without a word."""
        self.running = False
        self.apply(self.mux.closed("died", self.now))
        assert not self.live
        for call in self.by_minted.values():
            call.minted = -1  # of another life
        self.by_minted.clear()

    @rule()
    @precondition(lambda self: not self.running)
    def restarts(self) -> None:
        self.start_upstream()

    # --- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "mux"):
            assert self.mux.in_flight == len(self.live)
            assert self.mux.sessions == len(self.attached)

    def teardown(self) -> None:
        """Once the gateway's own requests are answered and everyone has gone, nothing is kept."""
        if not hasattr(self, "mux"):
            return
        if self.running:
            while self.own:
                self.answer_own(0)
            for call in list(self.by_minted.values()):
                if self.in_flight(call):
                    self.apply(self.mux.from_upstream(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % call.minted, self.now))
            assert not self.live, "every call that was sent has been answered"
        for session in SESSIONS:
            self.detach(session)
        while self.own and self.running:
            self.answer_own(0)
        assert set(self.mux.table_sizes().values()) == {0}


TestSharedUpstream = SharedUpstream.TestCase
TestSharedUpstream.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
