"""Keys that reach a JavaScript server's prototypes: ``__proto__``, and ``constructor`` that contains ``prototype``.

Only keys count, however they are escaped; the same words in string values are ordinary text. The patterns rest on
the text being well-formed: there a quote that follows whitespace, ``{`` or ``,`` is never an escaped one, so it
begins or ends a string; what follows it up to the next quote and a colon is then a key.
"""

from __future__ import annotations

import re

from .members import STRING, text_of

_LONGEST_PART = 64  # characters
_LONGEST_POINTER = 512


def _spelled(word: str) -> bytes:
    """A pattern for a word each of whose characters may be a ``\\u`` escape."""
    units = []
    for char in word:
        digits = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{ord(char):04x}")
        units.append(rf"(?:{char}|\\u{digits})")
    return "".join(units).encode()


def _key(word: str) -> bytes:
    return rb'(?<=[{, \t\n\r])"' + _spelled(word) + rb'"[ \t\n\r]*+:'


_PROTO = re.compile(_key("__proto__"))
_CONSTRUCTOR = re.compile(_key("constructor") + rb"[ \t\n\r]*+\{")
_PROTOTYPE = re.compile(_key("prototype"))
_TOKEN = re.compile(rb"(" + STRING + rb")([ \t\n\r]*+:)?|[{}\[\],]", re.DOTALL)


def may_pollute(raw: bytes) -> bool:
    """False: there is nothing that ``find_pollution`` could find anywhere in it."""
    return b"__proto__" in raw or b"constructor" in raw or b"\\u00" in raw


def find_pollution(raw: bytes, at: int, end: int) -> str | None:
    """The JSON pointer (RFC 6901), from ``raw[at:end]``, of the first polluting key; None when there is none.

    Long keys are cut, and so is the pointer: it is for people.

    The slice must be one well-formed JSON value.
    """
    if _PROTO.search(raw, at, end) is None and (
        _CONSTRUCTOR.search(raw, at, end) is None or _PROTOTYPE.search(raw, at, end) is None
    ):
        return None
    return _pointer(raw, at, end)


def _pointer(raw: bytes, at: int, end: int) -> str | None:
    path: list[str | int] = []  # one entry for each open object or array: its present key or index
    for token in _TOKEN.finditer(raw, at, end):
        mark = raw[token.start()]
        if mark == 0x22:  # a string
            if token.group(2) is None:
                continue
            key = text_of(token.group(1)) or ""
            path[-1] = key
            if key == "__proto__" or (key == "prototype" and len(path) > 1 and path[-2] == "constructor"):
                parts = (str(part)[:_LONGEST_PART].replace("~", "~0").replace("/", "~1") for part in path)
                return "".join("/" + part for part in parts)[:_LONGEST_POINTER]
        elif mark == 0x7B:
            path.append("")
        elif mark == 0x5B:
            path.append(0)
        elif mark == 0x2C:
            index = path[-1]
            path[-1] = index + 1 if isinstance(index, int) else ""
        else:
            path.pop()
    return None
