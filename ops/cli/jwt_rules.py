"""What the gateway asks of a JWT that it is to believe, apart from the signature (RFC 7519, RFC 8725). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

# A header field has to hold it.
MAX_TOKEN: Final = 8192

REQUIRED: Final = ("exp", "iat", "sub", "jti")

# Where a token names its own key, the name is ignored: only configured keys count (RFC 8725 §3.10).
KEY_HINTS: Final = ("jku", "jwk", "x5u", "x5c")


@attrs.frozen
class JwtPolicy:
    """The settings that decide; durations in seconds."""

    algorithms: tuple[str, ...] = ("HS256",)
    issuer: str = "portcullis"
    audience: str = "portcullis"
    max_ttl: float = 86400.0
    leeway: float = 5.0


def broken_rules(
    size: int, header: Mapping[str, Any], claims: Mapping[str, Any], policy: JwtPolicy, now: float
) -> list[str]:
    """Every rule that this token breaks, in words; none does not mean that its signature is valid.

    ``size`` is the token's length in bytes, ``now`` the wall clock in seconds since the epoch.
    """
    broken = []
    if size > MAX_TOKEN:
        broken.append(f"it has {size} bytes, more than {MAX_TOKEN}")
    algorithm = header.get("alg")
    if algorithm not in policy.algorithms:
        broken.append(f"alg is {algorithm!r}, not one of {', '.join(policy.algorithms)}")
    if "crit" in header:
        broken.append("crit names header members that the gateway does not understand")
    broken += [f"{name} is missing" for name in REQUIRED if name not in claims]
    broken += [
        f"{name} must be a string that is not empty"
        for name in ("sub", "jti")
        if name in claims and not (isinstance(claims[name], str) and claims[name])
    ]
    if claims.get("iss") != policy.issuer:
        broken.append(f"iss is {claims.get('iss')!r}, not {policy.issuer!r}")
    audience = claims.get("aud")
    if not (audience == policy.audience or (isinstance(audience, list) and policy.audience in audience)):
        broken.append(f"aud is {audience!r}, which does not hold {policy.audience!r}")
    if "scope" in claims and not isinstance(claims["scope"], str):
        broken.append("scope must be one string, its scopes separated by spaces (RFC 8693 §4.2)")
    return broken + _broken_times(claims, policy, now)


def _broken_times(claims: Mapping[str, Any], policy: JwtPolicy, now: float) -> list[str]:
    times = {name: claims[name] for name in ("exp", "iat", "nbf") if name in claims}
    broken = [f"{name} is not a number" for name, value in times.items() if not _is_number(value)]
    times = {name: value for name, value in times.items() if _is_number(value)}
    if "exp" in times and now > times["exp"] + policy.leeway:
        broken.append("it has expired")
    broken += [
        f"{name} lies in the future" for name in ("iat", "nbf") if name in times and times[name] > now + policy.leeway
    ]
    if "exp" in times and "iat" in times:
        lifetime = times["exp"] - times["iat"]
        if lifetime > policy.max_ttl:
            broken.append(f"it lives for {lifetime:g} s, more than {policy.max_ttl:g} s")
        if lifetime <= 0:
            broken.append("it expires before it was issued")
    return broken


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def ignored_hints(header: Mapping[str, Any]) -> list[str]:
    return [name for name in KEY_HINTS if name in header]
