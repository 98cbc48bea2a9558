"""What an authenticated principal may do: the scopes of its credential, and the rules of the policy file.

Both must allow a message. Of the rules the first that speaks about a message decides, in the order of the file; where
none does, the default. A message with several targets (``subscriptions/listen``) is allowed when each of them is; a
target that can't be read, holds control characters, or is longer than anything that is one, counts as any target at
all, and is allowed only where every one would be. A URI has to be allowed in every form that a server may take it for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

import attrs

from ipc.authorization import (
    ALWAYS_ALLOWED,
    LIST_METHODS,
    TARGET_METHODS,
    AuthorizationRule,
    Effect,
    TargetKind,
    applies,
    speaks_of_list,
)
from ipc.globs import ANYTHING, Glob, covers, matches, overlaps
from ipc.messages import Envelope

from .eras import LISTEN
from .identity import is_reserved
from .resource_uri import canonical_glob, forms, is_treacherous, template_glob

READ: Final = "mcp:read"
CALL: Final = "mcp:call"
_SCOPES: Final = (CALL, READ)

READ_METHODS: Final = frozenset(
    {
        *LIST_METHODS,
        "prompts/get",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "completion/complete",
        "logging/setLevel",
        "notifications/roots/list_changed",
        LISTEN,
    }
)
"""What ``mcp:read`` is enough for. Everything else, the unknown included, may change something: ``mcp:call``."""

ALLOWED: Final = ""
DEFAULT: Final = "default"  # the name that a refusal gives where no rule spoke
# … and where a method is one with targets but for its case or spaces, or holds what can't be seen: a server that
# doesn't mind would take it for another one.
SPELLING: Final = "spelling"

_COMPLETE: Final = "completion/complete"
_TARGETS: Final = frozenset(method for methods in TARGET_METHODS.values() for method in methods)
_FOLDED: Final = frozenset(method.casefold() for method in _TARGETS)
_KIND: Final[dict[str, TargetKind]] = {
    method: kind for kind, methods in TARGET_METHODS.items() for method in methods if method not in (_COMPLETE, LISTEN)
}
_LONGEST: Final = 8192  # characters of a target; RFC 9110 §4.1 asks for at least 8000 octets of a URI
_CACHED: Final = 256  # decisions of one connection, and as many methods
_CACHED_TEXT: Final = 512  # characters, so that what is cached stays small

def scope_for(method: str) -> str:
    """The scope that a method needs; none where the answer is empty."""
    if method in ALWAYS_ALLOWED:
        return ""
    return READ if method in READ_METHODS else CALL


@attrs.frozen
class _Line:
    """A rule as far as one method is concerned; without globs it speaks about every message of the method."""

    effect: Effect
    rule: str
    globs: tuple[Glob, ...] | None = None
    canonical: tuple[Glob, ...] = ()  # the same for the later forms of a URI

    def any_of(self, compare: Callable[[Glob, Any], bool], what: str | Glob, *, canonical: bool = False) -> bool:
        if self.globs is None:
            return True
        return any(compare(glob, what) for glob in (self.canonical if canonical else self.globs))

    @property
    def refusal(self) -> str:
        return ALLOWED if self.effect == "allow" else self.rule


# Lines end with one that speaks about everything, the default if no rule does.
_Lines = Sequence[_Line]


def _first(lines: _Lines, text: str, *, canonical: bool = False) -> str:
    """The rule that refuses this target, or ALLOWED."""
    return next(line.refusal for line in lines if line.any_of(matches, text, canonical=canonical))


def _certain(lines: _Lines, texts: Glob, *, canonical: bool = False) -> str:
    """The rule that refuses some of these targets, or ALLOWED where every one is allowed for sure."""
    return next(
        line.refusal
        for line in lines
        if line.any_of(covers if line.effect == "allow" else overlaps, texts, canonical=canonical)
    )


def _possible(lines: _Lines, texts: Glob) -> bool:
    """Whether some of these targets may be allowed."""
    return next(
        line.effect == "allow" for line in lines if line.any_of(overlaps if line.effect == "allow" else covers, texts)
    )


class Rights:
    """What one principal may do at one upstream.

    ``unrestricted`` says that nothing it could send would be refused, so that nobody needs to ask.
    """

    def __init__(
        self, rules: Iterable[AuthorizationRule], default: Effect, principal: str, scopes: Iterable[str], upstream: str
    ) -> None:
        # What is issued for a static token stands for its holder, who has no name: a rule for him is for it too.
        names = (principal, "") if is_reserved(principal) else (principal,)
        self._rules = [
            rule
            for rule in rules
            if any(applies(rule.principals, name) for name in names) and applies(rule.upstreams, upstream)
        ]
        self._last = _Line(default, DEFAULT)
        self._scopes = frozenset(scopes)
        ruled = default == "deny" or any(rule.effect == "deny" for rule in self._rules)
        self.unrestricted = not ruled and self._scopes.issuperset(_SCOPES)
        self._lines: dict[tuple[str, str], _Lines] = {}
        self._decided: dict[tuple[str, str, str], str] = {}

    def refused_by(self, envelope: Envelope) -> str:
        """What refuses this message: a rule's name, ``default``, ``spelling`` or ``scope:…``; else ALLOWED."""
        method = envelope.method
        if self.unrestricted or envelope.kind == "response" or method in ALWAYS_ALLOWED:
            return ALLOWED
        scope = scope_for(method)
        if scope not in self._scopes:
            return f"scope:{scope}"
        if not method.isprintable():
            return SPELLING
        kind = _KIND.get(method)
        if kind is not None:
            return self._decide(method, kind, envelope.uri if kind == "resource" else envelope.name)
        if method == LISTEN and envelope.uris:
            return next(filter(None, (self._decide(method, "resource", uri) for uri in envelope.uris)), ALLOWED)
        if method == _COMPLETE:
            return self._completion(envelope)
        if method not in _TARGETS and method.strip().casefold() in _FOLDED:
            return SPELLING
        return self._decide(method, "", "")

    def shown(self, method: str) -> Callable[[str], bool] | None:
        """Which entries of a list's answer this principal may see, by their name, URI or URI template.

        A template is shown when something that it stands for may be read. None: all, or ``method`` is no list.
        """
        kind = LIST_METHODS.get(method)
        if self.unrestricted or kind is None:
            return None
        use = TARGET_METHODS[kind][0]
        if scope_for(use) not in self._scopes:
            return _nothing
        lines = self._lines_of(use, kind)
        if all(line.effect == "allow" for line in lines):
            return None
        if method == "resources/templates/list":
            return lambda template: _possible(lines, template_glob(template))
        return lambda target: self._decide(use, kind, target) == ALLOWED

    def _completion(self, envelope: Envelope) -> str:
        if envelope.name:
            return self._decide(_COMPLETE, "prompt", envelope.name)
        if envelope.uri:
            return self._decide(_COMPLETE, "resource", envelope.uri)
        return self._decide(_COMPLETE, "prompt", "") or self._decide(_COMPLETE, "resource", "")

    def _decide(self, method: str, kind: TargetKind | Literal[""], target: str) -> str:
        key = (method, kind, target)
        decided = self._decided.get(key)
        if decided is None:
            decided = self._judge(method, kind, target)
            if len(target) <= _CACHED_TEXT and len(method) <= _CACHED_TEXT:
                if len(self._decided) >= _CACHED:
                    self._decided.clear()
                self._decided[key] = decided
        return decided

    def _judge(self, method: str, kind: TargetKind | Literal[""], target: str) -> str:
        lines = self._lines_of(method, kind)
        if not kind:
            return _first(lines, "")
        if not target or len(target) > _LONGEST:
            return _certain(lines, ANYTHING)
        if kind != "resource":
            return _first(lines, target) if target.isprintable() else _certain(lines, ANYTHING)
        if is_treacherous(target):
            return _certain(lines, ANYTHING)
        if method == _COMPLETE and "{" in target:
            texts = template_glob(target)
            return _certain(lines, texts) or _certain(lines, canonical_glob(texts), canonical=True)
        refused = _first(lines, target)
        return refused or next(filter(None, (_first(lines, form, canonical=True) for form in forms(target))), ALLOWED)

    def _lines_of(self, method: str, kind: TargetKind | Literal[""]) -> _Lines:
        """What the rules come to for a method, up to the first that speaks about everything."""
        lines = self._lines.get((method, kind))
        if lines is None:
            lines = self._draw(method, kind)
            if len(method) <= _CACHED_TEXT:
                if len(self._lines) >= _CACHED:
                    self._lines.clear()
                self._lines[method, kind] = lines
        return lines

    def _draw(self, method: str, kind: TargetKind | Literal[""]) -> _Lines:
        lines: list[_Line] = []
        for rule in self._rules:
            line = _line(rule, method, kind)
            if line is not None:
                lines.append(line)
                if line.globs is None:
                    return lines
        lines.append(self._last)
        return lines


def _line(rule: AuthorizationRule, method: str, kind: TargetKind | Literal[""]) -> _Line | None:
    if method in LIST_METHODS:
        return _Line(rule.effect, rule.name) if speaks_of_list(rule, method) else None
    if not applies(rule.methods, method) or rule.kind not in ("", kind):
        return None
    if not rule.kind:
        return _Line(rule.effect, rule.name)
    canonical = tuple(canonical_glob(glob) for glob in rule.targets) if kind == "resource" else ()
    return _Line(rule.effect, rule.name, rule.targets, canonical)


def _nothing(_target: str) -> bool:
    return False
