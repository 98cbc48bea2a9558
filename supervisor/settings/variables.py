"""The table of all variables: every row is an environment variable, a flag, a line of ``.env`` and a field of Settings.

A row's field is its name in lower case. ``default`` is the development profile's; ``production`` is given where that
profile has another one. A default that depends on the machine or on other variables is made in ``profiles``; its row
says so in ``shown``.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from ipc.settings import LOOPBACK_ORIGINS, SECRET_FIELDS, Profile

from . import values
from .values import Parser, boolean, choice, duration, integer, size


class _Same:
    """The production profile has the same default."""


_SAME = _Same()


@attrs.frozen
class Variable:
    """``shown`` replaces the default in the help, where it depends on the machine or on other variables."""

    name: str
    parser: Parser
    default: object
    meaning: str
    production: object = _SAME
    aliases: tuple[str, ...] = ()
    shown: str = ""

    @property
    def field(self) -> str:
        return self.name.lower()

    @property
    def flag(self) -> str:
        return "--" + self.name.lower().replace("_", "-")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def secret(self) -> bool:
        return self.field in SECRET_FIELDS

    @property
    def showable(self) -> bool:
        """Whether its text may stand in a message. Keys are written into command lines and URLs too."""
        return not self.secret and self.name not in _CAN_HOLD_SECRETS

    def default_for(self, profile: Profile) -> object:
        return self.default if profile == "development" or isinstance(self.production, _Same) else self.production


_CAN_HOLD_SECRETS = frozenset({"MCP_UPSTREAM", "JWT_JWKS_URL"})

PROFILE = Variable(
    "SECURITY_PROFILE",
    choice("development", "production"),
    "development",
    "Which set of defaults, and how strict the checks of secrets are.",
    aliases=("NODE_ENV",),
)

MCP_CONFIG = Variable(
    "MCP_CONFIG", values.path, "", "File with the servers behind the gateway, as {\"mcpServers\": {…}}."
)
MCP_UPSTREAM = Variable(
    "MCP_UPSTREAM", values.text, "", "One server behind the gateway: a tcp:// URL or a command line.",
    shown="the embedded server",
)  # fmt: skip

AUTHORIZATION_POLICY = Variable(
    "AUTHORIZATION_POLICY", values.readable_file, "", "File with allow and deny rules (.json or .toml)."
)

CONTENT_POLICY_RULES = Variable(
    "CONTENT_POLICY_RULES", values.readable_file, "", "File that narrows the content policy (.json)."
)

UPSTREAM_SOURCES = (MCP_CONFIG, MCP_UPSTREAM)
"""Both end up in ``Settings.upstreams``."""

_PORT = integer(0, 65535, "port")
_COUNT = integer(1, 1_000_000)
_LARGEST = 2**30  # one message, which passes between our processes in a frame with a 32-bit length
_UNITS = integer(1, 1_000_000_000)

GROUPS: dict[str, tuple[Variable, ...]] = {
    "Profile": (PROFILE,),
    "Servers behind the gateway": (
        MCP_CONFIG,
        MCP_UPSTREAM,
        Variable("UPSTREAM_MAX_INFLIGHT", _COUNT, 256, "Calls in flight to one server."),
        Variable("UPSTREAM_CA_PATH", values.readable_file, "", "CA that verifies https and wss servers."),
        Variable("HEALTH_CHECK_ENABLED", boolean, True, "Probe the servers."),
        Variable("HEALTH_CHECK_INTERVAL", duration(100), 30_000, "Time between probes."),
    ),
    "Listeners (port 0 picks a free one)": (
        Variable(
            "WS_HOST", values.hosts, ("127.0.0.1",), "Addresses for WebSocket and HTTP.", shown="127.0.0.1 and ::1"
        ),
        Variable("WS_PORT", _PORT, 3002, "Port for WebSocket and HTTP.", aliases=("MCP_BRIDGE_PORT",)),
        Variable(
            "TCP_HOST", values.hosts, ("127.0.0.1",), "Addresses for JSON-RPC lines over TCP.",
            shown="127.0.0.1 and ::1",
        ),
        Variable("TCP_PORT", _PORT, 9500, "Port for JSON-RPC lines over TCP.", aliases=("MCP_TCP_PORT",)),
        Variable("HEALTH_HOST", values.hosts, ("127.0.0.1",), "Addresses for health, metrics and the admin API."),
        Variable(
            "HEALTH_PORT", _PORT, 9501, "Port for health, metrics and the admin API.", aliases=("MCP_HEALTH_PORT",)
        ),
        Variable("READY_FILE", values.path, "", "Written as JSON with the ports and the pid once all is up."),
    ),
    "Authentication": (
        Variable("WS_AUTH_ENABLED", boolean, True, "Authenticate WebSocket and HTTP clients."),
        Variable("TCP_AUTH_ENABLED", boolean, True, "Authenticate TCP clients."),
        Variable("WS_AUTH_TOKEN", values.bearers, (), "Static bearer tokens for WebSocket and HTTP.",
                 shown="random in development"),
        Variable("TCP_AUTH_TOKEN", values.bearers, (), "Static bearer tokens for TCP.", shown="random in development"),
        Variable("AUTH_TIMEOUT_MS", duration(), 10_000, "An unauthenticated connection is closed after this."),
        Variable("WS_FIRST_MESSAGE_AUTH", boolean, False, "Let WebSocket clients authenticate by their first message."),
        Variable("JWT_SECRET", values.secret, "", "HMAC key, 32 bytes or more, for the gateway's own tokens."),
        Variable("JWT_SECRET_PREVIOUS", values.secret, "", "The key before the last rotation; it only verifies."),
        Variable("JWT_ALGORITHMS", values.among("HS256", "HS384", "HS512"), ("HS256",), "Algorithms allowed."),
        Variable("JWT_ISSUER", values.text, "portcullis", "Issuer (iss) of the gateway's own tokens."),
        Variable("JWT_AUDIENCE", values.text, "portcullis", "Audience (aud) of the gateway's own tokens."),
        Variable("JWT_LEEWAY_MS", duration(0), 5_000, "Clock difference that is tolerated."),
        Variable("JWT_MAX_TTL_MS", duration(), 86_400_000, "Longest lifetime of a token that is accepted."),
        Variable("JWT_ACCESS_TTL_MS", duration(), 900_000, "Lifetime of issued access tokens."),
        Variable("JWT_REFRESH_TTL_MS", duration(), 604_800_000, "Lifetime of issued refresh tokens."),
        Variable("JWT_JWKS_FILE", values.readable_file, "", "Keys of an outside issuer."),
        Variable("JWT_JWKS_URL", values.https_url, "", "Where to fetch the keys of an outside issuer."),
        Variable("JWT_JWKS_ISSUER", values.text, "", "Issuer (iss) of the outside tokens."),
        Variable("JWT_JWKS_AUDIENCE", values.text, "", "Audience (aud) of the outside tokens."),
        Variable(
            "JWT_JWKS_ALGORITHMS",
            values.among("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"),
            ("RS256", "ES256", "EdDSA"),
            "Algorithms allowed of the outside issuer.",
        ),
        AUTHORIZATION_POLICY,
        Variable("AUTHORIZATION_DEFAULT", choice("allow", "deny"), "allow", "What applies where no rule speaks."),
    ),
    "Sessions": (
        Variable("SESSION_SECRET", values.secret, "", "Keys session ids and tickets.", shown="derived from JWT_SECRET"),
        Variable("SESSION_TIMEOUT", duration(), 1_800_000, "Idle life of a session."),
        Variable("SESSION_ABSOLUTE_TIMEOUT", duration(), 43_200_000, "Longest life of a session."),
        Variable("SESSION_CLEANUP_INTERVAL", duration(), 300_000, "Time between clean-ups of ended sessions."),
        Variable("MAX_CONCURRENT_SESSIONS", _COUNT, 10, "Issued sessions per principal."),
    ),
    "Rate limits": (
        Variable("RATE_LIMIT_ENABLED", boolean, True, "Limit messages per client."),
        Variable("RATE_LIMIT_WINDOW_MS", duration(), 60_000, "The sliding window."),
        Variable("RATE_LIMIT_MAX_REQUESTS", _UNITS, 1_000, "Messages in any window.", production=100),
        Variable("RATE_LIMIT_BURST_REQUESTS", _UNITS, 200, "Messages in any burst window.", production=20),
        Variable("RATE_LIMIT_BURST_WINDOW_MS", duration(), 1_000, "The burst window."),
        Variable("RATE_LIMIT_KEY", choice("ip", "principal", "principal+ip"), "principal+ip", "Who is a client."),
        Variable("RATE_LIMIT_METHOD_COSTS", values.method_costs, {}, "Cost of single methods, e.g. tools/call=5."),
        Variable("CONNECTION_RATE_LIMIT", _UNITS, 6_000, "New connections a minute and address.", production=60),
    ),
    "Blocking and threats": (
        Variable("AUTO_BLOCK_ENABLED", boolean, True, "Block addresses that misbehave."),
        Variable("BLOCK_DURATION", duration(), 3_600_000, "First block's time; it doubles up to 24 h."),
        Variable("MAX_FAILED_ATTEMPTS", _COUNT, 3, "Failed authentications that block."),
        Variable("FAILED_ATTEMPTS_WINDOW_MS", duration(), 600_000, "The time in which they count."),
        Variable("IP_ALLOWLIST", values.networks, (), "Addresses that are never blocked automatically."),
        Variable("IP_BLOCKLIST", values.networks, (), "Addresses that are always refused."),
        Variable("THREAT_THRESHOLD", _UNITS, 100, "Threat score that blocks."),
        Variable("THREAT_HALF_LIFE_MS", duration(), 600_000, "Half-life of the threat score."),
        Variable("TRUSTED_PROXIES", values.networks, (), "Proxies whose X-Forwarded-For counts."),
        Variable("PROXY_PROTOCOL", choice("off", "required"), "off", "PROXY v1/v2 before each connection."),
    ),
    "Connections": (
        Variable("WS_MAX_CONNECTIONS", _COUNT, 100, "WebSocket connections at once."),
        Variable("TCP_MAX_CONNECTIONS", _COUNT, 50, "TCP connections at once."),
        Variable("MAX_CONNECTIONS_PER_IP", _COUNT, 100, "Connections of one address.", production=20),
        Variable("WS_CONNECTION_TIMEOUT", duration(), 300_000, "Idle time after which a WebSocket is closed."),
        Variable("TCP_CONNECTION_TIMEOUT", duration(), 300_000, "Idle time after which a TCP connection is closed."),
        Variable("WS_PING_INTERVAL_MS", duration(), 30_000, "Time between pings."),
        Variable("HANDSHAKE_TIMEOUT_MS", duration(), 5_000, "Time for TLS and the HTTP upgrade."),
        Variable("WRITE_TIMEOUT_MS", duration(), 30_000, "A client that does not read is closed after this."),
    ),
    "Messages": (
        Variable("MAX_REQUEST_SIZE", size(256, _LARGEST), 10_485_760, "One message of a client."),
        Variable("MAX_PREAUTH_SIZE", size(256), 65_536, "One message before authentication."),
        Variable("MAX_BUFFER_SIZE", size(256), 16_777_216, "All bytes buffered for one connection, both ways."),
        Variable("MAX_INFLIGHT_BYTES", size(256), 268_435_456, "All bytes of clients held at once."),
        Variable("MAX_RESPONSE_SIZE", size(256, _LARGEST), 16_777_216, "One message of a server."),
        Variable("MAX_JSON_DEPTH", integer(1, 512), 64, "Nesting of a message."),
        Variable("MAX_FRAME_RATE", _UNITS, 2_000, "WebSocket frames a second."),
        Variable("CONTENT_POLICY", choice("off", "flag", "block", "strip"), "flag", "What the detectors do."),
        CONTENT_POLICY_RULES,
        Variable(
            "CONTENT_POLICY_OUTBOUND", choice("off", "flag", "block"), "off", "Look for secrets in servers' answers."
        ),
        Variable("SCHEMA_VALIDATION", choice("off", "flag", "block"), "off", "Check arguments against inputSchema."),
    ),
    "HTTP": (
        Variable("CORS_ENABLED", boolean, True, "Answer CORS requests."),
        Variable(
            "CORS_ALLOWED_ORIGINS", values.origins, (LOOPBACK_ORIGINS,),
            f"Origins, or {LOOPBACK_ORIGINS} for any of this machine.", production=(),
        ),
        Variable(
            "CORS_ALLOWED_METHODS", values.http_tokens, ("GET", "POST", "PUT", "DELETE", "OPTIONS"), "Methods allowed."
        ),
        Variable(
            "CORS_ALLOWED_HEADERS",
            values.http_tokens,
            (
                "Content-Type", "Authorization", "X-Requested-With", "Accept", "Last-Event-ID", "Mcp-Session-Id",
                "Mcp-Protocol-Version", "Mcp-Method", "Mcp-Name",
            ),
            "Request headers allowed.",
        ),
        Variable("CORS_ALLOW_CREDENTIALS", boolean, False, "Allow credentials, for listed origins only."),
        Variable("CORS_MAX_AGE", integer(0, 86_400, "seconds"), 600, "How long browsers keep a preflight's answer."),
        Variable(
            "ALLOWED_HOSTS", values.host_names, ("localhost", "127.0.0.1", "::1"), "Host names that clients may use.",
            shown="names of this machine; any when bound to all addresses",
        ),
        Variable("SECURITY_HEADERS_ENABLED", boolean, True, "Send security headers."),
        Variable("CSP_ENABLED", boolean, True, "Send a Content-Security-Policy."),
        Variable("X_FRAME_OPTIONS", choice("DENY", "SAMEORIGIN"), "DENY", "That header's value."),
        Variable("X_CONTENT_TYPE_OPTIONS", choice("nosniff"), "nosniff", "That header's value."),
        Variable("HSTS_ENABLED", boolean, False, "Send Strict-Transport-Security.", shown="on with TLS"),
        Variable("HSTS_MAX_AGE", integer(0, 2**31 - 1, "seconds"), 31_536_000, "Its max-age."),
    ),
    "TLS": (
        Variable("SSL_ENABLED", boolean, False, "TLS for WebSocket, HTTP and TCP.", production=True),
        Variable("SSL_CERT_PATH", values.path, "", "Certificate chain, PEM."),
        Variable("SSL_KEY_PATH", values.path, "", "Private key, PEM."),
        Variable("SSL_CA_PATH", values.path, "", "CA for client certificates, PEM."),
        Variable("SSL_CLIENT_AUTH", choice("none", "optional", "required"), "none", "Client certificates."),
        Variable("SSL_MIN_VERSION", choice("TLSv1.2", "TLSv1.3"), "TLSv1.2", "Lowest version accepted."),
        Variable("SSL_CIPHERS", values.text, "", "Ciphers for TLS 1.2.", shown="Mozilla intermediate"),
    ),
    "Audit": (
        Variable("SECURITY_AUDIT_LOG", boolean, True, "Write the audit log."),
        Variable("AUDIT_LOG_DIR", values.path, "var/log/security", "Where it is."),
        Variable("AUDIT_CALLS", choice("all", "tools", "off"), "tools", "Which forwarded calls leave a record."),
        Variable("AUDIT_FSYNC_MS", duration(), 50, "How often the log is synced."),
        Variable("AUDIT_ON_FULL", choice("block", "drop", "fail-closed"), "block", "What a full disk means."),
        Variable("AUDIT_MAX_BYTES", size(4096), 104_857_600, "Size at which the log is rotated."),
        Variable("AUDIT_KEEP", integer(1, 100_000), 10, "Rotated files kept."),
    ),
    "Circuit breaker": (
        Variable("CIRCUITBREAKER_ENABLED", boolean, True, "Stop calling a server that fails."),
        Variable("CIRCUITBREAKER_FAILURE_THRESHOLD", _COUNT, 5, "Consecutive failures that open it."),
        Variable("CIRCUITBREAKER_TIMEOUT", duration(), 30_000, "A call's timeout."),
        Variable("CIRCUITBREAKER_RESET_TIMEOUT", duration(), 60_000, "How long it stays open at first."),
        Variable("CIRCUITBREAKER_FAILURE_RATE", values.fraction, 0.5, "Share of failures that opens it."),
        Variable("CIRCUITBREAKER_MINIMUM_CALLS", _COUNT, 20, "Calls before shares count."),
        Variable("CIRCUITBREAKER_SLOW_CALL_MS", duration(), 10_000, "A call that takes longer is slow."),
        Variable("CIRCUITBREAKER_HALF_OPEN_CALLS", _COUNT, 3, "Probe calls when half open."),
        Variable("CIRCUITBREAKER_SUCCESSES_TO_CLOSE", _COUNT, 3, "Successes that close it."),
    ),
    "Operation": (
        Variable("WORKERS", integer(1, 64), 1, "Edge workers.", shown="one a CPU, at most 4"),
        Variable("STATE_DIR", values.path, "var/state", "Directory for state that survives a restart."),
        Variable("LOG_LEVEL", values.log_level, "debug", "Least level logged.", production="info",
                 aliases=("MCP_LOG_LEVEL",)),
        Variable("DRAIN_TIMEOUT_MS", duration(0), 30_000, "Time for calls in flight at shutdown."),
        Variable("HEARTBEAT_TIMEOUT_MS", duration(100), 3_000, "A process without progress for so long is replaced."),
        Variable("ADMIN_TOKEN", values.bearer, "", "Bearer token of the admin API.",
                 shown="random, in STATE_DIR/admin.token"),
        Variable("ADMIN_WITHOUT_TLS", boolean, False, "Serve the admin API beyond loopback without TLS."),
        Variable("METRICS_ENABLED", boolean, True, "Serve metrics for Prometheus."),
        Variable("METRICS_PATH", values.url_path, "/metrics", "Where they are served."),
        Variable("PERFORMANCE_MONITORING", boolean, True, "Measure the gateway itself."),
    ),
    "Several gateways": (
        Variable("REDIS_ENABLED", boolean, False, "Share limits, blocks and sessions through Valkey or Redis."),
        Variable("REDIS_HOST", values.text, "localhost", "Its host."),
        Variable("REDIS_PORT", integer(1, 65535, "port"), 6379, "Its port."),
        Variable("REDIS_PASSWORD", values.secret, "", "Its password."),
        Variable("REDIS_DB", integer(0, 1_000_000), 0, "Its database."),
        Variable("REDIS_URL", values.secret, "", "All of this as one URL."),
        Variable("REDIS_ON_FAILURE", choice("local", "closed"), "local", "What applies while it is out of reach."),
    ),
}  # fmt: skip

VARIABLES: tuple[Variable, ...] = tuple(variable for group in GROUPS.values() for variable in group)

BY_NAME: dict[str, Variable] = {name: variable for variable in VARIABLES for name in variable.names}
"""Aliases included."""

FILE_SUFFIX = "_FILE"


def known(name: str) -> bool:
    return name in BY_NAME or (name.endswith(FILE_SUFFIX) and name.removesuffix(FILE_SUFFIX) in BY_NAME)


def look_alike(name: str) -> Variable | None:
    """The variable that ``name`` is probably a misspelling of: one edit away, or two when it is long."""
    upper = name.upper().replace("-", "_")
    if known(name):
        return None
    if upper in BY_NAME:
        return BY_NAME[upper]
    bare = upper.removesuffix(FILE_SUFFIX)
    best: tuple[int, Variable] | None = None
    for candidate, variable in BY_NAME.items():
        allowed = 2 if len(candidate) > 8 else 1 if len(candidate) > 4 else 0
        if abs(len(candidate) - len(bare)) > allowed:
            continue
        distance = edit_distance(bare, candidate, allowed)
        if distance <= allowed and (best is None or distance < best[0]):
            best = (distance, variable)
    return best[1] if best is not None else None


def edit_distance(one: str, other: str, at_most: int = 1000) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).

    Past ``at_most`` the answer is only some number above it, and comes sooner.
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, right in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == other[j - 2] and one[i - 2] == right:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > at_most and min(before) > at_most:
            break
    return row[-1]


def shown_default(variable: Variable) -> Iterator[str]:
    """The default as the help shows it: one text, or two when the profiles differ."""
    if variable.shown:
        yield variable.shown
        return
    yield as_text(variable.default) or "–"
    if variable.default_for("production") != variable.default:
        yield f"production: {as_text(variable.default_for('production')) or '–'}"


def as_text(value: object) -> str:
    """A parsed value in the form in which it is written."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return str(value)

