"""The files that other programs read, checked by those programs or their linters, and against the gateway itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from image import CONTAINERFILE, ROOT, stages
from linters import linter, yaml
from requirement import need

from ipc.settings import Settings
from supervisor.settings.variables import BY_NAME

OPS = ROOT / "ops"
COMPOSE = OPS / "container" / "compose.yaml"
UNIT = OPS / "systemd" / "portcullis.service"
SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def tool(name: str, package: str) -> str:
    found = shutil.which(name, path=SBIN)
    need(found, f"{name} is not installed (Debian: apt-get install {package})")
    return str(found)


def check(*words: str | Path, **options: Any) -> str:
    """Run a checker; what it says, which must not be a complaint. Complaints go to stderr or change the exit code."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_containerfile() -> None:
    """With every rule but the one that is left out with its reason beside it."""
    assert check(linter("hadolint"), "--failure-threshold", "style", "--no-color", CONTAINERFILE) == ""


def test_the_images_settings_are_what_the_contract_says() -> None:
    """Small and multi-stage, from hashes, as nobody, on every address, ended by SIGTERM, asked by mcp-health."""
    build, gateway, last = stages()
    assert any("--require-hashes --no-deps" in run for run in build.all("RUN"))
    assert last.base == gateway.name
    assert gateway.all("USER") == ["10001:10001"]
    assert last.all("USER")[-1] == "10001:10001"
    assert gateway.all("STOPSIGNAL") == ["SIGTERM"]
    assert gateway.list_of("ENTRYPOINT") == ["python", "-m", "supervisor"]
    assert "mcp-health" in gateway.all("HEALTHCHECK")[0]
    environment = gateway.environment()
    assert environment["AUDIT_LOG_DIR"] == "/app/mcp-logs/security"
    assert environment["WS_HOST"] == environment["TCP_HOST"] == "0.0.0.0"
    volumes = gateway.list_of("VOLUME")
    assert environment["STATE_DIR"] in volumes
    assert any(environment["AUDIT_LOG_DIR"].startswith(f"{volume}/") for volume in volumes)


def test_the_build_has_no_secrets_in_its_context() -> None:
    """Both engines ignore all that is not named, and of that secrets and state."""
    ignored = (ROOT / ".containerignore").read_text()
    assert ignored == (ROOT / ".dockerignore").read_text()
    rules = [line for line in ignored.splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {"**/.env", "**/secrets", "**/*.pem", "**/*.key"} <= set(rules)
    copied = {word.strip("./") for copy in stages()[0].all("COPY") for word in copy.split()[:-1]}
    named = {rule[1:] for rule in rules if rule.startswith("!")}
    assert {path.split("/")[0] for path in copied} == named


def test_the_compose_file_fits_its_schema() -> None:
    """By the Compose specification's own schema."""
    check(linter("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_every_composed_service_is_hardened() -> None:
    """no-new-privileges, a read-only root, no capability and none added, nobody is root; tmpfs where needed."""
    services = yaml(COMPOSE)["services"]
    assert set(services) == {"gateway", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert not {"cap_add", "privileged", "pid", "ipc", "network_mode", "devices"} & set(service), name
        assert not service["user"].startswith("0"), name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert not any("docker.sock" in volume for volume in service["volumes"]), name
    gateway = services["gateway"]
    assert gateway["tmpfs"]
    assert all({"noexec", "nosuid", "nodev"} <= set(mount.partition(":")[2].split(",")) for mount in gateway["tmpfs"])
    assert not [port for port in gateway["ports"] if port.endswith(":9501")], "operators and figures stay inside"


def test_servers_are_on_a_network_of_their_own() -> None:
    """Only the gateway is on it, and it leads nowhere else."""
    composed = yaml(COMPOSE)
    assert composed["networks"]["servers"] == {"internal": True}
    on_it = [name for name, service in composed["services"].items() if "servers" in service["networks"]]
    assert on_it == ["gateway"]


def test_secrets_are_files_and_monitoring_is_optional() -> None:
    """No secret is in the environment; without the profile there is the gateway alone; grace outlasts the drain."""
    composed = yaml(COMPOSE)
    services = composed["services"]
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search("TOKEN|SECRET|PASSWORD", name):
                assert name.endswith("_FILE"), name
                assert value.removeprefix("/run/secrets/") in service["secrets"]
    assert [name for name, service in services.items() if "profiles" not in service] == ["gateway"]
    assert services["gateway"]["environment"]["SECURITY_PROFILE"] == "production"
    assert int(services["gateway"]["stop_grace_period"].removesuffix("s")) * 1000 > Settings().drain_timeout_ms


def test_prometheus_and_grafana_find_each_other_and_the_gateway() -> None:
    """Every file that is mounted exists; targets and addresses are services on a network that both are on."""
    composed = yaml(COMPOSE)
    services = composed["services"]
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source in composed["volumes"] or source == "../grafana":
                continue
            assert (COMPOSE.parent / source).exists(), source
    scraped = yaml(COMPOSE.parent / "prometheus.yml")
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["gateway:9501"]}]
    assert job["authorization"]["credentials_file"].removeprefix("/run/secrets/") in services["prometheus"]["secrets"]
    provisioning = COMPOSE.parent / "grafana" / "provisioning"
    (source,) = yaml(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml(provisioning / "dashboards" / "portcullis.yaml")["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted
    assert all("monitoring" in service["networks"] for service in services.values())
    rules = {Path(pattern).parent.as_posix() for pattern in scraped["rule_files"]}
    assert rules <= {volume.split(":")[1] for volume in services["prometheus"]["volumes"]}
    for path in (*(OPS / "grafana").glob("*.yml"), *(OPS / "grafana").glob("*.yaml")):
        assert "groups" in yaml(path), f"{path.name} would be read as alert rules"


def installed_unit(directory: Path) -> Path:
    """The unit as it is when the tree is installed: systemd looks whether its program is there."""
    path = directory / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/portcullis/.venv", str(ROOT / ".venv")))
    return path


def test_systemd_finds_nothing_in_the_unit(tmp_path: Path) -> None:
    """systemd-analyze verify, with warnings as errors: neither an unknown setting nor a missing program."""
    systemd = tool("systemd-analyze", "systemd")
    need((ROOT / ".venv").exists(), "there is no .venv in the tree")
    assert check(systemd, "verify", "--man=no", installed_unit(tmp_path)) == ""


def test_the_units_sandbox_is_tight(tmp_path: Path) -> None:
    """systemd-analyze security rates its exposure at 1.5 or lower, of 10."""
    systemd = tool("systemd-analyze", "systemd")
    said = check(systemd, "security", "--offline=true", "--no-pager", "--threshold=15", installed_unit(tmp_path))
    assert re.search(r"Overall exposure level for \S+: (1\.[0-5]|0\.\d) ", said), said[-300:]


def test_the_unit_agrees_with_the_gateway() -> None:
    """Notified by the main process alone, which gets the signals alone, with time for its drain."""
    unit = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert (unit["Type"], unit["NotifyAccess"], unit["KillMode"]) == ("notify", "main", "mixed")
    assert int(unit["TimeoutStopSec"].removesuffix("s")) * 1000 > Settings().drain_timeout_ms
    assert int(unit["WatchdogSec"].removesuffix("s")) * 1000 > 4 * Settings().heartbeat_timeout_ms
    assert unit["RestartPreventExitStatus"] == "2"
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ""


def test_systemd_makes_the_account() -> None:
    """systemd-sysusers understands the file."""
    systemd = tool("systemd-sysusers", "systemd")
    check(systemd, "--dry-run", str(OPS / "systemd" / "portcullis.sysusers"))


def test_nftables_takes_the_firewall() -> None:
    """nft -c, which asks the kernel; unprivileged in a network namespace of its own."""
    nft = tool("nft", "nftables")
    probe = subprocess.run(["unshare", "-Urn", nft, "list", "ruleset"], capture_output=True, text=True, check=False)
    need(probe.returncode == 0, f"nft can't be used in a network namespace here: {probe.stderr.strip()}")
    rules = OPS / "firewall" / "portcullis.nft"
    assert check("unshare", "-Urn", nft, "-c", "-f", rules) == ""
    # Loading it twice is as good as once, and the gateway's own ports are open to nobody.
    twice = f"{nft} -f {rules} && {nft} -f {rules} && {nft} -j list table inet portcullis"
    listed = json.loads(check("unshare", "-Urn", "sh", "-c", twice))["nftables"]
    chains = {item["chain"]["name"]: item["chain"] for item in listed if "chain" in item}
    assert chains["input"]["policy"] == "drop"
    text = json.dumps([item["rule"] for item in listed if "rule" in item])
    assert not {"3002", "9500", "9501"} & set(re.findall(r"\d+", text))


@pytest.mark.parametrize("path", [OPS / "certbot" / "portcullis-deploy"], ids=lambda path: path.name)
def test_hooks_are_for_a_plain_shell(path: Path) -> None:
    """POSIX sh, executable."""
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")
    check("/bin/sh", "-n", path)


DOCUMENT = OPS / "docs" / "deployment.md"


def commands() -> list[str]:
    """The commands of the document, without their prompts."""
    blocks = re.findall(r"^```console\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines), "nothing but commands"
    return [line[2:] for line in lines]


def test_the_documents_commands_are_commands() -> None:
    """The shell parses every one; every file of the tree that it names is there."""
    for command in commands():
        check("/bin/sh", "-n", "-c", command)
        for path in re.findall(r"(?<![\w/])(?:ops/[\w./-]+|\.env\.example)", command):
            assert (ROOT / path).exists() or path == "ops/container/secrets", path


def test_the_documents_figures_and_settings_are_true() -> None:
    """Variables that it names exist; files that it says to install go where they say of themselves that they belong."""
    text = DOCUMENT.read_text()
    known = {*BY_NAME, "MCP_CONFIG"}
    for name in re.findall(r"`([A-Z][A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", text):
        assert name in known or name.removesuffix("_FILE") in known, name
    for command in commands():
        if match := re.match(r"install -m \d+ (ops/\S+) (/etc/(?:logrotate|nginx|letsencrypt|sysusers)\S+)", command):
            assert match[2] in (ROOT / match[1]).read_text()[:400], command
