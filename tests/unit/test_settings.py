"""From flags, environment, files and .env to Settings, and every error at once."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import msgspec
import pytest

from ipc.settings import Settings, Upstream
from supervisor.settings import (
    ConfigurationError,
    answer,
    dotenv,
    generate_tokens,
    load,
    load_some,
    unavailable,
    with_admin_token,
)
from supervisor.settings.cpus import allowed_cpus
from supervisor.settings.example import example
from supervisor.settings.load import Loaded
from supervisor.settings.values import loopback_hosts
from supervisor.settings.variables import BY_NAME, UPSTREAM_SOURCES, VARIABLES, as_text, look_alike

GOOD = "8f4e1c0b7a6d59382716f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a0"
OTHER = "Jx0hW8mVtq3Zr5LkPn1uYb7cEaGd2fSi4oQ6wR9vTg"
PRODUCTION = {
    "SECURITY_PROFILE": "production",
    "WS_AUTH_TOKEN": GOOD,
    "TCP_AUTH_TOKEN": OTHER,
    "SSL_ENABLED": "false",
}
ROOT = Path(__file__).parent.parent.parent


def settings(directory: Path, environ: dict[str, str] | None = None, *argv: str) -> Settings:
    return load(argv, environ or {}, directory).settings


def problems(directory: Path, environ: dict[str, str] | None = None, *argv: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(argv, environ or {}, directory)
    return [str(problem) for problem in caught.value.problems]


def warnings(directory: Path, environ: dict[str, str] | None = None, *argv: str) -> list[str]:
    return [str(warning) for warning in load(argv, environ or {}, directory).warnings]


# --- defaults


def test_every_variable_is_a_field_and_every_field_a_variable() -> None:
    """The table and the Struct can't drift apart."""
    fields = set(Settings.__struct_fields__) - {"upstreams", "authorization", "content", "made_up_tokens"}
    assert {variable.field for variable in VARIABLES if variable not in UPSTREAM_SOURCES} == fields


def test_the_struct_s_defaults_are_the_development_profile_s() -> None:
    """``Settings()`` in a test is what the table says."""
    bare = Settings()
    for variable in VARIABLES:
        if variable not in UPSTREAM_SOURCES:
            assert getattr(bare, variable.field) == variable.default, variable.name


def test_defaults_of_development_are_the_contract_s(tmp_path: Path) -> None:
    """Nothing configured is a good configuration without a warning."""
    loaded = load([], {}, tmp_path)
    found = loaded.settings
    assert loaded.warnings == ()
    assert (found.ws_port, found.tcp_port, found.health_port) == (3002, 9500, 9501)
    assert found.ws_host == found.tcp_host == loopback_hosts()
    assert found.health_host == ("127.0.0.1",)
    assert (found.rate_limit_max_requests, found.rate_limit_burst_requests) == (1000, 200)
    assert (found.max_connections_per_ip, found.connection_rate_limit) == (100, 6000)
    assert found.log_level == "debug"
    assert not found.ssl_enabled
    assert 1 <= found.workers <= 4
    assert found.state_dir == str(tmp_path / "var/state")
    assert found.audit_log_dir == str(tmp_path / "var/log/security")
    assert [upstream.name for upstream in found.upstreams] == ["embedded"]
    assert found.cors_allowed_origins == ("loopback",)


def test_defaults_of_production_are_the_contract_s(tmp_path: Path) -> None:
    """With strong tokens and TLS declared off it starts, with a warning about TLS."""
    loaded = load([], PRODUCTION, tmp_path)
    found = loaded.settings
    assert (found.rate_limit_max_requests, found.rate_limit_burst_requests) == (100, 20)
    assert (found.max_connections_per_ip, found.connection_rate_limit) == (20, 60)
    assert (found.log_level, found.cors_allowed_origins) == ("info", ())
    assert [warning.variable for warning in loaded.warnings] == ["SSL_ENABLED"]


def test_a_struct_crosses_a_process_unchanged(tmp_path: Path) -> None:
    """Every value has the type that the Struct declares, so a worker decodes what the supervisor encoded."""
    environ = {**PRODUCTION, "IP_ALLOWLIST": "10.1.2.3/8", "RATE_LIMIT_METHOD_COSTS": "tools/call=5"}
    found = settings(tmp_path, environ)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Settings) == found


def test_every_default_survives_being_written_and_read(tmp_path: Path) -> None:
    """What the example file shows as a default is accepted as a value."""
    for variable in VARIABLES:
        for profile in ("development", "production"):
            text = as_text(variable.default_for(profile))  # type: ignore[arg-type]
            if text and variable.parser.shape not in ("path", "file"):
                assert variable.parser.parse(text, tmp_path) == variable.default_for(profile)  # type: ignore[arg-type]


def test_the_example_file_is_the_table() -> None:
    """``.env.example`` holds every variable, sets none, and is up to date."""
    text = (ROOT / ".env.example").read_text()
    assert text == example()
    assert dotenv.parse(text) == ([], [])
    uncommented = "\n".join(line.removeprefix("#") for line in text.splitlines() if not line.startswith("# "))
    entries, broken = dotenv.parse(uncommented)
    assert broken == []
    assert [entry.name for entry in entries] == [variable.name for variable in VARIABLES]


def test_the_example_file_as_it_stands_starts(tmp_path: Path) -> None:
    """Copied, with every line switched on, it is the default configuration."""
    text = (ROOT / ".env.example").read_text()
    lines = [line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ")]
    (tmp_path / ".env").write_text("\n".join(lines))
    assert settings(tmp_path).rate_limit_max_requests == 1000


# --- sources and their order


def test_a_flag_overrides_the_environment_overrides_dotenv_overrides_the_default(tmp_path: Path) -> None:
    """In the contract's order, with the origin of each."""
    assert settings(tmp_path).ws_port == 3002
    (tmp_path / ".env").write_text("# ports\nWS_PORT=1\n")
    loaded = load([], {}, tmp_path)
    assert (loaded.settings.ws_port, loaded.origins["ws_port"]) == (1, f"{tmp_path}/.env line 2")
    (tmp_path / "port").write_text("2\n")
    assert settings(tmp_path, {"WS_PORT_FILE": "port"}).ws_port == 2
    loaded = load([], {"WS_PORT": "3"}, tmp_path)
    assert (loaded.settings.ws_port, loaded.origins["ws_port"]) == (3, "environment WS_PORT")
    loaded = load(["--ws-port", "4"], {"WS_PORT": "3"}, tmp_path)
    assert (loaded.settings.ws_port, loaded.origins["ws_port"]) == (4, "flag --ws-port")
    assert load([], {}, tmp_path).origins["tcp_port"] == "default, development"


def test_a_name_file_holds_the_value(tmp_path: Path) -> None:
    """White space around it is not part of it; an empty or missing file is an error that names it."""
    (tmp_path / "token").write_text(f"  {GOOD}\r\n")
    assert settings(tmp_path, {"WS_AUTH_TOKEN_FILE": str(tmp_path / "token")}).ws_auth_token == (GOOD,)
    (tmp_path / "token").write_text("\n")
    [empty] = problems(tmp_path, {"WS_AUTH_TOKEN_FILE": "token"})
    assert empty == "WS_AUTH_TOKEN (file token, environment WS_AUTH_TOKEN_FILE): the file is empty"
    [missing] = problems(tmp_path, {}, "--ws-auth-token-file", "nothing")
    assert "file nothing, flag --ws-auth-token-file" in missing
    assert "No such file" in missing


def test_both_a_name_and_its_file_are_an_error(tmp_path: Path) -> None:
    """In the environment as in .env; a flag still overrides both."""
    (tmp_path / "token").write_text(GOOD)
    environ = {"WS_AUTH_TOKEN": GOOD, "WS_AUTH_TOKEN_FILE": "token"}
    [both] = problems(tmp_path, environ)
    assert both.startswith("WS_AUTH_TOKEN (environment WS_AUTH_TOKEN and environment WS_AUTH_TOKEN_FILE)")
    assert GOOD not in both
    assert settings(tmp_path, environ, "--ws-auth-token", OTHER).ws_auth_token == (OTHER,)
    (tmp_path / ".env").write_text(f"TCP-AUTH-TOKEN={GOOD}\nTCP_AUTH_TOKEN_FILE=token\n")
    [both] = problems(tmp_path)
    assert both.startswith(f"TCP_AUTH_TOKEN ({tmp_path}/.env line 1 and {tmp_path}/.env line 2)")


def test_aliases_are_the_same_variable(tmp_path: Path) -> None:
    """The main name wins, and what it overrules is warned of."""
    assert settings(tmp_path, {"MCP_BRIDGE_PORT": "7"}).ws_port == 7
    assert settings(tmp_path, {"MCP_TCP_PORT": "7", "MCP_HEALTH_PORT": "8", "MCP_LOG_LEVEL": "error"}).tcp_port == 7
    assert settings(tmp_path, {}, "--mcp-bridge-port=9").ws_port == 9
    environ = {"MCP_BRIDGE_PORT": "7", "WS_PORT": "8"}
    assert settings(tmp_path, environ).ws_port == 8
    assert warnings(tmp_path, environ) == ["WS_PORT (environment MCP_BRIDGE_PORT): is overruled by environment WS_PORT"]
    assert settings(tmp_path, {**PRODUCTION, "SECURITY_PROFILE": "", "NODE_ENV": "production"}).log_level == "info"


def test_an_empty_value_is_none(tmp_path: Path) -> None:
    """Container files pass variables on that are unset; authentication stays on."""
    found = settings(tmp_path, {"WS_AUTH_ENABLED": "", "WS_PORT": "", "WS_AUTH_TOKEN": ""})
    assert (found.ws_auth_enabled, found.ws_port) == (True, 3002)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("WS-AUTH-TOKEN=abc", "abc"),
        ("export WS_AUTH_TOKEN=abc", "abc"),
        ("  WS_AUTH_TOKEN = abc  # comment", "abc"),
        ("WS_AUTH_TOKEN='a#b'", "a#b"),
        ('WS_AUTH_TOKEN="a b" # comment', "a b"),
        ('WS_AUTH_TOKEN="a\\"b\\n"', 'a"b\n'),
        ("WS_AUTH_TOKEN=a#b", "a#b"),
        ("WS_AUTH_TOKEN=a=b==", "a=b=="),
        ("\ufeffWS_AUTH_TOKEN=abc\r", "abc"),
        ("WS_AUTH_TOKEN='$X\\n'", "$X\\n"),
        ("WS_AUTH_TOKEN=# nothing", ""),
    ],
)
def test_dotenv_lines_are_read_as_shells_write_them(line: str, value: str) -> None:
    """Hyphens, export, quotes, comments, CRLF, a byte order mark."""
    [entry], broken = dotenv.parse(f"{line}\n")
    assert (entry.name, entry.value, broken) == ("WS_AUTH_TOKEN", value, [])


def test_broken_dotenv_lines_are_errors_with_file_and_line(tmp_path: Path) -> None:
    """All of them, and never with the value."""
    (tmp_path / ".env").write_text("WS_PORT=1\nhunter2\n\nJWT_SECRET='hunter2\nA=\"hunter2\" x\n=hunter2\n")
    found = problems(tmp_path)
    assert [problem.split(":")[0] for problem in found] == [f".env ({tmp_path}/.env line {n})" for n in (2, 4, 5, 6)]
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize("content", [b"WS_PORT=\xff", b"#" * (1 << 21)])
def test_an_unreadable_dotenv_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Neither ignored nor half read."""
    (tmp_path / ".env").write_bytes(content)
    [problem] = problems(tmp_path)
    assert problem.startswith(f".env ({tmp_path}/.env): can't be read: ")
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    assert "can't be read" in problems(tmp_path)[0]


# --- errors


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    """Flags, environment, .env, upstreams and rules between values, each with its origin."""
    (tmp_path / ".env").write_text("RATE_LIMIT_ENABLED=maybe\n")
    environ = {"WS_PORT": "99999", "MCP_CONFIG": "missing.json", "REDIS_ENABLED": "true", "MAX_BUFFER_SIZE": "300"}
    found = problems(tmp_path, environ, "--tcp-port=x", "--no-such-flag", "--workers")
    assert len(found) == 9
    text = "\n".join(found)
    for part in (
        "'--no-such-flag' (command line): is no flag",
        "WORKERS (flag --workers): has no value",
        "TCP_PORT (flag --tcp-port): must be a whole number, 0 to 65535 (port), not 'x'",
        "WS_PORT (environment WS_PORT): must be a whole number, 0 to 65535 (port), not '99999'",
        f"RATE_LIMIT_ENABLED ({tmp_path}/.env line 1): must be true or false, not 'maybe'",
        "MCP_CONFIG (environment MCP_CONFIG): ",
        "REDIS_ENABLED (environment REDIS_ENABLED): ",
        "MAX_REQUEST_SIZE (default, development): is 10485760, more than MAX_BUFFER_SIZE (300, environment",
    ):
        assert part in text


SECRETS = ("WS_AUTH_TOKEN", "TCP_AUTH_TOKEN", "JWT_SECRET", "JWT_SECRET_PREVIOUS", "SESSION_SECRET", "ADMIN_TOKEN")


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_never_printed(tmp_path: Path, name: str) -> None:
    """Not in errors of its own, not in --print-config, whichever way it came."""
    secret = "hunter2-hunter2"
    (tmp_path / "file").write_text(secret)
    (tmp_path / ".env").write_text("")
    ways: list[tuple[list[str], dict[str, str]]] = [
        ([], {name: secret}),
        ([], {f"{name}_FILE": "file"}),
        ([BY_NAME[name].flag, secret], {}),
        ([f"{BY_NAME[name].flag}={secret}"], {}),
        ([BY_NAME[name].flag, "x", secret], {}),
        ([], {name: f"{secret}\n{secret}"}),
    ]
    for argv, environ in ways:
        for profile in ("development", "production"):
            out, err = io.StringIO(), io.StringIO()
            answer([*argv, "--print-config"], {**environ, "SECURITY_PROFILE": profile}, tmp_path, out, err)
            assert name in out.getvalue() + err.getvalue()
            assert "hunter2" not in out.getvalue() + err.getvalue()


def test_a_secret_on_the_command_line_is_warned_of(tmp_path: Path) -> None:
    """Every local user sees it; a file's name is harmless."""
    assert any("every local user" in warning for warning in warnings(tmp_path, {}, "--ws-auth-token", GOOD))
    (tmp_path / "file").write_text(GOOD)
    assert not any("every local user" in w for w in warnings(tmp_path, {}, "--ws-auth-token-file", "file"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WS_PORT", "-1"), ("WS_PORT", "65536"), ("WS_PORT", "1_0"), ("WS_PORT", "٣"), ("WS_PORT", "1" * 5000),
        ("AUTH_TIMEOUT_MS", "0"), ("AUTH_TIMEOUT_MS", "10s"), ("CIRCUITBREAKER_FAILURE_RATE", "0"),
        ("CIRCUITBREAKER_FAILURE_RATE", "1.1"), ("CIRCUITBREAKER_FAILURE_RATE", "nan"), ("WORKERS", "0"),
        ("WS_HOST", "example.org"), ("WS_HOST", ","), ("LOG_LEVEL", "loud"), ("RATE_LIMIT_KEY", "cookie"),
        ("IP_ALLOWLIST", "10.0.0.0/33"), ("TRUSTED_PROXIES", "proxy"), ("CORS_ALLOWED_ORIGINS", "null"),
        ("CORS_ALLOWED_ORIGINS", "https://a/"), ("CORS_ALLOWED_ORIGINS", "a.example"),
        ("CORS_ALLOWED_ORIGINS", "https://u@a"), ("ALLOWED_HOSTS", "a:80"), ("ALLOWED_HOSTS", "a/b"),
        ("METRICS_PATH", "/health"), ("METRICS_PATH", "metrics"), ("METRICS_PATH", "/admin/v1/x"),
        ("JWT_ALGORITHMS", "none"), ("JWT_ALGORITHMS", "RS256"), ("RATE_LIMIT_METHOD_COSTS", "tools/call"),
        ("RATE_LIMIT_METHOD_COSTS", "tools/call=-1"), ("WS_AUTH_TOKEN", "a b"), ("ADMIN_TOKEN", "é"),
        ("X_FRAME_OPTIONS", "DENY\r\nX: y"), ("JWT_ISSUER", "a\x1bb"), ("SSL_MIN_VERSION", "TLSv1.0"),
        ("SECURITY_PROFILE", "test"), ("UPSTREAM_CA_PATH", "/no/such/file"), ("READY_FILE", "/no/such/dir/ready"),
        ("JWT_SECRET", "short"), ("RATE_LIMIT_METHOD_COSTS", "tools/call=201"), ("SESSION_ABSOLUTE_TIMEOUT", "5"),
        ("TCP_PORT", "3002"), ("STATE_DIR", "/dev/null/x"), ("JWT_SECRET_PREVIOUS", GOOD),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_error_that_names_its_variable(tmp_path: Path, name: str, text: str) -> None:
    """And its origin."""
    found = problems(tmp_path, {name: text})
    assert len([problem for problem in found if f"environment {name}" in problem or "SESSION_TIMEOUT" in problem]) == 1


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("WS_HOST", "0.0.0.0, ::", ("0.0.0.0", "::")),
        ("WS_HOST", "[::1]", ("::1",)),
        ("LOG_LEVEL", "WARN", "warning"),
        ("WS_AUTH_ENABLED", "No", False),
        ("WS_AUTH_TOKEN", f"{GOOD}, {OTHER},", (GOOD, OTHER)),
        ("CORS_ALLOWED_ORIGINS", "HTTPS://A.example:443,http://b:8080", ("https://a.example", "http://b:8080")),
        ("IP_ALLOWLIST", "10.1.2.3/8,2001:db8::1", ("10.0.0.0/8", "2001:db8::1/128")),
        ("ALLOWED_HOSTS", "Gateway.Example.,[::1]", ("gateway.example", "::1")),
        ("RATE_LIMIT_METHOD_COSTS", "tools/call=5, ping=0", {"tools/call": 5, "ping": 0}),
        ("CIRCUITBREAKER_FAILURE_RATE", ".25", 0.25),
        ("SSL_MIN_VERSION", "tlsv1.3", "TLSv1.3"),
        ("JWT_ALGORITHMS", "HS256,HS256", ("HS256",)),
    ],
)
def test_a_good_value_is_parsed(tmp_path: Path, name: str, text: str, value: object) -> None:
    """Into the type and the normal form that the rest of the gateway compares with."""
    assert getattr(settings(tmp_path, {name: text}), name.lower()) == value


def test_port_0_may_stand_on_every_listener(tmp_path: Path) -> None:
    """Only equal ports that are really wanted collide."""
    found = settings(tmp_path, {}, "--ws-port", "0", "--tcp-port", "0", "--health-port", "0")
    assert (found.ws_port, found.tcp_port, found.health_port) == (0, 0, 0)
    assert settings(tmp_path, {"WS_HOST": "127.0.0.2", "WS_PORT": "9", "TCP_PORT": "9"}).tcp_port == 9


@pytest.mark.parametrize(
    ("name", "meant"),
    [("WS_AUTH_TOKNE", "WS_AUTH_TOKEN"), ("RATE_LIMIT_MAX_REQUEST", "RATE_LIMIT_MAX_REQUESTS"),
     ("WS-PORT", "WS_PORT"), ("ws_port", "WS_PORT"), ("JWT_SECRT_FILE", "JWT_SECRET"), ("LOGLEVEL", "LOG_LEVEL")],
)  # fmt: skip
def test_a_misspelt_name_is_warned_of(tmp_path: Path, name: str, meant: str) -> None:
    """With what was probably meant; the value stays out of it."""
    [warning] = warnings(tmp_path, {name: "hunter2"})
    assert f"did you mean {meant}?" in warning
    assert "hunter2" not in warning


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "HOSTNAME", "SSL_CERT_FILE", "SSL_CERT_DIR", "DB_PORT", "PGPORT", "TERM", "HTTP_PROXY",
             "WS_PORT", "WS_AUTH_TOKEN_FILE", "PYTHONPATH", "KUBERNETES_PORT", "LC_ALL", "CI"]
)  # fmt: skip
def test_what_others_put_into_an_environment_is_no_misspelling(name: str) -> None:
    """No noise about variables of the system."""
    assert look_alike(name) is None


# --- production


@pytest.mark.parametrize(
    "weak",
    ["short-but-random-8f4e1c0b", "a" * 64, "0123456789abcdef" * 4, "your-jwt-secret-minimum-32-chars",
     "abcdefghijklmnopqrstuvwxyz0123456789", "passwordpasswordpasswordpassword",
     "00000000-0000-0000-0000-000000000000", "changeme-changeme-changeme-changeme"],
)  # fmt: skip
def test_production_refuses_weak_secrets_and_development_warns(tmp_path: Path, weak: str) -> None:
    """All of them at once; the guide's own examples start in development."""
    names = ("WS_AUTH_TOKEN", "TCP_AUTH_TOKEN", "JWT_SECRET", "SESSION_SECRET", "ADMIN_TOKEN")
    secrets = dict.fromkeys(names, weak)
    found = problems(tmp_path, {**PRODUCTION, **secrets})
    assert [problem.split(" ")[0] for problem in found] == list(names)
    assert weak not in "".join(found)
    if len(weak) >= 32:
        text = "\n".join(warnings(tmp_path, secrets))
        assert all(f"{name} (" in text for name in names)


def test_one_weak_token_of_several_is_found(tmp_path: Path) -> None:
    """And named by its number."""
    [problem] = problems(tmp_path, {**PRODUCTION, "WS_AUTH_TOKEN": f"{GOOD},weak"})
    assert "token 2 of 2" in problem


def test_production_refuses_everything_at_once(tmp_path: Path) -> None:
    """Missing tokens, TLS, CORS."""
    environ = {"NODE_ENV": "production", "CORS_ALLOWED_ORIGINS": "*", "CORS_ALLOW_CREDENTIALS": "true"}
    found = problems(tmp_path, environ)
    assert [problem.split(" ")[0] for problem in found] == [
        "WS_AUTH_TOKEN", "TCP_AUTH_TOKEN", "CORS_ALLOWED_ORIGINS", "SSL_CERT_PATH", "SSL_KEY_PATH",
    ]  # fmt: skip


def test_without_authentication_no_token_is_missed_but_it_is_warned_of(tmp_path: Path) -> None:
    """Explicitly off is off, loudly."""
    environ = {**PRODUCTION, "WS_AUTH_TOKEN": "", "WS_AUTH_ENABLED": "false"}
    assert any(warning.startswith("WS_AUTH_ENABLED (") for warning in warnings(tmp_path, environ))


def test_an_unknown_profile_is_judged_as_production(tmp_path: Path) -> None:
    """A typing error in the profile's name must not loosen anything."""
    found = problems(tmp_path, {"SECURITY_PROFILE": "prodction"})
    assert [problem.split(" ")[0] for problem in found][:3] == ["SECURITY_PROFILE", "WS_AUTH_TOKEN", "TCP_AUTH_TOKEN"]


@pytest.mark.parametrize("row", unavailable.ROWS, ids=lambda row: row.name)
def test_what_is_not_built_is_said_and_the_default_is_accepted(tmp_path: Path, row: unavailable.Unavailable) -> None:
    """Every row names a variable, and its default in development applies to none."""
    variable = BY_NAME[row.name]
    assert variable.default in row.works
    assert not row.applies(Settings())


# --- limits that follow from others


def test_the_preauth_size_follows_a_small_request_size(tmp_path: Path) -> None:
    """Its default is no contradiction; a given one is."""
    assert settings(tmp_path, {"MAX_REQUEST_SIZE": "1000"}).max_preauth_size == 1000
    [problem] = problems(tmp_path, {"MAX_REQUEST_SIZE": "1000", "MAX_PREAUTH_SIZE": "1001"})
    assert problem.startswith("MAX_PREAUTH_SIZE (environment MAX_PREAUTH_SIZE)")


def test_allowed_hosts_follow_the_bound_addresses(tmp_path: Path) -> None:
    """Local names on loopback; the address itself; any, with a warning, on all addresses."""
    assert set(settings(tmp_path).allowed_hosts) == {"localhost", "127.0.0.1", "::1"}
    assert "192.0.2.7" in settings(tmp_path, {"WS_HOST": "192.0.2.7"}).allowed_hosts
    assert settings(tmp_path, {"WS_HOST": "0.0.0.0"}).allowed_hosts == ("*",)
    assert any(w.startswith("ALLOWED_HOSTS") for w in warnings(tmp_path, {"WS_HOST": "0.0.0.0"}))


@pytest.mark.parametrize(
    ("files", "membership", "cpus"),
    [
        ({}, "0::/", 8),
        ({"cpu.max": "max 100000"}, "0::/", 8),
        ({"cpu.max": "150000 100000"}, "0::/", 2),
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 3),
        ({"a/cpu.max": "max 100000", "cpu.max": "10000 100000"}, "0::/a/gone", 1),
        ({"cpu,cpuacct/x/cpu.cfs_quota_us": "200000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
         "4:cpu,cpuacct:/x", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", 8),
        ({"cpu.max": "nonsense"}, "0::/", 8),
        ({"cpu.max": "1 0"}, "0::/", 8),
    ],
)  # fmt: skip
def test_cpus_are_counted_by_affinity_and_cgroup(
    tmp_path: Path, files: dict[str, str], membership: str, cpus: int
) -> None:
    """Both cgroup versions, every level."""
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(f"{text}\n")
    (tmp_path / "cgroup").write_text(f"12:pids:/z\n{membership}\n")
    assert allowed_cpus(8, tmp_path / "cgroup", tmp_path / "fs") == cpus


def test_without_cgroups_affinity_alone_counts(tmp_path: Path) -> None:
    """Missing files are no error."""
    assert allowed_cpus(3, tmp_path / "none", tmp_path) == 3
    assert allowed_cpus() >= 1


# --- roles


def test_a_role_sees_only_the_secrets_that_it_needs() -> None:
    """Only policy the tokens, only admin the admin token, only the bridge the servers' environments."""
    upstream = Upstream(name="a", kind="stdio", command="c", args=("--key=k1",), env={"K": "k2"}, headers={"H": "k3"})
    whole = Settings(
        ws_auth_token=("k4",), tcp_auth_token=("k5",), jwt_secret="k6", jwt_secret_previous="k7", session_secret="k8",
        redis_password="k9", redis_url="k10", admin_token="k11", upstreams=(upstream,),
    )  # fmt: skip
    seen = {role: repr(whole.for_role(role)) for role in ("edge", "policy", "validator", "bridge", "admin")}
    for secret, roles in {
        "k1": {"bridge"}, "k2": {"bridge"}, "k3": {"bridge"}, "k4": {"policy"}, "k5": {"policy"},
        "k6": {"policy"}, "k7": {"policy"}, "k8": {"policy"}, "k9": {"policy"}, "k10": {"policy"}, "k11": {"admin"},
    }.items():  # fmt: skip
        quoted = f"{secret}'"
        assert {role for role, text in seen.items() if quoted in text} == roles, secret
    assert whole.for_role("supervisor") == whole


# --- the command line


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--help", "--ws-port", "x"]])
def test_help_names_every_variable(tmp_path: Path, argv: list[str]) -> None:
    """Whatever else is wrong."""
    out, err = io.StringIO(), io.StringIO()
    assert answer(argv, {"WS_PORT": "x"}, tmp_path, out, err) == 0
    assert all(f"  {variable.name}" in out.getvalue() for variable in VARIABLES)
    assert err.getvalue() == ""


def test_check_config_exits_with_0_or_2(tmp_path: Path) -> None:
    """All errors on stderr, and a plain start refuses them in the same way."""
    out, err = io.StringIO(), io.StringIO()
    assert answer(["--check-config"], {}, tmp_path, out, err) == 0
    assert "good" in out.getvalue()
    wrong = {"WS_PORT": "x", "TCP_PORT": "y"}
    assert answer(["--check-config"], wrong, tmp_path, out, err) == 2
    assert err.getvalue().count("error: ") == 2
    assert answer([], wrong, tmp_path, out, err) == 2
    assert isinstance(answer([], {}, tmp_path, out, err), Loaded)


def test_print_config_is_read_back_as_the_same_settings(tmp_path: Path) -> None:
    """What it prints can be a .env file, but for secrets and servers."""
    environ = {"JWT_ISSUER": "a # 'b' \"c\" $d \\e", "IP_ALLOWLIST": "10.0.0.0/8", "WS_PORT": "0", "TCP_PORT": "0"}
    out = io.StringIO()
    assert answer(["--print-config"], environ, tmp_path, out, io.StringIO()) == 0
    (tmp_path / ".env").write_text(out.getvalue())
    assert settings(tmp_path) == settings(tmp_path, environ)


@pytest.mark.parametrize(
    ("argv", "value"),
    [(["--rate-limit-enabled"], True), (["--rate-limit-enabled", "false"], False),
     (["--rate-limit-enabled", "--check-config"], True), (["--rate-limit-enabled=no"], False)],
)  # fmt: skip
def test_a_boolean_flag_may_stand_alone(tmp_path: Path, argv: list[str], value: bool) -> None:
    """Then it is true."""
    assert settings(tmp_path, {"RATE_LIMIT_ENABLED": ""}, *argv).rate_limit_enabled is value


def test_every_variable_is_a_flag(tmp_path: Path) -> None:
    """None is forgotten, and none is taken by another."""
    flags = [variable.flag for variable in VARIABLES]
    assert len(set(flags)) == len(flags)
    (tmp_path / "c.json").write_text('{"mcpServers": {"a": {"command": "true"}}}')
    assert settings(tmp_path, {"PATH": os.environ["PATH"]}, "--config", "c.json").upstreams[0].name == "a"


def test_some_variables_are_read_although_others_are_wrong(tmp_path: Path) -> None:
    """For tools beside the gateway."""
    (tmp_path / ".env").write_text("broken line\nHEALTH_PORT=7\n")
    assert load_some(["MCP_HEALTH_PORT"], {"WS_PORT": "x"}, tmp_path) == {"health_port": 7}
    with pytest.raises(ConfigurationError):
        load_some(["WS_PORT"], {"WS_PORT": "x"}, tmp_path)


# --- tokens


def test_random_tokens_are_made_where_none_are_configured() -> None:
    """Different ones, that a subprotocol can hold; a configured one stays, and no listener without authentication
    gets one."""
    made = generate_tokens(Settings())
    [ws], [tcp] = made.ws_auth_token, made.tcp_auth_token
    assert ws != tcp
    assert len(ws) >= 43
    assert set(ws) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert generate_tokens(Settings(ws_auth_token=("x",))).ws_auth_token == ("x",)
    assert generate_tokens(Settings(tcp_auth_enabled=False)).tcp_auth_token == ()


def test_the_admin_token_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    """Mode 0600, complete, nothing beside it, and the same one at the next start."""
    first = with_admin_token(Settings(state_dir=str(tmp_path))).admin_token
    assert len(first) >= 43
    [file] = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert with_admin_token(Settings(state_dir=str(tmp_path))).admin_token == first
    assert with_admin_token(Settings(state_dir=str(tmp_path), admin_token="given")).admin_token == "given"


def test_an_unusable_admin_token_file_is_an_error_not_a_new_token(tmp_path: Path) -> None:
    """Readable by others, empty, no file, a link."""
    file = tmp_path / "admin.token"
    file.write_text(GOOD)
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="other users"):
        with_admin_token(Settings(state_dir=str(tmp_path)))
    file.write_text("")
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="holds no token"):
        with_admin_token(Settings(state_dir=str(tmp_path)))
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        with_admin_token(Settings(state_dir=str(tmp_path)))
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(ConfigurationError, match="regular file"):
        with_admin_token(Settings(state_dir=str(tmp_path)))
