"""RE2, as far as it is used here: matching whose time is linear in the text, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import re2


class Match(Protocol):
    def start(self) -> int: ...

    def end(self) -> int: ...

    def span(self, group: int = 0) -> tuple[int, int]: ...

    def group(self, group: int = 0) -> str: ...


class Pattern(Protocol):
    """Offsets are of the text as it was given: of bytes, or of characters."""

    def search(self, text: bytes, pos: int = 0) -> Match | None: ...

    def match(self, text: str) -> Match | None: ...

    def finditer(self, text: bytes | str) -> Iterator[Match]: ...


class PatternSet:
    """Several patterns in one automaton.

    RE2 tells "none of them" and "I ran out of memory" in the same way. So one more pattern is among them, which is
    in every text: where even that isn't found, nothing is known of the text.
    """

    def __init__(self, patterns: Sequence[str], options: re2.Options) -> None:
        self._set = re2.Set.SearchSet(options)
        for pattern in (*patterns, "(?:)"):
            self._set.Add(pattern)
        self._set.Compile()
        self._witness = len(patterns)

    def find(self, text: bytes) -> Sequence[int]:
        """Which of them are somewhere in the text: their numbers, in any order.

        Raises:
            MemoryError
        """
        found: list[int] | None = self._set.Match(text)
        if not found:
            raise MemoryError("a text can't be searched: RE2 is out of memory")
        found.remove(self._witness)
        return found


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
    return PatternSet(patterns, _options(ignore_case=ignore_case, groups=False))
