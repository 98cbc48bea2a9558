"""The id that an unreadable answer shows: only one that may stand in a message."""

from __future__ import annotations

import pytest

from actors.policy.answer_id import answer_id, invalid_answer
from actors.policy.jsonrpc import parse_upstream
from actors.policy.mux import Counted, Mux

WRONG = [b"-01", b"007", b"--1", b"-", b"1.5", b"1e3", b'"\xff"', b'"\xed\xa0\x80"', b'"\x7f"', b'"a', b"null", b"+1"]
RIGHT = [b"0", b"-1", b"7", b"9007199254740993", b'""', b'"a b"', b'"~!#[]"']


@pytest.mark.parametrize("layout", [b'{"jsonrpc":"2.0","id":%b,"result":', b'{"result":[,"id":%b}'])
def test_ids(layout: bytes) -> None:
    """At either end of the text. What takes the answer's place is a valid message."""
    for raw in WRONG:
        assert answer_id(layout % raw, layout % raw) is None, raw
    for raw in RIGHT:
        text = invalid_answer(layout % raw)
        assert text is not None, raw
        assert parse_upstream(text).id == raw


@pytest.mark.parametrize("raw", WRONG)
def test_a_server_that_prints_such_an_id(raw: bytes) -> None:
    """Found by fuzzing: the multiplexer answered it to itself without end."""
    mux = Mux(version="", shared=True)
    mux.start(1)
    effects = mux.from_upstream(b'{"jsonrpc":"2.0","id":%b,' % raw, 2)
    assert Counted("garbage") in effects
