"""The policy file at the start: every mistake at once, doubtful rules warned of, nothing else let through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipc.authorization import Authorization, AuthorizationRule
from supervisor.settings.load import load
from supervisor.settings.problems import ConfigurationError

RULE = {"effect": "deny", "tool": "x"}


def loaded(directory: Path, text: str | dict[str, Any], suffix: str = ".json", **environment: str) -> Authorization:
    return outcome(directory, text, suffix, **environment)[0]


def outcome(
    directory: Path, text: str | dict[str, Any], suffix: str = ".json", **environment: str
) -> tuple[Authorization, list[str]]:
    """What is loaded, and the warnings about it."""
    file = directory / f"policy{suffix}"
    file.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    made = load((), {"AUTHORIZATION_POLICY": str(file), **environment}, directory)
    return made.settings.authorization, [w.what for w in made.warnings if w.variable == "AUTHORIZATION_POLICY"]


def problems(directory: Path, text: str | dict[str, Any], suffix: str = ".json") -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(directory, text, suffix)
    assert all(problem.variable == "AUTHORIZATION_POLICY" for problem in caught.value.problems)
    assert {problem.origin for problem in caught.value.problems} == {"environment AUTHORIZATION_POLICY"}
    return [problem.what for problem in caught.value.problems]


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    """Each form of the file becomes the same rules, with one text as a list of one."""
    as_json = {
        "rules": [
            {"name": "a", "description": "…", "effect": "allow", "principal": ["static", "al*"], "tool": "x*y"},
            {"effect": "deny", "upstream": "embedded", "method": "resources/*", "resource": ["db://a/*", "b\\*"]},
        ]
    }
    as_toml = """
        [[rules]]
        name = "a"
        effect = "allow"
        principal = ["static", "al*"]
        tool = "x*y"

        [[rules]]
        effect = "deny"
        upstream = "embedded"
        method = "resources/*"
        resource = ["db://a/*", 'b\\*']
    """
    expected = Authorization(
        rules=(
            AuthorizationRule(
                name="a", effect="allow", principals=(("",), ("al", "")), kind="tool", targets=(("x", "y"),)
            ),
            AuthorizationRule(
                name="rule-2",
                effect="deny",
                upstreams=(("embedded",),),
                methods=(("resources/", ""),),
                kind="resource",
                targets=(("db://a/", ""), ("b*",)),
            ),
        )
    )
    assert loaded(tmp_path, as_json) == expected
    assert loaded(tmp_path, as_toml, ".toml") == expected


def test_all_mistakes_are_told_at_once_and_where(tmp_path: Path) -> None:
    """One start shows every mistake, each with its rule and key."""
    policy = {
        "version": 1,
        "rules": [
            {"name": "a", "effect": "refuse", "tols": "x"},
            {"name": "a", "tool": "", "principal": "\\x", "description": 1},
            7,
            {"name": "default", "effect": "deny", "tool": "x", "resource": "y"},
            {"name": "no good", "effect": "deny", "method": [], "upstream": [1, "a\u0007"]},
            {"name": "rule-7", "effect": "deny", "resource": "file:///a/../b"},
            {"effect": "deny", "prompt": "x" * 1025},
        ],
    }
    assert problems(tmp_path, policy) == [
        "key 'version': is unknown; there is only \"rules\"",
        "rule 1 (a), key 'tols': is unknown; did you mean tool?",
        'rule 1 (a), effect: must be "allow" or "deny"',
        "rule 2 (a), description: must be a text",
        "rule 2 (a), effect: is missing",
        "rule 2 (a), principal: a backslash goes before * or \\ only",
        "rule 2 (a), tool: must not be empty",
        "rule 2, name: 'a' is the name of rule 1 too",
        "rule 3: must be an object (TOML: a table)",
        "rule 4, name: must not be one of default, spelling",
        "rule 4 (default): speaks of tool and resource; no message has both, so make it a rule for each",
        "rule 5, name: must be letters, digits and . _ - (64)",
        "rule 5, upstream[0]: must be a text",
        "rule 5, upstream[1]: must not hold control characters or half of a surrogate pair",
        "rule 5, method: is an empty list, which nothing matches; leave it out to mean everything",
        "rule 6 (rule-7), resource: must not hold a segment . or .., which is resolved before it is compared",
        "rule 7, prompt: is longer than 1024 characters",
        "rule 7, name: 'rule-7' is the name of rule 6 too",
    ]


@pytest.mark.parametrize(
    ("suffix", "text", "problem"),
    [
        (".yaml", "rules: []", "must be a file whose name ends with .json or .toml"),
        (".json", "{", "is not JSON: line 1 column 2"),
        (".toml", "rules = [", "is not TOML:"),
        (".json", "[]", 'must hold "rules", a list'),
        (".json", '{"rules": {}}', 'must hold "rules", a list'),
        (".json", '{"rules": [], "rules": []}', "key 'rules': stands twice in one object"),
        (".json", '{"rules": [{"effect": "allow", "effect": "deny"}]}', "key 'effect': stands twice in one object"),
        (".json", "[" * 100_000, "is nested too deep"),
        (".json", '{"rules": ' + "1" * 5000 + "}", "holds a number or a date that can't be one"),
        (".toml", "rules = " + "1" * 5000, "holds a number or a date that can't be one"),
        (".json", '{"rules": [{"effect": "deny", "principal": "\\ud800"}]}', "half of a surrogate pair"),
        (".json", json.dumps({"rules": [RULE] * 513}), "rules: are more than 512"),
        (".json", json.dumps({"rules": [RULE | {"tool": ["a"] * 1025}]}), "rules: hold more than 1024 patterns"),
        (".json", " " * (1 << 20) + "{}", "is longer than 1048576 bytes"),
    ],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, suffix: str, text: str, problem: str) -> None:
    """One problem, in words; never an exception of a parser."""
    found = problems(tmp_path, text, suffix)
    assert len(found) == 1
    assert problem in found[0]


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """A file of another encoding would hold other names than it seems to."""
    (tmp_path / "p.toml").write_bytes(b'[[rules]]\neffect = "deny"\ntool = "\xe9"\n')
    with pytest.raises(ConfigurationError, match="is not UTF-8"):
        load((), {"AUTHORIZATION_POLICY": str(tmp_path / "p.toml")}, tmp_path)


def test_a_file_that_is_not_there_is_one_problem(tmp_path: Path) -> None:
    """The variable's own check speaks of it, and the reader adds nothing."""
    with pytest.raises(ConfigurationError) as caught:
        load((), {"AUTHORIZATION_POLICY": str(tmp_path / "absent.json")}, tmp_path)
    assert len(caught.value.problems) == 1


ALLOW = {"effect": "allow"}
DENY = {"effect": "deny"}


@pytest.mark.parametrize(
    ("rules", "default", "warned"),
    [
        ([], "allow", ["rules: are empty: everything is as AUTHORIZATION_DEFAULT=allow says"]),
        ([DENY | {"tool": "x"}], "allow", []),
        ([DENY | {"tool": "x*"}, DENY | {"tool": "xy"}], "allow", ["rule 2 (rule-2): is never reached: rule rule-1"]),
        ([ALLOW | {"tool": "x"}, DENY | {"tool": "x"}], "deny", ["rule 2 (rule-2): is never reached: rule rule-1"]),
        ([DENY | {"principal": "a*"}, ALLOW | {"principal": ["ab", "ac"], "tool": "x"}], "deny", [
            "rule 2 (rule-2): is never reached: rule rule-1"]),
        ([ALLOW | {"tool": "x"}], "allow", ["rule 1 (rule-1): changes nothing"]),
        ([ALLOW | {"tool": "x"}, DENY | {"tool": "*"}], "allow", []),
        ([ALLOW | {"tool": "x"}, DENY | {"prompt": "*"}], "allow", ["rule 1 (rule-1): changes nothing"]),
        ([DENY | {"method": "ping"}], "allow", ["rule 1 (rule-1), method: is always allowed"]),
        ([DENY | {"method": "a/*", "tool": "x"}], "allow", ["rule 1 (rule-1), method: is none that has a tool"]),
        ([DENY | {"upstream": ["nobody", "embedded"]}], "allow", ["rule 1 (rule-1), upstream: 'nobody' is none of"]),
        ([DENY | {"method": "tools/call"}, ALLOW | {"tool": "x"}], "deny", []),
        ([DENY | {"method": "tools/*"}, ALLOW | {"tool": "x"}], "deny", ["rule 2 (rule-2): is never reached"]),
    ],
)  # fmt: skip
def test_rules_that_decide_nothing_are_warned_of(
    tmp_path: Path, rules: list[dict[str, Any]], default: str, warned: list[str]
) -> None:
    """Exactly these warnings, and the rules are loaded all the same."""
    made, warnings = outcome(tmp_path, {"rules": rules}, AUTHORIZATION_DEFAULT=default)
    assert len(made.rules) == len(rules)
    assert len(warnings) == len(warned), warnings
    for found, expected in zip(warnings, warned, strict=True):
        assert found.startswith(expected)


def test_deny_without_a_policy_is_warned_of(tmp_path: Path) -> None:
    """It is a legal way to shut everybody out, and hardly what is meant."""
    made = load((), {"AUTHORIZATION_DEFAULT": "deny"}, tmp_path)
    assert made.settings.authorization_default == "deny"
    assert any("clients may do nothing but connect" in str(warning) for warning in made.warnings)


def test_only_edge_workers_get_the_rules(tmp_path: Path) -> None:
    """Principals are people's names: nobody gets them who doesn't decide by them."""
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"rules": [RULE]}))
    settings = load((), {"AUTHORIZATION_POLICY": str(file)}, tmp_path).settings
    assert settings.authorization.rules
    assert settings.for_role("edge").authorization == settings.authorization
    for role in ("policy", "validator", "bridge", "admin"):
        assert settings.for_role(role).authorization == Authorization()
