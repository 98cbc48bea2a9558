"""Notices that every client comes from one address: the mark of a proxy that nobody has declared."""

from __future__ import annotations

import ipaddress
from typing import Final

import attrs

ENOUGH: Final = 20
"""Connections in a row: one person's few clients don't look like a proxy yet."""


@attrs.define
class SharedAddress:
    """``expected``: proxies are declared, so there is nothing to notice."""

    expected: bool
    _key: str = ""
    _count: int = 0
    _done: bool = attrs.field(init=False, default=False)

    def admitted(self, key: str) -> bool:
        """One more connection of that client key. True once: all so far had this one, and it isn't this machine."""
        if self.expected or self._done:
            return False
        if self._key and key != self._key:
            self._done = True  # they don't all share one
            return False
        self._key = key
        self._count += 1
        if self._count < ENOUGH:
            return False
        self._done = True
        return not ipaddress.ip_address(key.removeprefix("ip:").partition("/")[0]).is_loopback
