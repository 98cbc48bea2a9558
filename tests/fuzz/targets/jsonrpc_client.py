"""Messages of clients: ``parse_client`` against a second reader of JSON.

The invariant, for any bytes and any limit of depth:

* nothing but ``Refusal`` is raised, and its id is JSON: the message's own, or null;
* what isn't JSON is -32700, and nothing that is JSON is -32700;
* what is accepted breaks no rule of the envelope, pollutes no prototype and isn't too deep; what breaks none is
  accepted, unless a key of ``params`` is doubled or spelt in another case;
* method, id and everything else that is read are what any other reader sees, whichever of equal keys it prefers;
* the bytes at the offsets are those values: replacing them changes these members and nothing else;
* the fast path vouches for nothing that the slow path sees otherwise.
"""

from __future__ import annotations

import re
from typing import Any

from fuzz.targets import knobs
from strict_reader import ABSENT, Malformed, Number, Pairs, TooDeep, depth, has_variants, is_polluted, plain, read

from actors.policy.jsonrpc import Refusal, fast_path, parse_client, slow_path, splice
from ipc.messages import Envelope

KEYS = ("jsonrpc", "id", "method", "params", "result", "error")
INTEGER = re.compile(r"-?(0|[1-9][0-9]*)\Z")
SEEDS = [
    b"\x40" + text
    for text in (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"a":[1,-0,1e400]}}}',
        b'{"method":"tools/call","params":{"_meta":{"progressToken":"x"},"name":"e"},"jsonrpc":"2.0","id":"a"}',
        b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7, "reason": "x"}}',
        b'{"jsonrpc":"2.0","id":9007199254740993,"method":"resources/read","params":{"uri":"file:///a"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{}}}',
        b'{"jsonrpc":"2.0","id":1,"result":{}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"m"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"p"}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":'
        b'{"resourceSubscriptions":["a"]},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}',
        rb'{"jsonrpc":"2.0","id":"\u0031","m\u0065thod":"p\u00e9\ud83d\ude00","params":[{"\u005f_proto__":1}]}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"constructor":{"prototype":{}}}}',
        b'{"jsonrpc":"2.0","id":1,"ID":2,"method":"m"}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","method":"n"}',
        b'[{"jsonrpc":"2.0","id":1,"method":"m"}]',
        b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"m"}',
        b'{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"debug"}}',
        b'{"method":"m","params":{"_meta":{"x":1},"":"e"},"jsonrpc":"2.0"}',  # "" was once taken for the version
    )
] + [b'\x04{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":[[{}]]}}']


def check(data: bytes) -> None:
    knob, raw = knobs(data, 1)
    limit = 1 + knob[0] % 64
    refusal: Refusal | None = None
    envelope: Envelope | None = None
    try:
        envelope = parse_client(raw, max_depth=limit)
    except Refusal as error:
        refusal = error
    fast = fast_path(raw, limit)
    if fast is not None:
        assert fast == envelope == slow_path(raw, limit)
    try:
        document = read(raw)
    except Malformed:
        assert refusal is not None
        assert refusal.code == -32700 or refusal.rule == "depth"
        assert refusal.rule == "depth" or refusal.id == b"null"
        return
    except TooDeep:
        assert refusal is not None
        return
    if refusal is not None:
        judge_refusal(document, refusal, limit)
    else:
        assert envelope is not None
        assert not envelope_faults(document)
        assert depth(document) <= limit
        params = document.last("params")
        assert not (envelope.kind != "response" and is_polluted(params))
        judge_fields(document, envelope)
        judge_offsets(document, envelope, raw)


def is_id(value: Any) -> bool:
    return (isinstance(value, str) and not isinstance(value, Number)) or (
        isinstance(value, Number) and INTEGER.match(value) is not None
    )


def envelope_faults(document: Any) -> bool:
    """Whether the envelope breaks a rule, params apart."""
    if not isinstance(document, Pairs):
        return True
    keys = document.names
    if len(set(keys)) < len(keys) or any(key not in KEYS and key.casefold() in KEYS for key in keys):
        return True
    if document.last("jsonrpc") != "2.0" or isinstance(document.last("jsonrpc"), Number):
        return True
    own_id = document.last("id")
    if own_id is not ABSENT and not is_id(own_id):
        return True
    method, result, error = (document.last(key) for key in ("method", "result", "error"))
    if method is ABSENT:
        if (result is ABSENT) == (error is ABSENT) or own_id is ABSENT:
            return True
        return error is not ABSENT and not is_error(error)
    if not isinstance(method, str) or isinstance(method, Number) or result is not ABSENT or error is not ABSENT:
        return True
    params = document.last("params")
    return params is not ABSENT and not isinstance(params, list)


def is_error(value: Any) -> bool:
    if not isinstance(value, Pairs):
        return False
    code, message = value.last("code"), value.last("message")
    return (
        isinstance(code, Number)
        and INTEGER.match(code) is not None
        and isinstance(message, str)
        and not isinstance(message, Number)
    )


def judge_refusal(document: Any, refusal: Refusal, limit: int) -> None:
    assert refusal.code in (-32600, 422)
    if refusal.id != b"null":
        found = read(refusal.id)
        assert is_id(found)
        # One of a doubled id, or of a message too deep for the decoder, is whichever was read.
        assert not isinstance(document, Pairs) or found in document.all("id")
    if envelope_faults(document) or depth(document) > limit:
        return
    params = document.last("params")
    if document.last("method") is not ABSENT and is_polluted(params):
        assert refusal.code == 422 or refusal.rule == "duplicate-key"
        return
    assert refusal.code == -32600
    assert refusal.rule == "duplicate-key"
    assert has_variants(params)


def text(value: Any) -> str:
    return value if isinstance(value, str) and not isinstance(value, Number) else ""


def judge_fields(document: Pairs, envelope: Envelope) -> None:
    """What is read stands there once; so every reader reads it alike."""
    own_id = document.last("id")
    assert (own_id is not ABSENT) == (envelope.id_at >= 0)
    if envelope.kind == "response":
        assert document.last("method") is ABSENT
        return
    assert envelope.method == document.last("method")
    assert (envelope.kind == "request") == (own_id is not ABSENT)
    params = document.last("params")
    if not isinstance(params, Pairs):
        return
    read_of = {"tools/call": "name", "prompts/get": "name", "logging/setLevel": "level", "initialize": "version"}
    for method, field in read_of.items():
        if envelope.method == method:
            key = "protocolVersion" if field == "version" else field
            assert len(params.all(key)) <= 1
            if field != "level":
                assert getattr(envelope, field) == text(params.last(key))
            assert sum(name.casefold() == key.casefold() for name in params.names) <= 1
    if envelope.method.startswith("resources/"):
        assert len(params.all("uri")) <= 1
        assert envelope.uri == text(params.last("uri"))
    meta = params.last("_meta")
    if isinstance(meta, Pairs):
        assert len(params.all("_meta")) == 1
        token = meta.last("progressToken")
        assert len(meta.all("progressToken")) <= 1
        assert (envelope.progress_at >= 0) == (token is not ABSENT and token is not None)
        assert envelope.era == text(meta.last("io.modelcontextprotocol/protocolVersion"))
    if envelope.method == "notifications/cancelled":
        assert len(params.all("requestId")) <= 1
        assert (envelope.target_at >= 0) == (params.last("requestId") is not ABSENT)


def judge_offsets(document: Pairs, envelope: Envelope, raw: bytes) -> None:
    expected = plain(document)
    edits = []
    if envelope.id_at >= 0:
        edits.append((envelope.id_at, envelope.id_at + len(envelope.id), b"424242"))
        assert read(envelope.id) == document.last("id")
        expected["id"] = 424242
    if envelope.progress_at >= 0:
        edits.append((envelope.progress_at, envelope.progress_at + len(envelope.progress), b"424243"))
        expected["params"]["_meta"]["progressToken"] = 424243
    if envelope.target_at >= 0:
        edits.append((envelope.target_at, envelope.target_at + len(envelope.target), b"424244"))
        expected["params"]["requestId"] = 424244
    if envelope.version_at >= 0:
        found = envelope.version_at
        end = raw.index(b'"', found + 1)
        while raw[end - 1 : end] == b"\\":
            end = raw.index(b'"', end + 1)
        assert raw[found : found + 1] == b'"'
        if b"\\" not in raw[found:end]:
            edits.append((found, end + 1, b'"424245"'))
            expected["params"]["protocolVersion"] = "424245"
    assert same(plain(read(splice(raw, sorted(edits)))), expected)


def same(one: Any, other: Any) -> bool:
    """Equality in which 1 and 1.0 and True differ."""
    return repr(one) == repr(other)
