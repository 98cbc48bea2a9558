"""Settings that make proxies of everybody are warned of; hosts may be given with everything below them."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.settings.load import load
from supervisor.settings.problems import ConfigurationError


def warned(directory: Path, **environ: str) -> list[str]:
    return [str(warning) for warning in load([], environ, directory).warnings if "PRO" in warning.variable]


def test_a_header_that_everybody_may_send_is_warned_of(tmp_path: Path) -> None:
    """PROXY_PROTOCOL without TRUSTED_PROXIES; with them nothing is said."""
    (warning,) = warned(tmp_path, PROXY_PROTOCOL="required")
    assert "TRUSTED_PROXIES is not set" in warning
    assert warned(tmp_path, PROXY_PROTOCOL="required", TRUSTED_PROXIES="10.0.0.0/8,fd00::/16") == []


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "::/0", "128.0.0.0/1", "2000::/3"])
def test_trusting_the_internet_is_warned_of(tmp_path: Path, cidr: str) -> None:
    """In every profile."""
    (warning,) = warned(tmp_path, TRUSTED_PROXIES=cidr)
    assert cidr in warning


def test_all_hosts_below_a_name(tmp_path: Path) -> None:
    """As ``origin.host_allowed`` knows them; an asterisk elsewhere is refused."""
    assert load([], {"ALLOWED_HOSTS": "*.Example.com,a.b"}, tmp_path).settings.allowed_hosts == ("*.example.com", "a.b")
    for wrong in ("a.*.com", "*.*.com", "*com"):
        with pytest.raises(ConfigurationError):
            load([], {"ALLOWED_HOSTS": wrong}, tmp_path)
