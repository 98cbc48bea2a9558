"""A tool's schema: what a check of it may cost, and what fits it."""

from __future__ import annotations

import json

import pytest

from actors.policy.catalogue import input_schemas
from actors.policy.content.effort import LIGHT
from actors.policy.content.schema import MOST_BYTES, TOO_LONG, Schema, Unusable, compile_schema, steps
from actors.policy.content.tool_schemas import ToolSchemas


def compiled(schema: object) -> Schema:
    return compile_schema(json.dumps(schema).encode())


@pytest.mark.parametrize(
    ("pattern", "least", "most"),
    [
        ("^abc$", 3, 10),
        ("[ab]*a[ab]{2000}c", 2000, 3000),
        ("(?:a{10}b){10}", 100, 200),
        ("((a{100}){100}){100}", 1_000_000, 2_000_000),
        (r"^\d{4}-\d{2}-\d{2}$", 10, 100),
        (r"a\{9999}", 1, 20),
        ("[{9999}]", 1, 5),
        ("a{9}" + "{999999999}" * 50, 1 << 30, 1 << 60),
        ("({[)(", 1, 10),
    ],
)
def test_repetitions_are_written_out(pattern: str, least: int, most: int) -> None:
    """A few characters may stand for thousands of steps."""
    assert least <= steps(pattern) <= most


def test_patterns_are_light_for_short_arguments_only() -> None:
    """What is checked between two turns costs no more than others should wait."""
    for schema in ({"pattern": "[ab]*a[ab]{2000}c"}, {"patternProperties": {"[ab]*a[ab]{2000}c": True}}):
        assert compiled(schema).is_heavy_for(10)
    plain = compiled({"pattern": "^[a-z]+$"})
    assert not plain.is_heavy_for(1_000)
    assert plain.is_heavy_for(128_000)
    middling = compiled({"pattern": "[ab]*a[ab]{900}c"})
    assert not middling.is_heavy_for(4_000)
    assert middling.cost(4_000) > LIGHT
    assert middling.cost(100) < LIGHT
    assert compiled({"type": "object"}).cost(200_000) > LIGHT


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 400, b"-" + b"9" * 400])
def test_a_number_beyond_all_bounds_does_not_fit(number: bytes) -> None:
    """It is none that a bound could be compared with."""
    assert compiled({"maximum": 5, "minimum": -5}).fault(number) is not None
    assert compiled({"maximum": 5}).fault(b"[" + number + b"]") is not None
    assert compiled({"maximum": 5}).fault(b"4") is None
    assert compiled({"maximum": 5}).fault(b"6") is not None


def test_what_stands_for_a_long_schema_says_so() -> None:
    """The reason is the same as for the schema itself."""
    for text in (TOO_LONG, b"{" + b" " * 65_536 + b"}"):
        with pytest.raises(Unusable, match="longer"):
            compile_schema(text)


def test_schemas_of_a_session_are_bounded() -> None:
    """What there is no room for is not kept, and that is said; a schema that is too long takes no room."""
    known = ToolSchemas(1_000)
    assert known.learn({"a": b"x" * 400, "b": b"x" * (MOST_BYTES + 1)})
    assert known.get("b") == TOO_LONG
    assert not known.learn({"c": b"x" * 700})
    assert known.learn({"a": b"y" * 900})
    assert (known.get("a")[:1], known.get("c")) == (b"y", b"")
    known.forget("a")
    assert known.learn({"c": b"x" * 900})


def test_a_list_s_schemas() -> None:
    """Of whatever can be read; the scope counts in any spelling."""
    tool = b'{"name":"t","inputSchema":{"x":1}}'
    assert input_schemas(b'{"id":1,"result":{"tools":[%b,1]}}' % tool) == ({"t": b'{"x":1}'}, False)
    assert input_schemas(b'{"result":{"CacheScope":"private","tools":[%b]}}' % tool) == ({"t": b'{"x":1}'}, True)
    for broken in (b'{"error":{}}', b'{"result":[]}', b'{"result":{"tools":{}}}', b"[", b'{"result":{}}'):
        assert input_schemas(broken) == ({}, False)
