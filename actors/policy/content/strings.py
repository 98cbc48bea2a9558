"""The strings of a message, where they stand and what they are called.

The message must be well-formed: then every quote that begins a token begins a string. A key that comes twice is seen
twice, whatever a decoder would make of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import attrs

from ..members import STRING, text_of

# Possessive, so linear in the text; RE2 has no way to hand out a million tokens cheaply.
_TOKEN: Final = re.compile(rb"(" + STRING + rb")([ \t\n\r]*+:)?|[{}\[\]]", re.DOTALL)
_PLACE: Final = re.compile(rb"(" + STRING + rb")([ \t\n\r]*+:)?|[{}\[\],]", re.DOTALL)
_LONGEST_PART: Final = 64
_LONGEST_POINTER: Final = 512


@attrs.frozen(slots=True, eq=False)
class Text:
    """One string: its bytes in UTF-8, escapes resolved; ``start`` and ``end`` are where it stands, with its quotes.

    ``name`` is the key of the member that it is in, whether as its value or as an element of arrays in it.
    """

    start: int
    end: int
    value: bytes
    is_key: bool
    name: str


def texts(raw: bytes, most: int) -> tuple[list[Text], bool]:
    """All strings, keys included, in their order. The second value says that there are more than ``most`` tokens."""
    found: list[Text] = []
    names: list[str] = []  # by open object or array
    name = ""
    for number, token in enumerate(_TOKEN.finditer(raw)):
        if number >= most:
            return found, True
        start = token.start()
        mark = raw[start]
        if mark == 0x22:
            end = token.end(1)
            value = raw[start + 1 : end - 1]
            if b"\\" in value:
                value = (text_of(raw[start:end]) or "").encode()
            is_key = token.group(2) is not None
            if is_key:
                name = value.decode()
            found.append(Text(start, end, value, is_key, name))
        elif mark in b"{[":
            names.append(name)
        else:
            name = names.pop() if names else ""
    return found, False


def pointers(raw: bytes, starts: Iterable[int]) -> dict[int, str]:
    """The JSON pointer (RFC 6901) of each string that starts at one of these places; of a key, its member's.

    Long keys are cut, and so is the pointer: it is for people, and for rules about fields with names.
    """
    wanted = set(starts)
    found: dict[int, str] = {}
    path: list[str | int] = []
    for token in _PLACE.finditer(raw):
        if len(found) == len(wanted):
            break
        start = token.start()
        mark = raw[start]
        if mark == 0x22:
            if token.group(2) is not None:
                path[-1] = text_of(token.group(1)) or ""
            if start in wanted:
                found[start] = _written(path)
        elif mark == 0x7B:
            path.append("")
        elif mark == 0x5B:
            path.append(0)
        elif mark == 0x2C:
            index = path[-1]
            path[-1] = index + 1 if isinstance(index, int) else ""
        else:
            path.pop()
    return found


def _written(path: list[str | int]) -> str:
    parts: list[str] = []
    length = 0
    for part in path:
        text = str(part)[:_LONGEST_PART].replace("~", "~0").replace("/", "~1")
        length += len(text) + 1
        if length > _LONGEST_POINTER:
            break
        parts.append("/" + text)
    return "".join(parts)
