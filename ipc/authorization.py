"""The rules of the policy file, as the settings carry them to the workers that decide by them.

A *target* is what a message wants to use: a tool, a prompt or a resource, which is its kind. Most messages have none.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from .globs import Glob

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
"""The methods whose messages name a target of that kind."""

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


class Authorization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules in the order of the file: the first one that speaks about a message decides."""

    rules: tuple[AuthorizationRule, ...] = ()
