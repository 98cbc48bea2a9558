"""What a server answers reaches a client only as JSON-RPC has it: a result or an error, and an error that is one."""

from __future__ import annotations

import pytest

from actors.policy.answer_id import invalid_answer
from actors.policy.server_message import parse_upstream

NO_ANSWERS = [
    b'{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":"x"}}',
    b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"},"result":1}',
    b'{"result":1,"error":{"code":1,"message":"x"},"jsonrpc":"2.0","id":1}',
    b'{"jsonrpc":"2.0","id":1,"result":1,"error":null}',
    b'{"jsonrpc":"2.0","id":1,"error":null}',
    b'{"jsonrpc":"2.0","id":1,"error":5}',
    b'{"error":5,"jsonrpc":"2.0","id":1}',
    b'{"jsonrpc":"2.0","id":1,"error":{}}',
    b'{"jsonrpc":"2.0","id":1,"error":{"code":1.5,"message":"x"}}',
    b'{"jsonrpc":"2.0","id":1,"error":{"code":"1","message":"x"}}',
    b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":null}}',
    b'{"jsonrpc":"2.0","id":1}',
]
ANSWERS = [
    b'{"jsonrpc":"2.0","id":1,"result":null}',
    b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"x","data":{"a":[1]}}}',
    b'{"error": {"message": "", "code": 0}, "jsonrpc": "2.0", "id": 1}',
    b'{"id":1,"error":{"code":1,"message":"x"},"jsonrpc":"2.0","more":1}',
]


@pytest.mark.parametrize("raw", NO_ANSWERS)
def test_no_answer(raw: bytes) -> None:
    """It counts as garbage; where it shows whose it is, an error takes its place."""
    with pytest.raises(ValueError, match=r"response|error"):
        parse_upstream(raw)
    instead = invalid_answer(raw)
    assert instead is None or parse_upstream(instead).error


@pytest.mark.parametrize("raw", ANSWERS)
def test_answer(raw: bytes) -> None:
    """In whatever order its members stand."""
    message = parse_upstream(raw)
    assert (message.kind, message.id, message.error) == ("response", b"1", b"error" in raw)
