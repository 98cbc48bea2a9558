"""What an HTTP answer tells a client of its limits: ``RateLimit``, ``RateLimit-Policy`` and ``Retry-After``.

The first two are structured fields (RFC 9651) as draft-ietf-httpapi-ratelimit-headers has them: a policy has a name,
``q`` units for any window of ``w`` seconds; the limit in force names its policy, ``r`` units that remain and ``t``
seconds until there are more.
"""

from __future__ import annotations

from typing import Final

import attrs

from ipc.settings import Settings

DEFAULT: Final = "default"
BURST: Final = "burst"


@attrs.frozen
class Quota:
    """What a client that was charged for this request has left.

    Attributes:
        remaining: units; 0 for one that was refused.
        reset_ms: how long until there are more than that.
        policy: ``DEFAULT`` or ``BURST``: the one that binds first.
    """

    remaining: int
    reset_ms: int
    policy: str = DEFAULT


def rate_fields(settings: Settings, quota: Quota | None) -> list[tuple[str, str]]:
    """The fields of one answer; none with limits off, no ``RateLimit`` where nobody was charged."""
    if not settings.rate_limit_enabled:
        return []
    fields = [("RateLimit-Policy", ", ".join(_policies(settings)))]
    if quota is not None:
        remaining, reset_s = max(0, quota.remaining), seconds(quota.reset_ms)
        fields.insert(0, ("RateLimit", f'"{quota.policy}";r={remaining};t={reset_s}'))
    return fields


def retry_after(wait_ms: int) -> tuple[str, str]:
    """RFC 9110 §10.2.3, in whole seconds: never too early, and never "now" for one that is refused."""
    return "Retry-After", str(max(1, seconds(wait_ms)))


def seconds(milliseconds: int) -> int:
    """Rounded up: a client that believes it is never too early."""
    return max(0, -(-milliseconds // 1000))


def _policies(settings: Settings) -> list[str]:
    rules = (
        (DEFAULT, settings.rate_limit_max_requests, settings.rate_limit_window_ms),
        (BURST, settings.rate_limit_burst_requests, settings.rate_limit_burst_window_ms),
    )
    return [f'"{name}";q={units};w={seconds(window_ms)}' for name, units, window_ms in rules]
