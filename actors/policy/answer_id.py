"""The id of an answer that can't be parsed: too large to keep, or not JSON."""

from __future__ import annotations

import re

# Strict: what is found is written into a message, which must be a valid one.
_ID = rb'"id"[ \t]{0,8}:[ \t]{0,8}(-?(?:0|[1-9][0-9]{0,19})|"[ !#-\[\]-~]{0,128}")[ \t]{0,8}'
_VERSION = rb'"jsonrpc"[ \t]{0,8}:[ \t]{0,8}"2\.0"[ \t]{0,8}'

# Only where every JSON library puts it: in front of the result, or behind it as the line's end. Both patterns are
# anchored and without nested repetition: linear whatever the text. A text that merely ends like an answer can name
# nothing but a call in flight to this very upstream.
_FIRST = re.compile(rb"[ \t]{0,8}\{[ \t]{0,8}(?:" + _VERSION + rb",[ \t]{0,8})?" + _ID + rb",")
_LAST = re.compile(rb",[ \t]{0,8}" + _ID + rb"(?:,[ \t]{0,8}" + _VERSION + rb")?\}[ \t\r]{0,8}\Z")
_LAST_WITHIN = 256


def answer_id(head: bytes, tail: bytes) -> bytes | None:
    """The raw id that a message shows at its ends; None when it shows none."""
    found = _FIRST.match(head) or _LAST.search(tail[-_LAST_WITHIN:])
    return found[1] if found is not None else None


def invalid_answer(raw: bytes) -> bytes | None:
    """An error to take an unreadable answer's place, so that whoever waits for it hears; None when it shows no id."""
    id_ = answer_id(raw, raw)
    if id_ is None:
        return None
    return (
        b'{"jsonrpc":"2.0","id":%s,"error":{"code":502,"message":"the answer is no valid message",'
        b'"data":{"reason":"invalid_answer","sent":true}}}' % id_
    )
