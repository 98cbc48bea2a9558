"""The multiplexer of a shared upstream instance, with clients and a server that say anything, in any order.

The input is a script: one line a step; its first byte says who speaks, the rest is what. The invariant:

* nothing is raised;
* what goes upstream is one line of JSON, and no two requests there have the same id;
* what a client gets is JSON; each of its calls ends at most once, with its own id to the byte, and nothing reaches a
  client that isn't attached or carries a call that isn't its own;
* without sessions nothing is kept.
"""

from __future__ import annotations

from strict_reader import ABSENT, Pairs, TooDeep, read

from actors.policy.jsonrpc import Refusal, parse_client
from actors.policy.mux import CallLost, Effect, Mux, ToClient, ToUpstream

CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"e","_meta":{"progressToken":1}}}'
SEEDS = [
    b"\0a" + CALL + b"\nb" + CALL + b'\nu{"jsonrpc":"2.0","id":1,"result":{}}\nu{"jsonrpc":"2.0","id":2,"result":{}}',
    b"\0a" + CALL + b'\nu{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}',
    b'\0a{"jsonrpc":"2.0","id":"s","method":"resources/subscribe","params":{"uri":"u:/a"}}\n'
    b'u{"jsonrpc":"2.0","id":1,"result":{}}\n'
    b'u{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"u:/a"}}\ndA\ndB',
    b'\1u{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{}}}\na' + CALL + b"\nx\nr",
    b'\0a{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true}}}'
    b'\nu{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":'
    b'{"io.modelcontextprotocol/subscriptionId":1}}}',
    b'\0a{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"debug"}}\n'
    b'u{"jsonrpc":"2.0","id":1,"result":{}}\nu{"jsonrpc":"2.0","method":"notifications/message","params":'
    b'{"level":"info","data":"x"}}',
    b"\0a" + CALL + b'\na{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}\nt',
    b"\0u{\nug\xff\nt\nu[]\n",
    # An unreadable answer whose id is none of JSON's: what was said in its place was unreadable too, without end.
    b'\0u{"jsonrpc":"2.0","id":-01,\nu{"id":"\xff",\nu,"id":007}',
]


class Model:
    """Who is attached, which calls are open, and what the upstream was sent."""

    def __init__(self) -> None:
        self.attached: set[str] = set()
        self.calls: dict[tuple[str, int], bytes] = {}
        self.upstream_ids: set[str] = set()

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ToUpstream):
                self.sent(effect.raw)
            elif isinstance(effect, ToClient):
                self.given(effect)
            elif isinstance(effect, CallLost):
                del self.calls[str(effect.session), effect.call]

    def sent(self, raw: bytes) -> None:
        assert b"\n" not in raw
        document = decoded(raw)
        if document is None or document.last("method") is ABSENT or document.last("id") is ABSENT:
            return
        assert document.last("id") not in self.upstream_ids
        self.upstream_ids.add(document.last("id"))

    def given(self, effect: ToClient) -> None:
        session = str(effect.session)
        assert session in self.attached
        document = decoded(effect.raw)
        if not effect.call:
            return
        own = self.calls[session, effect.call]
        if effect.final:
            del self.calls[session, effect.call]
        if document is not None and document.last("method") is ABSENT:
            assert effect.final
            assert document.last("id") == read(own)


def decoded(raw: bytes) -> Pairs | None:
    try:
        document = read(raw)
    except TooDeep:
        return None
    assert isinstance(document, Pairs)
    return document


def check(data: bytes) -> None:
    version = "2025-11-25" if data[:1] == b"\1" else ""
    mux = Mux(version=version, shared=True, probe_timeout_ns=5, handshake_timeout_ns=50)
    model = Model()
    now = 1
    number = 0
    model.take(mux.start(now))
    for step in data[1:].split(b"\n")[:40]:
        who, what = step[:1], step[1:]
        now += 1
        if who in (b"a", b"b"):
            session = who.decode()
            if session not in model.attached:
                model.attached.add(session)
                model.take(mux.attach(session))
            number = client_says(mux, model, session, what, now, number)
        elif who == b"u":
            model.take(mux.from_upstream(what, now))
        elif who == b"t":
            now += 100
            model.take(mux.tick(now))
        elif who == b"d" and what[:1].lower() in (b"a", b"b"):
            leave(mux, model, what[:1].lower().decode(), now)
        elif who == b"o" and model.calls:  # its owner gives a call up
            key = next(iter(model.calls))
            del model.calls[key]
            model.take(mux.abandon(key[0], key[1], "timeout" if what else "closed", now))
        elif who == b"x":
            model.take(mux.closed("died", now))
        elif who == b"r" and not mux.ready:
            model.take(mux.closed("again", now))
            model.take(mux.start(now))
    for session in list(model.attached):
        leave(mux, model, session, now)
    model.take(mux.closed("end", now))
    assert not model.calls
    assert not mux.in_flight
    assert not any(mux.table_sizes().values()), mux.table_sizes()


def leave(mux: Mux, model: Model, session: str, now: int) -> None:
    if session in model.attached:
        model.attached.remove(session)
        for key in [key for key in model.calls if key[0] == session]:
            del model.calls[key]
        model.take(mux.detach(session, now))


def client_says(mux: Mux, model: Model, session: str, raw: bytes, now: int, number: int) -> int:
    try:
        envelope = parse_client(raw)
    except Refusal:
        return number
    call = 0
    if envelope.kind == "request":
        number += 1
        call = number
        model.calls[session, call] = envelope.id
    elif envelope.method == "notifications/cancelled":
        call = next((n for (who, n), own in model.calls.items() if who == session and own == envelope.target), 0)
        model.calls.pop((session, call), None)
    model.take(mux.from_client(session, call, envelope, raw, now))
    return number


