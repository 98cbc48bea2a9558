"""What the configuration knows but this release does not do yet.

A row that refuses is one whose silent absence would open a door or lose data; the others are warned of. Whoever
builds a feature deletes its rows. Defaults are never refused.
"""

from __future__ import annotations

import attrs

from ipc.settings import Settings


@attrs.frozen
class Unavailable:
    """Applies when the field's value is none of ``works``."""

    name: str
    works: tuple[object, ...]
    what: str
    refuse: bool = True

    def applies(self, settings: Settings) -> bool:
        return getattr(settings, self.name.lower()) not in self.works



ROWS: tuple[Unavailable, ...] = (
    Unavailable("REDIS_ENABLED", (False,), "sharing through Valkey or Redis is not in this release; set it to false"),
)
