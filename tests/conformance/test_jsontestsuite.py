"""Every text of the JSON parsing test suite, as a whole message, inside params and as a member of params."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.policy.jsonrpc import INVALID_REQUEST, PARSE_ERROR, Refusal, parse_client

DATA = Path(os.environ.get("CONFORMANCE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "jsontestsuite"
FILES = sorted(DATA.glob("*.json"))

# RFC 8259 leaves these open. Pinned: numbers of any size are text to us; what isn't UTF-8, and surrogates without
# their other half, are refused; so is nesting beyond the limit.
ACCEPTED = {
    "i_number_double_huge_neg_exp.json",
    "i_number_huge_exp.json",
    "i_number_neg_int_huge_exp.json",
    "i_number_pos_double_huge_exp.json",
    "i_number_real_neg_overflow.json",
    "i_number_real_pos_overflow.json",
    "i_number_real_underflow.json",
    "i_number_too_big_neg_int.json",
    "i_number_too_big_pos_int.json",
    "i_number_very_big_negative_int.json",
}
# Refused for their depth, whether or not they are well-formed at the bottom.
TOO_DEEP = {
    "i_structure_500_nested_arrays.json",
    "n_structure_100000_opening_arrays.json",
    "n_structure_open_array_object.json",
}


def test_the_suite_is_there() -> None:
    """The suite's texts are found; without them, this file shows nothing."""
    if not DATA.is_dir():
        pytest.skip(f"no JSONTestSuite in {DATA}: set CONFORMANCE_DATA to the folder that holds jsontestsuite/")
    assert len(FILES) == 318


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def text(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    return request.param.name, request.param.read_bytes()


def well_formed(name: str) -> bool:
    return name.startswith("y_") or name in ACCEPTED


def verdict(raw: bytes) -> int:
    try:
        parse_client(raw)
    except Refusal as refusal:
        return refusal.code
    return 0


def test_as_a_whole_message(text: tuple[str, bytes]) -> None:
    """A text that is JSON is no parse error (but no request either); one that isn't is never taken for one."""
    name, raw = text
    code = verdict(raw)
    if well_formed(name) or name in TOO_DEEP:
        assert code == INVALID_REQUEST
    else:
        assert code == PARSE_ERROR


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_inside_params(text: tuple[str, bytes], depth: int) -> None:
    """The same texts as a value in params: accepted and refused alike, in both of the parser's paths."""
    name, raw = text
    value = b'{"b":' * depth + raw + b"}" * depth
    messages = [
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":%b}}' % value,
        b'{"method":"x","params":{"a":%b},"jsonrpc":"2.0","id":1}' % value,
        b'{"id":1,"params": {"a": %b} ,"jsonrpc":"2.0","method":"x"}' % value,
    ]
    for message in messages:
        code = verdict(message)
        if well_formed(name):
            assert code == 0
        else:
            assert code in (PARSE_ERROR, INVALID_REQUEST)
            assert code == PARSE_ERROR or name in TOO_DEEP
