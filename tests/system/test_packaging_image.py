"""The image: built and run by its own Containerfile's instructions, under the limits of compose.yaml."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import attrs
import gateway as gateways
import pytest
from image import ROOT, UID, Image, need_sandbox
from linters import yaml
from requirement import need

COMPOSE = ROOT / "ops" / "container" / "compose.yaml"
WITHIN = 60.0
TOKENS = {name: token_hex(32) for name in ("ws_auth_token", "tcp_auth_token", "jwt_secret", "admin_token")}


@attrs.define
class Container:
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: list[str] = attrs.field(factory=list)

    @property
    def init(self) -> int:
        """PID 1 of the container, as seen from outside."""
        return self.until(lambda: gateways.descendants(self.process.pid)[:1], "for the first process")[0]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + WITHIN
        while not (value := condition()):
            assert self.process.poll() is None, f"it ended with {self.process.poll()}\n{self.tail()}"
            assert time.monotonic() < deadline, f"waited in vain {what}\n{self.tail()}"
            time.sleep(0.02)
        return value

    def execute(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """As ``docker exec``: in all its namespaces, as its user, without a capability, with its environment."""
        enter = ["nsenter", f"--target={self.init}", "--user", "--preserve-credentials", "--mount", "--pid", "--net"]
        environment = {**self.environment, **more}
        return subprocess.run(
            [*enter, "setpriv", "--inh-caps=-all", "--no-new-privs", "--", *words],
            env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=WITHIN,
        )  # fmt: skip

    def said(self, *words: str, **more: str) -> str:
        done = self.execute(*words, **more)
        assert done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}\n{self.tail()}"
        return done.stdout

    def until_said(self, words: str) -> None:
        """In its log, which may still be on its way."""
        deadline = time.monotonic() + WITHIN
        while not any(words in line for line in self.log):
            assert time.monotonic() < deadline, f"never said {words}\n{self.tail()}"
            time.sleep(0.02)

    def tail(self) -> str:
        return "".join(self.log[-40:])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    need_sandbox()
    base = tmp_path_factory.getbasetemp()
    return Image.built((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "image")


@contextmanager
def running(image: Image, directory: Path, words: Sequence[str] = (), **changes: str) -> Iterator[Container]:
    """A container with compose.yaml's environment and secrets; its volumes are in ``directory``."""
    secrets = directory / "secrets"
    secrets.mkdir()
    for name, value in TOKENS.items():
        (secrets / name).write_text(value + "\n")
    composed = yaml(COMPOSE)["services"]["gateway"]["environment"]
    environment = {**image.environment, **composed, "ALLOWED_HOSTS": "localhost,127.0.0.1", **changes}
    more = ["--ro-bind", str(secrets), "/run/secrets"]
    command = image.command([*image.entry_point, *words], directory, more=more)
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    container = Container(process, environment)
    reader = threading.Thread(target=collect, args=(process.stderr, container.log), daemon=True)
    reader.start()
    try:
        yield container
    finally:
        if process.poll() is None:
            process.kill()  # its children die with it
            process.wait()
        reader.join()


@pytest.fixture(scope="module")
def container(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """One that is only looked at."""
    with running(image, tmp_path_factory.mktemp("container")) as started:
        yield ready(started)


def collect(stream: Any, lines: list[str]) -> None:
    with stream:
        lines.extend(line.decode(errors="replace") for line in stream)


def ready(container: Container) -> Container:
    line = "ready: ws 3002, tcp 9500, health 9501, pid 1"
    container.until(lambda: any(line in said for said in container.log), "to be ready")
    return container


def status_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\s+(.*)$", text, re.MULTILINE))


def test_it_runs_within_its_limits(container: Container) -> None:
    """Every process, PID 1 the supervisor: user 10001, no capability at all, no_new_privs; the root is read-only."""
    assert "supervisor" in container.said("cat", "/proc/1/cmdline")
    assert status_of(container.said("cat", "/proc/1/status"))["Uid"].split() == [str(UID)] * 4
    family = gateways.descendants(container.process.pid)
    assert len(family) > 5
    for status in [status_of(Path(f"/proc/{pid}/status").read_text()) for pid in family]:
        assert {int(status[kind], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert status["Uid"].split() == [str(os.getuid())] * 4, "which is 10001 inside"
    for path in ("/x", "/app/x", "/usr/x", "/etc/x", "/var/lib/x"):
        assert container.execute("touch", path).returncode != 0, path


GUIDE = (ROOT / "ops" / "docs" / "deployment.md").read_text()


@pytest.mark.parametrize("command", re.findall(r"^\$ docker compose exec gateway (.*)$", GUIDE, re.MULTILINE))
def test_the_guides_commands_work(container: Container, command: str) -> None:
    """Every ``docker compose exec gateway …`` of the document, as it stands there."""
    if command.startswith("node"):
        need(shutil.which("node"), "node is not installed (Debian: apt-get install nodejs)")
    assert container.said("sh", "-c", command)


def test_what_the_commands_say(container: Container) -> None:
    """On PATH, and without an option."""
    assert "gateway" in container.said("mcp-health")
    assert isinstance(json.loads(container.said("mcp-connections", "--json")), list)
    assert "gateway.started" in container.said("mcp-security-audit")
    assert "intact" in container.said("mcp-security-audit", "verify")
    assert container.said("head", "-c", "9", "/app/mcp-logs/security/security-audit.log") == "SECURITY "


@pytest.mark.parametrize("transport", ["ws", "tcp"])
def test_the_example_client_works_in_the_image(container: Container, transport: str) -> None:
    """``node /app/secure-client-example.js ws|tcp``, with the token from the secret's file."""
    need(shutil.which("node"), "node is not installed (Debian: apt-get install nodejs)")
    out = container.said("node", "/app/secure-client-example.js", transport)
    assert out.splitlines()[-1] == "hello"


def test_the_health_check_is_the_gateways(container: Container, image: Image) -> None:
    """HEALTHCHECK and compose.yaml ask the same; healthy is 0, and a gateway that does not answer is 1."""
    composed = yaml(COMPOSE)["services"]["gateway"]["healthcheck"]["test"]
    assert [word.replace("$$", "$") for word in composed] == ["CMD", *image.health_check]
    container.until(lambda: container.execute(*image.health_check).returncode == 0, "to be healthy")
    assert container.execute(*image.health_check, HEALTH_PORT="9").returncode == 1


def test_orphans_are_reaped(container: Container) -> None:
    """What a command in the container leaves behind becomes PID 1's, and ends without a zombie."""

    def sleepers() -> list[int]:  # a zombie keeps its name, and has no command line any more
        family = gateways.descendants(container.process.pid)
        return [pid for pid in family if name_of(pid) == "sleep"]

    container.said("sh", "-c", "sleep 0.5 >/dev/null 2>&1 &")
    container.until(lambda: not sleepers(), "for the orphan's end")


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_from_outside_there_are_figures_for_a_token_and_no_admin_api(container: Container) -> None:
    """Loopback in the container is the operators'; on every other address the admin API is off."""
    script = (
        "import sys, urllib.request, urllib.error\n"
        "request = urllib.request.Request(sys.argv[1])\n"
        "if len(sys.argv) > 2: request.add_header('Authorization', 'Bearer ' + sys.argv[2])\n"
        "try: print(urllib.request.urlopen(request).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
    )

    def status(url: str, *token: str) -> str:
        return container.said("python", "-c", script, url, *token).strip()

    token = TOKENS["admin_token"]
    # All of 127.0.0.0/8 is this machine's; only 127.0.0.1 is bound as loopback.
    assert status("http://127.0.0.2:9501/livez") == "200"
    assert status("http://127.0.0.2:9501/metrics") == "401"
    assert status("http://127.0.0.2:9501/metrics", token) == "200"
    assert status("http://127.0.0.2:9501/admin/v1/connections", token) == "403"
    assert status("http://127.0.0.1:9501/admin/v1/connections", token) == "200"


def test_a_stop_ends_everything(image: Image, tmp_path: Path) -> None:
    """SIGTERM to PID 1, as ``docker stop`` sends it: exit code 0, no error, nothing left, and the audit log says so."""
    with running(image, tmp_path) as container:
        ready(container)
        family = {pid: gateways.started(pid) for pid in gateways.descendants(container.process.pid)}
        assert len(family) > 5
        os.kill(container.init, signal.SIGTERM)
        assert container.process.wait(WITHIN) == 0, container.tail()
        assert not [pid for pid, start in family.items() if start and gateways.started(pid) == start]
        container.until_said('"message": "stopped"')
        assert not [line for line in container.log if '"level": "error"' in line or "traceback" in line]
        assert "gateway.stopped" in (tmp_path / "logs" / "security" / "security-audit.log").read_text()


def test_a_wrong_configuration_is_exit_code_2(image: Image, tmp_path: Path) -> None:
    """All of it at once, on stderr, as without a container."""
    wrong = {"CORS_ALLOWED_ORIGINS": "*", "CORS_ALLOW_CREDENTIALS": "true"}
    with running(image, tmp_path, ("--ws-port", "70000"), **wrong) as container:
        assert container.process.wait(WITHIN) == 2
        container.until_said("WS_PORT")
        container.until_said("CORS")
