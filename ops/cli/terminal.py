"""What others wrote, made safe to show on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with control characters, terminal escapes and bidirectional marks written out; newline and tab stay."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character in "\n\t" or character.isprintable()
        else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text
    )
