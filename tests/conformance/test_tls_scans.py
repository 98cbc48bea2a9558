"""TLS as others see it: scanners that look for weaknesses, and the clients of others with an authority of their own."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway
from real_clients import HERE, environment, run_client
from requirement import need
from tls_clients import UNLIMITED, Authority

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": "first",
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def served(start_gateway: Callable[..., Gateway], authority: Authority) -> Gateway:
    """RSA, because that has the most to get wrong."""
    return start_gateway(environment=UNLIMITED | authority.server(rsa_bits=2048))


def s_client(port: int, *options: str, text: str = "", within: float = 60) -> subprocess.CompletedProcess[str]:
    openssl = shutil.which("openssl")
    need(openssl, "openssl is not installed")
    return subprocess.run(
        [str(openssl), "s_client", "-connect", f"127.0.0.1:{port}", *options],
        input=text, capture_output=True, text=True, timeout=within, check=False,
    )  # fmt: skip


OLD_ENOUGH = "ALL:@SECLEVEL=0"  # else this openssl refuses the old versions by itself, and nothing is shown


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_versions_are_refused(served: Gateway, version: str) -> None:
    """TLS 1.0 and 1.1 get the alert protocol_version (70), on both ports (RFC 8996)."""
    for port in (served.ws_port, served.tcp_port):
        done = s_client(port, version, "-cipher", OLD_ENOUGH)
        assert done.returncode != 0
        assert "alert number 70" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "cipher",
    ["AES128-GCM-SHA256", "AES256-SHA", "ECDHE-RSA-AES128-SHA256", "ECDHE-RSA-AES256-SHA", "DHE-RSA-AES128-GCM-SHA256"],
)
def test_ciphers_outside_the_list_are_refused(served: Gateway, cipher: str) -> None:
    """Without forward secrecy, in CBC mode, over finite fields: no cipher in common."""
    done = s_client(served.ws_port, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    assert done.returncode != 0
    assert "alert" in done.stderr


def test_other_versions_and_ciphers_when_asked_for(start_gateway: Any, authority: Authority) -> None:
    """SSL_MIN_VERSION and SSL_CIPHERS do what they say."""
    only13 = start_gateway(environment=authority.server() | {"SSL_MIN_VERSION": "TLSv1.3"})
    assert "alert number 70" in s_client(only13.ws_port, "-tls1_2").stderr
    assert "TLSv1.3" in s_client(only13.ws_port, "-tls1_3").stdout
    one = start_gateway(environment=authority.server() | {"SSL_CIPHERS": "ECDHE-ECDSA-AES256-GCM-SHA384"})
    assert "ECDHE-ECDSA-AES256-GCM-SHA384" in s_client(one.ws_port, "-tls1_2").stdout
    assert s_client(one.ws_port, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256").returncode != 0


def test_renegotiation_is_refused(served: Gateway) -> None:
    """A client of TLS 1.2 that asks for a new handshake in the middle doesn't get it."""
    done = s_client(served.tcp_port, "-tls1_2", text="R\n")
    assert "RENEGOTIATING" in done.stdout + done.stderr
    assert "no renegotiation" in done.stderr.lower(), done.stderr


def test_no_tickets(served: Gateway) -> None:
    """No session ticket in either version: a key for them would be one more secret that opens all traffic."""
    for version in ("-tls1_2", "-tls1_3"):
        done = s_client(served.ws_port, version, text="GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert "session ticket" not in done.stdout.lower(), done.stdout


def test_sslyze_finds_nothing(served: Gateway, tmp_path: Path) -> None:
    """Both ports against Mozilla's intermediate configuration. What it names is of the test's certificate, and two
    curves more than Mozilla lists, which Python's ssl can't leave out of OpenSSL's own list; none of them is weak."""
    python = environment("sslyze") / "python"
    for port in (served.ws_port, served.tcp_port):
        report = tmp_path / f"{port}.json"
        done = subprocess.run(
            [str(python), "-W", "ignore", "-m", "sslyze", "--mozilla_config", "intermediate", "--json_out", str(report),
             f"localhost:{port}"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        findings = re.findall(r"^\s+\* ([a-z_0-9]+): ", done.stdout.partition("COMPLIANCE")[2], re.MULTILINE)
        of_the_certificate = {"certificate_path_validation", "maximum_certificate_lifespan"}
        assert set(findings) == of_the_certificate | {"tls_curves"}, done.stdout
        [scanned] = json.loads(report.read_text())["server_scan_results"]
        found = {name: part["result"] for name, part in scanned["scan_result"].items()}
        for version in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
            assert found[f"{version}_cipher_suites"]["accepted_cipher_suites"] == []
        assert len(found["tls_1_2_cipher_suites"]["accepted_cipher_suites"]) == 3
        assert found["tls_compression"]["supports_compression"] is False
        assert found["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"] is False
        assert found["heartbleed"]["is_vulnerable_to_heartbleed"] is False
        assert found["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"] is False
        assert found["tls_fallback_scsv"]["supports_fallback_scsv"] is True
        curves = {curve["name"] for curve in found["elliptic_curves"]["supported_curves"]}
        assert curves == {"X25519", "X448", "secp256r1", "secp384r1", "secp521r1"}


# --- clients


def trusting(authority: Authority, command: list[str]) -> list[str]:
    """The same command, with this authority as the only one that it trusts."""
    env = shutil.which("env")
    need(env, "env is not there")
    return [str(env), f"SSL_CERT_FILE={authority.ca_path}", *command]


def test_the_websockets_library(served: Gateway, authority: Authority, sdk1: Path) -> None:
    """wss:// with a bearer token, its own TLS, a conversation, and a close in order."""
    command = trusting(authority, [str(sdk1 / "python"), str(HERE / "scripts" / "websockets_client.py")])
    job = {
        "url": f"wss://localhost:{served.ws_port}/",
        "headers": {"Authorization": f"Bearer {served.ws_token}"},
        "subprotocols": ["mcp"],
        "messages": [INITIALIZE, {"jsonrpc": "2.0", "id": 2, "method": "ping"}],
    }
    outcome = run_client(command, job)
    assert outcome["close"] == 1000
    assert [answer["id"] for answer in outcome["answers"]] == ["first", 2]


def test_the_official_python_sdk(served: Gateway, authority: Authority, sdk1: Path) -> None:
    """Its WebSocket client, which takes the authority from the environment and a ticket from the URL."""
    connection = http.client.HTTPSConnection("localhost", served.ws_port, timeout=30, context=authority.client())
    connection.request("POST", "/auth/ticket", headers={"Authorization": f"Bearer {served.ws_token}"})
    ticket = json.loads(connection.getresponse().read())["ticket"]
    connection.close()
    command = trusting(authority, [str(sdk1 / "python"), str(HERE / "scripts" / "sdk1_client.py")])
    url = f"wss://localhost:{served.ws_port}/?ticket={ticket}"
    outcome = run_client(command, {"url": url, "calls": [["echo", {"text": "over TLS"}]]})
    assert outcome["results"] == [{"error": False, "text": "over TLS"}]
    with pytest.raises(AssertionError, match=r"(?i)certificate"):
        run_client([str(sdk1 / "python"), str(HERE / "scripts" / "sdk1_client.py")], {"url": url, "calls": []})


def test_the_bridge_for_stdio_hosts(served: Gateway, authority: Authority, sdk1: Path) -> None:
    """A host that knows only stdio gets TLS by its ``mcpServers`` entry."""
    arguments = ["-m", "ops.cli.client", "stdio", "--url", f"wss://localhost:{served.ws_port}"]
    job = {
        "command": sys.executable,
        "args": [*arguments, "--ca-file", str(authority.ca_path)],
        "env": {"WS_AUTH_TOKEN": served.ws_token},
        "calls": [["echo", {"text": "bridged"}]],
    }
    outcome = run_client([str(sdk1 / "python"), str(HERE / "scripts" / "sdk1_client.py")], job)
    assert outcome["results"] == [{"error": False, "text": "bridged"}]
