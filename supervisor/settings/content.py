"""The rules file of the content policy. Read, checked and made ready for use at the start, so that no worker reads it.

Every mistake is reported, with its place. What is no mistake, but can't be what was meant, is warned of.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import attrs

from ipc.content import DETECTORS, GROUPS, SCHEMA, ContentRules, FieldRule, FieldType, Mode, ModeRule
from ipc.globs import Glob, parse

from .problems import Problem, shown
from .sources import Raw
from .variables import CONTENT_POLICY_RULES, edit_distance

_KEYS: Final = ("roots", "fields", "rules")
_FIELD_KEYS: Final = ("description", "method", "tool", "pointer", "type")
_RULE_KEYS: Final = ("name", "description", "method", "tool", "pointer", "detectors", "mode")
_MODES: Final = ("off", "flag", "block", "strip")
_TYPES: Final = ("path", "line", "text")
_SCHEMA_MODES: Final = ("off", "flag", "block")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_DRIVE: Final = re.compile(r"[A-Za-z]:/")

# An operator's file, not a client's text; still each finding may have to be held against each glob.
_MOST_BYTES: Final = 1 << 20
_MOST_ROWS: Final = 512
_MOST_PATTERNS: Final = 1024
_LONGEST_PATTERN: Final = 1024


@attrs.define
class Rules:
    """``content`` is empty when there are problems; the gateway doesn't start then."""

    origin: str
    content: ContentRules = attrs.field(factory=ContentRules)
    patterns: int = 0
    problems: list[Problem] = attrs.field(factory=list)
    warnings: list[Problem] = attrs.field(factory=list)

    def wrong(self, where: str, what: str) -> None:
        self.problems.append(self._problem(where, what))

    def warn(self, where: str, what: str) -> None:
        self.warnings.append(self._problem(where, what))

    def _problem(self, where: str, what: str) -> Problem:
        return Problem(CONTENT_POLICY_RULES.name, self.origin, f"{where}: {what}" if where else what)


def read(fields: Mapping[str, Any], raw: Raw | None) -> Rules:
    """The rules file that the settings name; without one, no rules.

    Args:
        fields: the settings' fields; of them the file's path and the policies.
        raw: where the path came from.
    """
    rules = Rules(raw.origin if raw is not None else "")
    path: str = fields["content_policy_rules"]
    policy: str = fields["content_policy"]
    if path:
        document = _document(rules, Path(path))
        if not rules.problems:
            content = _content(rules, document)
            if not rules.problems:
                rules.content = content
                _doubts(rules, content, policy, str(fields["schema_validation"]))
    if policy == "strip" and not rules.problems and not any(rule.mode == "strip" for rule in rules.content.rules):
        rules.warn("", "opts no field in to CONTENT_POLICY=strip (mode strip), so nothing is stripped, only flagged")
    return rules


def _document(rules: Rules, path: Path) -> object:
    """What the file holds. When it can't be read, that is reported."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            names = [name for name, _ in pairs]
            rules.wrong(f"key {shown(next(n for n in names if names.count(n) > 1))}", "stands twice in one object")
        return members

    try:
        # O_NONBLOCK: opening must not wait for the other end of something that is no regular file.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                rules.wrong(str(path), "is no regular file")
                return None
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            rules.wrong(str(path), f"is longer than {_MOST_BYTES} bytes")
            return None
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except OSError as error:
        rules.wrong(str(path), f"can't be read: {error.strerror}")
    except UnicodeDecodeError:
        rules.wrong(str(path), "is not UTF-8")
    except json.JSONDecodeError as error:
        rules.wrong(str(path), f"is not JSON: line {error.lineno} column {error.colno}: {error.msg}")
    except RecursionError:
        rules.wrong(str(path), "is nested too deep")
    except ValueError:  # int() refuses thousands of digits
        rules.wrong(str(path), "holds a number that can't be one")
    return None


def _content(rules: Rules, document: object) -> ContentRules:
    if not isinstance(document, dict):
        rules.wrong("", "must be an object")
        return ContentRules()
    _unknown(rules, "", document, _KEYS)
    return ContentRules(
        roots=_roots(rules, document.get("roots", [])),
        fields=tuple(_field(rules, f"field {n}", row) for n, row in _rows(rules, document, "fields")),
        rules=_mode_rules(rules, document),
    )


def _rows(rules: Rules, document: Mapping[str, Any], key: str) -> list[tuple[int, dict[str, Any]]]:
    rows = document.get(key, [])
    if not isinstance(rows, list):
        rules.wrong(key, "must be a list")
        return []
    if len(rows) > _MOST_ROWS:
        rules.wrong(key, f"are more than {_MOST_ROWS}")
        return []
    found: list[tuple[int, dict[str, Any]]] = []
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            found.append((number, row))
        else:
            rules.wrong(f"{key}[{number - 1}]", "must be an object")
    return found


def _roots(rules: Rules, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(root, str) for root in value):
        rules.wrong("roots", "must be a list of absolute paths")
        return ()
    found: list[str] = []
    for index, text in enumerate(cast("list[str]", value)):
        root = text.replace("\\", "/")
        if not (root.startswith("/") or _DRIVE.match(root)) or not root.isprintable():
            rules.wrong(f"roots[{index}]", f"{shown(text)} is no absolute path")
        elif any(part in (".", "..") for part in root.split("/")):
            rules.wrong(f"roots[{index}]", f"{shown(text)} holds a segment . or ..")
        else:
            parts = [part for part in root.split("/") if part]
            found.append(("" if _DRIVE.match(root) else "/") + "/".join(parts))
    return tuple(dict.fromkeys(found))


def _field(rules: Rules, where: str, row: dict[str, Any]) -> FieldRule:
    _unknown(rules, where, row, _FIELD_KEYS)
    _description(rules, where, row)
    if "pointer" not in row:
        rules.wrong(f"{where}, pointer", "is missing")
    return FieldRule(
        pointers=_globs(rules, where, row, "pointer"),
        type=cast("FieldType", _choice(rules, where, row, "type", _TYPES)),
        methods=_globs(rules, where, row, "method"),
        tools=_globs(rules, where, row, "tool"),
    )


def _mode_rules(rules: Rules, document: Mapping[str, Any]) -> tuple[ModeRule, ...]:
    found: list[ModeRule] = []
    numbers: dict[str, int] = {}
    for number, row in _rows(rules, document, "rules"):
        rule = _mode_rule(rules, number, row)
        if rule.name in numbers:
            rules.wrong(f"rule {number}, name", f"{shown(rule.name)} is the name of rule {numbers[rule.name]} too")
        numbers.setdefault(rule.name, number)
        found.append(rule)
    return tuple(found)


def _mode_rule(rules: Rules, number: int, row: dict[str, Any]) -> ModeRule:
    where = f"rule {number}"
    name = row.get("name", f"rule-{number}")
    if not isinstance(name, str) or not _NAME.match(name):
        rules.wrong(f"{where}, name", "must be letters, digits and . _ - (64)")
        name = f"rule-{number}"
    _unknown(rules, where, row, _RULE_KEYS)
    _description(rules, where, row)
    mode = cast("Mode", _choice(rules, where, row, "mode", _MODES))
    if mode == "strip" and "pointer" not in row:
        rules.wrong(f"{where}, pointer", "is missing: stripping is chosen field by field")
    detectors = _detectors(rules, where, row)
    if mode == "strip" and detectors == (SCHEMA,):
        rules.wrong(f"{where}, mode", f"of {SCHEMA} must be one of {', '.join(_SCHEMA_MODES)}")
    return ModeRule(
        name=name,
        mode=mode,
        detectors=detectors,
        methods=_globs(rules, where, row, "method"),
        tools=_globs(rules, where, row, "tool"),
        pointers=_globs(rules, where, row, "pointer"),
    )


def _detectors(rules: Rules, where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Without the key: all detectors, but not the schema, which is no detector."""
    if "detectors" not in row:
        return DETECTORS
    value = row["detectors"]
    names: list[object] = value if isinstance(value, list) else [value]
    if not names:
        rules.wrong(f"{where}, detectors", "is an empty list; leave it out to mean all")
    found: list[str] = []
    for name in names:
        if isinstance(name, str) and name in GROUPS:
            found.extend(GROUPS[name])
        elif isinstance(name, str) and (name in DETECTORS or name == SCHEMA):
            found.append(name)
        else:
            known = (*GROUPS, *DETECTORS, SCHEMA)
            rules.wrong(f"{where}, detectors", f"{shown(str(name))} is none of {', '.join(known)}")
    return tuple(dict.fromkeys(found))


def _unknown(rules: Rules, where: str, row: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in row:
        if key not in known:
            nearest = min(known, key=lambda name: edit_distance(key[:40].lower(), name))
            hint = f"; did you mean {nearest}?" if edit_distance(key[:40].lower(), nearest) <= 2 else ""
            rules.wrong(f"{where}, key {shown(key)}" if where else f"key {shown(key)}", f"is unknown{hint}")


def _description(rules: Rules, where: str, row: Mapping[str, Any]) -> None:
    if not isinstance(row.get("description", ""), str):
        rules.wrong(f"{where}, description", "must be a text")


def _choice(rules: Rules, where: str, row: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    value = row.get(key)
    if value not in allowed:
        rules.wrong(f"{where}, {key}", f"must be one of {', '.join(allowed)}" if key in row else "is missing")
        return allowed[0]
    return str(value)


def _globs(rules: Rules, where: str, row: Mapping[str, Any], key: str) -> tuple[Glob, ...]:
    """The globs of one key, in which one text stands for a list of one."""
    if key not in row:
        return ()
    value = row[key]
    patterns: list[object] = value if isinstance(value, list) else [value]
    if not patterns:
        rules.wrong(f"{where}, {key}", "is an empty list, which nothing matches; leave it out to mean everything")
    before, rules.patterns = rules.patterns, rules.patterns + len(patterns)
    if rules.patterns > _MOST_PATTERNS:
        if before <= _MOST_PATTERNS:
            rules.wrong("", f"holds more than {_MOST_PATTERNS} patterns")
        return ()
    globs: list[Glob] = []
    for pattern in patterns:
        flaw = _flaw(pattern, key)
        if flaw:
            rules.wrong(f"{where}, {key}", flaw)
            continue
        try:
            globs.append(parse(str(pattern)))
        except ValueError as error:
            rules.wrong(f"{where}, {key}", str(error))
    return tuple(dict.fromkeys(globs))


def _flaw(pattern: object, key: str) -> str:
    if not isinstance(pattern, str) or not pattern:
        return "must be a text that isn't empty"
    if len(pattern) > _LONGEST_PATTERN:
        return f"is longer than {_LONGEST_PATTERN} characters"
    if not pattern.isprintable():
        return "must not hold control characters or half of a surrogate pair"
    if key == "pointer" and pattern[0] not in "/*":
        return f"{shown(pattern)} is no JSON pointer: it begins with / (or *), as /params/arguments/query does"
    return ""


def _doubts(rules: Rules, content: ContentRules, policy: str, schemas: str) -> None:
    """What decides nothing, each with the reason."""
    unused = content.fields or content.roots or any(rule.detectors != (SCHEMA,) for rule in content.rules)
    if policy == "off" and unused:
        rules.warn("", "is not used, because CONTENT_POLICY=off")
    for number, rule in enumerate(content.rules, 1):
        if SCHEMA in rule.detectors and schemas == "off":
            rules.warn(f"rule {number} ({rule.name})", "speaks of the schema, and SCHEMA_VALIDATION=off")
        earlier = next(
            (other for other in content.rules[: number - 1] if not (other.methods or other.tools or other.pointers)
             and set(rule.detectors) <= set(other.detectors)),
            None,
        )  # fmt: skip
        if earlier is not None:
            rules.warn(f"rule {number} ({rule.name})", f"is never reached: {earlier.name} decides before it")
