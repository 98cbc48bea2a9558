"""Where the members of a JSON object stand in its text, byte for byte.

The decoder tells whether a text is well-formed and what each member's value is, but neither where the values stand
nor whether a key came twice (the last one wins). Walking the text along the decoded values answers both: JSON
values other than numbers are prefix-free, and a number ends where a delimiter begins, so as long as each key is
followed by exactly the value that was decoded for it, the walk is at a true member; a key that came twice leaves
members over when the decoded ones are used up, or does not match before that.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from itertools import accumulate

import msgspec

Span = tuple[int, int]  # where a value starts, and where it ends (exclusive)

_WS = rb"[ \t\n\r]*+"
# Possessive quantifiers (3.11): a client's text must not be able to make a pattern backtrack.
STRING = rb'"(?:[^"\\]++|\\.)*+"'
_KEY = re.compile(_WS + rb"[{,]" + _WS + STRING + _WS + rb":" + _WS, re.DOTALL)
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*+)\Z")
_END = re.compile(_WS + rb"\}" + _WS + rb"\Z")
_EMPTY = re.compile(_WS + rb"\{" + _WS + rb"\}" + _WS + rb"\Z")
_NESTING = bytes.maketrans(b"[]", b"{}")
_STEPS = bytes.maketrans(b"{}", b"\x01\xff")  # as signed bytes: +1, -1
_NOT_NESTING = bytes(byte for byte in range(256) if byte not in b'"{}[]')
_UTF8_CHUNK = 1 << 20  # so that checking a large text never holds a second copy of it as a string

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)


class DuplicateKey(ValueError):
    """One of the object's keys comes more than once."""


def decode_object(text: bytes | memoryview | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """The members of one JSON object, which must be the whole text.

    Checks everything that RFC 8259 asks for except UTF-8 inside of values.

    Raises:
        msgspec.DecodeError: not well-formed; its subclass ValidationError: some other JSON value.
        RecursionError: nested deeper than the interpreter's stack.
    """
    return _OBJECT.decode(text)


def text_of(value: msgspec.Raw | bytes) -> str | None:
    """The string that a well-formed JSON value stands for; None when it is no string."""
    try:
        return _TEXT.decode(value)
    except msgspec.ValidationError:
        return None


def is_error_object(value: bytes | memoryview | msgspec.Raw) -> bool:
    """Whether a well-formed JSON value is an error object: integer ``code``, string ``message`` (JSON-RPC §5.1)."""
    try:
        error = decode_object(value)
    except msgspec.ValidationError:
        return False
    return (
        "code" in error
        and _INTEGER.match(bytes(error["code"])) is not None
        and "message" in error
        and text_of(error["message"]) is not None
    )


def locate(raw: bytes, at: int, end: int, members: Mapping[str, msgspec.Raw]) -> dict[str, Span]:
    """Where the values of ``members`` stand in ``raw[at:end]``, the object that they were decoded from.

    Whitespace around the object may be part of the slice.

    Raises:
        DuplicateKey: the text holds more members than that.
    """
    if not members:
        if _EMPTY.match(raw, at, end) is None:
            raise DuplicateKey
        return {}
    spans: dict[str, Span] = {}
    # Written without whitespace and escapes in keys, the object is exactly as long as its members with their marks.
    # Anything more, a second member of the same key too, makes the text longer; then it must be walked.
    after = at + 1
    for key, value in members.items():
        start = after + len(key) + 3
        after = start + len(value)
        spans[key] = (start, after)
        after += 1
    if after == end:
        return spans
    spans.clear()
    for key, value in members.items():
        found = _KEY.match(raw, at, end)
        if found is None:
            raise DuplicateKey
        start = found.end()
        text = bytes(value)
        if not raw.startswith(text, start):
            raise DuplicateKey
        at = start + len(text)
        spans[key] = (start, at)
    if _END.match(raw, at, end) is None:
        raise DuplicateKey
    return spans


def is_utf8(raw: bytes) -> bool:
    """Whether the bytes are UTF-8 as RFC 3629 has it: no overlong forms, no surrogates."""
    if raw.isascii():
        return True
    view = memoryview(raw)
    at = 0
    try:
        while at < len(raw):
            chunk = view[at : at + _UTF8_CHUNK]
            final = at + len(chunk) == len(raw)
            _, used = codecs.utf_8_decode(chunk, "strict", final)
            at += used
    except UnicodeDecodeError:
        return False
    return True


def nested_deeper(raw: bytes, limit: int) -> bool:
    """Whether a well-formed JSON text nests arrays and objects more than ``limit`` deep. Linear in its length."""
    if raw.count(b"{") + raw.count(b"[") <= limit:
        return False
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = raw.translate(_NESTING, _NOT_NESTING)
    # Joining or dropping neighbouring quotes keeps every other mark inside, or outside, of a string as it was.
    marks = marks.replace(b'""', b"")
    if b'"' in marks:
        marks = b"".join(marks.split(b'"')[::2])
    # A pass takes away the innermost pair of every branch, so the depth falls by one. Passes go on while they halve
    # the rest; what shrinks more slowly is summed up once. Both are linear.
    while len(marks) > 2 * limit:
        if limit <= 0:
            return True
        rest = marks.replace(b"{}", b"")
        limit -= 1
        if 2 * len(rest) > len(marks):
            return max(accumulate(memoryview(rest.translate(_STEPS)).cast("b"))) > limit
        marks = rest
    return False
