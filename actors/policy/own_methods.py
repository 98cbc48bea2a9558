"""The methods that a client calls of the gateway itself. Their params hold credentials, so they are never forwarded:
neither as notifications nor in a spelling that some server might take for them."""

from __future__ import annotations

from typing import Final

AUTHENTICATE: Final = "authenticate"
SESSION_METHODS: Final = frozenset({"auth/refresh", "auth/logout"})
OWN: Final = SESSION_METHODS | {AUTHENTICATE}

# What is called most, so that it costs one look-up.
_COMMON: Final = frozenset(
    {"tools/call", "tools/list", "ping", "resources/read", "prompts/get", "notifications/progress", "initialize"}
)
# No server takes a method for one of ours that has hundreds of characters more.
_LONGEST: Final = 512


def is_own(method: str) -> bool:
    """Whether it is one of ours, but for case, spaces and what can't be seen."""
    if method in _COMMON:
        return False
    text = method.strip()
    if len(text) > _LONGEST:
        return False
    if not text.isprintable():
        text = "".join(filter(str.isprintable, text)).strip()
    return text.casefold() in OWN
