"""The content stage: what the detectors find in one message, and what becomes of it under the policy.

Nothing is done for a message that the suspicion (``patterns``) clears. Otherwise its strings are taken out, joined,
and searched in one pass; only those in which something was found, or that are written in another way, or that hold
paths, are looked at one by one.

What is left unseen because of a bound is a finding of its own (LIMIT). It refuses the message wherever some finding
could have refused it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

import attrs
import msgspec

from ipc.content import LIMIT, TRAVERSAL, ContentRules, FieldType, Mode, decide, speaks
from ipc.settings import Settings

from . import decoding, paths
from .linear import Pattern, compiled, pattern_set
from .patterns import TEXT, decoded, suspicion
from .strings import Text, pointers, texts

# Of one message: strings and brackets, which cost a third of a microsecond each, and strings that are looked at one by
# one, which cost some microseconds. Past the first of each pair the check is no longer light.
LIGHT_TOKENS: Final = 10_000
MOST_TOKENS: Final = 1_000_000
LIGHT_LOOKED_AT: Final = 500
MOST_LOOKED_AT: Final = 20_000
MOST_FINDINGS: Final = 16  # told of one message that is let through
MOST_EDITS: Final = 256
_MOST_EDITED: Final = 32 * 1024  # bytes put into a message; what goes between processes is bounded
_MOST_NAMES: Final = 4096  # of fields, remembered

_NAMES: Final = tuple(TEXT)
_ONE: Final = compiled("(?:" + ")|(?:".join(decoded(pattern) for pattern in TEXT.values()) + ")", ignore_case=True)
_EACH: Final = pattern_set([decoded(pattern) for pattern in TEXT.values()], ignore_case=True)
_EACH_ALONE: Final = tuple(compiled(decoded(pattern), ignore_case=True) for pattern in TEXT.values())
_CLEANINGS: Final = 8


class TooMuch(Exception):
    """The check would take longer than other clients should wait: it belongs into the validator's process."""


class Finding(msgspec.Struct, frozen=True, array_like=True, gc=False):
    rule: str
    pointer: str
    mode: Mode


@attrs.frozen
class Verdict:
    """``findings`` are none of mode ``off``. With one of mode ``block`` it is the only one: the message is refused.

    ``edits`` (start, end, replacement; ascending) are to be carried out before the message goes on.
    """

    findings: tuple[Finding, ...]
    edits: tuple[tuple[int, int, bytes], ...] = ()

    @property
    def refused(self) -> bool:
        return self.findings[0].mode == "block"


class Screen:
    """The policy of one gateway, ready for use."""

    def __init__(self, policy: Mode, rules: ContentRules, *, production: bool) -> None:
        self._roots = rules.roots
        self._fields = rules.fields
        self._rules = rules.rules
        plain: Mode = "block" if policy == "block" else "flag"
        self._default: dict[str, Mode] = dict.fromkeys((*_NAMES, *_OTHERS), plain)
        if production:
            self._default[TRAVERSAL] = "block"
        blocks = "block" in self._default.values() or any(rule.mode == "block" for rule in self._rules)
        self._default[LIMIT] = "block" if blocks else "flag"
        self._suspicious = suspicion(
            absolute=bool(self._roots), fields=any(field.type != "text" for field in self._fields)
        )
        self._types: dict[str, FieldType] = {}

    @classmethod
    def of(cls, settings: Settings) -> Screen | None:
        """None where the policy is off: nothing is looked at then."""
        if settings.content_policy == "off":
            return None
        return cls(settings.content_policy, settings.content, production=settings.security_profile == "production")

    def check(self, raw: bytes, method: str, tool: str, *, light: bool = False) -> Verdict | None:
        """The verdict on one well-formed message; None when there is nothing to say.

        Args:
            tool: the name of the tool that it calls; empty when it calls none.
            light: only as long as that is quick.

        Raises:
            TooMuch
        """
        if not self._suspicious.Match(raw):
            return None
        found, more = texts(raw, LIGHT_TOKENS if light else MOST_TOKENS)
        if more and light:
            raise TooMuch
        findings: list[Finding] = []
        edits: list[tuple[int, int, bytes]] = []
        spent = 0
        if more and (refused := self._limit(findings)):
            return refused
        chosen = self._chosen(raw, found, method, tool)
        if light and len(chosen) > LIGHT_LOOKED_AT:
            raise TooMuch
        if len(chosen) > MOST_LOOKED_AT:
            del chosen[MOST_LOOKED_AT:]
            if refused := self._limit(findings):
                return refused
        hits = [(text, kind, rules) for text, kind in chosen if (rules := self._rules_of(text, kind))]
        if not hits:
            return Verdict(tuple(findings)) if findings else None
        places = pointers(raw, [text.start for text, _, _ in hits])
        for text, kind, rules in hits:
            pointer = places[text.start]
            to_strip: list[str] = []
            for rule in rules:
                mode = self._mode(rule, method, tool, pointer)
                if mode == "strip" and text.is_key:
                    mode = "block"  # a key without a part of it is another key
                if mode == "block":
                    return Verdict((Finding(rule, pointer, "block"),))
                if mode != "off" and len(findings) < MOST_FINDINGS:
                    findings.append(Finding(rule, pointer, mode))
                if mode == "strip":
                    to_strip.append(rule)
            if to_strip:
                replacement = msgspec.json.encode(self._stripped(text, kind, to_strip))
                spent += len(replacement)
                if len(edits) >= MOST_EDITS or spent > _MOST_EDITED:
                    return Verdict((Finding(LIMIT, pointer, "block"),))
                edits.append((text.start, text.end, replacement))
        return Verdict(tuple(findings), tuple(edits)) if findings else None

    # --- which strings to look at ------------------------------------------------------------------------------------

    def _chosen(self, raw: bytes, found: Sequence[Text], method: str, tool: str) -> list[tuple[Text, FieldType]]:
        """The strings in which something can be, each with what its field is."""
        types = self._field_types(raw, found, method, tool)
        kept: set[int] = set()
        for index, text in enumerate(found):
            value = text.value
            if (types[index] != "text" and not text.is_key) or b"%" in value or b"&" in value or b"\0" in value:
                kept.add(index)
        joined = b"\0".join([text.value.replace(b"\0", b"") for text in found])
        ends = list(accumulate(len(text.value) - text.value.count(b"\0") + 1 for text in found))
        at = 0
        while at < len(joined) and (match := _ONE.search(joined, at)) is not None:
            index = bisect_right(ends, match.start())
            if index >= len(found):
                break
            # A match may begin with the NUL before the string it is in.
            kept.update((index, min(index + 1, len(found) - 1)))
            if len(kept) > MOST_LOOKED_AT:
                break
            at = ends[index]
        return [(found[index], types[index]) for index in sorted(kept)]

    def _field_types(self, raw: bytes, found: Sequence[Text], method: str, tool: str) -> list[FieldType]:
        types = [self._type_by_name(text.name) for text in found]
        spoken = [field for field in self._fields if speaks(field.methods, method) and speaks(field.tools, tool)]
        if spoken:
            places = pointers(raw, [text.start for text in found])
            for index, text in enumerate(found):
                place = places[text.start]
                types[index] = next((field.type for field in spoken if speaks(field.pointers, place)), types[index])
        return types

    def _type_by_name(self, name: str) -> FieldType:
        known = self._types.get(name)
        if known is None:
            if len(self._types) >= _MOST_NAMES:
                self._types.clear()
            known = "path" if paths.is_path_name(name) else "line" if paths.is_line_name(name) else "text"
            self._types[name] = known
        return known

    # --- what is in one of them ---------------------------------------------------------------------------------------

    def _rules_of(self, text: Text, kind: FieldType) -> list[str]:
        return self._found(text.value, "text" if text.is_key else kind)

    def _found(self, value: bytes, kind: FieldType) -> list[str]:
        """The rules that the string breaks, in whatever form it is read."""
        nul = b"\0" in value
        first = value.replace(b"\0", b"") if nul else value
        others: list[bytes] = []
        endless = False
        if b"%" in first or b"&" in first:
            nul = nul or b"%00" in first
            others, endless = decoding.views(first)
        indices: set[int] = set()
        for view in (first, *others):
            indices.update(_EACH.Match(view) or ())
        rules = [_NAMES[index] for index in sorted(indices)]
        if kind == "path":
            if nul:
                rules.append("null-byte")
            for view in (first, *others):
                fault = paths.fault(view.decode(), self._roots)
                if fault:
                    rules.append(fault)
                    break
        if kind == "line" and any(b"\n" in view or b"\r" in view for view in (first, *others)):
            rules.append("line-break")
        if endless:
            rules.append("over-encoding")
        return rules

    def _stripped(self, text: Text, kind: FieldType, rules: Sequence[str]) -> str:
        """The string without what these rules found. Empty where it can't be cut out."""
        value = text.value
        patterns = [_EACH_ALONE[_NAMES.index(rule)] for rule in rules if rule in _NAMES]
        for _ in range(_CLEANINGS):
            before = value
            if "null-byte" in rules:
                value = value.replace(b"\0", b"")
            if "line-break" in rules:
                value = value.replace(b"\r", b"").replace(b"\n", b"")
            for pattern in patterns:
                value = _without(pattern, value)
            if value == before:
                break
        return "" if set(rules).intersection(self._found(value, kind)) else value.decode()

    # --- what becomes of it -------------------------------------------------------------------------------------------

    def _mode(self, rule: str, method: str, tool: str, pointer: str) -> Mode:
        return decide(self._rules, rule, method, tool, pointer) or self._default[rule]

    def _limit(self, findings: list[Finding]) -> Verdict | None:
        mode = self._default[LIMIT]
        finding = Finding(LIMIT, "", mode)
        if mode == "block":
            return Verdict((finding,))
        findings.append(finding)
        return None


_OTHERS: Final = ("path-traversal", "path-outside-roots", "null-byte", "line-break", "over-encoding")


def _without(pattern: Pattern, value: bytes) -> bytes:
    """``value`` without what the pattern matches. What is between is left as it is, and stays UTF-8."""
    return b"".join(_between(pattern, value))


def _between(pattern: Pattern, value: bytes) -> Iterator[bytes]:
    at = 0
    for match in pattern.finditer(value):
        start, end = match.span()
        yield value[at:start]
        at = end
    yield value[at:]
