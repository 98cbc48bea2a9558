"""The page about HTTP says what is so: its tables against the code that they describe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from actors.acceptor.endpoints import METHODS, is_websocket
from actors.acceptor.entry import STATUS
from actors.acceptor.http import MAX_HEAD, MAX_HEADERS, MAX_LINE, problem, security_headers
from actors.policy.cors import MAX_REQUEST_HEADERS
from actors.policy.rate_headers import Quota, rate_fields
from ipc.settings import Settings
from supervisor.settings.variables import BY_NAME

PAGE = (Path(__file__).parent.parent.parent / "ops" / "docs" / "http.md").read_text()
FLAT = " ".join(PAGE.split())


def test_the_paths_are_those_that_are_served() -> None:
    """Each with its methods; OPTIONS is in the text."""
    rows = [row.split("|")[1:3] for row in PAGE.splitlines() if row.startswith("| `/")]
    documented = {
        path: tuple(methods.strip().split(", "))
        for paths, methods in rows
        for path in re.findall(r"`(/[^`]*)`", paths)
        if not is_websocket(path)
    }
    served = {
        path: tuple(method for method in methods if method != "OPTIONS")
        for path, methods in METHODS.items()
        if path.startswith("/")
    }
    assert documented == served
    assert all(is_websocket(path) for path in ("/", "/ws", "/ws/NAME"))


def test_every_variable_that_is_named_exists() -> None:
    """In backquotes, in capitals."""
    named = set(re.findall(r"`([A-Z][A-Z_]{4,})(?:=[a-z]+)?`", PAGE))
    assert len(named) >= 9
    assert {name for name in named if name not in BY_NAME} == set()


def test_the_limits_are_those_of_the_code() -> None:
    """Sizes and numbers."""
    assert f"a request line beyond {MAX_LINE // 1024} KiB" in FLAT
    assert f"a head beyond {MAX_HEAD // 1024} KiB or {MAX_HEADERS} fields" in FLAT
    assert f"at most {MAX_REQUEST_HEADERS})" in FLAT


def test_the_fields_are_those_that_are_sent() -> None:
    """Every security header with its value, and the examples of the limits as they are formatted."""
    for name, value in security_headers(Settings(hsts_enabled=True)):
        assert f"`{name}`" in PAGE, name
        assert name == "Strict-Transport-Security" or f"`{value}`" in PAGE, name
    production = Settings(rate_limit_max_requests=100, rate_limit_burst_requests=20)
    for name, value in rate_fields(production, Quota(93, 40_500)):
        assert f"`{name}`" in PAGE
        assert f"`{value}`" in PAGE


def test_the_example_of_a_problem_is_one() -> None:
    """To the byte."""
    body = problem(429, "too many messages in a short time").partition(b"\r\n\r\n")[2].decode()
    assert body in PAGE


@pytest.mark.parametrize("code", sorted({*STATUS.values(), 400, 404, 405, 413, 414, 415, 426, 431, 505}))
def test_every_status_is_explained(code: int) -> None:
    """Those of a refusal, and those of a request that can't be read."""
    rows = [row for row in PAGE.splitlines() if re.match(r"\| [0-9]{3}", row)]
    assert any(str(code) in row.split("|")[1] for row in rows)
