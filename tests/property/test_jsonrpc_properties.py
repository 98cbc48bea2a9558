"""Properties of message validation: both paths agree, spans are exact, nothing but Refusal escapes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.policy.jsonrpc import Refusal, fast_path, parse_client, parse_upstream, slow_path, splice
from actors.policy.members import nested_deeper
from ipc.messages import Envelope

WORDS = ["name", "arguments", "_meta", "progressToken", "uri", "requestId", "__proto__", "constructor", "prototype"]
METHODS = ["tools/call", "ping", "resources/read", "notifications/cancelled", "initialize", "logging/setLevel", "m é"]
DAMAGE = [b'"', b"\\", b",", b"{", b"}", b"[", b"1", b" ", b"\n", b"\xff", b"\\u0041"]
keys = st.sampled_from(WORDS) | st.text(max_size=4)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | keys
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))
meta = st.dictionaries(
    st.sampled_from(["progressToken", "io.modelcontextprotocol/protocolVersion", "x"]), scalars, max_size=3
)
params = st.dictionaries(keys, values, max_size=4) | st.fixed_dictionaries(
    {"name": st.text(max_size=5), "arguments": values, "_meta": meta}
)
ids = st.integers() | st.text(max_size=6)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message in some layout: any order, spacing and escaping; often right, sometimes not."""
    parts: list[tuple[str, Any]] = [("jsonrpc", "2.0"), ("method", draw(st.sampled_from(METHODS)))]
    if draw(st.booleans()):
        parts.append(("id", draw(ids | scalars)))
    if draw(st.booleans()):
        parts.append(("params", draw(params | values)))
    parts += draw(st.lists(st.tuples(st.sampled_from(["id", "ID", "params", "x"]), scalars), max_size=1))
    order = draw(st.sampled_from(["sdk", "drawn"]))
    if order == "sdk":
        names = ["method", "params", "jsonrpc", "id"]
        parts.sort(key=lambda part: names.index(part[0]) if part[0] in names else 9)
    else:
        parts = draw(st.permutations(parts))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]))
    ascii_only = draw(st.booleans())

    def text(value: object) -> str:
        return json.dumps(value, separators=separators, ensure_ascii=ascii_only)

    body = separators[0].join(text(key) + separators[1] + text(value) for key, value in parts)
    return ("{" + body + "}").encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message with a few bytes changed."""
    raw = bytearray(draw(messages()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        if draw(st.booleans()):
            raw[at:at] = draw(st.sampled_from(DAMAGE))
        else:
            del raw[at : at + draw(st.integers(1, 4))]
    return bytes(raw)


def judged(raw: bytes) -> tuple[Envelope | None, Refusal | None]:
    try:
        return parse_client(raw), None
    except Refusal as refusal:
        return None, refusal


@given(messages() | damaged(), st.integers(1, 6) | st.just(64))
def test_the_fast_path_says_what_the_slow_one_says(raw: bytes, depth: int) -> None:
    """Whatever the fast path vouches for, the slow path finds the same envelope in."""
    fast = fast_path(raw, depth)
    if fast is not None:
        assert fast == slow_path(raw, depth)


@given(messages() | damaged() | st.binary(max_size=60))
def test_only_refusals_escape(raw: bytes) -> None:
    """Any bytes are either a message or refused with an id that is JSON; nothing else is raised."""
    envelope, refusal = judged(raw)
    if refusal is not None:
        assert refusal.code in (-32700, -32600, 422)
        assert isinstance(json.loads(refusal.id), int | str | None)
    else:
        assert envelope is not None
        document = json.loads(raw)
        assert document.get("method", "") == envelope.method
        assert ("id" in document) == (envelope.id_at >= 0)


@given(messages())
def test_spans_are_exact(raw: bytes) -> None:
    """Replacing what the spans name changes just these values of the document."""
    try:
        envelope = parse_client(raw)
    except Refusal:
        return
    expected = json.loads(raw)
    edits = []
    if envelope.id_at >= 0:
        assert json.loads(envelope.id) == expected["id"]
        edits.append((envelope.id_at, envelope.id_at + len(envelope.id), b"424242"))
        expected["id"] = 424242
    if envelope.progress_at >= 0:
        edits.append((envelope.progress_at, envelope.progress_at + len(envelope.progress), b"424243"))
        expected["params"]["_meta"]["progressToken"] = 424243
    if envelope.target_at >= 0:
        edits.append((envelope.target_at, envelope.target_at + len(envelope.target), b"424244"))
        expected["params"]["requestId"] = 424244
    assert json.loads(splice(raw, sorted(edits))) == expected


def polluted(value: object) -> bool:
    if isinstance(value, dict):
        inner = value.get("constructor")
        return (
            "__proto__" in value
            or (isinstance(inner, dict) and "prototype" in inner)
            or any(polluted(item) for item in value.values())
        )
    return isinstance(value, list) and any(polluted(item) for item in value)


@given(values, st.booleans(), st.sampled_from([(",", ":"), (" , ", " : ")]))
def test_pollution_is_found_exactly(value: object, ascii_only: bool, separators: tuple[str, str]) -> None:
    """Refused if and only if a plain walk of the decoded params finds a polluting key."""
    text = json.dumps([value], ensure_ascii=ascii_only, separators=separators).encode()
    _, refusal = judged(b'{"jsonrpc":"2.0","id":1,"method":"m","params":%b}' % text)
    if refusal is not None:
        assert refusal.code == 422
        assert polluted(value)
        assert refusal.data is not None
        place: Any = {"params": [value]}
        for part in str(refusal.data["pointer"]).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            place = place[int(name)] if isinstance(place, list) else place[name]
    else:
        assert not polluted(value)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


bracketed = st.recursive(
    st.sampled_from(['"', "\\", "[{", '\\"]', ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["", "{", '"']), inner, max_size=2),
    max_leaves=30,
)


@given(bracketed, st.integers(0, 12))
def test_depth_is_counted_exactly(value: object, limit: int) -> None:
    """The byte-wise count agrees with a walk of the decoded value."""
    assert nested_deeper(json.dumps(value).encode(), limit) == (depth_of(value) > limit)


@given(messages() | damaged() | st.binary(max_size=60))
def test_upstream_messages_or_value_error(raw: bytes) -> None:
    """An upstream may print anything: it is a message, or a ValueError."""
    try:
        message = parse_upstream(raw)
    except ValueError:
        return
    if message.id_at >= 0:
        assert raw.startswith(message.id, message.id_at)
        assert json.loads(raw)["id"] == json.loads(message.id)
