"""What the policy file means, written as plainly as possible: a second opinion for the tests of authorisation.

It reads the rules as they stand in the file and knows plain URIs only, which can be written in one way.
"""

from __future__ import annotations

import re
from typing import Any

ALWAYS = {"initialize", "ping", "server/discover"}
KIND_OF_LIST = {
    "tools/list": ("tool", "tools/call"),
    "prompts/list": ("prompt", "prompts/get"),
    "resources/list": ("resource", "resources/read"),
    "resources/templates/list": ("resource", "resources/read"),
}
READING = {
    *KIND_OF_LIST, "prompts/get", "resources/read", "resources/subscribe", "resources/unsubscribe",
    "completion/complete", "subscriptions/listen", "logging/setLevel",
}  # fmt: skip
UNREADABLE = object()


def pattern_matches(pattern: str, text: str) -> bool:
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    return re.fullmatch("".join(".*" if p == "*" else re.escape(p[-1]) for p in parts), text, re.DOTALL) is not None


def _any(rule: dict[str, Any], key: str, text: str) -> bool:
    if key not in rule:
        return True
    patterns = rule[key] if isinstance(rule[key], list) else [rule[key]]
    if key == "principal":
        patterns = ["" if pattern == "static" else pattern for pattern in patterns]
    return any(pattern_matches(pattern, text) for pattern in patterns)


def _applies(policy: dict[str, Any], rule: dict[str, Any]) -> bool:
    names = [policy["principal"]]
    if re.fullmatch("static-[0-9a-f]{12}", policy["principal"]):  # it was issued for a static token
        names.append("")
    return any(_any(rule, "principal", name) for name in names) and _any(rule, "upstream", policy["upstream"])


def _kind(rule: dict[str, Any]) -> str:
    return next((kind for kind in ("tool", "prompt", "resource") if kind in rule), "")


def _has_scope(policy: dict[str, Any], method: str) -> bool:
    return ("mcp:read" if method in READING else "mcp:call") in policy["scopes"]


def _allows(policy: dict[str, Any], method: str, kind: str, target: Any) -> bool:
    """The first rule that speaks about this one target."""
    for rule in policy["rules"]:
        if not _applies(policy, rule) or not _any(rule, "method", method):
            continue
        if not _kind(rule):
            return rule["effect"] == "allow"
        if _kind(rule) != kind:
            continue
        if target is UNREADABLE:  # it may be any: a rule that allows only some of them doesn't help
            patterns = rule[kind] if isinstance(rule[kind], list) else [rule[kind]]
            if rule["effect"] == "deny":
                return False
            if "*" in patterns:
                return True
        elif _any(rule, kind, target):
            return rule["effect"] == "allow"
    return policy["default"] == "allow"


def _lists(policy: dict[str, Any], method: str) -> bool:
    kind, use = KIND_OF_LIST[method]
    for rule in policy["rules"]:
        if not _applies(policy, rule):
            continue
        if rule["effect"] == "allow" and _kind(rule) in ("", kind):
            if _any(rule, "method", method) or _any(rule, "method", use):
                return True
        elif rule["effect"] == "deny" and not _kind(rule) and _any(rule, "method", method):
            return False
    return policy["default"] == "allow"


def model_refuses(policy: dict[str, Any], method: str, params: dict[str, Any]) -> bool:
    if method in ALWAYS:
        return False
    if not _has_scope(policy, method):
        return True
    if method in KIND_OF_LIST:
        return not _lists(policy, method)
    return not all(_allows(policy, method, kind, target) for kind, target in _targets(method, params))


def _targets(method: str, params: dict[str, Any]) -> list[tuple[str, Any]]:
    def text(value: Any) -> Any:
        return value if isinstance(value, str) and value else UNREADABLE

    if method == "tools/call":
        return [("tool", text(params["name"]))]
    if method == "prompts/get":
        return [("prompt", text(params["name"]))]
    if method.startswith("resources/"):
        return [("resource", text(params["uri"]))]
    if method == "completion/complete":
        reference = params["ref"]
        target = text(reference.get("name", reference.get("uri")))
        if target is UNREADABLE:
            return [("prompt", target), ("resource", target)]
        return [("prompt" if "name" in reference else "resource", target)]
    if method == "subscriptions/listen":
        uris = params["notifications"]["resourceSubscriptions"]
        if uris is None or uris == []:
            return [("", "")]
        return (
            [("resource", uri) for uri in uris]
            if isinstance(uris, list) and all(uri in ("db://x/a", "db://x/b", "db://y/a") for uri in uris)
            else [("resource", UNREADABLE)]
        )
    return [("", "")]


def model_shows(policy: dict[str, Any], method: str, target: str) -> bool:
    kind, use = KIND_OF_LIST[method]
    return _has_scope(policy, use) and _allows(policy, use, kind, target)
