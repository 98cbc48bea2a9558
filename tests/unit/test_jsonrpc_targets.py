"""What a message asks for is read in one way, or the message is refused; both paths agree."""

from __future__ import annotations

import pytest

from actors.policy.jsonrpc import Refusal, fast_path, parse_client, slow_path
from ipc.messages import Envelope

COMPLETE = '"completion/complete"'
LISTEN = '"subscriptions/listen"'


def message(method: str, params: str) -> bytes:
    return f'{{"jsonrpc":"2.0","id":1,"method":{method},"params":{params}}}'.encode()


@pytest.mark.parametrize(
    ("method", "params", "name", "uri", "uris"),
    [
        (COMPLETE, '{"ref":{"type":"ref/prompt","name":"p"},"argument":{"name":"x","value":"y"}}', "p", "", ()),
        (COMPLETE, '{"ref":{"type":"ref/prompt","uri":"u","name":"p"}}', "p", "", ()),
        (COMPLETE, '{"ref":{"type":"ref/resource","uri":"u","name":"p"},"_meta":{}}', "", "u", ()),
        (COMPLETE, '{"ref":{"type":"ref/else","uri":"u","name":"p"}}', "", "", ()),
        (COMPLETE, '{"ref":{ "t\\u0079pe" : "ref/prompt" , "name" : "\\u0070" }}', "p", "", ()),
        (COMPLETE, '{"ref":"u"}', "", "", ()),
        (COMPLETE, "{}", "", "", ()),
        (COMPLETE, '["p"]', "", "", ()),
        (LISTEN, '{"notifications":{"resourceSubscriptions":["a","\\u0062"],"tools":1}}', "", "", ("a", "b")),
        (LISTEN, '{"notifications":{"resourceSubscriptions":[]}}', "", "", ()),
        (LISTEN, '{"notifications":{"resourceSubscriptions":null}}', "", "", ()),
        (LISTEN, '{"notifications":{}}', "", "", ()),
        (LISTEN, '{"notifications":null}', "", "", ()),
        (LISTEN, "{}", "", "", ()),
        (LISTEN, '{"notifications":{"resourceSubscriptions":"a"}}', "", "", ("",)),
        (LISTEN, '{"notifications":{"resourceSubscriptions":["a",1]}}', "", "", ("",)),
        (LISTEN, '{"notifications":["a"]}', "", "", ("",)),
        ('"tools/call"', '{"name":"t","ref":{"type":"ref/prompt","name":"p"}}', "t", "", ()),
        ('"other"', '{"ref":{"type":"ref/prompt","name":"p"},"Ref":1}', "", "", ()),
    ],
)  # fmt: skip
def test_targets_are_read(method: str, params: str, name: str, uri: str, uris: tuple[str, ...]) -> None:
    """The names and URIs of completion and listen, in whatever layout; what can't be read is said to be so."""
    raw = message(method, params)
    envelope = parse_client(raw)
    assert (envelope.name, envelope.uri, envelope.uris) == (name, uri, uris)
    assert slow_path(raw, 64) == envelope
    assert fast_path(raw, 64) in (None, envelope)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (COMPLETE, '{"ref":{},"ref":{}}'),
        (COMPLETE, '{"ref":{},"Ref":{}}'),
        (COMPLETE, '{"REF":{}}'),
        (COMPLETE, '{"ref":{"type":"ref/prompt","name":"a","name":"b"}}'),
        (COMPLETE, '{"ref":{"type":"ref/prompt","name":"a","n\\u0061me":"b"}}'),
        (COMPLETE, '{"ref":{"type":"ref/prompt","name":"a","Name":"b"}}'),
        (COMPLETE, '{"ref":{"type":"ref/resource","URI":"b"}}'),
        (COMPLETE, '{"ref":{"type":"ref/prompt","Type":"ref/resource","name":"a","uri":"u"}}'),
        (LISTEN, '{"notifications":{},"notifications":{}}'),
        (LISTEN, '{"Notifications":{}}'),
        (LISTEN, '{"notifications":{"resourceSubscriptions":[],"resourceSubscriptions":["a"]}}'),
        (LISTEN, '{"notifications":{"resourcesubscriptions":["a"]}}'),
    ],
)
def test_a_target_that_stands_twice_is_refused(method: str, params: str) -> None:
    """A server that takes the other member would do what nobody allowed."""
    for check in (parse_client, lambda raw: slow_path(raw, 64)):
        with pytest.raises(Refusal) as caught:
            check(message(method, params))
        assert (caught.value.code, caught.value.rule, caught.value.id) == (-32600, "duplicate-key", b"1")


def test_an_envelope_says_nothing_more_than_before_by_default() -> None:
    """The new field is empty where nobody subscribes to anything."""
    assert Envelope("request", "ping").uris == ()
