"""RE2, as far as it is used here: matching whose time is linear in the text, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import re2


class Match(Protocol):
    def start(self) -> int: ...

    def end(self) -> int: ...

    def span(self) -> tuple[int, int]: ...

    def group(self, group: int = 0) -> str: ...


class Pattern(Protocol):
    """Offsets are of the text as it was given: of bytes, or of characters."""

    def search(self, text: bytes, pos: int = 0) -> Match | None: ...

    def match(self, text: str) -> Match | None: ...

    def finditer(self, text: bytes | str) -> Iterator[Match]: ...


class PatternSet(Protocol):
    """Several patterns in one automaton."""

    def Match(self, text: bytes) -> Sequence[int] | None:  # noqa: N802 - RE2's own name
        """Which of them are somewhere in the text: their numbers, in any order; None or nothing when none is."""
        ...


def _options(*, ignore_case: bool, groups: bool) -> re2.Options:
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.never_capture = not groups
    options.max_mem = 64 << 20
    options.log_errors = False
    return options


def compiled(pattern: str | bytes, *, ignore_case: bool = False, groups: bool = False) -> Pattern:
    return cast("Pattern", re2.compile(pattern, _options(ignore_case=ignore_case, groups=groups)))


def pattern_set(patterns: Sequence[str], *, ignore_case: bool = False) -> PatternSet:
    found = re2.Set.SearchSet(_options(ignore_case=ignore_case, groups=False))
    for pattern in patterns:
        found.Add(pattern)
    found.Compile()
    return cast("PatternSet", found)
