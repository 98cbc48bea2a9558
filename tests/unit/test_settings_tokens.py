"""The settings for JWTs: which combinations are refused, all at once, and what is only warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jwt_attacks
import pytest

from supervisor.settings import ConfigurationError, load
from supervisor.settings.show import settings_text

SECRET = "d41f6f2a8f0f4f0f9c1b7d6e5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b"
URL = "https://issuer.example/.well-known/jwks.json"
OUTSIDE = {"JWT_JWKS_URL": URL, "JWT_JWKS_ISSUER": "https://issuer.example", "JWT_JWKS_AUDIENCE": "gate"}


def problems(tmp_path: Path, **environ: str) -> dict[str, str]:
    """Variable → what is wrong with it; empty when it loads."""
    try:
        load([], environ, tmp_path)
    except ConfigurationError as error:
        return {problem.variable: problem.what for problem in error.problems}
    return {}


def warnings(tmp_path: Path, **environ: str) -> set[str]:
    return {warning.variable for warning in load([], environ, tmp_path).warnings}


def test_what_is_right_loads(tmp_path: Path) -> None:
    """Own tokens, an outside issuer by URL and by file, and both kinds together; without a word about them."""
    file = tmp_path / "keys.json"
    file.write_bytes(jwt_attacks.served_keys())
    by_file = {name: value for name, value in OUTSIDE.items() if name != "JWT_JWKS_URL"}
    for environ in (
        {"JWT_SECRET": SECRET},
        OUTSIDE,
        by_file | {"JWT_JWKS_FILE": "keys.json"},
        OUTSIDE | {"JWT_SECRET": SECRET, "JWT_SECRET_PREVIOUS": SECRET[::-1]},
    ):
        assert problems(tmp_path, **environ) == {}
        assert not {name for name in warnings(tmp_path, **environ) if name.startswith("JWT")}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (b"", "not a JSON object"),
        (b'{"keys": []}', "no usable key"),
        (b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "secret or a private key"),
        (b'{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}', "RSA modulus too short"),
        (b" " * 300_000, "more than"),
    ],
)
def test_a_file_without_usable_keys_is_an_error(tmp_path: Path, keys: bytes, said: str) -> None:
    """In the words of the reader that auth uses; nothing of the file is shown."""
    (tmp_path / "keys.json").write_bytes(keys)
    found = problems(tmp_path, **OUTSIDE | {"JWT_JWKS_URL": "", "JWT_JWKS_FILE": "keys.json"})
    assert set(found) == {"JWT_JWKS_FILE"}
    assert said in found["JWT_JWKS_FILE"]
    assert "c2VjcmV0" not in str(found)


def test_the_query_of_a_url_is_not_printed(tmp_path: Path) -> None:
    """``--print-config`` shows where keys come from, and no key that is written into that; the line is a comment, as it
    is not the value."""
    environ = OUTSIDE | {"JWT_JWKS_URL": "https://issuer.example/keys?key=s3cret"}
    printed = settings_text(load([], environ, tmp_path))
    assert "s3cret" not in printed
    assert "# JWT_JWKS_URL https://issuer.example/keys (and a query, not shown)" in printed
    assert "JWT_JWKS_URL=https://issuer.example/keys  #" in settings_text(
        load([], OUTSIDE | {"JWT_JWKS_URL": "https://issuer.example/keys"}, tmp_path)
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/keys",
        "http://127.8.7.6:99/",
        "http://localhost:8080/keys?x=1",
        "http://[::1]:8080/keys",
        "https://10.0.0.1:8443/keys",
        "https://[2001:db8::1]/keys",
        "HTTPS://Issuer.example",
    ],
)
def test_urls_that_may_be_fetched(tmp_path: Path, url: str) -> None:
    """Encrypted ones, and those of this machine."""
    assert problems(tmp_path, **OUTSIDE | {"JWT_JWKS_URL": url}) == {}


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/keys",
        "http://10.0.0.1/keys",
        "http://localhost.evil.example/keys",
        "http://127.0.0.1.evil.example/",
        "http://0.0.0.0/keys",
        "https://user:s3cret@issuer.example/keys",
        "https://user@issuer.example/keys",
        "https://issuer.example/keys#s3cret",
        "https://issuer.example:0/",
        "https://issuer.example:99999/",
        "https://issuer.example/a b",
        "https://issuer.example/\u00e9",
        "https://-x/",
        "https:///keys",
        "https://[::1%25eth0]/keys",
        "https://[::1/keys",
        "file:///etc/passwd",
        "ftp://issuer.example/keys",
        "issuer.example/keys",
        "//issuer.example/keys",
    ],
)
def test_urls_that_may_not(tmp_path: Path, url: str) -> None:
    """Plain HTTP beyond this machine, other schemes, passwords; the URL isn't printed, because it may hold a key."""
    found = problems(tmp_path, **OUTSIDE | {"JWT_JWKS_URL": url})
    assert "https://" in found["JWT_JWKS_URL"]
    assert "s3cret" not in str(found)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"JWT_JWKS_ISSUER": ""}, {"JWT_JWKS_ISSUER"}),
        ({"JWT_JWKS_AUDIENCE": ""}, {"JWT_JWKS_AUDIENCE"}),
        ({"JWT_JWKS_ISSUER": "", "JWT_JWKS_AUDIENCE": ""}, {"JWT_JWKS_ISSUER", "JWT_JWKS_AUDIENCE"}),
        ({"JWT_JWKS_URL": ""}, {"JWT_JWKS_ISSUER", "JWT_JWKS_AUDIENCE"}),
        ({"JWT_JWKS_ISSUER": "portcullis"}, {"JWT_JWKS_ISSUER"}),
        ({"JWT_JWKS_ISSUER": "a|b"}, {"JWT_JWKS_ISSUER"}),
        ({"JWT_JWKS_FILE": "keys.json"}, {"JWT_JWKS_URL"}),
        ({"JWT_JWKS_FILE": "missing.json"}, {"JWT_JWKS_FILE"}),
        ({"WS_AUTH_TOKEN": "4f" * 4_097}, {"WS_AUTH_TOKEN"}),
        ({"TCP_AUTH_TOKEN": f"{SECRET},{'4f' * 4_097}"}, {"TCP_AUTH_TOKEN"}),
        ({"JWT_JWKS_ALGORITHMS": "HS256"}, {"JWT_JWKS_ALGORITHMS"}),
        ({"JWT_JWKS_ALGORITHMS": "none"}, {"JWT_JWKS_ALGORITHMS"}),
        ({"JWT_ALGORITHMS": "RS256"}, {"JWT_ALGORITHMS"}),
        ({"JWT_ALGORITHMS": "none"}, {"JWT_ALGORITHMS"}),
        ({"JWT_SECRET": "k" * 31}, {"JWT_SECRET"}),
        ({"JWT_SECRET": SECRET[:63], "JWT_ALGORITHMS": "HS512"}, {"JWT_SECRET"}),
        ({"JWT_SECRET": SECRET, "JWT_SECRET_PREVIOUS": "k" * 31}, {"JWT_SECRET_PREVIOUS"}),
        ({"JWT_SECRET_PREVIOUS": SECRET}, {"JWT_SECRET_PREVIOUS"}),
        ({"JWT_SECRET": '{"kty":"oct","k":"' + SECRET + '"}'}, {"JWT_SECRET"}),
        ({"JWT_SECRET": "-----BEGIN PUBLIC KEY-----" + SECRET}, {"JWT_SECRET"}),
        ({"JWT_SECRET": "ssh-ed25519 AAAA" + SECRET}, {"JWT_SECRET"}),
        ({"JWT_ACCESS_TTL_MS": "86400001"}, {"JWT_ACCESS_TTL_MS"}),
        (
            {
                "JWT_SECRET": "short",
                "JWT_ALGORITHMS": "HS1",
                "JWT_JWKS_URL": "http://x/",
                "JWT_JWKS_ISSUER": "portcullis",
                "JWT_JWKS_ALGORITHMS": "HS256",
                "JWT_LEEWAY_MS": "-1",
            },
            {"JWT_SECRET", "JWT_ALGORITHMS", "JWT_JWKS_URL", "JWT_JWKS_ALGORITHMS", "JWT_LEEWAY_MS"},
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], wrong: set[str]) -> None:
    """Each of them, at once, and no secret among them."""
    (tmp_path / "keys.json").write_bytes(jwt_attacks.served_keys())
    found = problems(tmp_path, **OUTSIDE | change)
    assert wrong <= set(found)
    assert set(found) <= wrong | {"JWT_JWKS_ISSUER", "JWT_JWKS_AUDIENCE"}
    assert SECRET[:63] not in str(found)


def test_several_algorithms_for_one_secret_are_warned_of(tmp_path: Path) -> None:
    """RFC 8725 §3.1 wants one a key; it is no reason not to start."""
    environ = {"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "HS256,HS512"}
    assert problems(tmp_path, **environ) == {}
    assert "JWT_ALGORITHMS" in warnings(tmp_path, **environ)
    assert "JWT_ALGORITHMS" not in warnings(tmp_path, JWT_SECRET=SECRET)
