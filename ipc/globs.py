"""Patterns with ``*``, the one wildcard: any run of characters, ``/`` too, or none at all.

A glob is the tuple of the texts between its wildcards: ``("a", "z")`` is ``a*z``, ``("a",)`` is ``a`` and nothing
else, ``("", "")`` is everything. To match one is to find its parts one after the other, so the time is linear in the
text for any glob, whoever wrote the text; nothing is ever tried again.
"""

from __future__ import annotations

Glob = tuple[str, ...]

ANYTHING: Glob = ("", "")


def parse(pattern: str) -> Glob:
    r"""The glob that a text means: ``*`` is the wildcard, ``\*`` a star, ``\\`` a backslash.

    Raises:
        ValueError: a backslash stands before something else.
    """
    parts: list[str] = []
    part: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            escaped = next(characters, "")
            if escaped not in ("*", "\\"):
                raise ValueError(r"a backslash goes before * or \ only")
            part.append(escaped)
        elif character != "*":
            part.append(character)
        elif part or not parts:  # two stars in a row are one
            parts.append("".join(part))
            part.clear()
    return (*parts, "".join(part))


def matches(glob: Glob, text: str) -> bool:
    """Whether the whole text is one that the glob stands for."""
    first = glob[0]
    if len(glob) == 1:
        return text == first
    last = glob[-1]
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for part in glob[1:-1]:
        found = text.find(part, at, end)  # the leftmost one leaves the most to the others
        if found < 0:
            return False
        at = found + len(part)
    return True


def covers(wide: Glob, narrow: Glob) -> bool:
    """Whether every text that ``narrow`` stands for is one of ``wide``'s. False may also mean: not easily seen."""
    if len(narrow) == 1:
        return matches(wide, narrow[0])
    if len(wide) == 1:
        return False
    # A run of ``narrow``'s wildcard can only be taken by a wildcard of ``wide``: find each part of ``wide`` in one
    # part of ``narrow``.
    if not (narrow[0].startswith(wide[0]) and narrow[-1].endswith(wide[-1])):
        return False
    parts = list(narrow)
    parts[0] = parts[0][len(wide[0]) :]
    parts[-1] = parts[-1][: len(parts[-1]) - len(wide[-1])]
    index, at = 0, 0
    for part in wide[1:-1]:
        while index < len(parts) and (found := parts[index].find(part, at)) < 0:
            index, at = index + 1, 0
        if index == len(parts):
            return False
        at = found + len(part)
    return True


def overlaps(one: Glob, other: Glob) -> bool:
    """Whether some text is one that both stand for."""
    if len(one) == 1:
        return matches(other, one[0])
    if len(other) == 1:
        return matches(one, other[0])
    # What stands between can always be had one after the other: only the ends may contradict each other.
    heads = one[0].startswith(other[0]) or other[0].startswith(one[0])
    tails = one[-1].endswith(other[-1]) or other[-1].endswith(one[-1])
    return heads and tails
