"""Globs against a plain model, every small one of them; and their time, which no text can stretch."""

from __future__ import annotations

import itertools

import pytest
from authorisation_model import pattern_matches

from ipc.globs import covers, matches, overlaps, parse

WORDS = ["".join(word) for length in range(6) for word in itertools.product("ab", repeat=length)]
PATTERNS = ["".join(pattern) for length in range(5) for pattern in itertools.product("ab*", repeat=length)]


def test_every_small_glob_matches_what_it_should() -> None:
    """121 patterns by 63 words: as the regular expression of the same meaning, ends that overlap included."""
    wrong = [
        (pattern, word)
        for pattern in PATTERNS
        for word in WORDS
        if matches(parse(pattern), word) != pattern_matches(pattern, word)
    ]
    assert wrong == []


def test_every_two_small_globs_relate_as_their_words_do() -> None:
    """``covers`` never says too much, ``overlaps`` never too little."""
    small = [pattern for pattern in PATTERNS if len(pattern) <= 3]
    words = {pattern: {word for word in WORDS if matches(parse(pattern), word)} for pattern in small}
    for one, other in itertools.product(small, repeat=2):
        if covers(parse(one), parse(other)):
            assert words[other] <= words[one], (one, other)
        assert overlaps(parse(one), parse(other)) or not words[one] & words[other], (one, other)


@pytest.mark.parametrize(
    ("pattern", "glob"),
    [
        ("", ("",)),
        ("a", ("a",)),
        ("*", ("", "")),
        ("**", ("", "")),
        ("a**b*", ("a", "b", "")),
        (r"\*", ("*",)),
        (r"\\*", ("\\", "")),
        (r"a\**\\b", ("a*", "\\b")),
    ],
)
def test_parsing(pattern: str, glob: tuple[str, ...]) -> None:
    """Wildcards part a pattern, escaped ones don't, and several in a row are one."""
    assert parse(pattern) == glob


@pytest.mark.parametrize("pattern", ["\\", "a\\", r"\a", r"*\n"])
def test_a_stray_backslash_is_refused(pattern: str) -> None:
    """It would mean something else in another language of patterns."""
    with pytest.raises(ValueError, match="backslash"):
        parse(pattern)


def test_a_middle_part_is_not_found_in_the_end() -> None:
    """What the last part needs is not there for the one before it."""
    assert not matches(parse("a*bb*b"), "abb")
    assert matches(parse("a*bb*b"), "abbb")
    assert not matches(parse("ab*b"), "ab")
