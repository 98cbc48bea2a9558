"""CORS by the Fetch standard, and the rate headers: which fields an answer carries, and which preflights pass."""

from __future__ import annotations

import msgspec
import pytest

from actors.policy.cors import MAX_REQUEST_HEADERS, answer_fields, is_preflight, preflight_fields
from actors.policy.rate_headers import BURST, Quota, rate_fields, retry_after
from ipc.settings import Settings

APP = "https://app.example"
ORIGIN = APP.encode()
LISTED = Settings(cors_allowed_origins=(APP,))


def changed(**fields: object) -> Settings:
    return msgspec.structs.replace(LISTED, **fields)


def asked(
    settings: Settings = LISTED, *, origin: bytes | None = ORIGIN, method: bytes = b"POST", headers: bytes | None = None
) -> dict[str, str] | None:
    """The answer to a preflight as a mapping; None: refused."""
    fields = preflight_fields(origin, method, [] if headers is None else [headers], settings)
    return None if fields is None else dict(fields)


# --- answers


def test_an_allowed_origin_may_read_the_answer() -> None:
    """It is named exactly, and the limits are exposed to it; there are no credentials unless configured."""
    fields = dict(answer_fields(ORIGIN, LISTED))
    assert fields["Access-Control-Allow-Origin"] == APP
    assert fields["Vary"] == "Origin"
    for name in ("RateLimit", "RateLimit-Policy", "Retry-After"):
        assert name in fields["Access-Control-Expose-Headers"].split(", ")
    assert "Access-Control-Allow-Credentials" not in fields


@pytest.mark.parametrize(
    "origin",
    [None, b"null", b"", b"https://app.example.evil.test", b"https://app.example:443", b"http://app.example",
     b"https://app.example/", b"HTTPS://APP.EXAMPLE", b"https://sub.app.example", b"https://app.example, null",
     b"https://evil.test https://app.example", b"https://app.exampl"],
)  # fmt: skip
def test_nobody_else_may(origin: bytes | None) -> None:
    """The match is exact; all that a refused origin gets is Vary, so that no cache gives it another one's answer."""
    assert answer_fields(origin, LISTED) == [("Vary", "Origin")]
    assert asked(origin=origin) is None


@pytest.mark.parametrize("listed", [(), ("*",), ("loopback",), ("loopback", "*")])
def test_null_is_never_allowed(listed: tuple[str, ...]) -> None:
    """A sandboxed frame of any site has the origin null."""
    assert answer_fields(b"null", changed(cors_allowed_origins=listed)) == [("Vary", "Origin")]
    assert asked(changed(cors_allowed_origins=listed), origin=b"null") is None


def test_switched_off_nothing_is_granted() -> None:
    """Without CORS no origin reads anything."""
    assert answer_fields(ORIGIN, changed(cors_enabled=False)) == [("Vary", "Origin")]
    assert asked(changed(cors_enabled=False)) is None


@pytest.mark.parametrize(
    ("listed", "origin", "credentials"),
    [
        ((APP,), ORIGIN, True),
        ((APP, "*"), ORIGIN, True),
        (("*",), ORIGIN, False),
        (("loopback",), b"http://localhost:3000", False),
        (("loopback", "http://localhost:3000"), b"http://localhost:3000", True),
        (("loopback", "http://localhost:3000"), b"http://localhost:3001", False),
    ],
)
def test_credentials_need_an_origin_listed_by_name(listed: tuple[str, ...], origin: bytes, credentials: bool) -> None:
    """A wildcard, or a whole class of origins, never brings them; and the answer never names ``*``."""
    settings = changed(cors_allowed_origins=listed, cors_allow_credentials=True)
    for fields in (dict(answer_fields(origin, settings)), asked(settings, origin=origin)):
        assert fields is not None
        assert fields["Access-Control-Allow-Origin"] == origin.decode()
        assert ("Access-Control-Allow-Credentials" in fields) is credentials


# --- preflights


def test_what_a_preflight_is() -> None:
    """OPTIONS with an origin and the method it asks for; nothing else, in whatever combination."""
    assert is_preflight("OPTIONS", ORIGIN, b"POST")
    assert not is_preflight("OPTIONS", None, b"POST")
    assert not is_preflight("OPTIONS", ORIGIN, None)
    assert not is_preflight("GET", ORIGIN, b"POST")
    assert not is_preflight("options", ORIGIN, b"POST")


def test_an_allowed_preflight_is_answered_in_full() -> None:
    """Methods, headers and how long that holds; nothing of private networks."""
    fields = asked(headers=b"authorization,content-type")
    assert fields == {
        "Access-Control-Allow-Origin": APP,
        "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": ", ".join(LISTED.cors_allowed_headers),
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }


@pytest.mark.parametrize(
    ("method", "allowed"),
    [(b"GET", True), (b"HEAD", True), (b"DELETE", True), (b"PATCH", False), (b"post", False), (b"Post", False),
     (b"POST, GET", False), (b"", False), (b"*", False), (b"CONNECT", False), (b"POST\t", False)],
)  # fmt: skip
def test_methods_are_compared_by_case(method: bytes, allowed: bool) -> None:
    """One method, exactly as listed."""
    assert (asked(method=method) is not None) is allowed


def test_head_needs_get() -> None:
    """It is allowed because GET is, and not where it isn't."""
    assert asked(changed(cors_allowed_methods=("POST",)), method=b"HEAD") is None


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        (None, True), (b"", True), (b" , ,", True), (b"AUTHORIZATION", True), (b"authorization , Content-Type", True),
        (b"mcp-session-id,mcp-protocol-version,last-event-id", True), (b"cookie", False), (b"x-evil", False),
        (b"authorization,x-evil", False), (b"authorization;q=1", False), (b"content type", False), (b"*", False),
        (b"content-type:", False), (b"a" * 300, False), (b"accept," * 64, True), (b"accept," * 65, False),
        (b"," * 127, True), (b"," * 10_000, False), (b"Content-Type\xc3", False),
    ],
)  # fmt: skip
def test_headers_are_compared_without_case_and_bounded(headers: bytes | None, allowed: bool) -> None:
    """Every one of them has to be listed, and there are at most so many."""
    assert MAX_REQUEST_HEADERS == 64
    assert (asked(headers=headers) is not None) is allowed


def test_several_lines_are_one_list() -> None:
    """RFC 9110 §5.3: a header that isn't allowed doesn't pass on a second line."""
    assert preflight_fields(ORIGIN, b"POST", [b"authorization", b"accept"], LISTED) is not None
    assert preflight_fields(ORIGIN, b"POST", [b"authorization", b"x-evil"], LISTED) is None


def test_an_asterisk_is_a_wildcard_without_credentials_and_never_authorization() -> None:
    """Fetch: a name like others with credentials, and Authorization has to be named."""
    wild = changed(cors_allowed_headers=("*",), cors_allowed_methods=("*",))
    assert asked(wild, method=b"PATCH", headers=b"x-anything") is not None
    assert asked(wild, headers=b"authorization") is None
    assert asked(changed(cors_allowed_headers=("*", "Authorization")), headers=b"authorization,x-a") is not None
    with_credentials = msgspec.structs.replace(wild, cors_allow_credentials=True)
    assert asked(with_credentials, method=b"PATCH") is None
    assert asked(with_credentials, method=b"*", headers=b"x-anything") is None


# --- rate headers


def test_both_windows_are_told_as_policies() -> None:
    """``q`` units a window of ``w`` whole seconds, rounded up: nobody is told of more than there is."""
    settings = Settings(
        rate_limit_max_requests=100,
        rate_limit_window_ms=60_000,
        rate_limit_burst_requests=20,
        rate_limit_burst_window_ms=1_500,
    )
    assert rate_fields(settings, None) == [("RateLimit-Policy", '"default";q=100;w=60, "burst";q=20;w=2')]


@pytest.mark.parametrize(
    ("quota", "field"),
    [
        (Quota(remaining=12, reset_ms=30_001), '"default";r=12;t=31'),
        (Quota(remaining=0, reset_ms=1, policy=BURST), '"burst";r=0;t=1'),
        (Quota(remaining=-3, reset_ms=-1), '"default";r=0;t=0'),
    ],
)
def test_what_is_left_is_told_to_whom_was_charged(quota: Quota, field: str) -> None:
    """``r`` units, and ``t`` seconds until there are more; never negative."""
    assert dict(rate_fields(Settings(), quota))["RateLimit"] == field


def test_without_limits_nothing_is_told() -> None:
    """There is no policy to speak of."""
    assert rate_fields(Settings(rate_limit_enabled=False), Quota(1, 1)) == []


@pytest.mark.parametrize(("wait_ms", "value"), [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (3_600_000, "3600")])
def test_retry_after_is_never_too_early(wait_ms: int, value: str) -> None:
    """Whole seconds, rounded up, at least one."""
    assert retry_after(wait_ms) == ("Retry-After", value)
