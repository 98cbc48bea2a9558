"""The rules file of the content policy at the start: every mistake at once, doubtful rules warned of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ipc.content import DETECTORS, GROUPS, ContentRules
from ipc.settings import Settings
from supervisor.settings.load import load
from supervisor.settings.problems import ConfigurationError


def outcome(directory: Path, document: Any, **environment: str) -> tuple[ContentRules, list[str]]:
    file = directory / "rules.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    made = load((), {"CONTENT_POLICY_RULES": str(file), **environment}, directory)
    return made.settings.content, [w.what for w in made.warnings if w.variable == "CONTENT_POLICY_RULES"]


def problems(directory: Path, document: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        outcome(directory, document)
    assert {problem.variable for problem in caught.value.problems} == {"CONTENT_POLICY_RULES"}
    return [problem.what for problem in caught.value.problems]


def test_a_good_file(tmp_path: Path) -> None:
    """Groups become their detectors, one text a list of one, roots are made normal."""
    rules, warnings = outcome(
        tmp_path,
        {
            "roots": ["/work//a/", "C:\\data"],
            "fields": [{"pointer": "/params/arguments/target", "type": "path", "tool": ["copy", "mv*"]}],
            "rules": [
                {"name": "code", "description": "…", "pointer": ["*/code"], "detectors": ["sql"], "mode": "off"},
                {"mode": "block"},
            ],
        },
    )
    assert rules.roots == ("/work/a", "C:/data")
    assert rules.fields[0].pointers == (("/params/arguments/target",),)
    assert rules.fields[0].tools == (("copy",), ("mv", ""))
    assert rules.rules[0].detectors == GROUPS["sql"]
    assert (rules.rules[1].name, rules.rules[1].detectors) == ("rule-2", DETECTORS)
    assert warnings == []


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """Each with its place."""
    found = problems(
        tmp_path,
        {
            "root": [],
            "roots": ["relative", "/a/../b"],
            "fields": [{"type": "number"}, 5],
            "rules": [
                {"name": "a", "mode": "blok"},
                {"name": "a", "mode": "strip", "detectors": ["xss"]},
                {"mode": "flag", "pointer": "arguments", "tool": [], "methods": "x"},
            ],
        },
    )
    for part in (
        "key 'root': is unknown; did you mean roots?",
        "roots[0]: 'relative' is no absolute path",
        "roots[1]",
        "field 1, pointer: is missing",
        "field 1, type: must be one of path, line, text",
        "fields[1]: must be an object",
        "rule 1, mode: must be one of off, flag, block, strip",
        "rule 2, name: 'a' is the name of rule 1 too",
        "rule 2, pointer: is missing",
        "rule 2, detectors: 'xss' is none of",
        "rule 3, pointer: 'arguments' is no JSON pointer",
        "rule 3, tool: is an empty list",
        "rule 3, key 'methods': is unknown; did you mean method?",
    ):
        assert any(part in what for what in found), (part, found)
    assert len(found) == 13


@pytest.mark.parametrize("text", ["", "[]", '{"a":1,"a":2}', "\xff", "[" * 100_000, "{"])
def test_what_is_no_rules_file(tmp_path: Path, text: str) -> None:
    """Is told as that."""
    assert problems(tmp_path, text)


def test_doubtful_rules_are_warned_of(tmp_path: Path) -> None:
    """What decides nothing, and a policy of stripping that strips nothing."""
    rules = {"rules": [{"name": "all", "mode": "flag"}, {"mode": "off", "detectors": "sql"}]}
    assert any("is never reached: all decides" in what for what in outcome(tmp_path, rules)[1])
    schema = {"rules": [{"mode": "off", "detectors": "schema"}]}
    assert any("SCHEMA_VALIDATION=off" in what for what in outcome(tmp_path, schema)[1])
    assert any("CONTENT_POLICY=off" in what for what in outcome(tmp_path, {"roots": ["/"]}, CONTENT_POLICY="off")[1])
    assert any("opts no field in" in what for what in outcome(tmp_path, {}, CONTENT_POLICY="strip")[1])


def test_only_who_decides_by_the_rules_gets_them(tmp_path: Path) -> None:
    """The edge and the validator."""
    rules, _ = outcome(tmp_path, {"roots": ["/a"]})
    settings = Settings(content=rules)
    for role in ("edge", "validator"):
        assert settings.for_role(role).content == rules  # type: ignore[arg-type]
    for role in ("policy", "bridge", "admin"):
        assert settings.for_role(role).content == ContentRules()  # type: ignore[arg-type]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to, and a directory, are mistakes like others."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(ConfigurationError) as caught:
            load((), {"CONTENT_POLICY_RULES": str(path)}, tmp_path)
        assert [problem.variable for problem in caught.value.problems] == ["CONTENT_POLICY_RULES"]
