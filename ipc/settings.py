"""The effective configuration, as every process of the gateway sees it.

Each field is the contract's variable of the same name in lower case. The defaults here are the development profile's;
where a default depends on the machine (``WORKERS``, hosts) or on other settings it is resolved by the supervisor
before any worker sees the value. Durations are milliseconds, sizes bytes, except where a field says otherwise.

A worker gets only what its role needs: see ``Settings.for_role``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .authorization import Authorization
from .content import ContentRules

Profile = Literal["development", "production"]
Role = Literal["supervisor", "edge", "policy", "validator", "bridge", "admin"]

LOOPBACK_ORIGINS = "loopback"
"""In ``cors_allowed_origins``: any http(s) origin whose host is localhost, 127.0.0.0/8 or [::1], on any port."""

ANY = "*"
"""In ``allowed_hosts`` and ``cors_allowed_origins``: everything."""


class Upstream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server behind the gateway. ``name`` is usable as one path segment (``/ws/NAME``).

    ``command``, ``args``, ``env`` (``${VAR}`` already expanded) and ``cwd`` (absolute, or empty for the gateway's own)
    are for ``stdio``; ``host`` and ``port`` for ``tcp``; ``url`` and ``headers`` for ``ws`` and ``http``.
    """

    name: str
    kind: Literal["stdio", "tcp", "ws", "http"]
    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    url: str = ""
    host: str = ""
    port: int = 0
    headers: dict[str, str] = {}
    instance: Literal["shared", "per-session"] = "shared"
    timeout_ms: int = 0  # 0: Settings.circuitbreaker_timeout
    max_timeout_ms: int = 0  # how far progress can stretch a call's timeout; 0: ten times the timeout
    slow_tool_calls: bool = False  # whether tools/call counts for the breaker's slow-call rule
    written: dict[str, str] = {}  # of command, cwd and url what held a ${VAR}, as it was written: for showing


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every variable of the contract. An unset text is ``""``, an unset list ``()``."""

    security_profile: Profile = "development"

    # Listeners. Hosts are literal addresses; IPv6 ones without brackets.
    ws_host: tuple[str, ...] = ("127.0.0.1",)
    ws_port: int = 3002
    tcp_host: tuple[str, ...] = ("127.0.0.1",)
    tcp_port: int = 9500
    health_host: tuple[str, ...] = ("127.0.0.1",)
    health_port: int = 9501
    ready_file: str = ""  # absolute

    # Authentication.
    ws_auth_enabled: bool = True
    tcp_auth_enabled: bool = True
    ws_auth_token: tuple[str, ...] = ()
    tcp_auth_token: tuple[str, ...] = ()
    auth_timeout_ms: int = 10_000
    ws_first_message_auth: bool = False
    jwt_secret: str = ""
    jwt_secret_previous: str = ""
    jwt_algorithms: tuple[str, ...] = ("HS256",)
    jwt_issuer: str = "portcullis"
    jwt_audience: str = "portcullis"
    jwt_leeway_ms: int = 5_000
    jwt_max_ttl_ms: int = 86_400_000
    jwt_access_ttl_ms: int = 900_000
    jwt_refresh_ttl_ms: int = 604_800_000
    jwt_jwks_file: str = ""
    jwt_jwks_url: str = ""
    jwt_jwks_issuer: str = ""
    jwt_jwks_audience: str = ""
    jwt_jwks_algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    authorization_policy: str = ""
    authorization_default: Literal["allow", "deny"] = "allow"
    authorization: Authorization = Authorization()  # what the policy file says

    # Sessions.
    session_secret: str = ""  # empty: derived from jwt_secret
    session_timeout: int = 1_800_000
    session_absolute_timeout: int = 43_200_000
    session_cleanup_interval: int = 300_000
    max_concurrent_sessions: int = 10

    # Rate limits.
    rate_limit_enabled: bool = True
    rate_limit_window_ms: int = 60_000
    rate_limit_max_requests: int = 1_000
    rate_limit_burst_requests: int = 200
    rate_limit_burst_window_ms: int = 1_000
    rate_limit_key: Literal["ip", "principal", "principal+ip"] = "principal+ip"
    rate_limit_method_costs: dict[str, int] = {}
    connection_rate_limit: int = 6_000  # new connections a minute and address

    # Blocking and threats.
    auto_block_enabled: bool = True
    block_duration: int = 3_600_000
    max_failed_attempts: int = 3
    failed_attempts_window_ms: int = 600_000
    ip_allowlist: tuple[str, ...] = ()  # CIDRs
    ip_blocklist: tuple[str, ...] = ()  # CIDRs
    threat_threshold: int = 100
    threat_half_life_ms: int = 600_000
    trusted_proxies: tuple[str, ...] = ()  # CIDRs
    proxy_protocol: Literal["off", "required"] = "off"

    # Connections.
    ws_max_connections: int = 100
    tcp_max_connections: int = 50
    max_connections_per_ip: int = 100
    ws_connection_timeout: int = 300_000
    tcp_connection_timeout: int = 300_000
    ws_ping_interval_ms: int = 30_000
    handshake_timeout_ms: int = 5_000
    write_timeout_ms: int = 30_000

    # Messages.
    max_request_size: int = 10_485_760
    max_preauth_size: int = 65_536
    max_buffer_size: int = 16_777_216
    max_inflight_bytes: int = 268_435_456
    max_response_size: int = 16_777_216
    max_json_depth: int = 64
    max_frame_rate: int = 2_000  # a second
    content_policy: Literal["off", "flag", "block", "strip"] = "flag"
    content_policy_rules: str = ""
    content_policy_outbound: Literal["off", "flag", "block"] = "off"
    content: ContentRules = ContentRules()  # what the rules file says
    schema_validation: Literal["off", "flag", "block"] = "off"

    # HTTP.
    cors_enabled: bool = True
    cors_allowed_origins: tuple[str, ...] = (LOOPBACK_ORIGINS,)
    cors_allowed_methods: tuple[str, ...] = ("GET", "POST", "PUT", "DELETE", "OPTIONS")
    cors_allowed_headers: tuple[str, ...] = (
        "Content-Type",
        "Authorization",
        "X-Requested-With",
        "Accept",
        "Last-Event-ID",
        "Mcp-Session-Id",
        "Mcp-Protocol-Version",
        "Mcp-Method",
        "Mcp-Name",
    )
    cors_allow_credentials: bool = False
    cors_max_age: int = 600  # seconds
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")  # lower case, without port or brackets
    security_headers_enabled: bool = True
    csp_enabled: bool = True
    x_frame_options: str = "DENY"
    x_content_type_options: str = "nosniff"
    hsts_enabled: bool = False
    hsts_max_age: int = 31_536_000  # seconds

    # TLS.
    ssl_enabled: bool = False
    ssl_cert_path: str = ""
    ssl_key_path: str = ""
    ssl_ca_path: str = ""
    ssl_client_auth: Literal["none", "optional", "required"] = "none"
    ssl_min_version: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.2"
    ssl_ciphers: str = ""  # empty: Mozilla intermediate
    upstream_ca_path: str = ""

    # Audit.
    security_audit_log: bool = True
    audit_calls: Literal["all", "tools", "off"] = "tools"
    audit_log_dir: str = "var/log/security"  # absolute once loaded
    audit_fsync_ms: int = 50
    audit_on_full: Literal["block", "drop", "fail-closed"] = "block"
    audit_max_bytes: int = 104_857_600
    audit_keep: int = 10

    # Upstreams and the circuit breaker.
    upstreams: tuple[Upstream, ...] = ()  # the first is the default; never empty once loaded
    upstream_max_inflight: int = 256
    circuitbreaker_enabled: bool = True
    circuitbreaker_failure_threshold: int = 5
    circuitbreaker_timeout: int = 30_000
    circuitbreaker_reset_timeout: int = 60_000
    circuitbreaker_failure_rate: float = 0.5
    circuitbreaker_minimum_calls: int = 20
    circuitbreaker_slow_call_ms: int = 10_000
    circuitbreaker_half_open_calls: int = 3
    circuitbreaker_successes_to_close: int = 3
    health_check_enabled: bool = True
    health_check_interval: int = 30_000

    # Operation.
    metrics_enabled: bool = True
    metrics_path: str = "/metrics"
    performance_monitoring: bool = True
    admin_token: str = ""
    made_up_tokens: tuple[Literal["ws", "tcp"], ...] = ()  # listeners whose static token was made for this run alone
    admin_without_tls: bool = False  # serve the admin API beyond loopback although it is plain HTTP
    heartbeat_timeout_ms: int = 3_000
    workers: int = 1
    state_dir: str = "var/state"  # absolute once loaded
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "debug"
    drain_timeout_ms: int = 30_000

    # Several gateways.
    redis_enabled: bool = False
    redis_host: str = "localhost"
    redis_port: int = 6379
    redis_password: str = ""
    redis_db: int = 0
    redis_url: str = ""
    redis_on_failure: Literal["local", "closed"] = "local"

    @property
    def measuring(self) -> bool:
        """Whether latencies, mailboxes and loops are measured."""
        return self.metrics_enabled and self.performance_monitoring

    def upstream(self, name: str) -> Upstream | None:
        """The upstream of that name; ``""`` names the default one."""
        if not name:
            return self.upstreams[0] if self.upstreams else None
        return next((upstream for upstream in self.upstreams if upstream.name == name), None)

    def call_timeout_ms(self, upstream: Upstream) -> int:
        return upstream.timeout_ms or self.circuitbreaker_timeout

    def max_call_timeout_ms(self, upstream: Upstream) -> int:
        """How long a call may take in all, however much progress it reports."""
        return upstream.max_timeout_ms or 10 * self.call_timeout_ms(upstream)

    def for_role(self, role: Role) -> Settings:
        """These settings without the secrets that a worker of that role has no use for."""
        if role == "supervisor":
            return self
        blanked: dict[str, object] = {
            field: type(getattr(self, field))() for field, roles in _SECRETS.items() if role not in roles
        }
        if role != "edge":
            blanked["authorization"] = Authorization()
        if role not in ("edge", "validator"):
            blanked["content"] = ContentRules()
        blanked["upstreams"] = tuple(_upstream_for(upstream, role) for upstream in self.upstreams)
        return msgspec.structs.replace(self, **blanked)


_SECRETS: dict[str, tuple[Role, ...]] = {
    "ws_auth_token": ("policy",),
    "tcp_auth_token": ("policy",),
    "jwt_secret": ("policy",),
    "jwt_secret_previous": ("policy",),
    "session_secret": ("policy",),
    "redis_password": ("policy",),
    "redis_url": ("policy",),
    "admin_token": ("admin",),
}
"""Fields that are secrets, and the roles that see them. The rest are open to every worker."""

SECRET_FIELDS = frozenset(_SECRETS)


def _upstream_for(upstream: Upstream, role: Role) -> Upstream:
    """``env`` and ``args`` (they often carry keys) only where processes are spawned, headers where they are sent."""
    if role == "bridge":
        return upstream
    blanked = msgspec.structs.replace(upstream, command="", args=(), env={}, cwd="", headers={})
    if role == "edge" and upstream.kind == "tcp":
        return blanked
    return msgspec.structs.replace(blanked, url="")
