"""The arguments of a ``tools/call`` against the ``inputSchema`` that its server gave for the tool.

The schema is a server's, so it is bounded like everything else that comes from one: in its size, its depth and the
size of its compiled patterns, which are of an engine that never backtracks. It refers to nothing outside of itself.
A schema that says in a few bytes what takes long to check (by references to itself, by references that multiply, by
long patterns, or for many arguments) is *heavy*: such a check belongs into a process that may be killed.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

import attrs
import jsonschema_rs
import msgspec

MOST_BYTES: Final = 65_536
TOO_LONG: Final = b"\0"
"""Stands for every schema that is longer than that, and can't be used for it: such a one goes nowhere."""
MOST_DEPTH: Final = 64
_PATTERN_BYTES: Final = 262_144  # of one compiled pattern
_MOST_KEPT: Final = 256
_LIGHT_NODES: Final = 2_000  # of a schema with its references written out
_LIGHT_PATTERNS: Final = 1_024  # steps of all patterns, their repetitions written out
_PATTERN_ARGUMENTS: Final = 4_096  # bytes that are held against patterns: each may cost as much as there are steps
_LIGHT_WORK: Final = 2_000_000  # nodes times bytes of the arguments
_LONGEST_CHAIN: Final = 8  # of references through references
_LONGEST_NUMBER: Final = 64

_TOKEN: Final = re.compile(r"\{([0-9]{1,9})(?:,([0-9]{0,9}))?\}|\\.|\[(?:\\.|[^\]\\])*+\]|.", re.DOTALL)
_CLASSES: Final = frozenset({r"\w", r"\W", r"\p", r"\P", r"\D", r"\S", r"\d", r"\s"})
_WIDE: Final = 8  # of Unicode's characters, which are of several bytes each


class Unusable(ValueError):
    """The schema can't be used; the text says why, without quoting it."""


@attrs.frozen(eq=False)
class Schema:
    validator: Any  # of jsonschema_rs, which has one class for each draft
    nodes: int
    heavy: bool
    steps: int = 0  # of all its patterns

    def is_heavy_for(self, size: int) -> bool:
        """Whether arguments of so many bytes may take longer than other clients should wait."""
        if self.steps and size > _PATTERN_ARGUMENTS:
            return True
        return self.heavy or self.nodes * size > _LIGHT_WORK

    def cost(self, size: int) -> int:
        """About how many nanoseconds that takes: to read them, and to check them."""
        return 10_000 + size * (60 + self.nodes // 2 + 5 * self.steps)

    def fault(self, arguments: bytes) -> str | None:
        """The JSON pointer, from the arguments, of the first thing that doesn't fit; None when everything does."""
        try:
            instance = json.loads(arguments, object_pairs_hook=_members, parse_int=_integer, parse_float=_float)
        except (ValueError, RecursionError):  # a name that occurs twice: nobody can tell which one is meant; 1e400
            return ""
        try:
            self.validator.validate(instance)  # stops at the first error; an iterator over them makes them all first
        except jsonschema_rs.ValidationError as error:  # a ValueError too
            return pointer(error.instance_path)
        except (ValueError, RecursionError, OverflowError):  # what it can't read it can't vouch for
            return ""
        return None


def pointer(path: Sequence[str | int]) -> str:
    """RFC 6901, cut to what can be told."""
    return "".join("/" + str(part)[:64].replace("~", "~0").replace("/", "~1") for part in path)[:512]


def compile_schema(text: bytes) -> Schema:
    """Raises Unusable."""
    if text == TOO_LONG or len(text) > MOST_BYTES:
        raise Unusable(f"longer than {MOST_BYTES} bytes")
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise Unusable("not JSON") from None
    if not isinstance(document, dict | bool):
        raise Unusable("neither an object nor a boolean")
    weight = _Weight(document)
    nodes = weight.of(document, 0)
    try:
        validator = jsonschema_rs.validator_for(
            document,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES, dfa_size_limit=_PATTERN_BYTES),
            offline=True,  # neither network nor files
            validate_formats=False,
        )
    except (ValueError, TypeError, RecursionError, jsonschema_rs.ReferencingError) as error:
        raise Unusable(f"does not compile ({type(error).__name__})") from None
    heavy = weight.heavy or nodes > _LIGHT_NODES or weight.patterns > _LIGHT_PATTERNS
    return Schema(validator, nodes, heavy, weight.patterns)


class Schemas:
    """Compiled once each, and kept: the latest ones, by digest."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Schema | Unusable] = OrderedDict()

    def condemn(self, text: bytes) -> None:
        """A check with that schema took a process down: it can't be used."""
        self._kept[sha256(text).digest()] = Unusable("of no end")

    def of(self, text: bytes) -> tuple[Schema | None, str]:
        """The schema, or why it can't be used, the first time with the reason and then without."""
        digest = sha256(text).digest()
        known = self._kept.get(digest)
        reason = ""
        if known is None:
            try:
                known = compile_schema(text)
            except Unusable as error:
                known, reason = error, str(error)
            self._kept[digest] = known
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(digest)
        return (known, "") if isinstance(known, Schema) else (None, reason)


class _Weight:
    """How much checking a schema asks for, at most, for one value of the arguments."""

    def __init__(self, document: object) -> None:
        self._document = document
        self._known: dict[str, int] = {}
        self._open: set[str] = set()
        self.heavy = False
        self.patterns = 0

    def of(self, schema: object, depth: int) -> int:
        if depth > MOST_DEPTH:
            raise Unusable(f"nested deeper than {MOST_DEPTH}")
        if isinstance(schema, list):
            return 1 + sum(self.of(part, depth + 1) for part in schema)
        if not isinstance(schema, dict):
            return 1
        total = 1
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                total += self._referred(value)
            elif key in ("$dynamicRef", "$recursiveRef", "uniqueItems", "unevaluatedProperties", "unevaluatedItems"):
                self.heavy = True
            elif key == "pattern" and isinstance(value, str):
                self.patterns += steps(value)
                total += 10
            elif key == "patternProperties" and isinstance(value, dict):
                self.patterns += sum(map(steps, value))
                total += 10 * len(value) + self.of(value, depth + 1)
            elif key not in ("$defs", "definitions"):
                total += self.of(value, depth + 1)
            elif isinstance(value, dict):  # counted where it is referred to; here only looked through
                for part in value.values():
                    self.of(part, depth + 2)
        return min(total, 1 << 40)

    def _referred(self, reference: str) -> int:
        if reference in self._known:
            return self._known[reference]
        if not reference.startswith("#"):
            raise Unusable("refers to something outside of itself")
        readable = reference == "#" or reference.startswith("#/")
        if reference in self._open or len(self._open) >= _LONGEST_CHAIN or not readable:
            self.heavy = True
            return 1
        target: object = self._document
        for part in reference.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or key not in target:
                self.heavy = True  # of a list, or percent-encoded: the compiler knows better
                return 1
            target = target[key]
        self._open.add(reference)
        self._known[reference] = weight = self.of(target, 0)
        self._open.discard(reference)
        return weight


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_NUMBER else _float(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # beyond every bound that a schema could set, but not to the validator
        raise ValueError("a number is too large")
    return number


def steps(pattern: str) -> int:
    """About how many states the automaton of a pattern has: its characters, with repetitions written out."""
    totals = [0]  # of the open groups
    last = 0  # of what a repetition would repeat
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        if text == "(":
            totals.append(0)
            last = 0
            continue
        if text == ")" and len(totals) > 1:
            last = totals.pop() + 1
        elif token[1] is not None:
            most = max(int(bound) for bound in (token[1], token[2] or "0"))
            totals[-1] = min(totals[-1] + last * max(0, most - 1), 1 << 40)
            last = min(last * max(1, most), 1 << 40)
            continue
        else:
            last = _WIDE if text[:2] in _CLASSES else 1
        totals[-1] = min(totals[-1] + last, 1 << 40)
    return sum(totals)
