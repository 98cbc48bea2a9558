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
    Unavailable("CONTENT_POLICY", ("off", "flag"), "refusing content is not in this release; only off and flag are"),
    Unavailable("CONTENT_POLICY_RULES", ("",), "content rules are not in this release; unset it"),
    Unavailable("SCHEMA_VALIDATION", ("off",), "schema validation is not in this release; set SCHEMA_VALIDATION=off"),
    Unavailable("REDIS_ENABLED", (False,), "sharing through Valkey or Redis is not in this release; set it to false"),
)

UPSTREAM_KINDS: dict[str, str] = {
    "ws": "WebSocket servers are not in this release; tcp:// and commands are",
    "http": "Streamable HTTP servers are not in this release; tcp:// and commands are",
}
