"""A second reader of JSON, which keeps what most readers throw away: every member of an object, in order, and every
number as it is written. It takes exactly what RFC 8259 and RFC 7493 §2.1 allow: UTF-8, no byte order mark, no lone
surrogate, no NaN. Tests judge the gateway's own reading by it.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn


class Malformed(ValueError):
    """Not JSON."""


class TooDeep(ValueError):
    """Deeper than this reader's own stack; whether it is JSON isn't known."""


class Pairs(list[tuple[str, Any]]):
    """An object: its members in order, equal keys included."""

    def all(self, key: str) -> list[Any]:
        return [value for name, value in self if name == key]

    def last(self, key: str) -> Any:
        """What a reader sees that lets the last of equal keys win; ``ABSENT`` without one."""
        found = self.all(key)
        return found[-1] if found else ABSENT

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]


class Number(str):
    """A number as it is written."""

    __slots__ = ()


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


def _constant(text: str) -> NoReturn:
    raise Malformed(text)


def read(raw: bytes) -> Any:
    """The value of one JSON text. Raises Malformed, TooDeep."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=Pairs, parse_int=Number, parse_float=Number, parse_constant=_constant
        )
    except RecursionError:
        raise TooDeep from None
    except ValueError as error:
        raise Malformed(str(error)) from None
    for string in strings(value):
        if any("\ud800" <= char <= "\udfff" for char in string):
            raise Malformed("a lone surrogate")
    return value


def strings(value: Any) -> list[str]:
    """All texts in a value, keys included."""
    found: list[str] = []
    ahead = [value]
    while ahead:
        one = ahead.pop()
        if isinstance(one, Pairs):
            for key, inner in one:
                found.append(key)
                ahead.append(inner)
        elif isinstance(one, list):
            ahead += one
        elif isinstance(one, str):
            found.append(one)
    return found


def depth(value: Any) -> int:
    """How many arrays and objects are open at once at most."""
    deepest = 0
    ahead = [(value, 1)]
    while ahead:
        one, level = ahead.pop()
        if isinstance(one, Pairs):
            deepest = max(deepest, level)
            ahead += [(inner, level + 1) for _, inner in one]
        elif isinstance(one, list):
            deepest = max(deepest, level)
            ahead += [(inner, level + 1) for inner in one]
    return deepest


def plain(value: Any) -> Any:
    """The value as other readers have it: the last of equal keys wins, numbers are numbers."""
    if isinstance(value, Pairs):
        return {key: plain(inner) for key, inner in value}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, Number):
        return json.loads(value)
    return value


def is_polluted(value: Any) -> bool:
    """Whether a key in it reaches a prototype: ``__proto__``, or ``prototype`` right below ``constructor``."""
    ahead = [value]
    while ahead:
        one = ahead.pop()
        if isinstance(one, Pairs):
            for key, inner in one:
                if key == "__proto__":
                    return True
                if key == "constructor" and isinstance(inner, Pairs) and "prototype" in inner.names:
                    return True
                ahead.append(inner)
        elif isinstance(one, list):
            ahead += one
    return False


def has_variants(value: Any) -> bool:
    """Whether some object in it has a key twice, or in two spellings that differ in case alone, or a key that isn't
    written in the case that protocols use."""
    ahead = [value]
    while ahead:
        one = ahead.pop()
        if isinstance(one, Pairs):
            folded = [key.casefold() for key in one.names]
            if len(set(folded)) < len(folded) or any(key != key.casefold() for key in one.names):
                return True
            ahead += [inner for _, inner in one]
        elif isinstance(one, list):
            ahead += one
    return False
