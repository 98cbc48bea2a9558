"""The forms that one resource's URI can be written in, so that a rule about it can't be passed by in another one.

Servers take a URI apart in their own ways: one decodes it first and resolves its dots then, another the other way
round, a third does neither. Nobody can know which, so a rule is held against all that they may make of it
(RFC 3986 §6.2), and what is to be allowed has to be allowed in every form.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from ipc.globs import Glob

# Possessive quantifiers (3.11): a client's text must not be able to make a pattern backtrack.
_HEAD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*+:(?://[^/?#\\]*+)?+")
_EXPRESSION = re.compile(r"\{[^{}]*+\}")
_SLASHES = re.compile(r"/{2,}+")
_DOT = re.compile(r"%2e", re.IGNORECASE)
# Parsers of URLs drop some of these without a word (WHATWG URL, §4.4), and C ends a text at NUL.
_TREACHEROUS = re.compile(r"[\0-\x1f\x7f]|\A\s|\s\Z")
_ROUNDS = 3  # of decoding: some servers do it twice


def forms(uri: str) -> tuple[str, ...]:
    """Decoded and then resolved, resolved and then decoded; equal ones once.

    They have scheme and host in lower case, no dot segments and doubled slashes, ``/`` for a backslash,
    and a file URI's local host in one spelling. They are only ever compared: nothing of them is sent on.
    """
    one = _lower_head(_resolved(_decoded(uri)))
    other = _lower_head(_decoded(_resolved(_DOT.sub(".", uri))))
    return (one,) if one == other else (one, other)


def is_treacherous(uri: str) -> bool:
    """Whether it holds, encoded or not, what different readers of a URI make different things of."""
    return _TREACHEROUS.search(_decoded(uri)) is not None


def canonical_glob(glob: Glob) -> Glob:
    """What a rule's glob is in the later forms. Dots are not resolved: they would reach across its wildcards."""
    parts = [_SLASHES.sub("/", part.replace("\\", "/")) for part in glob]
    head = _HEAD.match(glob[0])
    if head is not None:
        rest = _SLASHES.sub("/", _decoded(glob[0][head.end() :]).replace("\\", "/"))
        parts[0] = _lower_head(head[0] + rest)
    return (parts[0], *(_SLASHES.sub("/", _decoded(part)) for part in parts[1:]))


def template_glob(template: str) -> Glob:
    """Everything that a URI template (RFC 6570) can become, and more: each expression stands for any text."""
    return tuple(_EXPRESSION.split(template))


def _decoded(text: str) -> str:
    for _ in range(_ROUNDS):
        if "%" not in text:
            break
        text = unquote(text)
    return text


def _lower_head(uri: str) -> str:
    head = _HEAD.match(uri)
    if head is None:
        return uri
    lower = head[0].lower()
    rest = uri[head.end() :]
    # RFC 8089 §2: no authority, an empty one and "localhost" all mean this machine.
    local = lower == "file://localhost" or (lower == "file:" and rest.startswith("/"))
    return ("file://" if local else lower) + rest


def _resolved(uri: str) -> str:
    """Without dot segments (RFC 3986 §5.2.4), a backslash counting as a slash."""
    head = _HEAD.match(uri)
    at = head.end() if head is not None else 0
    path = _SLASHES.sub("/", uri[at:].replace("\\", "/"))
    if "./" not in path and not path.endswith("."):
        return uri[:at] + path
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            if kept and kept != [""]:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return uri[:at] + "/".join(kept)
