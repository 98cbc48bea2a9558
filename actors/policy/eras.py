"""Protocol versions of MCP, and which instance of an upstream a client's message belongs to.

The legacy era (up to 2025-11-25) begins a session with ``initialize``; from 2026-07-28 on there is no handshake and
every request says its version itself. A server process is in one legacy version at most, so a shared upstream has
one instance for each legacy version in use, and one more, named ``""``, for everything without a handshake: the
modern era and plain JSON-RPC.
"""

from __future__ import annotations

from importlib.metadata import version as distribution_version

import attrs

from ipc.messages import Envelope

LEGACY_VERSIONS = ("2024-11-05", "2025-06-18", "2025-11-25")
NEWEST_LEGACY = LEGACY_VERSIONS[-1]
BATCHING_VERSION = "2025-03-26"  # the one revision with batch arrays, which are refused: never negotiated
MODERN_VERSION = "2026-07-28"
NO_HANDSHAKE = ""

# Keys of params._meta and result._meta in the modern era (2026-07-28, basic, "_meta").
META_VERSION = "io.modelcontextprotocol/protocolVersion"
META_LOG_LEVEL = "io.modelcontextprotocol/logLevel"
META_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
META_SERVER_INFO = "io.modelcontextprotocol/serverInfo"
META_CLIENT_INFO = "io.modelcontextprotocol/clientInfo"
META_CLIENT_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"

LISTEN = "subscriptions/listen"

GATEWAY_INFO = {"name": "portcullis", "version": distribution_version("portcullis")}


def is_open_ended(method: str) -> bool:
    """Whether a request of this method stays open until it is cancelled: no timeout, breaker or bulkhead applies."""
    return method == LISTEN


# The requests of all revisions of MCP, by the part of the method before the slash.
_REQUEST_FAMILIES = frozenset(
    {
        "completion",
        "elicitation",
        "logging",
        "prompts",
        "resources",
        "roots",
        "sampling",
        "server",
        "subscriptions",
        "tasks",
        "tools",
    }
)


def is_request(method: str) -> bool:
    """Whether MCP knows this method as a request: without an id it would act on a server that all clients share, and
    nobody would ever hear of it."""
    return method in ("initialize", "ping") or ("/" in method and method.partition("/")[0] in _REQUEST_FAMILIES)


def legacy_version(requested: str) -> str:
    """The legacy version whose instance serves a client that asks for ``requested`` in ``initialize``.

    What isn't known gets the newest one, as MCP's negotiation has it, so that no client can start a process for
    each version that it makes up.
    """
    return requested if requested in LEGACY_VERSIONS else NEWEST_LEGACY


def own_initialize_result(version: str) -> dict[str, object]:
    """The gateway's own answer to ``initialize``, for a client that it doesn't know yet: nothing of the servers."""
    return {"protocolVersion": version, "capabilities": {}, "serverInfo": GATEWAY_INFO}


def own_discover_result() -> dict[str, object]:
    """The gateway's own answer to ``server/discover``, likewise; not to be cached, as the server's will differ."""
    return {
        "resultType": "complete",
        "supportedVersions": [MODERN_VERSION],
        "capabilities": {},
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": {META_SERVER_INFO: GATEWAY_INFO},
    }


@attrs.define
class SessionRoute:
    """The instance that each message of one session goes to, given the session's messages in order.

    A cancellation carries no version: where the call that it names is known, that call's instance is its own.
    """

    version: str = NO_HANDSHAKE  # of the session's first initialize; given when it came before there was a route

    def key(self, envelope: Envelope) -> str:
        """The instance's key: ``""``, or the legacy version."""
        if envelope.method == "initialize" and envelope.kind == "request":
            # Other protocols have a method of this name too; MCP's always says a version.
            if not self.version and envelope.version_at >= 0:
                self.version = legacy_version(envelope.version)
            return self.version
        if envelope.era:
            return NO_HANDSHAKE
        return self.version
