"""Rules that bind several values, or a value and the machine. Each check yields all that it finds."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Literal

import attrs

from ipc.settings import ANY, Settings

from . import key_file, secrets, tls_files
from .problems import Problem
from .unavailable import ROWS
from .variables import VARIABLES, Variable

_JWT_KEY_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518 §3.2: as long as the hash's output
_OTHER_KEY = re.compile(r'\s*(?:[\[{].*"kty"|----[- ]BEGIN|(?:ssh|ecdsa)-)')
_WIDEST_PROXIES = {4: 8, 6: 16}  # prefix lengths: no network of one's own is wider
_BY_FIELD: dict[str, Variable] = {variable.field: variable for variable in VARIABLES}


@attrs.frozen
class Finding:
    severity: Literal["error", "warning"]
    problem: Problem


@attrs.frozen
class Subject:
    """The settings under check, and where their values came from (field -> origin)."""

    settings: Settings
    origins: Mapping[str, str]

    @property
    def production(self) -> bool:
        return self.settings.security_profile == "production"

    def error(self, field: str, what: str) -> Finding:
        return Finding("error", Problem(_BY_FIELD[field].name, self.origins.get(field, ""), what))

    def warning(self, field: str, what: str) -> Finding:
        return Finding("warning", Problem(_BY_FIELD[field].name, self.origins.get(field, ""), what))


def check(settings: Settings, origins: Mapping[str, str]) -> list[Finding]:
    subject = Subject(settings, origins)
    checks = (
        *(_unavailable, _secrets, _jwt_keys, _outside_issuer, _listeners, _tls, _cors, _sizes, _limits, _proxies),
        _times,
        _directories,
    )
    return [finding for rule in checks for finding in rule(subject)]


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _unavailable(subject: Subject) -> Iterator[Finding]:
    for row in ROWS:
        if row.applies(subject.settings):
            yield (subject.error if row.refuse else subject.warning)(row.name.lower(), row.what)


def _secrets(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    judge = subject.error if subject.production else subject.warning
    for field in ("ws_auth_token", "tcp_auth_token", "jwt_secret", "jwt_secret_previous", "session_secret",
                  "admin_token", *(("redis_password",) if settings.redis_enabled else ())):  # fmt: skip
        value: str | tuple[str, ...] = getattr(settings, field)
        several = isinstance(value, tuple) and len(value) > 1
        for number, secret in enumerate(value if isinstance(value, tuple) else (value,), 1):
            weakness = secrets.weakness(secret) if secret else None
            if weakness is not None:
                yield judge(field, f"token {number} of {len(value)} {weakness}" if several else weakness)
    outside = settings.jwt_jwks_file or settings.jwt_jwks_url
    for enabled, field in (("ws_auth_enabled", "ws_auth_token"), ("tcp_auth_enabled", "tcp_auth_token")):
        if not getattr(settings, enabled):
            yield subject.warning(enabled, "authentication is off on this listener: everyone may come in")
        elif subject.production and not (getattr(settings, field) or settings.jwt_secret or outside):
            yield subject.error(field, "is not set, and nobody could authenticate: openssl rand -hex 32")


def _jwt_keys(subject: Subject) -> Iterator[Finding]:
    needed = max(_JWT_KEY_BYTES[algorithm] for algorithm in subject.settings.jwt_algorithms)
    for field in ("jwt_secret", "jwt_secret_previous"):
        length = len(getattr(subject.settings, field).encode())
        # In production the rule for secrets has already spoken of less than 32.
        if length and length < needed and not (subject.production and length < secrets.MINIMUM_LENGTH):
            algorithms = ", ".join(subject.settings.jwt_algorithms)
            yield subject.error(field, f"has {length} bytes; {algorithms} needs {needed} (RFC 7518 §3.2)")
    if subject.settings.jwt_secret_previous and not subject.settings.jwt_secret:
        yield subject.error("jwt_secret_previous", "is set without JWT_SECRET, which it precedes")
    for field in ("jwt_secret", "jwt_secret_previous"):
        if _OTHER_KEY.match(getattr(subject.settings, field)):
            yield subject.error(field, "is a key of another kind (PEM, SSH or JWK); it has to be a random text")
    if subject.settings.jwt_secret and len(subject.settings.jwt_algorithms) > 1:
        yield subject.warning("jwt_algorithms", "one secret serves several algorithms; choose one (RFC 8725 §3.1)")


def _outside_issuer(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    named = ("jwt_jwks_issuer", "jwt_jwks_audience")
    sources = [field for field in ("jwt_jwks_file", "jwt_jwks_url") if getattr(settings, field)]
    if not sources:
        for field in named:
            if getattr(settings, field):
                yield subject.error(field, "is set without JWT_JWKS_FILE or JWT_JWKS_URL, which have the keys")
        return
    if len(sources) > 1:
        yield subject.error("jwt_jwks_url", "is set as well as JWT_JWKS_FILE; the keys come from one of them")
    source = _BY_FIELD[sources[0]].name
    for field, claim in zip(named, ("iss", "aud"), strict=True):
        if not getattr(settings, field):
            yield subject.error(field, f"is not set, and {source} is: which {claim} do the tokens have?")
    if settings.jwt_jwks_issuer and settings.jwt_jwks_issuer == settings.jwt_issuer:
        yield subject.error("jwt_jwks_issuer", "is JWT_ISSUER; the outside issuer needs a name of its own")
    if "|" in settings.jwt_jwks_issuer:
        yield subject.error("jwt_jwks_issuer", "must not hold a |, which parts it from the subject in principals")
    if settings.jwt_jwks_file:
        flaw = key_file.flaw(settings.jwt_jwks_file, settings.jwt_jwks_algorithms)
        if flaw:
            yield subject.error("jwt_jwks_file", flaw)


def _listeners(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    listeners = ("ws", "tcp", "health")
    for one, other in combinations(listeners, 2):
        port = getattr(settings, f"{other}_port")
        if port and port == getattr(settings, f"{one}_port"):
            hosts = set(getattr(settings, f"{one}_host")), set(getattr(settings, f"{other}_host"))
            if _overlap(*hosts):
                yield subject.error(f"{other}_port", f"is {port}, as is {one.upper()}_PORT; each needs its own")
    if settings.allowed_hosts == (ANY,):
        yield subject.warning("allowed_hosts", "any Host is accepted: list your names, against DNS rebinding")
    if not all(is_loopback(host) for host in settings.health_host):
        if settings.admin_without_tls:
            yield subject.warning("admin_without_tls", "the admin API is served beyond loopback without TLS")
        else:
            yield subject.warning(
                "health_host", "beyond loopback the admin API is off; ADMIN_WITHOUT_TLS=true serves it without TLS"
            )
    for field in ("ws_host", "tcp_host"):
        enabled = getattr(settings, f"{field.removesuffix('_host')}_auth_enabled")
        if not enabled and not all(is_loopback(host) for host in getattr(settings, field)):
            yield subject.warning(field, "is beyond loopback, and authentication is off")


def _overlap(one: Iterable[str], other: Iterable[str]) -> bool:
    """Whether a port can't be bound on both: the same address, or every address of a family on one side."""
    left = [ipaddress.ip_address(host) for host in one]
    right = [ipaddress.ip_address(host) for host in other]
    return any(
        a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified)) for a in left for b in right
    )


def _tls(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    if not settings.ssl_enabled:
        if settings.ssl_client_auth != "none":
            yield subject.error("ssl_client_auth", "client certificates come with TLS only, and SSL_ENABLED is false")
        if subject.production:
            yield subject.warning("ssl_enabled", "clients' traffic is in the clear; run it behind a TLS proxy only")
        return
    wrong = list(tls_files.errors(settings))
    for field, what in wrong:
        yield subject.error(field, what)
    if not wrong:
        for field, what in tls_files.warnings(settings, datetime.now(UTC)):
            yield subject.warning(field, what)


def _cors(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    if ANY not in settings.cors_allowed_origins:
        return
    if settings.cors_allow_credentials:
        judge = subject.error if subject.production else subject.warning
        yield judge("cors_allowed_origins", "is *, which never goes with CORS_ALLOW_CREDENTIALS=true (Fetch standard)")
    elif subject.production:
        yield subject.warning("cors_allowed_origins", "is *: pages of every site may call the gateway")


def _sizes(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    for small, large in (
        ("max_preauth_size", "max_request_size"),
        ("max_request_size", "max_buffer_size"),
        ("max_response_size", "max_buffer_size"),
        ("max_request_size", "max_inflight_bytes"),
    ):
        if getattr(settings, small) > getattr(settings, large):
            larger = f"{_BY_FIELD[large].name} ({getattr(settings, large)}, {subject.origins.get(large, '')})"
            yield subject.error(small, f"is {getattr(settings, small)}, more than {larger}")


def _limits(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    limit = min(settings.rate_limit_max_requests, settings.rate_limit_burst_requests)
    for method, cost in settings.rate_limit_method_costs.items():
        if cost > limit:
            yield subject.error(
                "rate_limit_method_costs", f"{method[:64]!a} costs {cost}, more than the limit of {limit}"
            )


def _proxies(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    if settings.proxy_protocol == "required" and not settings.trusted_proxies:
        yield subject.warning(
            "proxy_protocol",
            "is required of everybody, and TRUSTED_PROXIES is not set: whoever reaches the ports may claim any address,"
            " and have it blocked; name your proxies",
        )
    for cidr in settings.trusted_proxies:
        network = ipaddress.ip_network(cidr, strict=False)
        if network.prefixlen < _WIDEST_PROXIES[network.version]:
            yield subject.warning(
                "trusted_proxies",
                f"{cidr} holds most of the internet: whoever is in it is believed and never blocked; name your proxies",
            )


def _times(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    for short, long in (
        ("session_timeout", "session_absolute_timeout"),
        ("jwt_access_ttl_ms", "jwt_max_ttl_ms"),
    ):
        if getattr(settings, short) > getattr(settings, long):
            longer = f"{_BY_FIELD[long].name} ({getattr(settings, long)} ms)"
            yield subject.error(short, f"is {getattr(settings, short)} ms, more than {longer}")


def _directories(subject: Subject) -> Iterator[Finding]:
    for field in ("state_dir", "audit_log_dir"):
        path = Path(getattr(subject.settings, field))
        existing = next(parent for parent in (path, *path.parents) if parent.exists() or parent == parent.parent)
        if not existing.is_dir():
            yield subject.error(field, f"{existing} is no directory")
    ready_file = subject.settings.ready_file
    if ready_file and (Path(ready_file).is_dir() or not Path(ready_file).parent.is_dir()):
        yield subject.error("ready_file", "must be a file in a directory that exists")
