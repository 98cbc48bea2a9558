"""A fixed number of the fuzzer's rounds, so that every test run has some and each comes out the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz import fuzz_authorization
from fuzz.fuzz_authorization import TARGETS, run_round

ROUNDS = 400


@pytest.mark.parametrize("target", TARGETS)
def test_the_first_rounds_pass(target: str, tmp_path: Path) -> None:
    """The invariants that the fuzzer's header states; and a fair part of what it makes up is good."""
    good = sum(run_round(target, seed, tmp_path) for seed in range(ROUNDS))
    assert ROUNDS // 10 < good < ROUNDS


def test_a_filter_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle does judge: a filter that minds no doubled or variant keys is caught within the same rounds."""
    monkeypatch.setattr("actors.policy.list_filter._check_spelling", lambda members, read: None)

    def all_rounds() -> None:
        for seed in range(ROUNDS):
            fuzz_authorization.check_filter(random.Random(seed))

    with pytest.raises(AssertionError):
        all_rounds()
