"""Who may see what on the health listener.

The admin API is for the bearer of ADMIN_TOKEN, whoever else is up or down, and for tokens with the scope ``admin``, of
which auth is asked each time.

On loopback everything but the admin API is open, as long as the Host is one of this machine's: a page in a browser of
this machine must not get in by a name that it has bound to 127.0.0.1 (DNS rebinding). Beyond loopback figures and
details want the token, and the admin API is off unless the operator serves it without TLS on purpose.
"""

from __future__ import annotations

import ipaddress
from typing import Literal

import attrs

from ipc.settings import ANY, Settings

from ..policy.identity import StaticTokens, digest
from ..policy.jws import looks_like_one
from .answers import Problem
from .connection import Request

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_CHALLENGE = 'Bearer realm="portcullis-admin"'

Credential = Literal["none", "good", "bad"]


def is_loopback(address: str) -> bool:
    """``address`` as the socket is bound; anything that is no loopback address counts as beyond."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


@attrs.frozen
class Access:
    """The rules for one listener. ``local``: it is bound to loopback."""

    tokens: StaticTokens
    local: bool
    hosts: frozenset[str]
    admin_without_tls: bool

    @classmethod
    def of(cls, settings: Settings, *, local: bool) -> Access:
        return cls(
            tokens=StaticTokens([settings.admin_token] if settings.admin_token else []),
            local=local,
            hosts=_LOCAL_NAMES | (frozenset(settings.allowed_hosts) - {ANY}),
            admin_without_tls=settings.admin_without_tls,
        )

    def check_host(self, request: Request) -> None:
        """Raises Problem (403). HTTP/1.0 needs no Host; browsers always send one."""
        host = request.header("host")
        if self.local and host is not None and host_name(host) not in self.hosts:
            raise Problem(403, "this Host is not served here; ALLOWED_HOSTS lists more")

    def credential(self, request: Request) -> Credential:
        """What the request shows. Raises Problem (400) for two Authorization headers."""
        value = request.header("authorization")
        if value is None:
            return "none"
        scheme, _, token = value.partition(" ")
        presented = digest(token.strip(" "))
        if scheme.lower() != "bearer" or presented is None:
            return "bad"
        return "good" if self.tokens.matches(presented) else "bad"

    def signed_token(self, request: Request) -> str:
        """The JWT that the request shows, which auth has to judge; empty if it shows none."""
        scheme, _, token = (request.header("authorization") or "").partition(" ")
        token = token.strip(" ")
        return token if scheme.lower() == "bearer" and digest(token) is not None and looks_like_one(token) else ""

    def may_see_details(self, request: Request) -> bool:
        """Whether /health may say more than one word. A wrong token fails, as everywhere. Raises Problem (401)."""
        shown = self.credential(request)
        if shown == "bad":
            raise unauthorized("bad")
        return self.local or shown == "good"

    def require_admin_api(self) -> None:
        """Raises Problem (403) where it is off, and with it the page that works through it."""
        if not self.local and not self.admin_without_tls:
            raise Problem(403, "beyond loopback the admin API is off; see ADMIN_WITHOUT_TLS")

    def require_admin(self, request: Request) -> None:
        """Raises Problem (401, 403)."""
        self.require_admin_api()
        shown = self.credential(request)
        if shown != "good":
            raise unauthorized(shown)


def unauthorized(shown: Credential) -> Problem:
    """RFC 6750 §3: the challenge names an error only if a credential was shown."""
    challenge = f'{_CHALLENGE}, error="invalid_token"' if shown == "bad" else _CHALLENGE
    return Problem(401, "the admin token is wanted", (("WWW-Authenticate", challenge),))


def insufficient() -> Problem:
    """RFC 6750 §3.1: a good token without the scope."""
    challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="admin"'
    return Problem(403, "the token has no scope admin", (("WWW-Authenticate", challenge),))


def host_name(host: str) -> str:
    """The name in a Host header's value, in lower case, without port, brackets and final dot."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")
