"""JSON objects that decide about security: read in one way only.

RFC 8725 §2.8 and RFC 7515 §4: two readers of one text must never see different members. So a name that occurs twice is
refused, at any depth, and so are NaN and Infinity, a byte order mark, and every encoding but UTF-8.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

# Far beyond every date and exponent; int() of a very long text is slow.
LONGEST_NUMBER: Final = 64


def strict_object(data: bytes) -> dict[str, Any]:
    """The object that this text is. The caller bounds its size.

    Raises ValueError for everything else. The message never holds anything of the text.
    """
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_members,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except (ValueError, RecursionError):
        raise ValueError("not a strict JSON object") from None
    if not isinstance(found, dict):
        raise ValueError("not a strict JSON object")  # noqa: TRY004 - the text is wrong, not its type here
    return found


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _constant(_text: str) -> NoReturn:
    raise ValueError("not a number of JSON")


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError("a number is too long")
    return int(text)


def _float(text: str) -> float:
    if len(text) > LONGEST_NUMBER:
        raise ValueError("a number is too long")
    return float(text)
