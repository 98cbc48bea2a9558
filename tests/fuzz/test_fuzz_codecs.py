"""A fixed number of the fuzzer's rounds, so that every test run has some and each comes out the same."""

from __future__ import annotations

import random

import pytest
from fuzz import fuzz_codecs
from fuzz.fuzz_codecs import TARGETS, Request, head_ours, head_stream, run_round, ws_ours, ws_stream


@pytest.mark.parametrize("target", TARGETS)
def test_the_first_rounds_pass(target: str) -> None:
    """The invariants that the fuzzer's header states, over its first 1500 seeds."""
    for seed in range(1500):
        run_round(target, seed)


def test_the_streams_are_not_all_rubbish() -> None:
    """A fuzzer that is always refused at once finds nothing: a fair part of its streams is understood."""
    streams = [ws_stream(random.Random(seed)) for seed in range(300)]
    results = [ws_ours([stream]) for stream in streams]
    assert sum(not code for _, code, _ in results) > 60
    assert {code for _, code, _ in results} >= {0, 1002, 1003, 1007}
    heads = [head_ours([head_stream(random.Random(seed))]) for seed in range(300)]
    assert sum(isinstance(head, Request) for head in heads) > 60
    assert {400, 501, 505} <= {head for head in heads if isinstance(head, int)}


def test_a_codec_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle does judge: a receiver that lets one rule go is caught within the same rounds."""

    class Lax(fuzz_codecs.WsReceiver):
        def _check_opcode(self, opcode: int, final: bool, size: int) -> None:
            if opcode < 8:
                super()._check_opcode(opcode, final, size)

    def all_rounds() -> None:
        for seed in range(1500):
            run_round("ws", seed)

    monkeypatch.setattr(fuzz_codecs, "WsReceiver", Lax)
    with pytest.raises(AssertionError):
        all_rounds()
