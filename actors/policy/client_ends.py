"""The id of a client's message of which only the ends are at hand: it was too large, or was given up."""

from __future__ import annotations

import re

import msgspec

from .jsonrpc import is_valid_id
from .members import is_utf8, text_of

_WS = rb"[ \t\n\r]*+"
_TEXT = rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_SCALAR = rb"(" + _TEXT + rb"|-?[0-9]++(?=[,} \t\n\r])|null)"
_OPEN = re.compile(_WS + rb"\{")
_MEMBER = re.compile(_WS + rb"(" + _TEXT + rb")" + _WS + rb":" + _WS, re.DOTALL)
_VALUE = re.compile(_SCALAR + _WS + rb"([,}])", re.DOTALL)
# A quote that follows a delimiter is never an escaped one, so this is a member of some object; behind it come no
# members but the envelope's own, so that object is the message itself if the text is well-formed at all.
_LAST = re.compile(
    rb"[,{]" + _WS + rb'"id"' + _WS + rb":" + _WS + _SCALAR + rb"(?:" + _WS + rb"," + _WS + rb'"(?:jsonrpc|method)"'
    + _WS + rb":" + _WS + rb'"[^"\\]*+")*+' + _WS + rb"\}" + _WS + rb"\Z"
)
_TAIL_BYTES = 1024
_UNKNOWN = b"null"


def id_at_head(head: bytes) -> bytes | None:
    """The raw id to refuse a message with that begins like this.

    ``null`` for a response, whose id is none of the client's own; None when the id may still come.
    """
    opened = _OPEN.match(head)
    at = opened.end() if opened is not None else len(head)
    while (member := _MEMBER.match(head, at)) is not None:
        key = member[1]
        if key in (b'"result"', b'"error"'):
            return _UNKNOWN
        value = _VALUE.match(head, member.end())
        if value is None:
            return None
        if key == b'"id"':
            return _UNKNOWN if _answers(head, value.end()) else _checked(value[1])
        at = value.end()
    return None


def id_at_ends(head: bytes, tail: bytes) -> bytes:
    """The same of a message that is over: what its end shows counts too, and ``null`` is the last resort."""
    found = id_at_head(head)
    if found is None:
        last = _LAST.search(tail[-_TAIL_BYTES:] if tail else head[-_TAIL_BYTES:])
        found = _checked(last[1]) if last is not None else _UNKNOWN
    return found


def _answers(head: bytes, at: int) -> bool:
    """Whether one of the simple members that follow, or the one after them, makes it a response."""
    while (member := _MEMBER.match(head, at)) is not None:
        if member[1] in (b'"result"', b'"error"'):
            return True
        value = _VALUE.match(head, member.end())
        if value is None:
            return False
        at = value.end()
    return False


def _checked(value: bytes) -> bytes:
    """It goes out again, so it has to be well-formed by itself."""
    if value[:1] != b'"':
        return value if is_valid_id(value) else _UNKNOWN
    try:
        return value if is_utf8(value) and text_of(value) is not None else _UNKNOWN
    except msgspec.DecodeError:
        return _UNKNOWN
