"""Answers to list methods, of which a client may see a part: the authorisation's filter.

The invariant: nothing but ``Unreadable`` is raised; what is let through is JSON in which no reader, whichever of equal
keys it takes and whether it minds their case or not, finds an entry that isn't allowed; every allowed entry that
could be read is still there, as the server wrote it; and what needs no filtering is given back as it was.
"""

from __future__ import annotations

import random
from typing import Any

from fuzz.fuzz_authorization import answer
from fuzz.targets import knobs
from strict_reader import Number, Pairs, TooDeep, read

from actors.policy.list_filter import Unreadable, filtered

LISTS = {
    "tools/list": ("tools", "name"),
    "prompts/list": ("prompts", "name"),
    "resources/list": ("resources", "uri"),
    "resources/templates/list": ("resourceTemplates", "uriTemplate"),
}
SEEDS = [b"\0" + answer(random.Random(seed)) for seed in range(24)] + [
    b'\2{"jsonrpc":"2.0","id":1,"result":{"resources":[{"uri":"a"},{"uri":"b"}]}}',
    b'\3{"jsonrpc":"2.0","id":1,"result":{"resourceTemplates":[ {"uriTemplate":"b"} ],"nextCursor":null}}',
    b'\0{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"}}',
]


def folded(value: Any, key: str) -> list[Any]:
    return [inner for name, inner in value if name.casefold() == key.casefold()] if isinstance(value, Pairs) else []


def listed(document: Any, list_key: str) -> list[Any]:
    """Every entry that some reader finds in the list."""
    return [
        entry
        for result in folded(document, "result")
        for entries in folded(result, list_key)
        if isinstance(entries, list) and not isinstance(entries, Pairs)
        for entry in entries
    ]


def check(data: bytes) -> None:
    knob, raw = knobs(data, 1)
    method = list(LISTS)[knob[0] % 4]
    list_key, name_key = LISTS[method]
    try:
        out = filtered(raw, method, lambda name: name.startswith("a"))
    except Unreadable:
        return
    try:
        before, after = read(raw), read(out)
    except TooDeep:
        return
    if out == raw:
        assert filtered(raw, method, lambda _name: True) == raw
    shown = listed(after, list_key)
    for entry in shown:
        names = folded(entry, name_key)
        assert names
        assert all(isinstance(name, str) and not isinstance(name, Number) and name[:1] == "a" for name in names)
    clear = [
        entry
        for entry in listed(before, list_key)
        if len(names := folded(entry, name_key)) == 1
        and len({key for key, _ in entry}) == len(entry)
        and dict(entry).get(name_key) == names[0]
        and isinstance(names[0], str)
        and not isinstance(names[0], Number)
        and names[0].startswith("a")
    ]
    assert [entry for entry in shown if entry in clear] == clear
