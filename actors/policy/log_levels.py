"""The log level of a shared legacy upstream, which has one for all, and what each session wants of it."""

from __future__ import annotations

from collections.abc import Hashable

import attrs

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")  # RFC 5424 §6.2.1, reversed
_RANK = {level: rank for rank, level in enumerate(LEVELS)}
_DEFAULT = "info"


def is_level(level: str) -> bool:
    return level in _RANK


def reaches(level: str, wanted: str) -> bool:
    """Whether a message of ``level`` is for somebody who wants ``wanted`` and worse. Unknown ones count as info."""
    return _RANK.get(level, 1) >= _RANK.get(wanted, 1)


@attrs.define
class LogLevels:
    """The most verbose level wanted is what the upstream has to have; each session sees only what it wants."""

    wanted: dict[Hashable, str] = attrs.field(factory=dict)
    upstream: str = ""  # what the upstream was last told; "" while it has never been told

    def want(self, session: Hashable, level: str) -> str:
        """Note a session's level. Returns the level to tell the upstream, "" when it has it already."""
        self.wanted[session] = level
        return self.change()

    def forget(self, session: Hashable) -> str:
        """The session has gone, or its level was refused. Returns as ``want``."""
        if self.wanted.pop(session, None) is None:
            return ""
        return self.change()

    def restore(self, session: Hashable, wanted: str, upstream: str) -> str:
        """The upstream refused a level: what the session and the upstream had before holds. Returns as ``want``."""
        if wanted:
            self.wanted[session] = wanted
        else:
            self.wanted.pop(session, None)
        self.upstream = upstream
        return self.change()

    def passes(self, session: Hashable, level: str) -> bool:
        """Whether a message of this level is for this session."""
        wanted = self.wanted.get(session)
        if wanted is None:
            # What the others asked for in addition is not for one who asked for nothing.
            return not self.wanted or reaches(level, _DEFAULT)
        return reaches(level, wanted)

    def change(self) -> str:
        """The level that the upstream has to be told now, "" when it has the right one."""
        if not self.wanted and not self.upstream:
            return ""
        level = min(self.wanted.values(), key=_RANK.__getitem__, default=_DEFAULT)
        if level == self.upstream:
            return ""
        self.upstream = level
        return level
