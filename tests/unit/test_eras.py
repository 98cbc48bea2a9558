"""Which instance of an upstream a message belongs to."""

from __future__ import annotations

import pytest

from actors.policy.eras import (
    LEGACY_VERSIONS,
    SessionRoute,
    is_open_ended,
    legacy_version,
    own_discover_result,
    own_initialize_result,
)
from actors.policy.jsonrpc import parse_client

MODERN = (
    b'{"jsonrpc":"2.0","id":1,"method":"x",'
    b'"params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}'
)
PLAIN = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'


def initialize(version: str) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"%b"}}' % version.encode()


def keys(route: SessionRoute, *messages: bytes) -> list[str]:
    return [route.key(parse_client(message)) for message in messages]


def test_a_legacy_session() -> None:
    """From its initialize on, a session is in the instance of its version, modern requests apart."""
    route = SessionRoute()
    assert keys(route, PLAIN, initialize("2025-06-18"), PLAIN, MODERN, PLAIN) == [
        "", "2025-06-18", "2025-06-18", "", "2025-06-18"
    ]


def test_a_modern_session() -> None:
    """Without a handshake there is one instance."""
    assert keys(SessionRoute(), MODERN, PLAIN, MODERN) == ["", "", ""]


@pytest.mark.parametrize("version", ["2025-03-26", "2026-07-28", "1900-01-01", "", "2025-11-25 ", "x" * 1000])
def test_invented_versions_start_no_process(version: str) -> None:
    """Whatever a client asks for, there are as many instances as known versions."""
    assert legacy_version(version) == "2025-11-25"
    assert keys(SessionRoute(), initialize(version), PLAIN) == ["2025-11-25"] * 2
    assert [legacy_version(known) for known in LEGACY_VERSIONS] == list(LEGACY_VERSIONS)


def test_the_first_initialize_decides() -> None:
    """A session can't wander from instance to instance."""
    assert keys(SessionRoute(), initialize("2025-06-18"), initialize("2024-11-05")) == ["2025-06-18"] * 2
    assert keys(SessionRoute("2024-11-05"), PLAIN, initialize("2025-06-18")) == ["2024-11-05"] * 2


def test_another_protocols_initialize_is_plain() -> None:
    """Without a protocol version it isn't MCP's."""
    raw = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"rootUri":null}}'
    assert keys(SessionRoute(), raw, PLAIN) == ["", ""]


def test_what_stays_open() -> None:
    """Listening has no timeout; nothing else is exempt."""
    assert is_open_ended("subscriptions/listen")
    assert not is_open_ended("tools/call")


def test_own_answers_disclose_nothing() -> None:
    """Before authentication the gateway names itself, and no capability of any server."""
    assert own_initialize_result("2025-06-18")["protocolVersion"] == "2025-06-18"
    assert own_initialize_result("2025-06-18")["capabilities"] == own_discover_result()["capabilities"] == {}
    assert own_discover_result()["supportedVersions"] == ["2026-07-28"]
