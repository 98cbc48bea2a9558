"""What can be told of a message that was too large to keep: which call it answers."""

from __future__ import annotations

from actors.policy.answer_id import answer_id


def too_large_answer(head: bytes, tail: bytes, length: int) -> bytes | None:
    """An error to take the message's place, under the id that the message had; None when it shows none.

    Args:
        head, tail: the ends of the message.
        length: of the whole, in bytes.
    """
    id_ = answer_id(head, tail)
    if id_ is None:
        return None
    return (
        b'{"jsonrpc":"2.0","id":%s,"error":{"code":502,"message":"the answer is too large",'
        b'"data":{"reason":"response_too_large","sent":true,"length":%d}}}' % (id_, length)
    )
