"""Each detector finds what it is for, in whatever way it is written, and leaves alone what only looks like it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.policy.content import linear, secrets
from actors.policy.content.checks import Checks
from actors.policy.content.effort import LIGHT, Effort, TooMuch
from actors.policy.content.paths import fault, is_path_name
from actors.policy.content.screen import (
    MOST_EDITS,
    MOST_FLAGGED,
    MOST_LOOKED_AT,
    Screen,
    Verdict,
)
from actors.policy.jsonrpc import Refusal, parse_client, splice
from ipc.content import DETECTORS, LIMIT, ContentRules, FieldRule, ModeRule
from ipc.globs import parse
from ipc.settings import Settings

FLAG = Screen("flag", ContentRules(), production=False)
BLOCK = Screen("block", ContentRules(), production=False)


def call(arguments: Any) -> bytes:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "t", "arguments": arguments}}
    return json.dumps(message).encode()


def check(screen: Screen, arguments: Any, *, light: bool = False) -> Verdict | None:
    return screen.check(call(arguments), "tools/call", "t", Effort(LIGHT) if light else None)


def rules(arguments: Any) -> set[str]:
    verdict = check(FLAG, arguments)
    return {finding.rule for finding in verdict.findings} if verdict is not None else set()


# By detector: the field, what is found in it, and what isn't; as many of the one as of the other.
CASES: dict[str, tuple[str, list[str], list[str]]] = {
    "script-tag": (
        "text",
        ["<script>alert(1)", "< SCRIPT src=x>", "</script>", "<svg:script>", "%3Cscript%3E", "&lt;script&#62;",
         "<scr\0ipt>"],
        ["<scripted", "script", "description", "a < b; script", "manuscript>", "<p>script</p>", "100% script"],
    ),
    "html-tag": (
        "text",
        ['<iframe src="x">', "<object data=x>", "<meta a http-equiv=refresh>", "<embed/src=x>"],
        ["Array<object>", "<p class=x>", "<meta charset=utf-8>", "List<form>"],
    ),
    "event-handler": (
        "text",
        ["<img src=x onerror=alert(1)>", "<svg/onload=x>", '" onmouseover="x', "onload=alert(1)"],
        ["<p>on</p>", "the button on = off", "<a href=x>on it</a>", "conload=1"],
    ),
    "script-url": (
        "text",
        ["javascript:alert(1)", "JaVa\tScRiPt:x", "java%0ascript:alert(1)", "vbscript:x", "data:text/html;base64,PA=="],
        ["JavaScript: The Good Parts", "javascript", "data: text", "data:image/png;base64,iVBO", "type: script"],
    ),
    "script-gadget": (
        "text",
        ["{{constructor.constructor('alert(1)')()}}", "[].sort.call`${alert}1337`"],
        ["constructor.name", "call `me` at ${time}"],
    ),
    "sql-union": (
        "text",
        ["1 UNION SELECT a", "x' union/**/all/**/select 1", "1+union+select+2"],
        ["the union selected him", "reunion select", "union, select"],
    ),
    "sql-tautology": (
        "text",
        ["' OR 1=1 --", "' or '1'='1", '" or ""="', "1 OR 1=1", "admin'--", "x' or 'a' like 'a"],
        ["it's 1 or 2", "rock 'n' roll", "'a' and y", "a -- b", "2 or more = many", "x == 'a' and y == b"],
    ),
    "sql-stacked": (
        "text",
        ["1; DROP TABLE users", "x;delete from t where 1", "1;exec xp_dirtree", "1; select pg_sleep(5)"],
        ["drop the table", "a; create something", "delete from the list", "first; update later"],
    ),
    "sql-function": (
        "text",
        ["1 and sleep(5)", "BENCHMARK(1000000,md5(1))", "pg_sleep(3)", "waitfor delay '0:0:5'", "char(97,98)"],
        ["time.sleep(5)", "a benchmark (of 5)", "sleep well", "wait for the delay", "char(3)"],
    ),
    "sql-catalog": (
        "text",
        ["from information_schema.tables", "sqlite_master", "@@version", "select * from sysobjects"],
        ["the information schema", "master of sqlite", "user@version", "system objects"],
    ),
    "header-injection": (
        "text",
        ["a\r\nSet-Cookie: b=c", "a%0d%0aLocation: x", "a\nHTTP/1.1 200 OK", "x\rX-Injected: 1"],
        ["Set-Cookie: b=c", "a\r\nelse: b", "a\nhost name", "a\n  key: value"],
    ),
    "line-break": (
        "subject",
        ["a\nb", "a\r\nb", "a%0ab"],
        ["a b", "a\tb", "a%20b"],
    ),
    "terminal-escape": (
        "text",
        ["\x1b[31mred", "\x1b]0;t\x07", "\x9b31m"],
        ["[31mred", "\t\r\n", "é…"],
    ),
    "hidden-text": (
        "text",
        ["a\u202eb", "\u2066x", "x\U000e0041\U000e0042"],
        ["שלום", "x\u200d", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"],
    ),
    "path-traversal": (
        "path",
        ["../x", "a/../../b", "..\\x", "%2e%2e/x", "..%252fx", "..%c0%af..", "....//x", "/../etc", "file:///a/../b",
         "..;/x", "．．/x"],
        ["a/../b", "./...", "a..b", "..a/b", "/etc/passwd", "a/b/..", "https://x/../../y", "100%/x", "/a/b/../c",
         "..;x"[2:], "C:\\a\\b\\..\\..c"],
    ),
    "null-byte": ("path", ["a\0.png", "a%00.png"], ["a0.png", "a%2500x"[:3] + "b"]),
    "over-encoding": ("text", ["%252525252525253c"], ["%25253c"]),
}  # fmt: skip


def test_every_detector_has_its_cases() -> None:
    """None is left out; ``path-outside-roots`` has a test of its own, because it needs roots."""
    assert set(CASES) == set(DETECTORS) - {"path-outside-roots"}
    assert all(len(bad) <= len(good) for _, bad, good in CASES.values())


@pytest.mark.parametrize("detector", list(CASES))
def test_what_is_found_and_what_is_not(detector: str) -> None:
    """Positive and negative controls, alone, in an array and deeper."""
    field, bad, good = CASES[detector]
    for text in bad:
        for arguments in ({field: text}, {"a": [{"b": {field: ["x", text]}}]}):
            assert detector in rules(arguments), (detector, text)
    for text in good:
        assert detector not in rules({field: text}), (detector, text)


def test_a_path_is_one_by_its_field_only() -> None:
    """The same dots elsewhere are text."""
    assert rules({"text": "../../etc/passwd", "profile": "../x", "jsonpath": "..x/../.."}) == set()
    names = ("path", "filePath", "file_path", "LogFile", "targetDir", "paths", "uri", "FILE", "outputfilename")
    assert all(is_path_name(name) for name in names)
    assert not any(is_path_name(name) for name in ("profile", "subdirectoryless", "content", "xpath", "uriel", ""))


def test_roots() -> None:
    """Absolute paths outside are found; those inside, however written, are not."""
    roots = ("/work/a", "C:/data")
    for inside in ("/work/a", "/work/a/b", "/work/./a/x/../y", "C:\\data\\x", "b/c", "file:///work/a/b"):
        assert fault(inside, roots) == "", inside
    for outside in ("/work/ab", "/etc", "~/x", "D:/x", "file:///etc/passwd", "\\\\host\\share"):
        assert fault(outside, roots) == "path-outside-roots", outside
    assert fault("/work/a/../b", roots) == "path-traversal"
    screen = Screen("block", ContentRules(roots=("/work/a",)), production=False)
    assert check(screen, {"path": "/etc"}) is not None
    assert check(screen, {"path": "/work/a/b"}) is None


def test_a_key_is_looked_at_and_a_key_that_comes_twice_too() -> None:
    """What a decoder would drop is still there for another one."""
    assert rules({"<script>": 1}) == {"script-tag"}
    twice = b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"path":"../x","path":"ok"}}'
    verdict = BLOCK.check(twice, "m", "")
    assert verdict is not None
    assert verdict.findings[0].rule == "path-traversal"


def test_the_pointer_leads_to_the_string() -> None:
    """RFC 6901, with its escapes."""
    verdict = check(BLOCK, {"a/b~c": [0, {"x": "<script>"}]})
    assert verdict is not None
    assert verdict.refused
    assert verdict.findings[0].pointer == "/params/arguments/a~1b~0c/1/x"


def rule(mode: Any, **globs: str) -> ModeRule:
    detectors = tuple(globs.pop("detectors", "").split()) or DETECTORS
    return ModeRule("r", mode, detectors, **{key: (parse(glob),) for key, glob in globs.items()})


def test_the_first_rule_that_speaks_decides() -> None:
    """By method, tool, pointer and detector; where none speaks, the policy."""
    rows = (
        rule("off", pointers="/params/arguments/code*"),
        rule("flag", detectors="script-tag", tools="t"),
        rule("block", methods="tools/*", detectors="script-url"),
    )
    screen = Screen("block", ContentRules(rules=rows), production=False)
    assert check(screen, {"code": "<script>' OR 1=1 --"}) is None
    flagged = check(screen, {"text": "<script>"})
    assert flagged is not None
    assert not flagged.refused
    assert check(screen, {"text": "<script>", "u": "javascript:x()"}).refused  # type: ignore[union-attr]
    assert check(screen, {"text": "' OR 1=1 --"}).refused  # type: ignore[union-attr]
    assert screen.check(call({"text": "<script>"}), "tools/call", "other").refused  # type: ignore[union-attr]


def test_fields_may_be_said_to_hold_paths_or_lines_or_neither() -> None:
    """The rules file knows better than the names."""
    fields = (
        FieldRule((parse("/params/arguments/target"),), "path"),
        FieldRule((parse("/params/arguments/path"),), "text", tools=(parse("t"),)),
        FieldRule((parse("*/title"),), "line"),
    )
    screen = Screen("block", ContentRules(fields=fields), production=False)
    assert check(screen, {"target": "../x"}) is not None
    assert check(screen, {"path": "../x"}) is None
    assert check(screen, {"title": "a\nb"}) is not None


def test_production_refuses_traversal_and_flags_the_rest() -> None:
    """The profile's table."""
    screen = Screen("flag", ContentRules(), production=True)
    assert not check(screen, {"a": "<script>' OR 1=1 --"}).refused  # type: ignore[union-attr]
    assert check(screen, {"path": "../../x"}).refused  # type: ignore[union-attr]
    roots = Screen("flag", ContentRules(roots=("/srv",)), production=True)
    for path in ("/etc/passwd", "/srv/../etc", "C:\\x", "file:///etc/passwd"):
        assert check(roots, {"path": path}).refused  # type: ignore[union-attr]
    assert check(roots, {"path": "/srv/x"}) is None


def test_too_much_is_left_to_others_and_then_refused() -> None:
    """A light check gives up early; a whole one says what it left out, and refuses where it could have refused."""
    many = ["a &amp; b"] * 500
    with pytest.raises(TooMuch):
        check(BLOCK, {"a": many}, light=True)
    assert check(BLOCK, {"a": many}) is None
    with pytest.raises(TooMuch):
        check(BLOCK, {"a": ["x"] * 5_000 + ["<script>"]}, light=True)
    beyond = ["a &amp; b"] * (MOST_LOOKED_AT + 1)
    refused = check(BLOCK, {"a": beyond})
    assert refused is not None
    assert refused.findings[0].rule == LIMIT
    flagged = check(FLAG, {"a": beyond})
    assert flagged is not None
    assert [(finding.rule, finding.mode) for finding in flagged.findings] == [(LIMIT, "flag")]


@pytest.mark.parametrize(
    "arguments",
    [
        {"a": "%41x" * 62_000},
        {"a": "&#60;x" * 40_000},
        {"a": "%u0041x" * 35_000},
        {"path": "a/../" * 48_000},
        {"path": "..／" * 48_000},
        {"a": ["' or 1=1 -- "] * 16_000},
        {"a": [{}] * 60_000, "b": "<script>"},
        {f"<script>{number}": 1 for number in range(12_000)},
    ],
)
def test_no_light_check_takes_long(arguments: Any) -> None:
    """What takes long to look at is left to others before the work is done, wherever the work is."""
    for screen in (FLAG, BLOCK, Screen("flag", ContentRules(roots=("/srv",)), production=True)):
        with pytest.raises(TooMuch):
            check(screen, arguments, light=True)
        small = {key: value[: len(value) // 400] if not isinstance(value, int) else value
                 for key, value in list(arguments.items())[:30]}  # fmt: skip
        check(screen, small, light=True)


class _Starved:
    def Match(self, _text: bytes) -> None:  # noqa: N802 - as RE2 has it
        return None


def test_running_out_of_memory_is_not_finding_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """RE2 says the same of both; a light check is left to others then, and a whole one fails."""
    patterns = linear.pattern_set(["a", "b"])
    assert patterns.find(b"xbx") == [1]
    assert patterns.find(b"") == []
    monkeypatch.setattr(patterns, "_set", _Starved())
    with pytest.raises(MemoryError):
        patterns.find(b"x")
    checks = Checks(Settings())
    assert checks.screen is not None
    monkeypatch.setattr(checks.screen._suspicious, "_set", _Starved())
    raw = call({"a": 1})
    envelope = parse_client(raw)
    with pytest.raises(TooMuch):
        checks.light(raw, envelope, b"", Effort(LIGHT))
    with pytest.raises(MemoryError):
        checks.whole(raw, envelope, b"")


def strips(**globs: str) -> Screen:
    return Screen("flag", ContentRules(rules=(rule("strip", **globs),)), production=False)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a <script>b", "a >b"),
        ("<<script script>", ">"),  # what is left together is looked at again
        ("%3Cscript%3E", ""),  # what can't be cut out takes the whole value with it
        ("é <script x 😀", "é  x 😀"),
        ("a\U000e0041\U000e0042b\U000e0043", "ab"),  # and nothing that stands before it
        ("a\u202e\U000e0041 \U0001f3f4\U000e0067\U000e007f b\u2066", "a \U0001f3f4\U000e0067\U000e007f b"),
    ],
)
def test_stripping(text: str, left: str) -> None:
    """What was found is gone, the rest of the value stays, and so does every byte around it."""
    raw = call({"x": text, "y": "<script>"})
    verdict = strips(pointers="/params/arguments/x").check(raw, "tools/call", "t")
    assert verdict is not None
    stripped = splice(raw, verdict.edits)
    assert json.loads(stripped)["params"]["arguments"] == {"x": left, "y": "<script>"}
    assert [(finding.mode, finding.pointer[-1]) for finding in verdict.findings] == [("strip", "x"), ("flag", "y")]


def test_stripping_is_never_skipped() -> None:
    """What there was no time for is refused where it could have had to be stripped, and what is stripped is told
    however much is flagged before it."""
    screen = strips(pointers="/params/arguments/x")
    refused = check(screen, {"a": ["a &amp; b"] * (MOST_LOOKED_AT + 1), "x": "<script>"})
    assert refused is not None
    assert (refused.refused, refused.findings[0].rule) == (True, LIMIT)
    verdict = check(screen, {"a": ["<script>"] * (2 * MOST_FLAGGED), "x": "<script>"})
    assert verdict is not None
    assert len(verdict.edits) == 1
    assert [finding.mode for finding in verdict.findings] == ["flag"] * MOST_FLAGGED + ["strip"]


def test_a_schema_sees_what_is_left() -> None:
    """What is stripped from a message is not what its tool gets."""
    content = ContentRules(rules=(rule("strip", pointers="/params/arguments/x"),))
    checks = Checks(Settings(content_policy="strip", content=content, schema_validation="block"))
    raw = call({"x": "ab<script"})
    schema = b'{"properties":{"x":{"maxLength":5}}}'
    for check_it in (checks.whole, lambda *message: checks.light(*message, Effort(LIGHT))):
        findings, edits = check_it(raw, parse_client(raw), schema)
        assert [finding.rule for finding in findings] == ["script-tag"]
        assert len(edits) == 1
        with pytest.raises(Refusal):
            check_it(raw, parse_client(raw), b'{"properties":{"x":{"minLength":5}}}')


def test_what_cannot_be_stripped_is_refused() -> None:
    """A key, which would become another one, and more than a message between processes may hold."""
    assert check(strips(pointers="*"), {"<script>": 1}).refused  # type: ignore[union-attr]
    refused = check(strips(pointers="*"), {"a": ["<script>"] * (MOST_EDITS + 1)})
    assert refused is not None
    assert refused.findings[0].rule == LIMIT


SECRETS = {
    "secret-aws-key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "secret-github-token": "ghp_" + "a1B2" * 9,
    "secret-gitlab-token": "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
    "secret-slack-token": "xoxb-" + "1234567890-abcdef",
    "secret-private-key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMII",
    "secret-jwt": "eyJ" + "hbGciOiJIUzI1NiJ9." + "eyJ" + "zdWIiOiIxIn0xxxx." + "s" * 43,
    "secret-anthropic-key": "sk-ant-" + "api03-" + "a1_B" * 10,
    "secret-openai-key": "sk-proj-" + "a1B2" * 12,
    "secret-google-key": "AIza" + "a1B2c" * 7,
    "secret-stripe-key": "sk_live_" + "a1B2" * 6,
    "secret-npm-token": "npm_" + "a1B2" * 9,
    "secret-pypi-token": "pypi-AgEIcHlwaS5vcmc" + "a1B2" * 15,
    "secret-huggingface-token": "hf_" + "aB" * 17,
    "secret-sendgrid-key": "SG." + "a" * 22 + "." + "b" * 43,
    "secret-digitalocean-token": "dop_v1_" + "a1" * 32,
}
NO_SECRETS = [
    "AKIA", "ghp_short", "glpat-x", "xoxb-", "BEGIN PUBLIC KEY", "eyJhbGciOiJIUzI1NiJ9", "sk-learn", "npm_install",
    "AIza", "hf_hub", "SG.1", "the key is in the vault", "tasks-ant-farm", "MAKIAABCDEFGHIJKLMNOPQ", "sk_test_1",
]  # fmt: skip


def test_secrets() -> None:
    """Each shape, also behind an escaped line break and with its letters escaped; nothing that only begins like one."""
    assert set(SECRETS) == set(secrets.SHAPES)
    for name, text in SECRETS.items():
        assert secrets.find(json.dumps({"a": f"x\n{text}\n"}).encode()) == name
        escaped = "".join(f"\\u{ord(character):04x}" for character in text)
        assert secrets.find(b'{"a":"%b"}' % escaped.encode()) == name
    assert [text for text in NO_SECRETS if secrets.find(json.dumps(text).encode())] == []


def test_secrets_in_members_that_come_twice() -> None:
    """No member hides another, however either is written."""
    key = SECRETS["secret-github-token"]
    written = f"\\u{ord(key[0]):04x}{key[1:]}"
    for text in (key, written, written.replace("_", "\\u005F")):
        for raw in (f'{{"a":"{text}","a":"\\u0041"}}', f'{{"a":"\\u0041","a":"{text}","a":""}}'):
            assert secrets.find(raw.encode()) == "secret-github-token"
    assert secrets.find(b'{"a":"whsec_%b\\/%b"}' % (b"a" * 20, b"b" * 20)) == "secret-stripe-key"


def test_an_answer_that_takes_long_to_look_through_is_not_cleared() -> None:
    """It is told apart from one in which nothing was found."""
    for raw in (b'"%b"' % (b"x" * secrets.MOST_BYTES), b'"%b"' % (b"\\u0041" * (secrets.MOST_ESCAPES + 1))):
        assert secrets.find(raw) == LIMIT
    assert secrets.find(b'"%b"' % (b"x" * (secrets.MOST_BYTES - 2))) == ""
