"""The defaults of a profile, and those that follow from the machine or from other values."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipc.settings import ANY, Profile

from . import values
from .cpus import allowed_cpus
from .variables import UPSTREAM_SOURCES, VARIABLES

_MOST_WORKERS = 4
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def defaults(profile: Profile, directory: Path) -> dict[str, object]:
    """Field -> default, before what ``derive`` adds. Relative paths are of ``directory``."""
    found: dict[str, object] = {}
    for variable in VARIABLES:
        if variable in UPSTREAM_SOURCES:
            continue
        default = variable.default_for(profile)
        if variable.parser is values.path and isinstance(default, str) and default:
            default = str(directory / default)
        found[variable.field] = default
    found["security_profile"] = profile
    return found


def derive(given: Mapping[str, Any], profile: Profile, directory: Path) -> dict[str, Any]:
    """All fields: what was ``given``, the profile's defaults, and what follows from both."""
    fields: dict[str, Any] = {**defaults(profile, directory), **given}
    for field in ("ws_host", "tcp_host"):
        if field not in given:
            fields[field] = values.loopback_hosts()
    if "workers" not in given:
        fields["workers"] = min(_MOST_WORKERS, allowed_cpus())
    if "hsts_enabled" not in given:
        fields["hsts_enabled"] = fields["ssl_enabled"]
    if "max_preauth_size" not in given:
        fields["max_preauth_size"] = min(fields["max_preauth_size"], fields["max_request_size"])
    if "allowed_hosts" not in given:
        fields["allowed_hosts"] = _allowed_hosts(fields["ws_host"])
    return fields


def _allowed_hosts(bound: tuple[str, ...]) -> tuple[str, ...]:
    addresses = [ipaddress.ip_address(host) for host in bound]
    if any(address.is_unspecified for address in addresses):
        return (ANY,)
    return tuple(dict.fromkeys((*_LOCAL_NAMES, *(str(address) for address in addresses))))
