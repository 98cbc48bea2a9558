"""What holds of the content stage for any message."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.policy.content import decoding, paths
from actors.policy.content.effort import Effort
from actors.policy.content.screen import Screen, Verdict
from actors.policy.jsonrpc import splice
from ipc.content import ContentRules, ModeRule
from ipc.globs import ANYTHING

PARTS = [
    "<script", "javascript:", "on", "load=", "' or 1=1", " --", "union", " ", "select", "/**/", "../", "..", "/", "\\",
    "%2e", "%25", "%3c", "&lt;", "&#60;", "\r\n", "\n", "Set-Cookie:", "\x1b[", "\0", '"', "'", "`", "<", ">", "=", "a",
    "1", ";", "drop table", "(", ")", "sleep(", "é", "\u202e", "\U000e0041", "iframe src=", "img ", "x", "file:", "-",
    "X-A:", "HTTP/1.1", "or", "and", "#", "$", "{", "+", "expression(", "style=", "AKIA",
]  # fmt: skip
STRINGS = st.one_of(st.lists(st.sampled_from(PARTS), max_size=7).map("".join), st.text(max_size=12))
KEYS = st.one_of(st.sampled_from(["path", "text", "uri", "subject", "files", "a"]), STRINGS)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), STRINGS, STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)
PARAMS = st.dictionaries(KEYS, VALUES, max_size=3)

BLOCK = Screen("block", ContentRules(), production=False)
FLAG = Screen("flag", ContentRules(roots=("/srv",)), production=True)
STRIP = Screen("flag", ContentRules(rules=(ModeRule("s", "strip", (), pointers=(ANYTHING,)),)), production=False)


class _Always:
    def find(self, _text: bytes) -> list[int]:
        return [0]


THOROUGH = Screen("flag", ContentRules(roots=("/srv",)), production=True)
THOROUGH._suspicious = _Always()


def plain(params: Any) -> bytes:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def escaped(value: Any) -> str:
    """JSON in which every character of a string is an escape."""
    if isinstance(value, dict):
        return "{" + " ,".join(f"{escaped(key)}\t:\n{escaped(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[ " + ",".join(map(escaped, value)) + "]"
    if isinstance(value, str):
        units = value.encode("utf-16-be")
        return '"' + "".join(f"\\u{units[i]:02X}{units[i + 1]:02x}" for i in range(0, len(units), 2)) + '"'
    return json.dumps(value)


def verdict(screen: Screen, raw: bytes) -> Verdict | None:
    return screen.check(raw, "tools/call", "t")


def told(found: Verdict | None) -> list[tuple[str, str, str]]:
    return [(f.rule, f.pointer, f.mode) for f in found.findings] if found is not None else []


@settings(max_examples=400)
@example({"path": "\r/"})
@example({"path": "\u2003/"})
@example({"path": "\uff0fetc"})
@given(PARAMS)
def test_the_way_of_writing_does_not_change_the_verdict(params: dict[str, Any]) -> None:
    """A message with every character escaped is judged as the same one written plainly."""
    written = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{escaped(params)}}}'.encode()
    for screen in (FLAG, BLOCK):
        assert told(verdict(screen, written)) == told(verdict(screen, plain(params)))


@settings(max_examples=600)
@given(PARAMS)
def test_the_suspicion_clears_nothing_that_would_be_found(params: dict[str, Any]) -> None:
    """The quick look at the raw bytes never hides a finding."""
    ascii_only = json.dumps(params)
    for raw in (plain(params), ascii_only.encode(), ascii_only.replace("/", "\\/").encode()):
        assert told(verdict(FLAG, raw)) == told(verdict(THOROUGH, raw))


@settings(max_examples=300)
@given(PARAMS)
def test_stripping_leaves_json_in_which_nothing_is_left_to_strip(params: dict[str, Any]) -> None:
    """The result is well-formed, says the same where nothing was cut, and stays as it is the second time."""
    raw = plain(params)
    found = verdict(STRIP, raw)
    if found is None or found.refused:
        return
    stripped = splice(raw, found.edits)
    assert json.loads(stripped).keys() == json.loads(raw).keys()
    again = verdict(STRIP, stripped)
    assert again is None or again.edits == ()


@settings(max_examples=300)
@given(STRINGS)
def test_any_path_has_a_verdict(text: str) -> None:
    """With roots and without; and decoding ends."""
    assert paths.fault(text, ()) in ("", paths.TRAVERSAL)
    assert paths.fault(text, ("/srv",)) in ("", paths.TRAVERSAL, paths.OUTSIDE)
    found, _ = decoding.views(text.encode(), Effort.unbounded())
    assert len(found) <= decoding.ROUNDS
    for view in found:
        view.decode()
