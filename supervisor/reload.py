"""Reading the configuration anew while the gateway runs: checked as at the start, and taken as a whole or not at all.

What a restart alone can change keeps its value, and is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import attrs
import msgspec

from ipc.settings import Settings

from .settings.load import Loaded
from .settings.tokens import generate_tokens

FIXED: Final = (
    "security_profile",
    "ws_host", "ws_port", "tcp_host", "tcp_port", "health_host", "health_port",  # sockets that are open
    "ssl_enabled",
    "workers",
    "upstreams",
    "state_dir", "ready_file",
    "heartbeat_timeout_ms", "drain_timeout_ms",  # in the supervisor's own clockwork
    "security_audit_log", "audit_log_dir",  # what was opened for this run is where its records are
    "metrics_enabled", "metrics_path",
    "redis_enabled", "redis_host", "redis_port", "redis_password", "redis_db", "redis_url", "redis_on_failure",
)  # fmt: skip
"""Settings that only a restart can change."""

TOKENS: Final = ("ws_auth_token", "tcp_auth_token")


@attrs.frozen
class Change:
    """``settings`` are the effective ones from now on; ``changed`` and ``kept`` name variables: those that take effect,
    and those that differ but wait for a restart. ``generated``: the fields of tokens that are made up."""

    settings: Settings
    changed: tuple[str, ...]
    kept: tuple[str, ...]
    generated: frozenset[str]


def changes(
    now: Settings, loaded: Loaded, generated: Collection[str], complete: Callable[[Settings], Settings]
) -> Change:
    """What a configuration that was read anew means for a gateway that runs with ``now``.

    A token that was made up for this run holds on while none is configured. Raises as ``complete`` does.
    """
    held = {field: getattr(now, field) for field in generated if not getattr(loaded.settings, field)}
    wanted = generate_tokens(msgspec.structs.replace(loaded.settings, **held))
    wanted = complete(wanted)
    made_up = frozenset(field for field in TOKENS if getattr(wanted, field) != getattr(loaded.settings, field))
    listeners = tuple(listener for listener in ("ws", "tcp") if f"{listener}_auth_token" in made_up)
    wanted = msgspec.structs.replace(wanted, made_up_tokens=listeners)
    kept = {field: getattr(now, field) for field in FIXED if getattr(now, field) != getattr(wanted, field)}
    settings = msgspec.structs.replace(wanted, **kept)
    fields = [field for field in settings.__struct_fields__ if field != "made_up_tokens"]  # it goes with its token
    changed = [field for field in fields if getattr(settings, field) != getattr(now, field)]
    return Change(settings, _variables(changed), _variables(kept), made_up)


def _variables(fields: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(field.upper() for field in fields))
