"""No message is forwarded that lacks the stamp of any check."""

from itertools import combinations

import pytest

from actors.policy import pipeline


def test_all_stamps_pass() -> None:
    """The positive control."""
    pipeline.require(pipeline.FORWARD)


@pytest.mark.parametrize(
    "stamps",
    [sum(chosen) for size in range(len(pipeline.STAGES)) for chosen in combinations(pipeline.STAGES, size)],
)
def test_any_missing_stamp_is_refused_and_named(stamps: int) -> None:
    """Every proper subset of the checks is too little, and the error says which are missing."""
    with pytest.raises(pipeline.NotAllowed) as caught:
        pipeline.require(stamps)
    names = pipeline.missing(stamps)
    assert names
    assert all(name in str(caught.value) for name in names)


def test_stages_are_distinct_bits() -> None:
    """One check can't stand in for another."""
    assert sum(pipeline.STAGES) == pipeline.FORWARD
    assert len({stage.bit_count() for stage in pipeline.STAGES}) == 1
