"""What the gateway lets through, every reader behind it reads alike: no parser differential.

The readers are Node's ``JSON.parse``, Python's ``json`` and msgspec; the texts are those of the JSON parsing test
suite, the table of rules, the fuzzer's corpus, and what Hypothesis makes of them.
"""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
from fuzz.targets import target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from requirement import need
from strict_reader import Malformed, read
from test_jsontestsuite import FILES
from validation_cases import PASSES, REFUSED

from actors.policy.jsonrpc import Refusal, parse_client, splice
from ipc.messages import Envelope

ENVELOPE = ("jsonrpc", "id", "method", "params", "result", "error")
TEXTS = [
    *(case.raw for case in REFUSED.values()),
    *(case.raw for case in PASSES.values()),
    *(data[1:] for data in (*target("jsonrpc_client").seeds, *target("jsonrpc_client").corpus)),
]


@attrs.define
class Node:
    """One process that lives as long as the module's tests."""

    process: subprocess.Popen[str]

    def read(self, raw: bytes) -> Any:
        """The value, comparable; None: not JSON to Node."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(base64.b64encode(raw).decode() + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "node has ended"
        return json.loads(line)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    program = shutil.which("node")
    need(program, "node is not installed")
    command = [str(program), str(Path(__file__).parent / "node" / "reader.mjs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Node(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def shown(value: Any) -> Any:
    """As reader.mjs shows a value. JavaScript sorts texts by UTF-16 units."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {"plain": value}
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = float("inf") if value > 0 else float("-inf")
        return {"number": struct.pack(">d", number).hex()}
    if isinstance(value, list):
        return {"array": [shown(inner) for inner in value]}
    return {"object": [[key, shown(value[key])] for key in sorted(value, key=lambda key: key.encode("utf-16-be"))]}


def by_python(raw: bytes) -> Any:
    # A double is what other languages make of every number; -0 is one too.
    return shown(json.loads(raw, parse_int=float))


def by_msgspec(raw: bytes) -> Any:
    """None where a number is beyond what it reads."""
    try:
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        assert "out of range" in str(error)  # noqa: PT017 - not for any other reason
        return None
    return without_signs(shown(value))


def members(value: Any) -> dict[str, Any]:
    return dict(value["object"])


def check(raw: bytes, node: Node) -> bool:
    """Whether it was let through."""
    try:
        envelope = parse_client(raw)
    except Refusal as refusal:
        if refusal.code == -32700:
            # Node reads escaped halves of a surrogate pair, and nothing else that is refused as no JSON.
            assert node.read(raw) is None or has_lone_surrogate(raw), raw
        return False
    seen = node.read(raw)
    assert seen == by_python(raw), raw
    assert by_msgspec(raw) in (None, without_signs(seen)), raw
    check_envelope(members(seen), envelope, raw)
    check_offsets(seen, envelope, raw, node)
    return True


def without_signs(value: Any) -> Any:
    """msgspec reads -0 as an integer, which has no sign. So 0 and -0 are the same here."""
    return json.loads(json.dumps(value).replace('"8000000000000000"', '"0000000000000000"'))


def has_lone_surrogate(raw: bytes) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in json.dumps(json.loads(raw), ensure_ascii=False))


def check_envelope(seen: dict[str, Any], envelope: Envelope, raw: bytes) -> None:
    """The members that the gateway acts on are those that Node sees, and no reader sees others."""
    assert envelope.kind == ("response" if "method" not in seen else "request" if "id" in seen else "notification")
    assert seen["jsonrpc"] == {"plain": "2.0"}
    assert ("id" in seen) == (envelope.id_at >= 0)
    if envelope.id_at >= 0:
        assert seen["id"] == by_python(envelope.id)
    if envelope.kind != "response":
        assert seen["method"] == {"plain": envelope.method}
    names = read(raw).names
    assert len(set(names)) == len(names)
    folded = [name.casefold() for name in names if name.casefold() in ENVELOPE]
    assert sorted(folded) == sorted(set(names) & set(ENVELOPE))


def check_offsets(seen: Any, envelope: Envelope, raw: bytes, node: Node) -> None:
    """With other bytes where the gateway says the values stand, Node sees these members changed, and no other one."""
    changes: list[tuple[tuple[str, ...], int, bytes]] = [
        (("id",), envelope.id_at, envelope.id),
        (("params", "_meta", "progressToken"), envelope.progress_at, envelope.progress),
        (("params", "requestId"), envelope.target_at, envelope.target),
    ]
    for path, at, value in changes:
        if at < 0:
            continue
        assert raw[at : at + len(value)] == value
        changed = node.read(splice(raw, [(at, at + len(value), b"-424242.5")]))
        expected = json.loads(json.dumps(seen))
        place = expected
        for key in path[:-1]:
            place = next(inner for name, inner in place["object"] if name == key)
        member = next(pair for pair in place["object"] if pair[0] == path[-1])
        member[1] = shown(-424242.5)
        assert changed == expected, raw


def test_the_collected_texts(node: Node) -> None:
    """Every text that is kept anywhere in these tests."""
    passed = sum(check(raw, node) for raw in TEXTS)
    assert passed >= len(PASSES)


def test_the_json_test_suite(node: Node) -> None:
    """Each of its texts, whole and in two places of params. Node itself has to take what is called valid."""
    need(FILES, "no JSONTestSuite: set CONFORMANCE_DATA to the folder that holds jsontestsuite/")
    for path in FILES:
        raw = path.read_bytes()
        check(raw, node)
        passed = check(b'{"jsonrpc":"2.0","id":"%b","method":"m","params":{"a":%b}}' % (b"x", raw), node)
        also = check(b'{"params":[%b ],"method":"m","jsonrpc":"2.0"}' % raw, node)
        if path.name.startswith("y_"):
            assert passed
            assert also
            assert node.read(raw) is not None


PIECES = [
    b'"id"', b'"Id"', rb'"\u0069d"', b'"method"', rb'"m\u0065thod"', b'"params"', b'"_meta"', b'"__proto__"',
    rb'"\u005f_proto__"', b'"constructor"', b'"prototype"', b'"jsonrpc"', b'"2.0"', b'"progressToken"', b'"requestId"',
    b":", b",", b"{", b"}", b"[", b"]", b" ", b"\t", b"1", b"-0", b"1e400", b"null", b'"x"', rb'"\ud83d\ude00"', b"\\",
    b'"', b'"":', b'"id":1,', b'"params":{},', b'"a":"\\"id\\":2",', "é".encode(), b"9007199254740993",
]  # fmt: skip


@given(
    base=st.sampled_from([raw for raw in TEXTS if len(raw) < 400]),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), st.sampled_from(PIECES)), max_size=4),
)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_with_something_changed(node: Node, base: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    """A few pieces put in or taken out anywhere."""
    raw = base
    for at, cut, piece in edits:
        at %= len(raw) + 1
        raw = raw[:at] + piece + raw[at + cut :]
    check(raw, node)


OTHERS = ("ID", "Method", "_meta", "progressToken", "requestId", "name", "a", "", "é", "__proto")
names = st.sampled_from([*ENVELOPE, *OTHERS])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


def escaped(text: str, which: list[bool]) -> str:
    """A JSON string some of whose characters are written as escapes."""
    units = text.encode("utf-16-be")
    out = ""
    for number in range(0, len(units), 2):
        unit = int.from_bytes(units[number : number + 2], "big")
        plain = 0x20 <= unit < 0xD800 and unit not in (0x22, 0x5C) and not which[number % len(which)]
        out += chr(unit) if plain else f"\\u{unit:04x}"
    return f'"{out}"'


@given(
    pairs=st.lists(st.tuples(names, values), max_size=4),
    method=st.sampled_from(["m", "tools/call", "notifications/cancelled", "resources/read"]),
    params=st.dictionaries(names, values, max_size=4),
    spelling=st.lists(st.booleans(), min_size=1, max_size=9),
    seed=st.randoms(use_true_random=False),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_messages_in_any_spelling(
    node: Node, pairs: list[tuple[str, Any]], method: str, params: dict[str, Any], spelling: list[bool], seed: Any
) -> None:
    """Members in any order, some twice, keys with escapes anywhere."""
    everything = [("jsonrpc", "2.0"), ("id", 7), ("method", method), ("params", params), *pairs]
    seed.shuffle(everything)
    body = ",".join(f"{escaped(key, spelling)}:{json.dumps(value)}" for key, value in everything)
    check(("{" + body + "}").encode(), node)


def test_a_wrong_reading_is_found(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle does judge: were doubled keys let through, it would say so."""

    def lax(raw: bytes) -> Envelope:
        return Envelope("request", "m", b"7", raw.index(b"7"))

    monkeypatch.setattr(f"{__name__}.parse_client", lax)
    with pytest.raises(AssertionError):
        check(b'{"jsonrpc":"2.0","id":7,"method":"m","id":8}', node)
    with pytest.raises(AssertionError):
        check(rb'{"jsonrpc":"2.0","id":7,"method":"m","m\u0065thod":"n"}', node)
    with pytest.raises((AssertionError, Malformed)):
        check(b'{"jsonrpc":"2.0","x":7,"method":"m","id":7}', node)
