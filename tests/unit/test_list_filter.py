"""Answers of list methods that can't be read are refused, never shown."""

from __future__ import annotations

import pytest

from actors.policy.list_filter import MOST_ENTRIES, Unreadable, filtered


def only_a(name: str) -> bool:
    return name == "a"


@pytest.mark.parametrize(
    ("method", "entry"),
    [
        ("tools/list", b'{"tools":[{"name":"a"},{"name":"b"}]}'),
        ("prompts/list", b'{"prompts":[{"name":"a"},{"name":"b"}]}'),
        ("resources/list", b'{"resources":[{"uri":"a","name":"b"},{"uri":"b","name":"a"}]}'),
        ("resources/templates/list", b'{"resourceTemplates":[{"uriTemplate":"a"},{"uriTemplate":"b"}]}'),
    ],
)
def test_each_list_has_its_own_key_and_name(method: str, entry: bytes) -> None:
    """The second entry goes, with the comma before it."""
    out = filtered(b'{"jsonrpc":"2.0","id":1,"result":' + entry + b"}", method, only_a)
    assert out == b'{"jsonrpc":"2.0","id":1,"result":' + entry.partition(b",{")[0] + b"]}}"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"id":1}',
        b'{"result":[]}',
        b'{"result":"b"}',
        b'{"result":{"tools":{}}}',
        b'{"result":{"tools":"b"}}',
        b'{"result":{"tools":null}}',
        b'{"result":{"Tools":[{"name":"b"}]}}',
        b'{"result":{"tools":[],"TOOLS":[{"name":"b"}]}}',
        b'{"Result":{"tools":[{"name":"b"}]},"result":{}}',
        b'{"Error":1,"error":{}}',
        b'{"result":{"tools":[{"name":"b"}]},"result":{}}',
        b'{"result":{"tools":[{"name":"b"}],"tools":[]}}',
        b'{"result":{"tools":[{"name":"b"}],"t\\u006fols":[]}}',
        b'{"result":{"tools":[{"name":"a"}',
        b'{"result":{"tools":[{"name":"\xff"}]}}',
        b'{"result":{"tools":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"result":{"tools":[' + b",".join([b'{"name":"b"}'] * (MOST_ENTRIES + 1)) + b"]}}",
    ],
)
def test_what_can_t_be_looked_through_is_not_shown(raw: bytes) -> None:
    """Two members of one key, other spellings, other shapes, damage: a client may see in it what we don't."""
    with pytest.raises(Unreadable):
        filtered(raw, "tools/list", only_a)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"b"}}',
        b'{"error":{"code":1,"message":"b"},"result":null}',
        b'{"result":{}}',
        b'{"result":{"nextCursor":"b"}}',
        b'{"result":{"tools":[]}}',
        b'{ "result" : { "tools" : [ ] } } ',
    ],
)
def test_what_shows_nothing_is_left_alone(raw: bytes) -> None:
    """Errors and empty lists pass as they are."""
    assert filtered(raw, "tools/list", only_a) is raw


@pytest.mark.parametrize(
    "entry",
    [
        b"1", b"null", b'"a"', b"[]", b"{}", b'{"name":1}', b'{"name":null}', b'{"Name":"a"}',
        b'{"name":"a","name":"b"}', b'{"name":"b","name":"a"}', b'{"name":"a","n\\u0061me":"b"}',
        b'{"name":"a","NAME":"b"}', b'{"title":"a"}',
    ],
)  # fmt: skip
def test_an_entry_without_one_clear_name_is_left_out(entry: bytes) -> None:
    """What can't be told to be allowed isn't shown, and doesn't take the others with it."""
    raw = b'{"result":{"tools":[{"name":"a"},' + entry + b',{"name":"a"}]}}'
    assert filtered(raw, "tools/list", only_a) == b'{"result":{"tools":[{"name":"a"},{"name":"a"}]}}'
