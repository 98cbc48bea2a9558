"""The answer to a list method without the entries that its client may not use.

What is left out disappears with its comma; every other byte stays as the server wrote it. An entry that can't be told
to be allowed is left out: one without a name, with two, or with a name in another spelling too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from .jsonrpc import splice
from .members import DuplicateKey, Span, decode_object, is_utf8, locate, text_of

_LISTS: Final = {
    "tools/list": ("tools", "name"),
    "prompts/list": ("prompts", "name"),
    "resources/list": ("resources", "uri"),
    "resources/templates/list": ("resourceTemplates", "uriTemplate"),
}
"""By method: the member of the result that is the list, and the member of an entry that says what it is."""

# Of one page. Each costs microseconds in a loop that serves others, so that a server can't take all of its time.
MOST_ENTRIES: Final = 10_000

_ENTRIES = msgspec.json.Decoder(list[msgspec.Raw])
_WS = rb"[ \t\n\r]*+"
_BEFORE = re.compile(_WS + rb"[\[,]" + _WS)  # possessive: a server's text must not make it backtrack either
_AFTER = re.compile(_WS + rb"\]\Z")


class Unreadable(ValueError):
    """It can't be told what the answer shows, so it can't be shown."""


def filtered(raw: bytes, method: str, allowed: Callable[[str], bool]) -> bytes:
    """``raw``, an answer to ``method``, with only the entries that ``allowed`` says yes to. Linear in its length.

    An answer that is an error is given back as it is, and so is one in which nothing has to be left out.

    Raises:
        Unreadable
    """
    list_key, name_key = _LISTS[method]
    try:
        span = _find(raw, list_key)
        if span is None:
            return raw
        return _without(raw, span, name_key, allowed)
    except (msgspec.DecodeError, DuplicateKey):
        raise Unreadable("not the answer of a list") from None
    except RecursionError:
        raise Unreadable("nested too deep") from None


def _find(raw: bytes, list_key: str) -> Span | None:
    """Where the list stands; None when there is none, because the answer is an error or has no such member."""
    if not is_utf8(raw):
        raise Unreadable("not UTF-8")
    members = decode_object(raw)
    spans = locate(raw, 0, len(raw), members)
    _check_spelling(members, ("result", "error"))
    if "result" not in members:
        if "error" in members:
            return None
        raise Unreadable("neither a result nor an error")
    at, end = spans["result"]
    if raw[at] == 0x6E:  # null
        return None
    if raw[at] != 0x7B:
        raise Unreadable("the result is no object")
    result = decode_object(memoryview(raw)[at:end])
    result_spans = locate(raw, at, end, result)
    _check_spelling(result, (list_key,))
    return result_spans.get(list_key)


def _check_spelling(members: Mapping[str, object], read: Collection[str]) -> None:
    """Some clients match keys without regard to case: a variant would be shown to them unfiltered."""
    folded = {key.casefold() for key in read}
    for key in members:
        if key not in read and key.casefold() in folded:
            raise Unreadable("a member in another spelling")


def _without(raw: bytes, span: Span, name_key: str, allowed: Callable[[str], bool]) -> bytes:
    at, end = span
    if raw[at] != 0x5B:
        raise Unreadable("the list is no array")
    entries = _ENTRIES.decode(memoryview(raw)[at:end])
    if len(entries) > MOST_ENTRIES:
        raise Unreadable("too many entries")
    spans = _entry_spans(raw, at, end, entries)
    kept = [_is_allowed(raw, place, entry, name_key, allowed) for place, entry in zip(spans, entries, strict=True)]
    if all(kept):
        return raw
    if not any(kept):
        return splice(raw, [(at + 1, end - 1, b"")])
    edits: list[tuple[int, int, bytes]] = []
    cut_from = -1  # where what is being left out begins
    last_end = -1  # where the last kept entry ends
    for place, keep in zip(spans, kept, strict=True):
        if keep:
            if cut_from >= 0:
                edits.append((cut_from, place[0], b""))
                cut_from = -1
            last_end = place[1]
        elif cut_from < 0:
            cut_from = place[0]
    if cut_from >= 0:  # at the end: the comma is before it
        edits.append((last_end, spans[-1][1], b""))
    return splice(raw, edits)


def _entry_spans(raw: bytes, at: int, end: int, entries: list[msgspec.Raw]) -> list[Span]:
    """Where the elements of the array at ``raw[at:end]`` stand, found as ``members.locate`` finds members."""
    spans: list[Span] = []
    for entry in entries:
        before = _BEFORE.match(raw, at, end)
        text = bytes(entry)
        if before is None or not raw.startswith(text, before.end()):
            raise Unreadable("its entries can't be found")
        at = before.end() + len(text)
        spans.append((before.end(), at))
    if spans and _AFTER.match(raw, at, end) is None:
        raise Unreadable("its entries can't be found")
    return spans


def _is_allowed(raw: bytes, span: Span, entry: msgspec.Raw, name_key: str, allowed: Callable[[str], bool]) -> bool:
    at, end = span
    if raw[at] != 0x7B:
        return False
    members = decode_object(entry)
    try:
        locate(raw, at, end, members)
        _check_spelling(members, (name_key,))
    except (DuplicateKey, Unreadable):
        return False
    value = members.get(name_key)
    name = None if value is None else text_of(value)
    return name is not None and allowed(name)
