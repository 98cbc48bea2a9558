"""Each rule of the contract's section 7, and what comes near it and has to pass, on the parser itself."""

from __future__ import annotations

import json

import pytest
from strict_reader import Malformed, TooDeep, read
from validation_cases import PARSE, PASSES, REFUSED, Passes, Refused

from actors.policy.jsonrpc import Refusal, fast_path, parse_client, slow_path


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
def test_what_is_always_refused(case: Refused) -> None:
    """With its code and the message's own id; the fast path vouches for none of it."""
    assert fast_path(case.raw, 64) is None
    with pytest.raises(Refusal) as refused:
        parse_client(case.raw)
    assert refused.value.code == case.code
    assert json.loads(refused.value.id) == case.id
    assert not refused.value.notification


@pytest.mark.parametrize("case", PASSES.values(), ids=list(PASSES))
def test_what_comes_near_it_passes(case: Passes) -> None:
    """And the id is found where it stands."""
    envelope = slow_path(case.raw, 64)
    assert parse_client(case.raw) == envelope
    assert (envelope.kind, envelope.id, envelope.id_at) == ("request", case.id, len(case.before))


def test_an_empty_key_is_nothing_that_the_gateway_reads() -> None:
    """Found by fuzzing: a member of params whose key is empty was taken for the protocol version."""
    envelope = parse_client(b'{"jsonrpc":"2.0","id":7,"method":"m","params":{"_meta":{"x":1},"":"2025-11-25"}}')
    assert (envelope.version, envelope.version_at) == ("", -1)


def test_the_table_is_right_about_json() -> None:
    """Of the refused ones those are a parse error that another strict reader of JSON doesn't take either."""
    for name, case in REFUSED.items():
        try:
            read(case.raw)
            well_formed = True
        except Malformed:
            well_formed = False
        except TooDeep:
            continue
        assert well_formed == (case.code != PARSE) or "never close" in name, name
    for case in PASSES.values():
        read(case.raw)
    assert len(PASSES) > 60
