"""What passes as a JSON-RPC message, what is refused and with which answer, and where the replaced values stand."""

from __future__ import annotations

import json

import pytest

from actors.policy.jsonrpc import (
    Refusal,
    error_reply,
    fast_path,
    flatten,
    id_key,
    parse_client,
    parse_upstream,
    result_reply,
    splice,
)
from actors.policy.members import nested_deeper


def refusal(raw: bytes, **options: int) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse_client(raw, **options)
    return caught.value


def request(extra: str) -> bytes:
    return b'{"jsonrpc":"2.0","id":7,"method":"m"%b}' % extra.encode()


# --- what passes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw_id",
    [b"0", b"-0", b"1", b'"1"', b"-7", b"9007199254740993", b"1" * 400, b'""', b'"\\u00e9\\"x"', b'"\xc3\xa9"'],
)
@pytest.mark.parametrize(
    "layout",
    [
        b'{"jsonrpc":"2.0","id":%b,"method":"tools/call","params":{"name":"t"}}',
        b'{"jsonrpc": "2.0", "id": %b, "method": "tools/call", "params": {"name": "t"}}',
        b'{"method":"tools/call","params":{"name":"t"},"jsonrpc":"2.0","id":%b}',
        b' {\n"id" : %b\t, "params":{"name":"t"} ,"method":"tools\\/call","jsonrpc":"2\\u002e0", "x":[{}] }\r\n ',
    ],
)
def test_the_id_is_found_to_the_byte(layout: bytes, raw_id: bytes) -> None:
    """An id is reported as the client's own bytes, at the place where they stand, in any layout."""
    raw = layout % raw_id
    envelope = parse_client(raw)
    assert envelope.kind == "request"
    assert envelope.id == raw_id
    assert raw[envelope.id_at : envelope.id_at + len(raw_id)] == raw_id
    assert (envelope.method, envelope.name) == ("tools/call", "t")


def test_notification_and_response() -> None:
    """No id: a notification. No method: a response, whose id is found too."""
    assert parse_client(b'{"jsonrpc":"2.0","method":"n"}').kind == "notification"
    raw = b'{"jsonrpc":"2.0","result":{"id":3},"id":"a"}'
    envelope = parse_client(raw)
    assert (envelope.kind, envelope.id, raw[envelope.id_at :]) == ("response", b'"a"', b'"a"}')
    error = b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"x","data":[]}}'
    assert parse_client(error).kind == "response"


def test_unknown_members_pass() -> None:
    """Members that JSON-RPC doesn't know are none of the gateway's business."""
    assert parse_client(b'{"jsonrpc":"2.0","id":1,"method":"m","trace":"x","\xc3\xa9":1}').method == "m"


def test_positional_params_pass() -> None:
    """params may be an array (JSON-RPC 4.2)."""
    assert parse_client(request(',"params":[1,{"name":"x"}]')).name == ""


@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_what_is_replaced_is_found(space: str) -> None:
    """Progress token, cancelled request and protocol version are reported at their exact place."""
    s = space
    raw = request(f',"params":{s}{{"x":"progressToken","_meta":{s}{{"progressToken":{s}"p\\n1"{s},"a":1}}}}')
    envelope = parse_client(raw)
    assert envelope.progress == b'"p\\n1"'
    assert raw.startswith(envelope.progress, envelope.progress_at)

    raw = (
        '{"jsonrpc":"2.0","method":"notifications/cancelled",'
        f'"params":{s}{{"reason":{s}"x","requestId":{s}12345678901234567890}}}}'
    ).encode()
    envelope = parse_client(raw)
    assert envelope.target == b"12345678901234567890"
    assert raw.startswith(envelope.target, envelope.target_at)

    raw = (
        f'{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{s}{{"capabilities":{{}},'
        f'"protocolVersion":{s}"2025-03-26"}}}}'
    ).encode()
    envelope = parse_client(raw)
    assert envelope.version == "2025-03-26"
    assert raw.startswith(b'"2025-03-26"', envelope.version_at)


def test_no_token_means_no_token() -> None:
    """A null progress token asks for nothing; one outside of _meta isn't one."""
    assert parse_client(request(',"params":{"_meta":{"progressToken":null}}')).progress_at == -1
    assert parse_client(request(',"params":{"progressToken":1}')).progress_at == -1


def test_routing_fields_are_unescaped() -> None:
    """Names, URIs, levels and versions are given as the strings that they stand for."""
    raw = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\\u0074\\"\xc3\xa9","arguments":{}}}'
    assert parse_client(raw).name == 't"é'
    raw = b'{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:\\/\\/a"}}'
    assert parse_client(raw).uri == "file://a"
    raw = b'{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"debug"}}'
    assert parse_client(raw).level == "debug"
    meta = '{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/logLevel":"error"}'
    envelope = parse_client(request(f',"params":{{"_meta":{meta}}}'))
    assert (envelope.era, envelope.level) == ("2026-07-28", "error")


@pytest.mark.parametrize("value", ["1", "null", "[]", "{}", "true"])
def test_fields_of_another_type_read_as_absent(value: str) -> None:
    """The server will refuse them; here they name nothing."""
    raw = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":{value},"_meta":{value}}}}}'.encode()
    assert parse_client(raw).name == ""


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "code", "answered"),
    [
        (b"", -32700, b"null"),
        (b"  ", -32700, b"null"),
        (b"{", -32700, b"null"),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"m"}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m"}{}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":["\xff"]}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\xff"}}', -32700, b"null"),
        (b'{"method":"m","params":{"\xc3":1},"jsonrpc":"2.0","id":1}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{}]', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m"]', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m",}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":}', -32700, b"null"),
        (b'{"method":"m","params":{} "jsonrpc":"2.0","id":1}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":["\xed\xa0\x80"]}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":["\xc0\x80"]}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":["\\ud800"]}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":["a\nb"]}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":NaN}}', -32700, b"null"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":[1,]}', -32700, b"null"),
        (b'[{"jsonrpc":"2.0","id":1,"method":"m"}]', -32600, b"null"),
        (b"[]", -32600, b"null"),
        (b"[1,2", -32700, b"null"),
        (b"7", -32600, b"null"),
        (b'"x"', -32600, b"null"),
        (b"{}", -32600, b"null"),
        (b'{"id":5}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5}', -32600, b"5"),
        (b'{"id":"a","method":"m"}', -32600, b'"a"'),
        (b'{"jsonrpc":"1.0","id":5,"method":"m"}', -32600, b"5"),
        (b'{"jsonrpc":2.0,"id":5,"method":"m"}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":null,"method":"m"}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":1.0,"method":"m"}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":1e3,"method":"m"}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":1E3,"method":"m"}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":true,"method":"m"}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":[1],"method":"m"}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":{},"method":"m"}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":5,"method":1}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","method":1}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":5,"method":"m","params":null}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5,"method":"m","params":"x"}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5,"method":"m","result":1}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5,"id":5,"method":"m"}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5,"\\u0069d":5,"method":"m"}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5,"method":"m","method":"m"}', -32600, b"5"),
        (b'{"method":"m","params":{},"params":{},"jsonrpc":"2.0","id":5}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5,"method":"m","x":1,"x":1}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5,"ID":6,"method":"m"}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5,"Method":"n","method":"m"}', -32600, b"5"),
        (b'{"jsonRpc":"2.0","jsonrpc":"2.0","id":5,"method":"m"}', -32600, b"5"),
        (b'{"jsonrpc":"2.0","id":5,"method":"m","\\u0050arams":{}}', -32600, b"5"),
        ('{"jsonrpc":"2.0","id":5,"method":"m","paramſ":{}}'.encode(), -32600, b"5"),
        (b'{"jsonrpc":"2.0","ID":5,"method":"m"}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":5,"result":1,"error":{"code":1,"message":"x"}}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","result":1}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":null,"result":1}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":5,"error":1}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":5,"error":{"code":1.5,"message":"x"}}', -32600, b"null"),
        (b'{"jsonrpc":"2.0","id":5,"error":{"code":1}}', -32600, b"null"),
    ],
)
def test_refused_with_its_own_id(raw: bytes, code: int, answered: bytes) -> None:
    """Each kind of invalid message gets its code, and the id that it is to be answered with."""
    caught = refusal(raw)
    assert (caught.code, caught.id, caught.notification) == (code, answered, False)
    json.loads(error_reply(caught.id, caught.code, caught.message, caught.data))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"jsonrpc":"1.0","method":"m"}',
        b'{"jsonrpc":"2.0","method":"m","params":1}',
        b'{"jsonrpc":"2.0","method":"m","params":{"__proto__":1}}',
    ],
)
def test_a_refused_notification_says_so(raw: bytes) -> None:
    """It is never answered (JSON-RPC 4.1)."""
    assert refusal(raw).notification


@pytest.mark.parametrize(
    "params",
    [
        '"name":"a","name":"b"',
        '"name":"a","Name":"b"',
        '"name":"a","\\u004eame":"b"',
        '"name":"a","_meta":{},"_meta":{}',
        '"name":"a","_Meta":{}',
        '"name":"a","_meta":{"progressToken":1,"progressToken":2}',
        '"name":"a","_meta":{"ProgressToken":2}',
        '"name":"a","_meta":{"io.modelcontextprotocol/protocolversion":"x"}',
    ],
)
def test_no_second_opinion_on_what_is_read(params: str) -> None:
    """What policy reads or the gateway replaces can't stand there twice, or in a spelling that some servers accept."""
    for raw in (
        f'{{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{{{params}}}}}',
        f'{{ "jsonrpc":"2.0","id":5,"method":"tools/call","params":{{ {params} }}}}',
    ):
        caught = refusal(raw.encode())
        assert (caught.code, caught.id) == (-32600, b"5")


@pytest.mark.parametrize("depth", [64, 65, 66, 200, 5000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_depth_is_exact(depth: int, pair: str) -> None:
    """The limit counts the message, params and all below; at any depth the refusal has the request's own id."""
    inner = depth - 2
    deep = "[" * inner + "]" * inner if pair == "[]" else '{"a":' * (inner - 1) + "{}" + "}" * (inner - 1)
    for raw in (
        f'{{"jsonrpc":"2.0","id":"x","method":"m","params":[{deep},1]}}',
        f'{{"method":"m","params":[{deep},"[[[[{{"],"jsonrpc":"2.0","id":"x"}}',
        f'{{"method":"m","params":[{deep}],"id":"x","jsonrpc":"2.0"}} ',
    ):
        if depth <= 64:
            assert parse_client(raw.encode(), max_depth=64).id == b'"x"'
        else:
            caught = refusal(raw.encode(), max_depth=64)
            assert (caught.code, caught.id, caught.rule) == (-32600, b'"x"', "depth")


def test_many_brackets_are_not_deep() -> None:
    """Neither a wide message nor brackets in strings count as nesting, however quotes are escaped."""
    wide = b",".join([b"{}", b"[[]]", b'"[{[{"', b'"\\"[["', b'"\\\\"', b'"\\\\\\"{"'] * 500)
    raw = b'{"jsonrpc":"2.0","id":1,"method":"m","params":[' + wide + b"]}"
    assert parse_client(raw, max_depth=4).id == b"1"
    assert refusal(raw, max_depth=3).rule == "depth"


def test_depth_limits_of_any_size() -> None:
    """Exact for small limits too, and for texts whose branches differ."""
    text = b'{"a":[[[]],[{},{"b":[[[]]]}]],"c":[]}'  # 7 deep
    assert [nested_deeper(text, limit) for limit in range(9)] == [True] * 7 + [False] * 2


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ('{"__proto__":1}', "/params/__proto__"),
        ('[0,{"a":[{},{"__proto__" : 1}]}]', "/params/1/a/1/__proto__"),
        ('{"a/b~":{"\\u005f_prot\\u006F__":1}}', "/params/a~1b~0/__proto__"),
        ('{"constructor":{"x":[{}],"prototype":{}}}', "/params/constructor/prototype"),
        ('{"constructor": {"x":1, "p\\u0072ototype": {}}}', "/params/constructor/prototype"),
        ('{"arguments":{"x":"\\"","__proto__":{}}}', "/params/arguments/__proto__"),
    ],
)
def test_prototype_pollution(params: str, pointer: str) -> None:
    """Polluting keys are refused anywhere in params, however escaped, with their place."""
    for method_first in (True, False):
        raw = (
            f'{{"method":"m","params":{params},"jsonrpc":"2.0","id":7}}' if method_first else
            f'{{"jsonrpc":"2.0","id":7,"method":"m","params":{params}}}'
        )
        caught = refusal(raw.encode())
        assert (caught.code, caught.id) == (422, b"7")
        assert caught.data == {"rule": "prototype-pollution", "pointer": pointer}


@pytest.mark.parametrize(
    "params",
    [
        '{"text":"__proto__","a":["__proto__","constructor","prototype"]}',
        '{"text":"{\\"__proto__\\":1}"}',
        '{"text":", \\"__proto__\\" : 1"}',
        '{"x__proto__":1,"__proto__x":1,"\\"__proto__":1}',
        '{"constructor":"x","prototype":{}}',
        '{"constructor":{"a":{"prototype":1}}}',
        '{"constructor":[{"prototype":1}]}',
        '{"prototype":{"constructor":1}}',
        '{"text":"\\\\u005f_proto__"}',
    ],
)
def test_the_same_words_as_values_pass(params: str) -> None:
    """Code about prototypes is ordinary text."""
    assert parse_client(request(f',"params":{params}')).id == b"7"


def test_the_layouts_of_the_sdks_take_the_fast_path() -> None:
    """What the official SDKs write is vouched for by one pattern; this is what the benchmark figures rest on."""
    for raw in (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{}}}',
        b'{"method":"tools/call","params":{"name":"a","arguments":{}},"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc": "2.0", "id": "a-1", "method": "ping"}',
        b'{"method":"notifications/initialized","jsonrpc":"2.0"}',
    ):
        assert fast_path(raw, 64) is not None


# --- answers of upstreams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello",
        b"[]",
        b"[1]",
        b'{"jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","result":1}',
        b'{"id":1,"result":1}',
        b'{"jsonrpc":"2.0","id":1,"result":"\xff"}',
        b'{"jsonrpc":"2.0","id":1,"result":}',
        b'{"jsonrpc":"2.0","id":1,"result":1,"id":2}',
        b'{"jsonrpc":"2.0","id":1,"result":1}}',
        b'{"jsonrpc":"2.0","id":1,"result":1]',
        b'{"jsonrpc":"2.0","id":1,"result":{"a":"\xff"}}',
        b'{"result":1},"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":null,"method":"m"}',
        b'{"jsonrpc":"2.0","method":7}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progressToken":2}}',
        b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 100_000,
    ],
)
def test_garbage_of_an_upstream(raw: bytes) -> None:
    """What is no message, or could be read in two ways, is a ValueError and nothing else."""
    with pytest.raises(ValueError):
        parse_upstream(raw)


def test_upstream_spans() -> None:
    """Ids, tokens and subscription ids are found to the byte."""
    raw = b'{"result": {"_meta": {"io.modelcontextprotocol/subscriptionId": 12}}, "jsonrpc": "2.0", "id": 12}'
    message = parse_upstream(raw)
    assert (message.kind, message.id, message.subscription, message.error) == ("response", b"12", b"12", False)
    assert raw[message.id_at :] == b"12}"
    assert raw.startswith(b"12}}", message.subscription_at)

    raw = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1,"progressToken":"7"}}'
    message = parse_upstream(raw)
    assert (message.kind, message.progress) == ("notification", b'"7"')
    assert raw[message.progress_at :] == b'"7"}}'
    assert parse_upstream(b'{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":""}}').error
    assert parse_upstream(b'{"jsonrpc":"2.0","id":"q","method":"roots/list"}').kind == "request"


# --- writing --------------------------------------------------------------------------------------------------------


def test_flatten_keeps_offsets() -> None:
    """Line breaks between tokens become spaces, one for one; escaped ones in strings stay."""
    raw = b'{"jsonrpc":"2.0",\r\n "id":1,\n"method":"a\\nb"}'
    flat = flatten(raw)
    assert b"\n" not in flat
    assert b"\r" not in flat
    assert len(flat) == len(raw)
    assert json.loads(flat) == json.loads(raw)


def test_splice() -> None:
    """Edits are carried out at the offsets of the original."""
    assert splice(b"abcdef", [(1, 2, b"XYZ"), (4, 6, b"")]) == b"aXYZcd"
    assert splice(b"abc", []) == b"abc"


def test_replies() -> None:
    """Replies carry the raw id as it was, and say what they should."""
    assert json.loads(error_reply(b'"1"', 429, "x\n", {"retryAfterMs": 5})) == {
        "jsonrpc": "2.0",
        "id": "1",
        "error": {"code": 429, "message": "x\n", "data": {"retryAfterMs": 5}},
    }
    assert result_reply(b"01e", b'{"a":1}') == b'{"jsonrpc":"2.0","id":01e,"result":{"a":1}}'
    assert json.loads(result_reply(b"2", {"b": [1]}))["result"] == {"b": [1]}


def test_id_key() -> None:
    """Two spellings of one id are the same; a number and its string are not."""
    assert id_key(b'"a"') == id_key(b'"\\u0061"')
    assert id_key(b"1") != id_key(b'"1"')
    assert id_key(b"-0") == id_key(b"0")
    assert id_key(b"9" * 5000) == b"9" * 5000
