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
from .effort import Effort, TooMuch
from .linear import Pattern, compiled, pattern_set
from .patterns import CUTS, TEXT, decoded, suspicion
from .strings import Text, pointers, texts

MOST_TOKENS: Final = 1_000_000  # strings and brackets of one message
MOST_LOOKED_AT: Final = 20_000  # strings of one message that are looked at one by one
MOST_FLAGGED: Final = 16  # told of one message that is let through
MOST_EDITS: Final = 256
_MOST_EDITED: Final = 32 * 1024  # bytes put into a message; what goes between processes is bounded
_MOST_NAMES: Final = 4096  # of fields, remembered

_NAMES: Final = tuple(TEXT)
_ONE: Final = compiled("(?:" + ")|(?:".join(decoded(pattern) for pattern in TEXT.values()) + ")", ignore_case=True)
_EACH: Final = pattern_set([decoded(pattern) for pattern in TEXT.values()], ignore_case=True)
_CUTS: Final[dict[str, tuple[tuple[Pattern, int], ...]]] = {  # each with its group that is to be cut out
    name: tuple((compiled(cut, groups=True), 1) for cut in CUTS[name])
    if name in CUTS
    else ((compiled(decoded(pattern), ignore_case=True), 0),)
    for name, pattern in TEXT.items()
}
_CLEANINGS: Final = 8

# Prices, in units of effort; see there.
_TOKEN: Final = 1_000  # to find it
_PLACE: Final = 1_000  # to tell its pointer
_STRING: Final = 1_200  # to tell its type, and to join it with the others
_GLOB: Final = 400
_SEARCH: Final = 2_500  # one run of a pattern
_LOOK: Final = 6_000  # at one string by itself
_BYTE: Final = 4  # searched
_SEGMENT: Final = 900  # of a path
_CUT: Final = 1_500


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
            self._default.update(dict.fromkeys(TRAVERSAL, "block"))
        # What is to be cut out must not pass because there was no time to look for it either.
        blocks = "block" in self._default.values() or any(rule.mode in ("block", "strip") for rule in self._rules)
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

    def check(self, raw: bytes, method: str, tool: str, effort: Effort | None = None) -> Verdict | None:
        """The verdict on one well-formed message; None when there is nothing to say.

        Args:
            tool: the name of the tool that it calls; empty when it calls none.
            effort: what it may cost; as much as it takes when left out.

        Raises:
            TooMuch
            MemoryError
        """
        if effort is None:
            effort = Effort.unbounded()
        effort.spend(2 * len(raw))
        if not self._suspicious.find(raw):
            return None
        most = min(MOST_TOKENS, effort.left // _TOKEN)
        found, more = texts(raw, most)
        if more and most < MOST_TOKENS:
            raise TooMuch
        effort.spend(_TOKEN * len(found))
        findings: list[Finding] = []
        edits: list[tuple[int, int, bytes]] = []
        spent = flagged = 0
        if more and (refused := self._limit(findings)):
            return refused
        chosen = self._chosen(raw, found, method, tool, effort)
        if len(chosen) > MOST_LOOKED_AT:
            del chosen[MOST_LOOKED_AT:]
            if refused := self._limit(findings):
                return refused
        hits = [(text, kind, rules) for text, kind in chosen if (rules := self._rules_of(text, kind, effort))]
        if not hits:
            return Verdict(tuple(findings)) if findings else None
        effort.spend(_PLACE * (raw.count(b",") + raw.count(b"{") + raw.count(b"[") + len(found)))
        places = pointers(raw, [text.start for text, _, _ in hits])
        for text, kind, rules in hits:
            pointer = places[text.start]
            to_strip: list[str] = []
            effort.spend(_GLOB * len(self._rules) * len(rules))
            for rule in rules:
                mode = self._mode(rule, method, tool, pointer)
                if mode == "strip" and text.is_key:
                    mode = "block"  # a key without a part of it is another key
                if mode == "block":
                    return Verdict((Finding(rule, pointer, "block"),))
                if mode == "strip":
                    findings.append(Finding(rule, pointer, mode))
                    to_strip.append(rule)
                elif mode != "off" and flagged < MOST_FLAGGED:
                    findings.append(Finding(rule, pointer, mode))
                    flagged += 1
            if to_strip:
                replacement = msgspec.json.encode(self._stripped(text, kind, to_strip, rules, effort))
                spent += len(replacement)
                if len(edits) >= MOST_EDITS or spent > _MOST_EDITED:
                    return Verdict((Finding(LIMIT, pointer, "block"),))
                edits.append((text.start, text.end, replacement))
        return Verdict(tuple(findings), tuple(edits)) if findings else None

    # --- which strings to look at ------------------------------------------------------------------------------------

    def _chosen(
        self, raw: bytes, found: Sequence[Text], method: str, tool: str, effort: Effort
    ) -> list[tuple[Text, FieldType]]:
        """The strings in which something can be, each with what its field is."""
        effort.spend(_STRING * len(found))
        types = self._field_types(raw, found, method, tool, effort)
        kept: set[int] = set()
        for index, text in enumerate(found):
            value = text.value
            if (types[index] != "text" and not text.is_key) or b"%" in value or b"&" in value or b"\0" in value:
                kept.add(index)
        joined = b"\0".join([text.value.replace(b"\0", b"") for text in found])
        ends = list(accumulate(len(text.value) - text.value.count(b"\0") + 1 for text in found))
        at = 0
        effort.spend(_BYTE * len(joined) + _LOOK * min(len(kept), MOST_LOOKED_AT))
        while at < len(joined) and (match := _ONE.search(joined, at)) is not None:
            effort.spend(_SEARCH + _LOOK)
            index = bisect_right(ends, match.start())
            if index >= len(found):
                break
            # A match may begin with the NUL before the string it is in.
            kept.update((index, min(index + 1, len(found) - 1)))
            if len(kept) > MOST_LOOKED_AT:
                break
            at = ends[index]
        return [(found[index], types[index]) for index in sorted(kept)]

    def _field_types(
        self, raw: bytes, found: Sequence[Text], method: str, tool: str, effort: Effort
    ) -> list[FieldType]:
        types = [self._type_by_name(text.name) for text in found]
        spoken = [field for field in self._fields if speaks(field.methods, method) and speaks(field.tools, tool)]
        if spoken:
            globs = sum(len(field.pointers) for field in spoken)
            effort.spend(len(found) * (2 * _PLACE + _GLOB * globs))
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

    def _rules_of(self, text: Text, kind: FieldType, effort: Effort) -> list[str]:
        return self._found(text.value, "text" if text.is_key else kind, effort)

    def _found(self, value: bytes, kind: FieldType, effort: Effort) -> list[str]:
        """The rules that the string breaks, in whatever form it is read."""
        nul = b"\0" in value
        first = value.replace(b"\0", b"") if nul else value
        others: list[bytes] = []
        endless = False
        if b"%" in first or b"&" in first:
            nul = nul or b"%00" in first
            others, endless = decoding.views(first, effort)
        indices: set[int] = set()
        for view in (first, *others):
            effort.spend(_SEARCH + _BYTE * len(view))
            indices.update(_EACH.find(view))
        rules = [_NAMES[index] for index in sorted(indices)]
        if kind == "path":
            if nul:
                rules.append("null-byte")
            for view in (first, *others):
                effort.spend(_LOOK + 4 * _BYTE * len(view) + _SEGMENT * paths.segments_at_most(view))
                fault = paths.fault(view.decode(), self._roots)
                if fault:
                    rules.append(fault)
                    break
        if kind == "line" and any(b"\n" in view or b"\r" in view for view in (first, *others)):
            rules.append("line-break")
        if endless:
            rules.append("over-encoding")
        return rules

    def _stripped(
        self, text: Text, kind: FieldType, rules: Sequence[str], found: Sequence[str], effort: Effort
    ) -> str:
        """The string without what these rules found. Empty where it can't be cut out, or where what is left together
        is something that wasn't ``found`` before."""
        value = text.value
        cuts = [cut for rule in rules for cut in _CUTS.get(rule, ())]
        for _ in range(_CLEANINGS):
            before = value
            if "null-byte" in rules:
                value = value.replace(b"\0", b"")
            if "line-break" in rules:
                value = value.replace(b"\r", b"").replace(b"\n", b"")
            for pattern, group in cuts:
                effort.spend(_SEARCH + 2 * _BYTE * len(value))
                value = _without(pattern, group, value, effort)
            if value == before:
                break
        stays = set(found).difference(rules)
        return value.decode() if stays.issuperset(self._found(value, kind, effort)) else ""

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


def _without(pattern: Pattern, group: int, value: bytes, effort: Effort) -> bytes:
    """``value`` without what the pattern matches. What is between is left as it is, and stays UTF-8."""
    return b"".join(_between(pattern, group, value, effort))


def _between(pattern: Pattern, group: int, value: bytes, effort: Effort) -> Iterator[bytes]:
    at = 0
    for match in pattern.finditer(value):
        effort.spend(_CUT)
        start, end = match.span(group)
        yield value[at:start]
        at = end
    yield value[at:]
