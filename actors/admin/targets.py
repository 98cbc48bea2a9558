"""What an operator's action was about, as the audit log may show it.

An operator who pastes a credential where a name belongs must not have it written down: of each target only the form
that it should have is shown.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from ..policy.credential_like import may_be_one

HIDDEN: Final = "(not shown)"
_PRINCIPAL: Final = "principal:"
_SESSION: Final = re.compile(r"[0-9a-f]{24}\Z")
_CONNECTION: Final = re.compile(r"[0-9]{1,6}-[0-9a-f]{1,16}\Z")


def session(text: str) -> str:
    return text if _SESSION.match(text) else HIDDEN


def connection(text: str) -> str:
    return text if _CONNECTION.match(text) else HIDDEN


def name(text: str) -> str:
    """A principal's, a server's, or a token's jti."""
    return HIDDEN if may_be_one(text) else text


def client(text: str) -> str:
    """An address or a network, or ``principal:`` and a name."""
    if text.startswith(_PRINCIPAL):
        return _PRINCIPAL + name(text.removeprefix(_PRINCIPAL))
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return HIDDEN
    return text


def path(text: str) -> str:
    """A request's path, segment by segment."""
    return "/".join(name(segment) for segment in text[:200].split("/"))
