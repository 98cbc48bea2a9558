"""The content policy, as the settings carry it to the processes that decide by it.

A *detector* finds one kind of content in one string of a message; several form a *group*. A *mode* says what becomes
of a message in which a detector found something.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from .globs import Glob, matches

Mode = Literal["off", "flag", "block", "strip"]
FieldType = Literal["path", "line", "text"]

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "script": ("script-tag", "html-tag", "event-handler", "script-url", "script-gadget"),
    "sql": ("sql-union", "sql-tautology", "sql-stacked", "sql-function", "sql-catalog"),
    "lines": ("header-injection", "line-break"),
    "terminal": ("terminal-escape", "hidden-text"),
    "path": ("path-traversal", "path-outside-roots", "null-byte"),
    "encoding": ("over-encoding",),
}
"""The detectors, by group."""

DETECTORS: Final = tuple(name for names in GROUPS.values() for name in names)

SCHEMA: Final = "schema"
"""As a rule: the arguments don't fit the tool's own ``inputSchema``. Rules may speak of it as of a detector."""

LIMIT: Final = "content-limit"
"""As a rule: there is more to look at than is looked at."""

TRAVERSAL: Final = ("path-traversal", "path-outside-roots")
"""What is refused in production even where the policy says ``flag``."""


class FieldRule(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the fields at these places are. An empty tuple of globs means everything."""

    pointers: tuple[Glob, ...]
    type: FieldType
    methods: tuple[Glob, ...] = ()
    tools: tuple[Glob, ...] = ()


class ModeRule(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What becomes of a message when one of these detectors finds something at one of these places."""

    name: str
    mode: Mode
    detectors: tuple[str, ...] = ()
    methods: tuple[Glob, ...] = ()
    tools: tuple[Glob, ...] = ()
    pointers: tuple[Glob, ...] = ()


class ContentRules(msgspec.Struct, frozen=True, array_like=True):
    """What the rules file says. The first rule that speaks decides; where none does, the policy's mode."""

    roots: tuple[str, ...] = ()  # normal, absolute, with "/" and without one at the end (but for "/" itself)
    fields: tuple[FieldRule, ...] = ()
    rules: tuple[ModeRule, ...] = ()


def speaks(globs: tuple[Glob, ...], text: str) -> bool:
    """Whether a rule with these globs is about ``text``."""
    return not globs or any(matches(glob, text) for glob in globs)


def decide(rules: Iterable[ModeRule], rule: str, method: str, tool: str, pointer: str) -> Mode | None:
    """What the first of ``rules`` that speaks about such a finding says; None where none does."""
    for row in rules:
        if (
            (not row.detectors or rule in row.detectors)
            and speaks(row.methods, method)
            and speaks(row.tools, tool)
            and speaks(row.pointers, pointer)
        ):
            return row.mode
    return None
