"""What the coverage-guided fuzzer found worth keeping is replayed by every test run, without the fuzzer."""

from __future__ import annotations

import pytest
from fuzz.targets import CORPUS, NAMES, packed, target, unpacked


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_passes(name: str) -> None:
    """The invariant that the target's header states holds for its seeds and for all that was ever found."""
    one = target(name)
    assert one.corpus, "no corpus: ops/fuzz TARGET SECONDS --keep"
    for data in (*one.seeds, *one.corpus):
        one.check(data)


def test_the_corpora_are_small_and_of_targets() -> None:
    """Each file is of a target, packed as the fuzzer packs it, and the whole is small."""
    files = list(CORPUS.iterdir())
    assert {file.name for file in files} == set(NAMES)
    for file in files:
        text = file.read_text()
        assert packed(unpacked(text)) == text
    assert sum(file.stat().st_size for file in files) < 1 << 20
