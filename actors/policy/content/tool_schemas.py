"""The schemas of tools that the catalogue doesn't keep: those of one session, or of a list that is too long for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .schema import MOST_BYTES, TOO_LONG

OF_A_SESSION: Final = 512 << 10  # bytes, names included
OF_AN_UPSTREAM: Final = 4 << 20
LONGEST_LIST: Final = 4 << 20  # bytes of an answer that is read for its schemas


class ToolSchemas:
    """Raw schemas by the tool's name. What comes later replaces what came before, as far as it speaks of it; a tool
    that is listed no more keeps its schema, and its server refuses it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._by_name: dict[str, bytes] = {}

    def get(self, name: str) -> bytes:
        """Empty for a tool that isn't known."""
        return self._by_name.get(name, b"")

    def forget(self, name: str) -> None:
        gone = self._by_name.pop(name, None)
        if gone is not None:
            self._bytes -= len(name) + len(gone)

    def learn(self, schemas: Mapping[str, bytes]) -> bool:
        """False: there was no room for all of them."""
        whole = True
        for name, schema in schemas.items():
            self.forget(name)
            kept = schema if len(schema) <= MOST_BYTES else TOO_LONG
            size = len(name) + len(kept)
            if self._bytes + size > self._most:
                whole = False
                continue
            self._by_name[name] = kept
            self._bytes += size
        return whole
