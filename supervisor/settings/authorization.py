"""The policy file: who may do what. Read, checked and made ready for use at the start, so that no worker reads it.

Every mistake is reported, with the rule and the key. What is no mistake, but can't be what was meant, is warned of.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final, cast

import attrs

from ipc.authorization import (
    ALWAYS_ALLOWED,
    LIST_METHODS,
    TARGET_METHODS,
    Authorization,
    AuthorizationRule,
    Effect,
    TargetKind,
    applies,
    speaks_of_list,
)
from ipc.globs import ANYTHING, Glob, covers, matches, overlaps, parse
from ipc.settings import Upstream

from .problems import Problem, shown
from .sources import Raw
from .variables import AUTHORIZATION_POLICY, edit_distance

STATIC: Final = "static"
"""As a principal: whoever has no name of his own, which is the holder of a static token."""

_KINDS: Final[tuple[TargetKind, ...]] = ("tool", "prompt", "resource")
_KEYS: Final = ("name", "description", "effect", "principal", "upstream", "method", *_KINDS)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_RESERVED: Final = frozenset({"default", "spelling"})  # what a refusal says when it was no rule's
_DOT_SEGMENT: Final = re.compile(r"(?:/|\A)\.\.?(?:/|\Z)")

# An operator's file, not a client's text; still each message may have to be held against each glob.
_MOST_BYTES: Final = 1 << 20
_MOST_RULES: Final = 512
_MOST_PATTERNS: Final = 1024  # of all rules together
_LONGEST_PATTERN: Final = 1024


@attrs.define
class Policy:
    """``authorization`` is empty when there are problems; the gateway doesn't start then."""

    origin: str
    authorization: Authorization = attrs.field(factory=Authorization)
    patterns: int = 0
    problems: list[Problem] = attrs.field(factory=list)
    warnings: list[Problem] = attrs.field(factory=list)

    def wrong(self, where: str, what: str) -> None:
        self.problems.append(self._problem(where, what))

    def warn(self, where: str, what: str) -> None:
        self.warnings.append(self._problem(where, what))

    def _problem(self, where: str, what: str) -> Problem:
        return Problem(AUTHORIZATION_POLICY.name, self.origin, f"{where}: {what}" if where else what)


def read(fields: Mapping[str, Any], raw: Raw | None, upstreams: Sequence[Upstream]) -> Policy:
    """The policy file that the settings name; without one a policy that has no rules.

    Args:
        fields: the settings' fields; of them the file's path and the default effect.
        raw: where the path came from.
        upstreams: the servers that there are, to find rules about others.
    """
    policy = Policy(raw.origin if raw is not None else "")
    path: str = fields["authorization_policy"]
    default: Effect = fields["authorization_default"]
    if not path:
        if default == "deny":
            policy.warn("", "is not set, and AUTHORIZATION_DEFAULT=deny: clients may do nothing but connect")
        return policy
    document = _document(policy, Path(path))
    if policy.problems:
        return policy
    rules = _rules(policy, document)
    if not policy.problems:
        policy.authorization = Authorization(rules=rules)
        for where, what in _doubts(rules, default, [upstream.name for upstream in upstreams]):
            policy.warn(where, what)
    return policy


# --- the file ---------------------------------------------------------------------------------------------------------


def _document(policy: Policy, path: Path) -> object:
    """What the file holds. When it can't be read, that is reported."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            names = [name for name, _ in pairs]
            doubled = next(name for name in names if names.count(name) > 1)
            policy.wrong(f"key {shown(doubled)}", "stands twice in one object")
        return members

    suffix = path.suffix.lower()
    if suffix not in (".json", ".toml"):
        policy.wrong("", "must be a file whose name ends with .json or .toml")
        return None
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            policy.wrong(str(path), f"is longer than {_MOST_BYTES} bytes")
            return None
        text = content.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=unique) if suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        policy.wrong(str(path), f"can't be read: {error.strerror}")
    except UnicodeDecodeError:
        policy.wrong(str(path), "is not UTF-8")
    except json.JSONDecodeError as error:
        policy.wrong(str(path), f"is not JSON: line {error.lineno} column {error.colno}: {error.msg}")
    except tomllib.TOMLDecodeError as error:
        policy.wrong(str(path), f"is not TOML: {str(error)[:200]}")
    except RecursionError:
        policy.wrong(str(path), "is nested too deep")
    except ValueError:  # int() refuses thousands of digits, and a date has to exist
        policy.wrong(str(path), "holds a number or a date that can't be one")
    return None


# --- the rules --------------------------------------------------------------------------------------------------------


def _rules(policy: Policy, document: object) -> tuple[AuthorizationRule, ...]:
    if not isinstance(document, dict) or not isinstance(document.get("rules"), list):
        policy.wrong("", 'must hold "rules", a list')
        return ()
    for key in document:
        if key != "rules":
            policy.wrong(f"key {shown(key)}", 'is unknown; there is only "rules"')
    rows: list[object] = document["rules"]
    if len(rows) > _MOST_RULES:
        policy.wrong("rules", f"are more than {_MOST_RULES}")
        return ()
    rules: list[AuthorizationRule] = []
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            policy.wrong(f"rule {number}", "must be an object (TOML: a table)")
            continue
        rule = _rule(policy, number, row)
        if rule.name in numbers:
            policy.wrong(f"rule {number}, name", f"{shown(rule.name)} is the name of rule {numbers[rule.name]} too")
        numbers.setdefault(rule.name, number)
        rules.append(rule)
    return tuple(rules)


def _rule(policy: Policy, number: int, row: dict[str, Any]) -> AuthorizationRule:
    """What of it can be used; what is wrong with the rest has been reported."""
    where = f"rule {number}"
    name = row.get("name", f"rule-{number}")
    if not isinstance(name, str) or not _NAME.match(name):
        policy.wrong(f"{where}, name", "must be letters, digits and . _ - (64)")
        name = f"rule-{number}"
    elif name in _RESERVED:
        policy.wrong(f"{where}, name", f"must not be one of {', '.join(sorted(_RESERVED))}")
    if name == row.get("name"):
        where = f"rule {number} ({name})"
    for key in row:
        if key not in _KEYS:
            nearest = min(_KEYS, key=lambda known: edit_distance(key[:40].lower(), known))
            hint = f"; did you mean {nearest}?" if edit_distance(key[:40].lower(), nearest) <= 2 else ""
            policy.wrong(f"{where}, key {shown(key)}", f"is unknown{hint}")
    if not isinstance(row.get("description", ""), str):
        policy.wrong(f"{where}, description", "must be a text")
    effect = row.get("effect")
    if effect not in ("allow", "deny"):
        policy.wrong(f"{where}, effect", 'must be "allow" or "deny"' if "effect" in row else "is missing")
        effect = "deny"
    kinds = [kind for kind in _KINDS if kind in row]
    if len(kinds) > 1:
        policy.wrong(where, f"speaks of {' and '.join(kinds)}; no message has both, so make it a rule for each")
    kind = kinds[0] if kinds else ""
    return AuthorizationRule(
        name=name,
        effect=cast("Effect", effect),
        principals=_globs(policy, where, row, "principal"),
        upstreams=_globs(policy, where, row, "upstream"),
        methods=_globs(policy, where, row, "method"),
        kind=kind,
        targets=_globs(policy, where, row, kind) if kind else (),
    )


def _globs(policy: Policy, where: str, row: Mapping[str, Any], key: str) -> tuple[Glob, ...]:
    """The globs of one key, in which one text stands for a list of one."""
    if key not in row:
        return ()
    value = row[key]
    patterns: list[object] = value if isinstance(value, list) else [value]
    if not patterns:
        policy.wrong(f"{where}, {key}", "is an empty list, which nothing matches; leave it out to mean everything")
    before, policy.patterns = policy.patterns, policy.patterns + len(patterns)
    if policy.patterns > _MOST_PATTERNS:
        if before <= _MOST_PATTERNS:
            policy.wrong("rules", f"hold more than {_MOST_PATTERNS} patterns")
        return ()
    globs: list[Glob] = []
    for index, pattern in enumerate(patterns):
        here = f"{where}, {key}[{index}]" if isinstance(value, list) else f"{where}, {key}"
        if not isinstance(pattern, str):
            policy.wrong(here, "must be a text")
            continue
        problem = _flaw(pattern, key)
        if problem:
            policy.wrong(here, problem)
            continue
        try:
            globs.append(parse("" if key == "principal" and pattern == STATIC else pattern))
        except ValueError as error:
            policy.wrong(here, str(error))
    return tuple(dict.fromkeys(globs))


def _flaw(pattern: str, key: str) -> str:
    """What is wrong with a pattern before it is taken apart; empty when nothing is."""
    if not pattern and key != "principal":
        return "must not be empty"
    if len(pattern) > _LONGEST_PATTERN:
        return f"is longer than {_LONGEST_PATTERN} characters"
    if not pattern.isprintable():
        return "must not hold control characters or half of a surrogate pair"
    if key == "resource" and _DOT_SEGMENT.search(pattern):
        return "must not hold a segment . or .., which is resolved before it is compared"
    return ""


# --- what can't be meant ----------------------------------------------------------------------------------------------


def _doubts(rules: Sequence[AuthorizationRule], default: Effect, upstreams: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Rules that decide nothing, each with the reason."""
    if not rules:
        yield "rules", f"are empty: everything is as AUTHORIZATION_DEFAULT={default} says"
    for number, rule in enumerate(rules, 1):
        where = f"rule {number} ({rule.name})"
        if rule.upstreams:
            for glob in rule.upstreams:
                if not any(matches(glob, name) for name in upstreams):
                    yield f"{where}, upstream", f"{shown('*'.join(glob))} is none of the servers"
        if rule.methods and all(len(glob) == 1 and glob[0] in ALWAYS_ALLOWED for glob in rule.methods):
            yield f"{where}, method", "is always allowed: the rule decides nothing"
        elif rule.kind and not _uses(rule) and not _lists(rule):
            yield f"{where}, method", f"is none that has a {rule.kind}: the rule decides nothing"
        earlier = next((other for other in rules[: number - 1] if _hides(other, rule)), None)
        if earlier is not None:
            yield where, f"is never reached: rule {earlier.name} decides before it whatever it speaks of"
        elif rule.effect == default and not any(_meet(rule, later) for later in rules[number:]):
            yield where, f"changes nothing: AUTHORIZATION_DEFAULT={default} says the same, and no later rule differs"


def _uses(rule: AuthorizationRule) -> set[str]:
    """The methods of messages that a rule about targets speaks about."""
    return {
        method
        for kind in _KINDS
        if kind == rule.kind
        for method in TARGET_METHODS[kind]
        if applies(rule.methods, method)
    }


def _lists(rule: AuthorizationRule) -> set[str]:
    return {method for method in LIST_METHODS if speaks_of_list(rule, method)}


def _hides(earlier: AuthorizationRule, later: AuthorizationRule) -> bool:
    """Whether ``earlier`` speaks about everything that ``later`` does."""
    if earlier.kind and (earlier.kind != later.kind or not _all_covered(earlier.targets, later.targets)):
        return False
    if later.kind:
        methods = all(applies(earlier.methods, method) for method in _uses(later))
    else:
        methods = _all_covered(earlier.methods, later.methods)
    return (
        methods
        and _all_covered(earlier.principals, later.principals)
        and _all_covered(earlier.upstreams, later.upstreams)
        and _lists(later) <= _lists(earlier)
    )


def _all_covered(wide: Sequence[Glob], narrow: Sequence[Glob]) -> bool:
    return not wide or all(any(covers(one, other) for one in wide) for other in narrow or (ANYTHING,))


def _meet(rule: AuthorizationRule, later: AuthorizationRule) -> bool:
    """Whether a later rule says otherwise about something that ``rule`` speaks about."""
    if rule.effect == later.effect or (rule.kind and later.kind and rule.kind != later.kind):
        return False
    pairs = [(rule.principals, later.principals), (rule.upstreams, later.upstreams), (rule.methods, later.methods)]
    if rule.kind and later.kind:
        pairs.append((rule.targets, later.targets))
    return all(
        any(overlaps(one, other) for one, other in product(ours or (ANYTHING,), theirs or (ANYTHING,)))
        for ours, theirs in pairs
    )
