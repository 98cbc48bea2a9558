"""The id of a message of which only the ends were kept."""

from __future__ import annotations

import pytest

from actors.policy.client_ends import id_at_ends, id_at_head


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b'{"jsonrpc":"2.0","id":5,"method":"m","params":{"a":"xxx', b"5"),
        (b' { "method" : "m" , "jsonrpc":"2.0", "id" : "a\\"b" , "params":{"a":"xxx', b'"a\\"b"'),
        (b'{"id":-3,"method":"m","params":[', b"-3"),
        (b'{"jsonrpc":"2.0","method":"m","params":{"id":9,"a":"xxx', None),  # the message's own may follow
        (b'{"jsonrpc":"2.0","id":12', None),  # its digits may go on
        (b'{"jsonrpc":"2.0","id":7,"result":{"a":"xxx', b"null"),  # a response: none of the client's own ids
        (b'{"jsonrpc":"2.0","error":{"a":"xxx', b"null"),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"m"', None),
        (b'{"jsonrpc":"2.0","id":{},"method":"m"', None),
        (b'{"jsonrpc":"2.0","id":"\xff","method":"m"', b"null"),
        (b'{"jsonrpc":"2.0","id":"\\ud800","method":"m"', b"null"),
        (b"[" * 60_000, None),
        (b"", None),
    ],
)
def test_at_the_head(head: bytes, found: bytes | None) -> None:
    """The id stands before what is large, or nobody can say yet; a response's and a broken one are never used."""
    assert id_at_head(head) == found


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        (b'xxx"},"id":5}', b"5"),
        (b'xxx"},"id":"q","jsonrpc":"2.0"}', b'"q"'),
        (b'xxx","id":5}}', b"null"),  # some other object's
        (b'xxx"}}', b"null"),
        (b"", b"null"),
    ],
)
def test_at_the_tail(tail: bytes, found: bytes) -> None:
    """Behind what is large only the envelope's own members count."""
    assert id_at_ends(b'{"jsonrpc":"2.0","method":"m","params":{"a":"' + b"x" * 1000, tail) == found
