"""What is kept of answers to list-type methods, for whom, and how it is given again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policy.catalogue import (
    MAX_ANSWER,
    MAX_ENTRIES,
    METHODS,
    MIN_UPSTREAM,
    Catalogue,
    Kept,
    Key,
    Unkept,
    key_of,
    read,
    read_result,
)
from actors.policy.jsonrpc import parse_client
from ipc.messages import ListAnswer

MS = 1_000_000
KEY: Key = ("a", "tools/list", "", "2025-11-25")
MODERN = '"_meta":{"io.modelcontextprotocol/protocolVersion":"%s"}'


def _kept(result: bytes, now: int = 1, method: str = "tools/list") -> Kept:
    kept = read_result(method, result, now)
    assert isinstance(kept, Kept)
    return kept


def _key(raw: str, version: str = "") -> Key | None:
    return key_of("a", parse_client(raw.encode()), raw.encode(), version)


def _request(method: str, params: str = "") -> str:
    return f'{{"jsonrpc":"2.0","id":1,"method":"{method}"' + (f',"params":{params}}}' if params else "}")


@pytest.mark.parametrize(
    "result",
    [
        b'{"tools":[]}',
        b'{"tools":[],"_meta":{}}',
        b'{"tools":[] , "_meta" : { "k" : 1.50 } }',
        b' {\n"tools":[{"name":"\\u0061","n":1E+2}],"cacheScope":"public","resultType":"complete"}',
        b'{"_meta":{"x":{"_meta":1}},"tools":[{"_meta":{}}]}',
    ],
)
def test_only_the_marks_are_added(result: bytes) -> None:
    """The answer bears the client's id and both marks; without them every byte is the server's."""
    answer = _kept(result, 5 * MS).answer(b'"\\u0031"', 12 * MS)
    assert answer.startswith(b'{"jsonrpc":"2.0","id":"\\u0031","result":')
    told = json.loads(answer)["result"]
    assert told["_meta"].pop("portcullis/stale") is True
    assert told["_meta"].pop("portcullis/ageMs") == 7
    assert told == json.loads(result) | ({} if told["_meta"] or b'"_meta" ' in result else {"_meta": {}})
    marks = b'"portcullis/stale":true,"portcullis/ageMs":7'
    body = answer[answer.index(b'"result":') + 9 : -1]
    for added in (b'"_meta":{' + marks + b"},", marks + b",", marks):
        if body.count(added):
            assert body.replace(added, b"") == result
            break


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=6), json_values, max_size=4),
    st.none() | st.dictionaries(st.text(max_size=12), json_values, max_size=3),
    st.sampled_from([None, 1]),
    st.integers(0, 10**12),
)
def test_whatever_is_kept_comes_back_whole(
    others: dict[str, Any], meta: dict[str, Any] | None, indent: int | None, age_ms: int
) -> None:
    """Any result that is kept is given again as valid JSON that says the same, and the marks, and nothing else."""
    result = {**others, "tools": [], **({"_meta": meta} if meta is not None else {})}
    kept = read_result("tools/list", json.dumps(result, indent=indent).encode(), 3)
    if isinstance(kept, Unkept):
        assert {"cachescope", "resulttype"} & {key.casefold() for key in others} or "_meta" in others
        return
    told = json.loads(kept.answer(b"7", 3 + age_ms * MS))["result"]
    marks = {"portcullis/stale": True, "portcullis/ageMs": age_ms}
    assert told == result | {"_meta": (meta or {}) | marks}


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (b'{"tools":[],"cacheScope":"private"}', Unkept.PRIVATE),
        (b'{"tools":[],"cacheScope":"something"}', Unkept.PRIVATE),
        (b'{"tools":[],"cacheScope":null}', Unkept.PRIVATE),
        (b'{"tools":[],"cachescope":"public"}', Unkept.PRIVATE),
        (b'{"tools":[],"\\u0063acheScope":"private"}', Unkept.PRIVATE),
        (b'{"cacheScope":"private","tools":[],"cacheScope":"public"}', Unkept.NOT_GOOD),
        (b'{"tools":[],"resultType":"input_required"}', Unkept.NOT_GOOD),
        (b'{"tools":{}}', Unkept.NOT_GOOD),
        (b'{"prompts":[]}', Unkept.NOT_GOOD),
        (b"{}", Unkept.NOT_GOOD),
        (b"[]", Unkept.NOT_GOOD),
        (b"null", Unkept.NOT_GOOD),
        (b'{"tools":[],"_meta":null}', Unkept.NOT_GOOD),
        (b'{"tools":[],"_meta":{"a":1,"a":2}}', Unkept.NOT_GOOD),
        (b'{"tools":[],"_meta":{"portcullis/stale":false}}', Unkept.NOT_GOOD),
        (b'{"tools":[],"_meta":{"Portcullis/ageMs":0}}', Unkept.NOT_GOOD),
        (b'{"tools":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}", Unkept.NOT_GOOD),
        (b'{"tools":[],"x":"' + b"x" * MAX_ANSWER + b'"}', Unkept.NOT_GOOD),
    ],
)
def test_what_is_not_kept(result: bytes, why: Unkept) -> None:
    """Nothing private in whatever spelling, nothing incomplete, ambiguous, oversized or already marked."""
    assert read_result("tools/list", result, 1) is why
    assert read("tools/list", b'{"jsonrpc":"2.0","id":1,"result":' + result + b"}", 1) is why


def test_errors_and_nonsense_are_not_good() -> None:
    """Only a whole, well-formed answer with a result is one."""
    good = b'{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}'
    assert isinstance(read("tools/list", good, 1), Kept)
    for raw in (
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}',
        good.replace(b'"id"', b'"result":{},"id"'),
        good[:-1],
        good.replace(b"[]", b'["\xff"]'),
        b"",
    ):
        assert read("tools/list", raw, 1) is Unkept.NOT_GOOD
    hello = b'{"protocolVersion":"%b","capabilities":{}}'
    assert isinstance(read_result("initialize", hello % b"2025-06-18", 1), Kept)
    for version in (b"2025-03-26", b"made-up", b""):
        assert read_result("initialize", hello % version, 1) is Unkept.NOT_GOOD
    assert isinstance(read_result("server/discover", b'{"capabilities":{}}', 1), Kept)


def test_keys_tell_apart_what_the_contract_names() -> None:
    """Method, cursor and era; what else a request may ask for has no key, and no client makes up eras."""
    assert _key(_request("tools/list"), "2025-11-25") == KEY
    assert _key(_request("tools/list", "{}"), "2025-11-25") == KEY
    assert _key(_request("tools/list", '{"_meta":{"progressToken":1}}'), "2025-11-25") == KEY
    assert _key(_request("tools/list", '{"cursor":"\\u0032"}')) == ("a", "tools/list", "2", "")
    assert _key(_request("tools/list", "{%s}" % (MODERN % "2026-07-28")), "2025-11-25") == (
        "a", "tools/list", "", "2026-07-28",
    )  # fmt: skip
    assert _key(_request("initialize", '{"protocolVersion":"1999"}')) == ("a", "initialize", "", "2025-11-25")
    assert _key(_request("initialize", '{"protocolVersion":"2025-06-18"}')) == ("a", "initialize", "", "2025-06-18")
    asked = '{"protocolVersion":"2025-06-18"}'
    assert {method for method in METHODS if _key(_request(method, asked))} == {"initialize"}
    for none in (
        _key(_request("tools/call")),
        _key(_request("resources/templates/list")),
        _key(_request("initialize")),
        _key(_request("tools/list", '{"filter":1}')),
        _key(_request("tools/list", '{"cursor":2}')),
        _key(_request("tools/list", '{"cursor":"%s"}' % ("x" * 2000))),
        _key(_request("tools/list", "[]")),
        _key(_request("tools/list", "{%s}" % (MODERN % "2099-01-01"))),
        _key(_request("tools/list"), "made-up"),
    ):
        assert none is None


def test_the_newest_answer_is_the_one() -> None:
    """A later answer takes an earlier one's place, never the reverse; other keys stay."""
    catalogue = Catalogue(1)
    assert catalogue.keep(KEY, _kept(b'{"tools":[1]}', 5))
    assert not catalogue.keep(KEY, _kept(b'{"tools":[2]}', 4))
    assert catalogue.keep(KEY, _kept(b'{"tools":[3]}', 6))
    other = ("b", *KEY[1:])
    assert catalogue.get(other) is None
    kept = catalogue.get(KEY)
    assert kept is not None
    assert kept.result == b'{"tools":[3]}'
    assert catalogue.forget(KEY)
    assert not catalogue.forget(KEY)
    assert catalogue.statistics() == {"a": {"answers": 0, "bytes": 0}}


def test_it_is_bounded_and_first_pages_stay() -> None:
    """However many pages a client asks for and however large they are: the bounds hold, no first page goes, and no
    other upstream loses anything."""
    catalogue = Catalogue(1000)
    other = ("b", *KEY[1:])
    catalogue.keep(other, _kept(b'{"tools":[]}'))
    catalogue.keep(KEY, _kept(b'{"tools":[0]}', 1))
    for number in range(2 * MAX_ENTRIES):
        catalogue.keep(("a", "tools/list", f"c{number}", ""), _kept(b'{"tools":[%d]}' % number, 2 + number))
    assert catalogue.statistics()["a"]["answers"] == MAX_ENTRIES
    newest = ("a", "tools/list", f"c{2 * MAX_ENTRIES - 1}", "")
    assert catalogue.get(newest) is not None
    large = b'{"tools":["' + b"x" * (MIN_UPSTREAM // 3) + b'"]}'
    for number in range(5):
        catalogue.keep(("a", "tools/list", f"large{number}", ""), _kept(large, 10_000 + number))
    assert catalogue.statistics()["a"]["bytes"] <= MIN_UPSTREAM
    huge = b'{"tools":["' + b"x" * MIN_UPSTREAM + b'"]}'
    assert not catalogue.keep(("a", "prompts/list", "", ""), _kept(huge, 10**6))
    assert catalogue.get(KEY) is not None
    assert catalogue.get(other) is not None


def test_rows_carry_it_to_another() -> None:
    """What one catalogue says in rows, another learns; an unchanged answer is refreshed by its digest alone."""
    one, other = Catalogue(1), Catalogue(1)
    one.keep(KEY, _kept(b'{"tools":[1]}', 5))
    assert not other.learn(one.row(KEY, whole=False, now=5))
    assert other.learn(one.row(KEY, whole=True, now=5))
    assert not other.learn(one.row(KEY, whole=True, now=5))
    one.keep(KEY, _kept(b'{"tools":[1]}', 9))
    assert other.learn(one.row(KEY, whole=False, now=9))
    assert other.get(KEY) == one.get(KEY)
    one.forget(KEY)
    assert not other.learn(ListAnswer(*KEY, 8))
    assert other.learn(one.row(KEY, whole=True, now=10))
    assert other.get(KEY) is None
    assert not other.learn(ListAnswer("a", "tools/call", "", "", 1, b"d", b'{"tools":[]}'))
    assert not other.learn(ListAnswer(*KEY, 1, b"d", b'{"tools":[],"cacheScope":"private"}'))


def test_schemas_of_tools() -> None:
    """Over all pages, as the server wrote them; of two the newer; what has no name or schema is left out."""
    catalogue = Catalogue(1)
    first = b'{"tools":[{"name":"a","inputSchema":{"n":1.0}},{"name":"b","inputSchema":{"old":1}}]}'
    catalogue.keep(KEY, _kept(first, 1))
    page = b'{"tools":[{"inputSchema":{} ,"name":"b"},{"name":"c"},{"inputSchema":{}},7,{"name":1,"inputSchema":{}}]}'
    catalogue.keep(("a", "tools/list", "2", "2025-11-25"), _kept(page, 2))
    prompts = b'{"prompts":[{"name":"p","inputSchema":{}}]}'
    catalogue.keep(("a", "prompts/list", "", ""), _kept(prompts, 3, "prompts/list"))
    assert catalogue.tools("a") == {"a": b'{"n":1.0}', "b": b"{}"}
    assert catalogue.tools("nobody") == {}
