"""Which Host and Origin values are served."""

from __future__ import annotations

import pytest

from actors.policy.origin import host_allowed, is_loopback, origin_allowed, split_host
from ipc.settings import Settings

LOCAL = ("localhost", "127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"example.com", ("example.com", None)),
        (b"Example.COM:3002", ("example.com", 3002)),
        (b"127.0.0.1:1", ("127.0.0.1", 1)),
        (b"[::1]", ("::1", None)),
        (b"[0:0:0:0:0:0:0:1]:3002", ("::1", 3002)),
        (b"localhost:", ("localhost", None)),
        (b"a_b.example", ("a_b.example", None)),
        (b"", None),
        (b":80", None),
        (b"a:b", None),
        (b"a:65535", ("a", 65535)),
        (b"a:65536", None),
        (b"a:123456", None),
        (b"a:-1", None),
        (b"[::1", None),
        (b"::1", None),
        (b"[::1]x", None),
        (b"[zz]", None),
        (b"[fe80::1%eth0]", None),
        (b"user@host", None),
        (b"a b", None),
        (b"a,b:1,c", None),
        (b"a/b", None),
        (b"a\n", None),
        (b"\xc3\xa4", None),
    ],
)
def test_a_host_value_is_a_name_or_an_address_and_a_port(host: bytes, expected: tuple[str, int | None] | None) -> None:
    """RFC 9110 §7.2: uri-host [":" port], nothing else."""
    assert split_host(host) == expected


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:3002", b"127.0.0.1:9", b"[::1]:3002", b"[0::1]", b"localhost:80"]
)
def test_loopback_names_are_served_by_default(host: bytes) -> None:
    """The default list names this machine, in any case and on any port."""
    assert host_allowed(host, LOCAL, ("127.0.0.1",))


@pytest.mark.parametrize(
    "host",
    [
        None,
        b"",
        b"evil.example",
        b"localhost.evil.example",
        b"evil.example:localhost",
        b"localhost@evil.example",
        b"127.0.0.1.evil.example",
        b"127.1",
        b"2130706433",
        b"0x7f000001",
        b"0.0.0.0",
        b"[::]",
        b"[::ffff:127.0.0.1]",
        b"localhost,evil.example",
        b"localhost localhost",
    ],
)
def test_other_names_are_not_served_on_loopback(host: bytes | None) -> None:
    """A rebound DNS name is not ours, nor is anything that only resembles a loopback name."""
    assert not host_allowed(host, LOCAL, ("127.0.0.1",))
    assert not host_allowed(host, (), ("127.0.0.1", "::1"))


def test_without_a_list_the_binding_decides() -> None:
    """Bound to loopback: its names. Bound beyond: any name, and none."""
    assert host_allowed(b"localhost:3002", (), ("127.0.0.1", "::1"))
    for bound in (("0.0.0.0",), ("127.0.0.1", "192.0.2.1"), ("::",)):
        assert host_allowed(b"any.example", (), bound)
        assert host_allowed(None, (), bound)


def test_a_list_is_exact() -> None:
    """Only listed names are served, whatever the binding; loopback only if it is listed."""
    allowed = ("gw.example.com", "192.0.2.7", "2001:db8::7")
    for good in (b"gw.example.com", b"GW.example.com:443", b"192.0.2.7:1", b"[2001:db8:0::7]"):
        assert host_allowed(good, allowed, ("0.0.0.0",))
    for bad in (b"example.com", b"x.gw.example.com", b"gw.example.com.", b"localhost", b"192.0.2.70", None):
        assert not host_allowed(bad, allowed, ("0.0.0.0",))


def test_an_asterisk_is_every_name_or_every_name_below_one() -> None:
    """``*`` serves everything; ``*.example.com`` names below it, not itself nor a lookalike."""
    assert host_allowed(b"any.example", ("*",), ("127.0.0.1",))
    below = ("*.example.com",)
    assert host_allowed(b"a.example.com", below, ("127.0.0.1",))
    assert host_allowed(b"a.b.example.com:1", below, ("127.0.0.1",))
    for bad in (b"example.com", b".example.com", b"badexample.com", b"a.example.com.evil.example"):
        assert not host_allowed(bad, below, ("127.0.0.1",))


LOOPBACK_ORIGINS = [
    b"http://localhost",
    b"https://localhost",
    b"http://localhost:5173",
    b"http://127.0.0.1:3000",
    b"https://127.0.0.1",
    b"http://[::1]:8080",
    b"http://[::1]",
]
OTHER_ORIGINS = [
    b"https://evil.example",
    b"http://localhost.evil.example",
    b"http://127.0.0.1.evil.example",
    b"http://localhost:80:80",
    b"http://localhost/",
    b"http://localhost/path",
    b"http://localhost?x",
    b"http://user@localhost",
    b"http://localhost http://evil.example",
    b"http://evil.example http://localhost",
    b"ftp://localhost",
    b"file://",
    b"file:///",
    b"localhost",
    b"//localhost",
    b"",
    b" http://localhost",
    b"http://localhost:99999",
    b"http://0.0.0.0",
    b"http://2130706433",
    b"http://[::1",
    b"http://\xff",
    b"javascript://localhost",
]


@pytest.mark.parametrize("origin", LOOPBACK_ORIGINS)
def test_development_allows_every_loopback_origin(origin: bytes) -> None:
    """http and https on this machine, whatever the port; production allows none of them by itself."""
    assert origin_allowed(origin, Settings())
    assert not origin_allowed(origin, Settings(security_profile="production", cors_allowed_origins=()))


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
def test_development_allows_no_other_origin(origin: bytes) -> None:
    """Nothing that only contains a loopback name, and nothing that is not one serialized origin."""
    assert not origin_allowed(origin, Settings())
    assert not origin_allowed(origin, Settings(cors_allowed_origins=()))


def test_a_list_of_origins_is_exact() -> None:
    """Scheme, host and port as they are listed; another port, scheme, case or subdomain is another origin."""
    settings = Settings(cors_allowed_origins=("https://app.example.com", "vscode-webview://abc", "http://app:8080"))
    for good in (b"https://app.example.com", b"vscode-webview://abc", b"http://app:8080"):
        assert origin_allowed(good, settings)
    for bad in (
        b"http://app.example.com",
        b"https://app.example.com:443",
        b"https://App.example.com",
        b"https://x.app.example.com",
        b"https://app.example.com.evil.example",
        b"http://app",
        b"http://localhost",
    ):
        assert not origin_allowed(bad, settings)


def test_loopback_may_be_listed_beside_others() -> None:
    """The default's keyword and an origin together allow both."""
    settings = Settings(cors_allowed_origins=("loopback", "https://app.example.com"))
    assert origin_allowed(b"http://localhost:1", settings)
    assert origin_allowed(b"https://app.example.com", settings)
    assert not origin_allowed(b"loopback", settings)


@pytest.mark.parametrize("listed", [("*",), ("null",), ("loopback",), ("*", "null")])
def test_null_is_never_an_origin(listed: tuple[str, ...]) -> None:
    """An opaque origin is anybody's: not by ``*``, not even when it is listed."""
    assert not origin_allowed(b"null", Settings(cors_allowed_origins=listed))
    assert not origin_allowed(b"NULL", Settings(cors_allowed_origins=listed))


def test_an_asterisk_allows_every_well_formed_origin() -> None:
    """``*`` still takes no nonsense."""
    settings = Settings(cors_allowed_origins=("*",))
    assert origin_allowed(b"https://any.example", settings)
    assert not origin_allowed(b"https://a.example https://b.example", settings)


def test_cors_off_allows_no_origin_more() -> None:
    """``CORS_ENABLED=false`` turns no refusal off."""
    assert not origin_allowed(b"https://evil.example", Settings(cors_enabled=False))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.8.9.1", True), ("::1", True), ("128.0.0.1", False), ("127.0.0.01", False)],
)
def test_loopback_is_this_machine_only(host: str, expected: bool) -> None:
    """RFC 1122 §3.2.1.3 and RFC 4291 §2.5.3."""
    assert is_loopback(host) is expected
