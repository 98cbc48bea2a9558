"""Properties of authorisation: globs mean what they say, decisions are those of a naive model that reads the policy
file itself, filtered lists hold exactly what may be used, in the server's own bytes."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from authorisation_model import model_refuses, model_shows, pattern_matches
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from actors.policy.authorization import ALLOWED, Rights
from actors.policy.jsonrpc import parse_client
from actors.policy.list_filter import Unreadable, filtered
from ipc.authorization import AuthorizationRule
from ipc.globs import Glob, covers, matches, overlaps, parse
from supervisor.settings import authorization as policy_file

# --- globs

patterns = st.text("ab*", max_size=7)
WORDS = ["".join(word) for length in range(8) for word in itertools.product("ab", repeat=length)]


@given(patterns, st.text("abc\n", max_size=12))
def test_a_glob_matches_what_the_regular_expression_does(pattern: str, text: str) -> None:
    """The linear matcher and a backtracking one agree."""
    assert matches(parse(pattern), text) == pattern_matches(pattern, text)


@given(st.text("a*\\", max_size=8), st.text("a*\\", max_size=8))
def test_escapes_mean_themselves(pattern: str, text: str) -> None:
    r"""``\*`` and ``\\`` stand for one character, and any other use of a backslash is refused."""
    legal = re.fullmatch(r"(?:[^\\]|\\[\\*])*", pattern, re.DOTALL) is not None
    try:
        glob = parse(pattern)
    except ValueError:
        assert not legal
        return
    assert legal
    assert matches(glob, text) == pattern_matches(pattern, text)


@given(patterns, patterns)
def test_covering_and_overlapping_are_what_the_words_say(one: str, other: str) -> None:
    """Against every word of up to seven letters: what covers leaves none out, what doesn't overlap shares none, and
    what shares one overlaps."""
    left, right = parse(one), parse(other)
    lefts = {word for word in WORDS if matches(left, word)}
    rights = {word for word in WORDS if matches(right, word)}
    if covers(left, right):
        assert rights <= lefts
    if lefts & rights:
        assert overlaps(left, right)
        assert overlaps(right, left)
    if not overlaps(left, right):
        assert not lefts & rights
    # Seven letters hold every pair of these patterns' ends, so an overlap shows among the words or just beyond.
    if overlaps(left, right) and not lefts & rights:
        longer = one.replace("*", "") + other.replace("*", "")
        assert len(longer) > 7


@given(patterns)
def test_every_glob_covers_and_overlaps_itself(pattern: str) -> None:
    """The relations are reflexive, and everything is covered by ``*``."""
    glob = parse(pattern)
    assert covers(glob, glob)
    assert overlaps(glob, glob)
    assert covers(parse("*"), glob)


# --- decisions

NAMES = ["a", "ab", "b", "ba"]
URIS = ["db://x/a", "db://x/b", "db://y/a"]
NAME_PATTERNS = [*NAMES, "*", "a*", "*b", "*a*"]
URI_PATTERNS = [*URIS, "db://x/*", "*", "*/a", "db:*"]
METHODS = [
    "initialize", "ping", "tools/list", "tools/call", "prompts/list", "prompts/get", "resources/list", "resources/read",
    "resources/templates/list", "resources/subscribe", "completion/complete", "subscriptions/listen", "notes/add",
]  # fmt: skip
METHOD_PATTERNS = [*METHODS, "*", "tools/*", "resources/*", "*/list", "*/call"]
PRINCIPALS = ["", "alice", "idp|bob", "static-0123456789ab"]
SERVERS = ["one", "two"]


def one_or_more(choices: list[str]) -> st.SearchStrategy[Any]:
    return st.sampled_from(choices) | st.lists(st.sampled_from(choices), min_size=1, max_size=3)


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """One rule as the policy file has it."""
    rule: dict[str, Any] = {"effect": draw(st.sampled_from(["allow", "deny"]))}
    if draw(st.booleans()):
        rule["principal"] = draw(one_or_more(["", "static", "alice", "*", "idp|*", "*b"]))
    if draw(st.integers(0, 3)) == 0:
        rule["upstream"] = draw(one_or_more([*SERVERS, "*", "o*"]))
    if draw(st.booleans()):
        rule["method"] = draw(one_or_more(METHOD_PATTERNS))
    kind = draw(st.sampled_from(["", "tool", "tool", "prompt", "resource"]))
    if kind:
        rule[kind] = draw(one_or_more(URI_PATTERNS if kind == "resource" else NAME_PATTERNS))
    return rule


policies = st.fixed_dictionaries(
    {
        "rules": st.lists(rules(), max_size=6),
        "default": st.sampled_from(["allow", "deny"]),
        "principal": st.sampled_from(PRINCIPALS),
        "upstream": st.sampled_from(SERVERS),
        "scopes": st.sampled_from([("mcp:call", "mcp:read"), ("mcp:read",), ("mcp:call",), ("admin",), ()]),
    }
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A method and params, well-formed or with the target missing or of the wrong type."""
    method = draw(st.sampled_from(METHODS))
    wrong = draw(st.sampled_from([None, 1, ["a"], {}, ""]))
    right = draw(st.integers(0, 5)) > 0
    name = draw(st.sampled_from(NAMES)) if right else wrong
    uri = draw(st.sampled_from(URIS)) if right else wrong
    if method in ("tools/call", "prompts/get"):
        return method, {"name": name}
    if method.startswith("resources/") and not method.endswith("list"):
        return method, {"uri": uri}
    if method == "completion/complete":
        if draw(st.booleans()):
            return method, {"ref": {"type": "ref/prompt", "name": name}}
        return method, {"ref": {"type": "ref/resource", "uri": uri}}
    if method == "subscriptions/listen":
        uris = draw(st.lists(st.sampled_from(URIS), max_size=3)) if right else wrong
        return method, {"notifications": {"resourceSubscriptions": uris}}
    return method, {}


def compiled(rows: list[dict[str, Any]]) -> tuple[AuthorizationRule, ...]:
    """By the loader that the gateway uses."""
    policy = policy_file.Policy("")
    made = policy_file._rules(policy, {"rules": rows})
    assert not policy.problems
    return made


def rights_of(policy: dict[str, Any]) -> Rights:
    return Rights(
        compiled(policy["rules"]), policy["default"], policy["principal"], policy["scopes"], policy["upstream"]
    )


@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(policies, messages(), st.booleans())
def test_decisions_are_the_naive_model_s(policy: dict[str, Any], message: tuple[str, Any], notified: bool) -> None:
    """Whatever the policy and the message, asked once or again; and who is unrestricted is refused nothing."""
    method, params = message
    body: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if notified else {"id": 1})
    envelope = parse_client(json.dumps(body).encode())
    rights = rights_of(policy)
    expected = model_refuses(policy, method, params)
    assert (rights.refused_by(envelope) != ALLOWED) == expected
    assert (rights.refused_by(envelope) != ALLOWED) == expected
    if rights.unrestricted:
        assert not expected


@given(policies, st.sampled_from(["tools/list", "prompts/list", "resources/list"]))
def test_a_list_shows_exactly_what_may_be_used(policy: dict[str, Any], method: str) -> None:
    """An entry is shown if and only if using it would be allowed."""
    rights = rights_of(policy)
    shown = rights.shown(method)
    for target in URIS if method == "resources/list" else NAMES:
        assert (shown is None or shown(target)) == model_shows(policy, method, target)


@given(policies, st.lists(st.sampled_from(["db", "x", "y", "a", "b", "/", "//", ":", "{v}"]), max_size=6).map("".join))
def test_a_template_is_shown_if_anything_it_stands_for_may_be_read(policy: dict[str, Any], template: str) -> None:
    """No readable resource hides with its template."""
    shown = rights_of(policy).shown("resources/templates/list")
    if shown is None or shown(template):
        return
    expression = ".*".join(map(re.escape, template.split("{v}")))
    for uri in [uri for uri in URIS if re.fullmatch(expression, uri)]:
        assert not model_shows(policy, "resources/list", uri)


# --- the filter

spaces = st.sampled_from([b"", b" ", b"\n\t"])
scalars = st.sampled_from([b"1", b"-0.5e3", b"null", b'"]"', b'"\\"}"', b'"\\u005d"', b"{}", b"[]", b'[{"name":"a"}]'])


@st.composite
def entries(draw: st.DrawFn) -> tuple[bytes, str | None]:
    """An entry's bytes, and its name; None where it has none that can be told."""
    if draw(st.integers(0, 9)) == 0:
        return draw(scalars), None
    name = draw(st.sampled_from(["a", "b", "c", "é", '"', "]"]))
    ascii_only = draw(st.booleans())
    named = b'"name"' + draw(spaces) + b":" + draw(spaces) + json.dumps(name, ensure_ascii=ascii_only).encode()
    members = [named]
    clear = True
    for key in draw(st.lists(st.sampled_from(["x", "Name", "name", "nam\\u0065"]), max_size=2)):
        members.append(b'"' + key.encode() + b'":' + draw(scalars))
        clear = clear and key == "x"
    clear = clear and len(members) == len({member.partition(b":")[0] for member in members})
    members = draw(st.permutations(members))
    gap = draw(spaces)
    return b"{" + gap + (gap + b"," + gap).join(members) + gap + b"}", name if clear else None


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, list[tuple[bytes, str | None]], bytes, bytes]:
    """An answer to tools/list, its entries, and what stands before and after the list's brackets."""
    listed = draw(st.lists(entries(), max_size=5))
    head = draw(st.sampled_from([
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":', b'{ "id": "]", "result" : {"cursor":"x", "tools" :  ',
        b'{"result":{"a":{"tools":[{"name":"a"}]},"tools":',
    ]))  # fmt: skip
    tail = draw(st.sampled_from([b"}}", b', "nextCursor": "b"}}', b' } , "x":[1] }\n']))
    inside = b"".join(
        (b"," if index else b"") + draw(spaces) + entry + draw(spaces) for index, (entry, _) in enumerate(listed)
    )
    return head + b"[" + inside + b"]" + tail, listed, head, tail


@given(answers(), st.sets(st.sampled_from(["a", "b", "c", "é", '"', "]"])))
def test_the_filter_keeps_exactly_the_allowed_entries_and_all_other_bytes(
    answer: tuple[bytes, list[tuple[bytes, str | None]], bytes, bytes], permitted: set[str]
) -> None:
    """What is around the list is untouched; in it stand the allowed entries' own bytes, in order; it is still JSON;
    and filtering again changes nothing."""
    raw, listed, head, tail = answer
    out = filtered(raw, "tools/list", permitted.__contains__)
    kept = [entry for entry, name in listed if name in permitted]
    assert out.startswith(head + b"[")
    assert out.endswith(b"]" + tail)
    inside = out[len(head) + 1 : len(out) - len(tail) - 1]
    assert re.fullmatch(rb"\s*" + rb"\s*,\s*".join(map(re.escape, kept)) + rb"\s*", inside)
    json.loads(out)
    assert filtered(out, "tools/list", permitted.__contains__) == out
    if len(kept) == len(listed):
        assert out == raw


@given(answers(), st.data())
def test_damage_never_shows_what_is_not_allowed(
    answer: tuple[bytes, list[tuple[bytes, str | None]], bytes, bytes], data: st.DataObject
) -> None:
    """A few bytes changed anywhere: the answer is refused, or nothing that a client would read from it is forbidden."""
    raw = bytearray(answer[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b'"', b",", b"{", b"}", b"[", b"]", b":", b"\xff", b" ", b"\\", b"N", b'"tools":'])
        )
    try:
        out = filtered(bytes(raw), "tools/list", {"a"}.__contains__)
    except Unreadable:
        return
    try:
        message = json.loads(out)
    except ValueError:
        assume(False)
    for key, result in message.items():
        if key.casefold() == "result" and isinstance(result, dict):
            for list_key, rows in result.items():
                if list_key.casefold() == "tools":
                    assert all(row["name"] == "a" for row in rows or ())


@given(st.lists(st.text("ab", max_size=3), min_size=2, max_size=4).map(tuple), st.text("ab", max_size=40))
def test_what_a_glob_was_made_of_is_found(glob: Glob, filler: str) -> None:
    """A text put together from the parts of a glob with anything between them matches it."""
    assert matches(glob, filler.join(glob))
