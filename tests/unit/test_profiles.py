"""The two profiles, row by row, and what each says to a secret that isn't one."""

from __future__ import annotations

import base64
import os
import secrets as randomness
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from requirement import need

from ipc.settings import LOOPBACK_ORIGINS, SECRET_FIELDS, Settings
from supervisor.settings import ConfigurationError, load
from supervisor.settings.load import Loaded
from supervisor.settings.secrets import weakness
from supervisor.settings.variables import BY_NAME, VARIABLES

GOOD = {name: randomness.token_hex(32) for name in ("WS_AUTH_TOKEN", "TCP_AUTH_TOKEN")}
PRODUCTION = {"SECURITY_PROFILE": "production", "SSL_ENABLED": "false", **GOOD}

GUIDE = {
    "WS-AUTH-TOKEN": "your-secure-ws-token",
    "TCP_AUTH_TOKEN": "your-secure-tcp-token",
    "JWT_SECRET": "your-jwt-secret-minimum-32-chars",
    "SESSION_SECRET": "your-session-secret-minimum-32-chars",
    "ADMIN_TOKEN": "your-secure-admin-token",
}
"""Example values as the documentation of such gateways has them, one name written with hyphens."""


def loaded(directory: Path, environ: dict[str, str]) -> Loaded:
    return load([], environ, directory)


def refused(directory: Path, environ: dict[str, str]) -> list[str]:
    """The variables that are refused, each with its message."""
    with pytest.raises(ConfigurationError) as caught:
        load([], environ, directory)
    return [str(problem) for problem in caught.value.problems]


def check_config(directory: Path, environ: dict[str, str], *arguments: str) -> tuple[int, str]:
    """The real command: its exit code, and all that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "supervisor", *(arguments or ("--check-config",))],
        cwd=directory,
        env={"PATH": os.environ.get("PATH", os.defpath), **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


# --- the table

ROWS: tuple[tuple[str, object, object], ...] = (
    ("security_profile", "development", "production"),
    ("ws_auth_enabled", True, True),
    ("tcp_auth_enabled", True, True),
    ("rate_limit_enabled", True, True),
    ("rate_limit_max_requests", 1000, 100),
    ("rate_limit_window_ms", 60_000, 60_000),
    ("rate_limit_burst_requests", 200, 20),
    ("rate_limit_burst_window_ms", 1000, 1000),
    ("connection_rate_limit", 6000, 60),
    ("max_connections_per_ip", 100, 20),
    ("ws_max_connections", 100, 100),
    ("tcp_max_connections", 50, 50),
    ("log_level", "debug", "info"),
    ("cors_enabled", True, True),
    ("cors_allowed_origins", (LOOPBACK_ORIGINS,), ()),
    ("cors_allow_credentials", False, False),
    ("auto_block_enabled", True, True),
    ("max_failed_attempts", 3, 3),
    ("hsts_enabled", False, False),  # on with TLS, which is declared off here
    ("security_headers_enabled", True, True),
)


@pytest.mark.parametrize(("field", "development", "production"), ROWS, ids=[row[0] for row in ROWS])
def test_each_profile_has_its_defaults(tmp_path: Path, field: str, development: object, production: object) -> None:
    """As the contract's table has them; the alias chooses the profile as well."""
    assert getattr(loaded(tmp_path, {}).settings, field) == development
    assert getattr(loaded(tmp_path, {"NODE_ENV": "development"}).settings, field) == development
    assert getattr(loaded(tmp_path, PRODUCTION).settings, field) == production
    aliased = {name: value for name, value in PRODUCTION.items() if name != "SECURITY_PROFILE"}
    assert getattr(loaded(tmp_path, {**aliased, "NODE_ENV": "production"}).settings, field) == production


def test_a_profile_only_changes_defaults(tmp_path: Path) -> None:
    """What is given stands in both."""
    given = {"RATE_LIMIT_MAX_REQUESTS": "7", "MAX_CONNECTIONS_PER_IP": "3", "LOG_LEVEL": "error"}
    for environ in ({}, PRODUCTION):
        found = loaded(tmp_path, {**environ, **given}).settings
        assert (found.rate_limit_max_requests, found.max_connections_per_ip, found.log_level) == (7, 3, "error")


def test_tls_is_on_in_production_and_off_only_by_name(tmp_path: Path) -> None:
    """Its default is on, which needs its files; switched off it is warned of, because of who may listen."""
    assert BY_NAME["SSL_ENABLED"].default_for("production") is True
    assert BY_NAME["SSL_ENABLED"].default_for("development") is False
    without = {name: value for name, value in PRODUCTION.items() if name != "SSL_ENABLED"}
    assert any(problem.startswith("SSL_") for problem in refused(tmp_path, without))
    [warning] = [str(warning) for warning in loaded(tmp_path, PRODUCTION).warnings]
    assert warning.startswith("SSL_ENABLED (")


def test_the_profile_s_two_names_must_agree_or_the_first_wins_with_a_warning(tmp_path: Path) -> None:
    """SECURITY_PROFILE before NODE_ENV; a value that is neither is refused, and judged as production."""
    both = loaded(tmp_path, {**PRODUCTION, "NODE_ENV": "development"})
    assert both.settings.security_profile == "production"
    assert any(str(warning).startswith("SECURITY_PROFILE (") for warning in both.warnings)
    assert any(problem.startswith("SECURITY_PROFILE (environment NODE_ENV)")
               for problem in refused(tmp_path, {**GOOD, "NODE_ENV": "staging"}))  # fmt: skip


# --- what production refuses


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("your-jwt-secret-minimum-32-chars", "example"),
        ("YOUR-JWT-SECRET-MINIMUM-32-CHARS", "example"),
        ("your-session-secret-minimum-32-chars", "example"),
        ("a-string-secret-at-least-256-bits-long", "example"),
        ("CHANGE_ME_to_a_long_and_random_text_please", "example"),
        ("ChangeMe-8f4e1c0b7a6d59382716f5e4d3c2b1a0", "example"),
        ("my-super-secret-key-nobody-will-ever-guess", "example"),
        ("<insert 32 random bytes of your own here>", "example"),
        ("${JWT_SECRET:-8f4e1c0b7a6d59382716f5e4d3c2b1a0}", "example"),
        ("Password1Password2Password3Password4", "example"),
        pytest.param(randomness.token_hex(15) + "a", "31 characters", id="31 random characters"),
        ("8f4e1c0b7a6d59382716f5e4d3c2b1a", "31 characters"),
        ("x" * 64, "regular"),
        ("ab" * 32, "regular"),
        ("0123456789abcdef" * 2, "regular"),
        ("abcdefghijklmnopqrstuvwxyzabcdefgh", "regular"),
        ("11111111112222222222333333333344444444", "regular"),
        ("00000000-0000-0000-0000-000000000001", "regular"),
    ],
)
def test_what_is_no_secret_is_refused_wherever_it_stands(tmp_path: Path, value: str, wrong: str) -> None:
    """All the secrets that have it at once, each named and none printed; in development it is warned of."""
    names = ("WS_AUTH_TOKEN", "TCP_AUTH_TOKEN", "JWT_SECRET", "JWT_SECRET_PREVIOUS", "SESSION_SECRET", "ADMIN_TOKEN")
    if not value.isascii() or " " in value or "," in value:  # a bearer token can't be written so at all
        names = ("JWT_SECRET", "JWT_SECRET_PREVIOUS", "SESSION_SECRET")
    (tmp_path / "secret").write_text(value)
    found = refused(tmp_path, {**PRODUCTION, **dict.fromkeys(names, value)})
    assert [problem.split(" ")[0] for problem in found if wrong in problem] == list(names)
    by_file = {**PRODUCTION, **{f"{name}_FILE": "secret" for name in names}}
    for name in names:
        by_file.pop(name, None)
    found = refused(tmp_path, by_file)
    assert [problem.split(" ")[0] for problem in found if wrong in problem] == list(names)
    assert value not in "\n".join(found)


@pytest.mark.parametrize(
    "generate",
    [
        lambda: randomness.token_hex(32),
        lambda: base64.b64encode(randomness.token_bytes(32)).decode(),
        lambda: str(uuid.uuid4()),
        lambda: uuid.uuid4().hex,
        lambda: str(uuid.uuid4()).upper(),
        lambda: str(uuid.uuid1()),
        lambda: randomness.token_urlsafe(32),
    ],
    ids=["hex", "base64", "uuid4", "uuid4 bare", "uuid4 upper", "uuid1", "urlsafe"],
)
def test_no_generated_secret_is_refused(generate: Callable[[], str]) -> None:
    """10,000 of each kind: a rule that refused one in a thousand would show."""
    assert [value for _ in range(10_000) if weakness(value := generate()) is not None] == []


def test_what_openssl_prints_is_accepted(tmp_path: Path) -> None:
    """As the messages advise, and as a file that a shell's redirection made, its line end included."""
    need(shutil.which("openssl"), "openssl is not installed (Debian: apt-get install openssl)")
    for kind in ("-hex", "-base64"):
        environ = {"SECURITY_PROFILE": "production", "SSL_ENABLED": "false"}
        for name in ("WS_AUTH_TOKEN", "TCP_AUTH_TOKEN", "JWT_SECRET", "SESSION_SECRET"):
            printed = subprocess.run(["openssl", "rand", kind, "32"], capture_output=True, check=True).stdout
            (tmp_path / name).write_bytes(printed)
            environ[f"{name}_FILE"] = str(tmp_path / name)
        found = loaded(tmp_path, environ)
        assert found.settings.jwt_secret == (tmp_path / "JWT_SECRET").read_text().strip()


def test_production_says_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    """Secrets, CORS, TLS and a doubled source in one go, exit code 2, from the real command; no secret is printed."""
    (tmp_path / "file").write_text("s3ss10n-s3cr3t-in-a-file")
    wrong = {
        "NODE_ENV": "production",
        "WS_AUTH_TOKEN": "sh0rt-w0rd",
        "JWT_SECRET": "your-jwt-secret-minimum-32-chars",
        "SESSION_SECRET": "s3ss10n-s3cr3t-in-the-environment",
        "SESSION_SECRET_FILE": "file",
        "CORS_ALLOWED_ORIGINS": "*",
        "CORS_ALLOW_CREDENTIALS": "true",
        "SSL_CERT_PATH": "missing.pem",
        "RATE_LIMIT_MAX_REQUEST": "5",
        "MAX_CONNECTIONS_PER_IP": "0",
    }
    code, text = check_config(tmp_path, wrong)
    assert code == 2
    for line in ("error: WS_AUTH_TOKEN (environment WS_AUTH_TOKEN)", "error: JWT_SECRET (environment JWT_SECRET)",
                 "error: SESSION_SECRET (environment SESSION_SECRET and environment SESSION_SECRET_FILE)",
                 "error: CORS_ALLOWED_ORIGINS (environment CORS_ALLOWED_ORIGINS)", "error: SSL_",
                 "error: MAX_CONNECTIONS_PER_IP (environment MAX_CONNECTIONS_PER_IP)",
                 "warning: RATE_LIMIT_MAX_REQUEST (environment RATE_LIMIT_MAX_REQUEST)"):  # fmt: skip
        assert line in text
    assert "RATE_LIMIT_MAX_REQUESTS" in text
    for secret in ("sh0rt-w0rd", "your-jwt-secret", "s3ss10n-s3cr3t"):
        assert secret not in text
    plain_start, said = check_config(tmp_path, wrong, "--log-level=debug")
    assert plain_start == 2
    assert text.count("error: ") == said.count("error: ")


def test_any_origin_with_credentials_is_refused_in_production_only(tmp_path: Path) -> None:
    """Also when ``*`` stands beside others; in development it is warned of, and without credentials in production."""
    any_origin = {"CORS_ALLOWED_ORIGINS": "https://app.example,*"}
    credentials = {**any_origin, "CORS_ALLOW_CREDENTIALS": "true"}
    [problem] = refused(tmp_path, {**PRODUCTION, **credentials})
    assert problem.startswith("CORS_ALLOWED_ORIGINS (")
    for environ in (credentials, {**PRODUCTION, **any_origin}):
        assert any(str(warning).startswith("CORS_ALLOWED_ORIGINS (") for warning in loaded(tmp_path, environ).warnings)


# --- secrets stay secret


def test_every_secret_can_come_from_a_file(tmp_path: Path) -> None:
    """``NAME_FILE`` for each of them, in the environment and in .env, and as a flag."""
    secret_variables = [variable for variable in VARIABLES if variable.secret]
    assert {variable.field for variable in secret_variables} == SECRET_FIELDS
    for variable in secret_variables:
        value = randomness.token_hex(32)
        (tmp_path / "file").write_text(f"{value}\n")
        more = {"JWT_SECRET": randomness.token_hex(32)} if variable.name == "JWT_SECRET_PREVIOUS" else {}
        expected = (value,) if isinstance(getattr(Settings(), variable.field), tuple) else value
        by_environment = loaded(tmp_path, {f"{variable.name}_FILE": "file", **more}).settings
        by_flag = load([f"{variable.flag}-file", "file"], more, tmp_path).settings
        (tmp_path / ".env").write_text(f"{variable.name}_FILE=file\n")
        by_dotenv = loaded(tmp_path, more).settings
        (tmp_path / ".env").unlink()
        for found in (by_environment, by_flag, by_dotenv):
            assert getattr(found, variable.field) == expected, variable.name
        with pytest.raises(ConfigurationError, match="both directly and by a file"):
            loaded(tmp_path, {variable.name: value, f"{variable.name}_FILE": "file", **more})


@pytest.mark.parametrize("argument", ["--check-config", "--print-config", "--help", "--wrong", "--ws-port"])
@pytest.mark.parametrize("profile", ["development", "production"])
def test_no_command_prints_a_secret(tmp_path: Path, argument: str, profile: str) -> None:
    """Whichever way it came and whatever is wrong with the rest: stdout and stderr of the real command hold none."""
    values = {variable.name: f"hunter{index}-{randomness.token_hex(24)}" for index, variable in
              enumerate(variable for variable in VARIABLES if variable.secret)}  # fmt: skip
    in_file, in_dotenv, quoted = values["SESSION_SECRET"], values["ADMIN_TOKEN"], values["REDIS_PASSWORD"]
    (tmp_path / "file").write_text(in_file)
    (tmp_path / ".env").write_text(f'ADMIN_TOKEN={in_dotenv}\nREDIS_PASSWORD="{quoted}\nSTRAY {quoted}\n')
    elsewhere = ("SESSION_SECRET", "ADMIN_TOKEN", "REDIS_PASSWORD")
    environ = {name: value for name, value in values.items() if name not in elsewhere}
    environ |= {"SESSION_SECRET_FILE": "file", "SECURITY_PROFILE": profile, "WS_PORT": "x", "JWT_SECRE": in_file}
    _, text = check_config(tmp_path, environ, argument)
    assert len(text) > 100
    assert [name for name, value in values.items() if value in text] == []


def test_example_values_in_dotenv_start_in_development_with_a_warning_for_each(tmp_path: Path) -> None:
    """Copied from a guide as they are; the real command says which of them to replace, and production refuses."""
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in GUIDE.items()))
    code, text = check_config(tmp_path, {})
    assert code == 0
    for line, name in enumerate(GUIDE, 1):
        assert f"warning: {name.replace('-', '_')} ({tmp_path}/.env line {line}): is an example value" in text
    code, text = check_config(tmp_path, {"NODE_ENV": "production", "SSL_ENABLED": "false"})
    assert code == 2
    assert text.count("is an example value") == len(GUIDE)
    for value in GUIDE.values():
        assert value not in text
