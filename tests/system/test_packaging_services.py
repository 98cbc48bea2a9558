"""The gateway beside what runs around it: a service manager, logrotate, certbot's hook, nginx in front."""

from __future__ import annotations

import getpass
import grp
import gzip
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway import ROOT, Gateway
from requirement import need
from tls_clients import Authority

from ipc.settings import Settings

OPS = ROOT / "ops"
WITHIN = 60.0
SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WITHIN
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain {what}"
        time.sleep(0.02)
    return value


def tool(name: str, package: str) -> str:
    found = shutil.which(name, path=SBIN)
    need(found, f"{name} is not installed (Debian: apt-get install {package})")
    return str(found)


# --- a service manager


def test_the_service_manager_hears_of_everything(start_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """READY once all is open, signs of life, RELOADING and READY around SIGHUP, STOPPING; workers know nothing."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(WITHIN)

        def hear(first: str) -> list[str]:
            """The next datagram that begins so; signs of life may come in between, and nothing else."""
            while True:
                lines = manager.recv(65536).decode().split("\n")
                if lines[0] == first:
                    return lines
                assert lines == ["WATCHDOG=1"], lines

        gateway = start_gateway(environment={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "600000"})
        ready = hear("READY=1")
        assert ready[1].startswith(f"STATUS=ready: ws {gateway.ws_port}, tcp {gateway.tcp_port}")
        for _ in range(3):
            hear("WATCHDOG=1")
        for pid in gateway.workers():
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
        for pid in gateway.workers():
            held = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
            assert not [name for name in held if "notify" in name]
        gateway.process.send_signal(signal.SIGHUP)
        assert hear("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        hear("READY=1")
        gateway.stop()
        within_us = (Settings().drain_timeout_ms + 15_000) * 1000
        assert hear("STOPPING=1")[1:] == ["STATUS=draining", f"EXTEND_TIMEOUT_USEC={within_us}"]


def test_a_server_can_not_speak_for_the_gateway(start_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """A stdio server's environment has nothing of the service manager."""
    seen = tmp_path / "environment"
    script = f"import os, sys; open({str(seen)!r}, 'w').write(repr(dict(os.environ))); sys.stdin.read()"
    gateway = start_gateway(
        servers={"noted": {"command": sys.executable, "args": ["-c", script]}},
        environment={"NOTIFY_SOCKET": "@portcullis-nobody", "WATCHDOG_USEC": "60000000", "DRAIN_TIMEOUT_MS": "500"},
    )
    with socket.create_connection(("127.0.0.1", gateway.tcp_port), timeout=WITHIN) as client:
        line = {"jsonrpc": "2.0", "id": 1, "method": "authenticate", "params": {"token": gateway.tcp_token}}
        client.sendall(json.dumps(line).encode() + b"\n")
        assert b'"authenticated":true' in client.recv(65536)
        line = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        client.sendall(json.dumps(line).encode() + b"\n")
        text = until(lambda: seen.exists() and seen.read_text(), "for the server")
    assert "PATH" in text
    assert not re.search("NOTIFY_SOCKET|WATCHDOG", text)


def test_a_failed_start_says_why_to_the_manager(start_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """Nothing is ever READY then."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        key = tmp_path / "gateway0" / "state" / "audit.key"
        key.parent.mkdir(parents=True)
        key.mkdir()
        gateway = start_gateway(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}, wait=False)
        assert gateway.process.wait(WITHIN) == 1
        heard = manager.recv(65536).decode()
        assert heard.startswith("STATUS=the first start failed: "), heard
        with pytest.raises(BlockingIOError):
            manager.recv(65536)


# --- logrotate


def test_logrotate_moves_and_the_chain_runs_on(start_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """The real logrotate with our configuration, twice: moved, then gzipped; SIGUSR1 begins anew; all verifies."""
    logrotate = tool("logrotate", "logrotate")
    need(os.getuid() == 0, "logrotate's su takes root")
    gateway = start_gateway()
    text = (OPS / "logrotate" / "mcp-security").read_text()
    text = text.replace("/var/log/portcullis/", f"{gateway.audit_dir}/")
    text = text.replace("su portcullis portcullis", f"su {getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}")
    text, count = re.subn(r"systemctl kill .*? portcullis\.service", f"kill -USR1 {gateway.pid}", text)
    assert count == 1
    configuration = tmp_path / "mcp-security"
    configuration.write_text(text)
    configuration.chmod(0o644)

    def rotate(*options: str) -> str:
        words = [logrotate, "--state", str(tmp_path / "status"), "--verbose", *options, str(configuration)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "error:" not in done.stderr, done.stderr
        return done.stderr

    assert "considering log" in rotate("--debug")
    active = gateway.audit_dir / "security-audit.log"
    for _ in range(2):
        rotate("--force")
        until(lambda: active.exists() and active.stat().st_size, "for the new file")
    assert (gateway.audit_dir / "security-audit.log.1").exists()
    with gzip.open(gateway.audit_dir / "security-audit.log.2.gz", "rt") as oldest:
        assert '"event":"gateway.started"' in oldest.read()
    gateway.stop()
    places = ["--log-dir", str(gateway.audit_dir), "--state-dir", str(gateway.state_dir)]
    verify = [sys.executable, "-m", "ops.cli.audit", "verify", *places]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 files" in done.stdout


# --- certbot


def served_serial(port: int, authority: Authority) -> int:
    context = authority.client()
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN) as raw, context.wrap_socket(raw) as secure:
        certificate = secure.getpeercert()
    assert certificate is not None
    return int(str(certificate["serialNumber"]), 16)


def test_the_deploy_hook_has_the_new_certificate_served(start_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """As certbot calls it; the key is for the owner and the group only. Of another lineage it takes nothing."""
    lineage, target = tmp_path / "live", tmp_path / "tls"
    lineage.mkdir()
    authority = Authority(tmp_path)

    def renew() -> None:
        files = authority.server()
        shutil.copy(files["SSL_CERT_PATH"], lineage / "fullchain.pem")
        shutil.copy(files["SSL_KEY_PATH"], lineage / "privkey.pem")

    def deploy(reload: str, **more: str) -> subprocess.CompletedProcess[str]:
        owner = f"{os.getuid()}:{os.getgid()}"
        variables = {"CERTIFICATES": str(target), "OWNER": owner, "RELOAD": reload, "RENEWED_LINEAGE": str(lineage)}
        hook = str(OPS / "certbot" / "portcullis-deploy")
        environment = {"PATH": os.defpath, **variables, **more}
        return subprocess.run([hook], env=environment, capture_output=True, text=True, check=False)

    renew()
    first = deploy("false")
    assert first.returncode == 0
    assert "failed" in first.stderr, "nobody runs yet"
    pair = {"SSL_CERT_PATH": str(target / "fullchain.pem"), "SSL_KEY_PATH": str(target / "privkey.pem")}
    assert (target / "privkey.pem").stat().st_mode & 0o777 == 0o640
    gateway = start_gateway(environment={"SSL_ENABLED": "true", **pair})
    old = served_serial(gateway.ws_port, authority)
    renew()
    assert deploy("false", LINEAGE="/etc/letsencrypt/live/other").stderr == ""
    assert deploy(f"kill -HUP {gateway.pid}").stderr == ""
    until(lambda: served_serial(gateway.ws_port, authority) != old, "for the new certificate")
    assert not [path for path in target.iterdir() if path.name.endswith(".new")]
    assert deploy("true", RENEWED_LINEAGE="").returncode == 2


# --- nginx


@contextmanager
def nginx(directory: Path, gateway: Gateway, authority: Authority, *, by_stream: bool) -> Iterator[dict[str, int]]:
    """A real nginx with our files, changed in names and ports only. Yields its ports: https, tls."""
    program = tool("nginx", "nginx-light libnginx-mod-stream")
    need(STREAM_MODULE.exists(), "nginx has no stream module (Debian: apt-get install libnginx-mod-stream)")
    files = authority.server()
    for attempt in range(5):
        prefix = directory / f"nginx{attempt}"
        (prefix / "logs").mkdir(parents=True)
        https, tls, hop = (free_port() for _ in range(3))
        changes = {
            "/etc/letsencrypt/live/gateway.example/fullchain.pem": files["SSL_CERT_PATH"],
            "/etc/letsencrypt/live/gateway.example/privkey.pem": files["SSL_KEY_PATH"],
            "listen [::]:443 ssl;": "",
            "listen [::]:9543 ssl;": "",
            "listen 443 ssl;": f"listen 127.0.0.1:{https} ssl;",
            "listen 9543 ssl;": f"listen 127.0.0.1:{tls} ssl;",
            "listen 127.0.0.1:3012;": f"listen 127.0.0.1:{hop};",
            "server 127.0.0.1:3002;": f"server 127.0.0.1:{hop if by_stream else gateway.ws_port};",
            "proxy_pass 127.0.0.1:3002;": f"proxy_pass 127.0.0.1:{gateway.ws_port};",
            "proxy_pass 127.0.0.1:9500;": f"proxy_pass 127.0.0.1:{gateway.tcp_port};",
            "/var/log/nginx/portcullis.log": str(prefix / "access.log"),
        }
        for name in ("http", "stream"):
            text = (OPS / "nginx" / f"portcullis.{name}.conf").read_text()
            for old, new in changes.items():
                text = text.replace(old, new)
            (prefix / f"{name}.conf").write_text(text)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {prefix}/{kind};" for kind in kinds)
        user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
        main = (
            f"{user} load_module {STREAM_MODULE}; daemon off; pid {prefix}/pid; error_log {prefix}/error.log notice;"
            f" events {{}} http {{ {temporary} include {prefix}/http.conf; }}"
            f" stream {{ include {prefix}/stream.conf; }}"
        )
        (prefix / "nginx.conf").write_text(main)
        words = [program, "-p", str(prefix), "-e", str(prefix / "error.log"), "-c", str(prefix / "nginx.conf")]
        checked = subprocess.run([*words, "-t"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr, checked.stderr
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            listening = prefix / "pid"  # written when all is bound
            until(lambda: process.poll() is not None or listening.exists(), "for nginx")  # noqa: B023
            if process.poll() is None:
                yield {"https": https, "tls": tls}
                return
            assert "Address already in use" in (prefix / "error.log").read_text()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(WITHIN)
    raise AssertionError("no free ports for nginx")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connected(port: int, authority: Authority, source: str) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=WITHIN, source_address=(source, 0))
    return authority.client().wrap_socket(raw, server_hostname="localhost")


def upgrade(stream: ssl.SSLSocket, token: str, *lines: str) -> bytes:
    """The head of the answer."""
    head = (
        *("GET /?ticket=none HTTP/1.1" if not token else "GET / HTTP/1.1", "Host: localhost", "Upgrade: websocket"),
        *("Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        *((f"Authorization: Bearer {token}",) if token else ()),
        *lines,
    )
    stream.sendall("\r\n".join((*head, "", "")).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = stream.recv(65536)
        if not data:
            break
        answer += data
    return answer


def peers(gateway: Gateway) -> set[tuple[str, str]]:
    """Transport and address of everybody who is connected, as operators see it."""
    words = [sys.executable, "-m", "ops.cli.connections", "--json", "--state-dir", str(gateway.state_dir)]
    words += ["--url", f"http://127.0.0.1:{gateway.health_port}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {(one["transport"], one["peer"].rpartition(":")[0]) for one in json.loads(done.stdout)}


@pytest.mark.parametrize("by_stream", [False, True], ids=["X-Forwarded-For", "with PROXY"])
def test_behind_nginx_every_client_has_its_own_address(
    start_gateway: Callable[..., Gateway], tmp_path: Path, by_stream: bool
) -> None:
    """WebSocket through nginx's HTTP side, lines through its stream side: TLS outside, whoever it is inside.

    What a client writes into X-Forwarded-For itself counts for nothing, one client's block hits nobody else, and no
    ticket gets into nginx's log.
    """
    authority = Authority(tmp_path)
    environment = {
        "TRUSTED_PROXIES": "127.0.0.1",
        "PROXY_PROTOCOL": "required" if by_stream else "off",
        "ALLOWED_HOSTS": "localhost",
    }
    gateway = start_gateway(environment=environment)
    with nginx(tmp_path, gateway, authority, by_stream=by_stream) as ports:
        client = [sys.executable, "-m", "ops.cli.client"]
        ca = ["--ca-file", str(authority.ca_path)]
        done = subprocess.run(
            [*client, "ws", "--url", f"wss://localhost:{ports['https']}", "--token", gateway.ws_token, *ca],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "hello" in done.stdout

        with connected(ports["https"], authority, "127.0.0.9") as nine:
            assert b" 101 " in upgrade(nine, gateway.ws_token, "X-Forwarded-For: 198.51.100.1")
            until(lambda: ("ws", "127.0.0.9") in peers(gateway), "for the client's address")
        if by_stream:
            words = [*client, "tcp", "--tls", "--host", "localhost", "--port", str(ports["tls"])]
            done = subprocess.run(
                [*words, "--token", gateway.tcp_token, *ca], capture_output=True, text=True, check=False
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            with connected(ports["tls"], authority, "127.0.0.8") as eight:
                line = {"jsonrpc": "2.0", "id": 1, "method": "authenticate", "params": {"token": gateway.tcp_token}}
                eight.sendall(json.dumps(line).encode() + b"\n")
                assert b'"authenticated":true' in eight.recv(65536)
                until(lambda: ("tcp", "127.0.0.8") in peers(gateway), "for the client's address")

        def attempt(source: str, token: str) -> bytes:
            with connected(ports["https"], authority, source) as stream:
                return upgrade(stream, token).split(b"\r\n")[0]

        for _ in range(3):
            assert b" 401 " in attempt("127.0.0.7", "wrong")
        until(lambda: b" 403 " in attempt("127.0.0.7", gateway.ws_token), "for the block")
        assert b" 101 " in attempt("127.0.0.6", gateway.ws_token)
        assert b" 101 " not in attempt("127.0.0.6", "")
        log = next(tmp_path.glob("nginx*/access.log"))
        until(lambda: '"GET /" 101' in log.read_text(), "for nginx's log")
        assert "ticket" not in log.read_text()


def test_nginx_waits_longer_than_the_gateway() -> None:
    """Its times are beyond WS_PING_INTERVAL_MS, TCP_CONNECTION_TIMEOUT and a call's; bodies are no bigger than ours."""
    settings = Settings()
    http = (OPS / "nginx" / "portcullis.http.conf").read_text()
    stream = (OPS / "nginx" / "portcullis.stream.conf").read_text()
    for name in ("proxy_read_timeout", "proxy_send_timeout"):
        (seconds,) = re.findall(rf"^\s+{name} (\d+)s;", http, re.MULTILINE)
        assert int(seconds) * 1000 >= 2 * settings.ws_ping_interval_ms
    longest = max(settings.tcp_connection_timeout, settings.ws_connection_timeout, 10 * settings.circuitbreaker_timeout)
    for seconds in re.findall(r"^\s+proxy_timeout (\d+)s;", stream, re.MULTILINE):
        assert int(seconds) * 1000 > longest
    assert f"client_max_body_size {settings.max_preauth_size // 1024}k;" in http
