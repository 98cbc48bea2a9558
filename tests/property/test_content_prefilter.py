"""The quick look at a raw message clears nothing in which the detectors would find something."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import product

import pytest
from test_content_properties import FLAG, PARTS, THOROUGH, escaped, verdict

from actors.policy.content.decoding import NAMES
from actors.policy.content.paths import FOLDED, LINE_NAMES
from actors.policy.content.patterns import TEXT
from actors.policy.content.screen import Screen
from ipc.content import ContentRules, FieldRule
from ipc.globs import ANYTHING

# What the detectors are about: also in other characters, and with what may stand around it.
ALPHABET = sorted(
    {*PARTS, *FOLDED, *(f"&{name}" for name in NAMES), *"&;.:#%~-_a0", " ", "\t", "\f", "\v", "\x1c", "\x85", "\xa0",
     "\u2003", "\u3000", "\u1680", "\u017f", "\u212a", "\x9b", "\U0001f3f4", "cript", "/etc", "etc", "file:", "C:",
     "%00", "%0a", "%u002e", "&#x2f;", "&#46", "....", "...", "\b", "é", "or 1=1", "url", "data:text/html", "--"}
)  # fmt: skip
FIELDS = ("path", "to", "coo\u212aie", "a", "URL", "fi\u017fe")

Writing = Callable[[str], str]


def plain(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def ascii_only(text: str) -> str:
    return json.dumps(text)


def slashes(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("/", "\\/")


def mixed(text: str) -> str:
    """Every other character as an escape."""
    pieces = [escaped(c)[1:-1] if number % 2 else json.dumps(c, ensure_ascii=False)[1:-1]
              for number, c in enumerate(text)]  # fmt: skip
    return '"' + "".join(pieces) + '"'


WRITINGS: tuple[Writing, ...] = (plain, ascii_only, slashes, mixed)
LINES = ContentRules(roots=("/srv",), fields=(FieldRule((ANYTHING,), "line", tools=(ANYTHING,)),))
QUICK = {"by name": FLAG, "by rule": Screen("flag", LINES, production=True)}
WHOLE = {"by name": THOROUGH, "by rule": Screen("flag", LINES, production=True)}
WHOLE["by rule"]._suspicious = THOROUGH._suspicious


def cleared(field: str, text: str, kind: str) -> Iterator[str]:
    """The ways of writing that hide something from the quick look."""
    for writing in WRITINGS:
        params = f'{{{writing(field)}:[{{}},{writing(text)}],"z":1}}'
        raw = f'{{"jsonrpc":"2.0","id":1,"method":"x","params":{params}}}'
        if not QUICK[kind]._suspicious.find(raw.encode()) and verdict(WHOLE[kind], raw.encode()) is not None:
            yield raw


@pytest.mark.parametrize("kind", QUICK)
@pytest.mark.parametrize(
    "text",
    [
        ".. /.. /etc/passwd", "..／..／etc", "..⧸..⧸etc", "…/…/etc", "..\t/..\t/etc", "..\n/..\n/etc",
        "..\x0b/..\x0b/etc", "..\xa0/..\xa0/etc", "..\x85/..\x85/etc", "..\u2003", "..",
        "．．/x", "․․/x", "‥/x", "..;/x", "..;a/../x", "..%2fx", "..&sol;x", "..&sol x", "<\u017fcript", "<scr\0ipt",
        "http://a\r\nb: c", "a:b\nc", "{x}:\ny", "&lt script>", "&period&period/", "..\f", "..\x1c", "/etc/passwd",
        "\u3000/etc", "\x85/etc", "file:///etc", "／etc", "~/x", "\u212a", "java\u017fcript:alert(1)",
        "\u202e", "a\U000e0041", "\U000e0041", "\x9b", "....//....//x", "..\\..\\x", "..＼x", "..﹨x",
    ],
)  # fmt: skip
def test_known_ways_around_it(text: str, kind: str) -> None:
    """Each was one."""
    for field in FIELDS:
        assert list(cleared(field, text, kind)) == []


def test_two_parts_of_any_kind() -> None:
    """All pairs of what the detectors are about, before something that may climb or not."""
    for number, (one, two) in enumerate(product(ALPHABET, repeat=2)):
        field = FIELDS[number % len(FIELDS)]
        assert list(cleared(field, one + two, "by name")) == []
        if number % 3 == 0:
            assert list(cleared("path", f"..{one}{two}/x", "by rule")) == []


def test_more_parts() -> None:
    """Longer ones, taken at random from a seed."""
    chance = random.Random(4)
    for _ in range(4_000):
        text = "".join(chance.choices(ALPHABET, k=chance.randint(3, 7)))
        assert list(cleared(chance.choice(FIELDS), text, chance.choice(["by name", "by rule"]))) == []


def test_the_alphabet_is_that_of_the_detectors() -> None:
    """Every character beyond ASCII that a pattern names, or that the paths fold, is tried above."""
    named = {character for pattern in TEXT.values() for character in pattern if not character.isascii()}
    ranges = ["\x80\x84", "\x86\x9f", "\u202a\u202e", "\u2066\u2069", "\U000e0000\U000e007f", "\U0001f3f4"]
    assert named == set("".join(ranges))
    assert set(FOLDED) <= set(ALPHABET)
    assert {"url", "to", "cookie"} <= LINE_NAMES
