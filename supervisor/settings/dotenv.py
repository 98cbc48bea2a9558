"""The ``.env`` file: ``NAME=value`` a line, as shells and other tools write it. Pure.

Blank lines and lines that begin with ``#`` are skipped, as is ``export`` before a name. A hyphen in a name is an
underscore. A value may stand in single quotes (taken literally) or double quotes (``\\n``, ``\\r``, ``\\t``, ``\\"``,
``\\\\`` and ``\\$`` are understood); without quotes it ends at white space followed by ``#``.
"""

from __future__ import annotations

import re

import attrs

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*=\s*(.*)\Z", re.DOTALL)
_COMMENT = re.compile(r"\s*(?:#.*)?\Z", re.DOTALL)
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}


@attrs.frozen
class Entry:
    """``written`` is the name as it stands in the file, ``name`` with underscores."""

    name: str
    written: str
    value: str
    line: int


@attrs.frozen
class BrokenLine:
    line: int
    what: str


def parse(text: str) -> tuple[list[Entry], list[BrokenLine]]:
    """All entries in order, doubled ones too, and all lines that are none. No message holds a value."""
    entries: list[Entry] = []
    broken: list[BrokenLine] = []
    # Only the line ends of text files: a form feed or U+2028 in a value is not one.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff")), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            broken.append(BrokenLine(number, "must be NAME=value, a comment or blank"))
            continue
        try:
            value = _value(match[2])
        except ValueError as error:
            broken.append(BrokenLine(number, f"{match[1]}: {error}"))
            continue
        entries.append(Entry(match[1].replace("-", "_"), match[1], value, number))
    return entries, broken


def _value(text: str) -> str:
    for quote, pattern in (('"', _DOUBLE), ("'", _SINGLE)):
        if text.startswith(quote):
            match = pattern.match(text)
            if match is None:
                raise ValueError("the closing quote is missing")
            if not _COMMENT.match(text, match.end()):
                raise ValueError("something follows the closing quote")
            return _ESCAPE.sub(_unescape, match[1]) if quote == '"' else match[1]
    if text.startswith("#"):
        return ""
    return re.split(r"\s+#", text, maxsplit=1)[0].strip()


def _unescape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[1], match[0])
