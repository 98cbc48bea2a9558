"""The regression cases of the OWASP Core Rule Set, as far as the content benchmark needs them.

Each case is one request that a rule should find, or should not. What a client chose in it are the values of its query,
its body and its unusual headers. The files are YAML of a plain kind, of which only the lines that matter are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, unquote_plus

import attrs

_MEMBER = re.compile(r"(\s*)(?:- )?([A-Za-z_-]+):(?: +(.*))?$")
_USUAL = frozenset({"host", "accept", "accept-encoding", "accept-language", "accept-charset", "connection",
                    "content-type", "content-length", "keep-alive", "proxy-connection", "cache-control"})  # fmt: skip


@attrs.frozen
class Case:
    """``rule`` is the number of the rule that should, or should not, find something in one of ``values``."""

    rule: int
    expected: bool
    values: tuple[str, ...]


def cases(directory: Path) -> Iterator[Case]:
    for path in sorted(directory.glob("9*.yaml")):
        yield from _of_file(int(path.stem), path.read_text(encoding="utf-8").splitlines())


def _of_file(rule: int, lines: list[str]) -> Iterator[Case]:
    values: list[str] = []
    in_headers = -1
    at = 0
    while at < len(lines):
        member = _MEMBER.match(lines[at])
        at += 1
        if member is None:
            continue
        indent, key, text = len(member[1]), member[2], member[3] or ""
        if text[:1] in ("|", ">"):
            block: list[str] = []
            while at < len(lines) and (not lines[at].strip() or len(lines[at]) - len(lines[at].lstrip()) > indent):
                block.append(lines[at].strip())
                at += 1
            text = "\n".join(block)
        else:
            text = _scalar(text)
        if key == "headers":
            in_headers = indent
        elif in_headers >= 0 and indent > in_headers:
            if key.lower() not in _USUAL and not text.startswith("OWASP CRS"):
                values.append(unquote_plus(text) if key.lower() == "cookie" else text)
        else:
            in_headers = -1
            if key == "uri":
                values += _parts(text.partition("?")[2]) or [unquote_plus(text)]
            elif key == "data":
                values += _parts(text)
            elif key in ("expect_ids", "no_expect_ids"):
                yield Case(rule, key == "expect_ids", tuple(value for value in values if value))
            elif key == "test_id":
                values = []


def _parts(text: str) -> list[str]:
    """Names and values of a form; the whole text where it is none."""
    pairs = parse_qsl(text, keep_blank_values=True)
    found = [part for pair in pairs for part in pair if part]
    return [*found, unquote_plus(text)] if found else [text] if text else []


def _scalar(text: str) -> str:
    if text[:1] == '"' and text.rstrip()[-1:] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text.rstrip()[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if text[:1] == "'" and text.rstrip()[-1:] == "'":
        return text.rstrip()[1:-1].replace("''", "'")
    return text
