"""The rules of the policy file, as the settings carry them to the workers that decide by them.

A *target* is what a message wants to use: a tool, a prompt or a resource, which is its kind. Most messages have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from .globs import Glob, matches

Effect = Literal["allow", "deny"]
TargetKind = Literal["tool", "prompt", "resource"]

TARGET_METHODS: Final[dict[TargetKind, tuple[str, ...]]] = {
    "tool": ("tools/call",),
    "prompt": ("prompts/get", "completion/complete"),
    "resource": (
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "completion/complete",
        "subscriptions/listen",
    ),
}
"""The methods whose messages name a target of that kind; the first is the one that uses it."""

LIST_METHODS: Final[dict[str, TargetKind]] = {
    "tools/list": "tool",
    "prompts/list": "prompt",
    "resources/list": "resource",
    "resources/templates/list": "resource",
}
"""The methods whose answers are filtered, by the kind of what they list."""

ALWAYS_ALLOWED: Final = frozenset(
    {
        "initialize",
        "ping",
        "server/discover",
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
    }
)
"""Without these no client can hold a session at all; they use nothing. No rule and no scope applies to them."""


class AuthorizationRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule. An empty tuple of globs applies to everything.

    With a ``kind`` the rule speaks only of messages with a target of that kind, and of the list of such targets.
    """

    name: str
    effect: Effect
    principals: tuple[Glob, ...] = ()
    upstreams: tuple[Glob, ...] = ()
    methods: tuple[Glob, ...] = ()
    kind: TargetKind | Literal[""] = ""
    targets: tuple[Glob, ...] = ()


def applies(globs: Sequence[Glob], text: str) -> bool:
    """Whether one key of a rule lets the rule speak about ``text``."""
    return not globs or any(matches(glob, text) for glob in globs)


def speaks_of_list(rule: AuthorizationRule, method: str) -> bool:
    """Whether the rule decides about a list method.

    Who may use something may ask what there is, and is shown no more of it than that; so a rule that denies some
    targets leaves their list alone, and one that allows some allows their list.
    """
    kind = LIST_METHODS[method]
    if rule.effect == "deny":
        return not rule.kind and applies(rule.methods, method)
    use = TARGET_METHODS[kind][0]
    return rule.kind in ("", kind) and (applies(rule.methods, method) or applies(rule.methods, use))


class Authorization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules in the order of the file: the first one that speaks about a message decides."""

    rules: tuple[AuthorizationRule, ...] = ()
