"""What can be told of a message that was too large to keep: which call it answers."""

from __future__ import annotations

import re

_ID = rb'"id"[ \t]{0,8}:[ \t]{0,8}(-?[0-9]{1,20}|"[^"\\\x00-\x1f]{0,128}")[ \t]{0,8}'
_VERSION = rb'"jsonrpc"[ \t]{0,8}:[ \t]{0,8}"2\.0"[ \t]{0,8}'

# Only where every JSON library puts it: in front of the result, or behind it as the line's end. Both patterns are
# anchored and without nested repetition: linear whatever the text. A text that merely ends like an answer can name
# nothing but a call in flight to this very upstream.
_FIRST = re.compile(rb"[ \t]{0,8}\{[ \t]{0,8}(?:" + _VERSION + rb",[ \t]{0,8})?" + _ID + rb",")
_LAST = re.compile(rb",[ \t]{0,8}" + _ID + rb"(?:,[ \t]{0,8}" + _VERSION + rb")?\}[ \t\r]{0,8}\Z")
_LAST_WITHIN = 256


def too_large_answer(head: bytes, tail: bytes, length: int) -> bytes | None:
    """An error to take the message's place, under the id that the message had; None when it shows none.

    Args:
        head, tail: the ends of the message.
        length: of the whole, in bytes.
    """
    found = _FIRST.match(head) or _LAST.search(tail[-_LAST_WITHIN:])
    if found is None:
        return None
    return (
        b'{"jsonrpc":"2.0","id":%s,"error":{"code":502,"message":"the answer is too large",'
        b'"data":{"reason":"response_too_large","sent":true,"length":%d}}}' % (found[1], length)
    )
