"""What the WebSocket port serves over HTTP, and what an attacker can't do with it: two workers, real sockets."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import gateway as gateways
import pytest
import trio
from http_exchange import Answer, check_common, exchange, head, only_answer, until_end, upgrade
from wire_clients import WsClient, tcp_client, ws_client

APP = "https://app.example"
OTHER = "https://other.example"
QUIET = {  # what these tests are not about
    "WORKERS": "2",
    "AUTO_BLOCK_ENABLED": "false",
    "CONNECTION_RATE_LIMIT": "1000000",
    "RATE_LIMIT_MAX_REQUESTS": "1000000",
    "RATE_LIMIT_BURST_REQUESTS": "1000000",
    "MAX_CONNECTIONS_PER_IP": "10000",
}
CORS = {"CORS_ALLOWED_ORIGINS": APP}


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateways.Gateway]:
    """One gateway for every test that leaves it as it was."""
    running = gateways.start(tmp_path_factory.mktemp("surface"), environment=QUIET | CORS)
    try:
        yield running
        running.stop()
    finally:
        if running.process.returncode is None:
            running.kill()


@asynccontextmanager
async def bystander(gateway: Any) -> AsyncIterator[WsClient]:
    """Another client's connection, which goes on however the first one misbehaves; so do new connections."""
    async with ws_client(gateway) as client:
        await client.initialize()
        yield client
        assert (await client.call("ping"))["result"] == {}
        echo = {"name": "echo", "arguments": {"text": "still"}}
        assert (await client.call("tools/call", echo))["result"]["content"][0]["text"] == "still"
        assert (await exchange(gateway.ws_port, head("GET", "/health"))).status == 200


# --- hostile requests

TICKET = "POST /auth/ticket HTTP/1.1\r\nHost: localhost\r\n"
SMUGGLED = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def ticket(*fields: str, body: bytes = b"") -> bytes:
    """A POST with exactly these fields behind Host."""
    return (TICKET + "".join(f"{field}\r\n" for field in fields) + "\r\n").encode("latin-1") + body


FRAMING: dict[str, tuple[bytes, int]] = {
    "CL.TE": (ticket("Content-Length: 6", "Transfer-Encoding: chunked", body=b"0\r\n\r\nG"), 400),
    "TE.CL": (ticket("Transfer-Encoding: chunked", "Content-Length: 3", body=b"8\r\nSMUGGLED\r\n0\r\n\r\n"), 400),
    "CL.TE, cased": (ticket("content-length: 6", "tRANSFER-eNCODING: chunked"), 400),
    "CL.0": (ticket(f"Content-Length: {len(SMUGGLED)}", body=SMUGGLED * 2), 415),
    "TE": (ticket("Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED), 501),
    "TE.TE": (ticket("Transfer-Encoding: chunked", "Transfer-Encoding: x"), 400),
    "TE unknown": (ticket("Transfer-Encoding: xchunked"), 501),
    "TE identity": (ticket("Transfer-Encoding: identity"), 501),
    "TE list": (ticket("Transfer-Encoding: gzip, chunked"), 501),
    "TE empty": (ticket("Transfer-Encoding:", "Content-Length: 3"), 400),
    "TE, space before the colon": (ticket("Transfer-Encoding : chunked"), 400),
    "TE, tab before the colon": (ticket("Transfer-Encoding\t: chunked"), 400),
    "TE, NUL in the name": (ticket("Transfer-Encoding\0: chunked"), 400),
    "TE, vertical tab": (ticket("Transfer-Encoding:\x0bchunked"), 400),
    "TE, folded": (ticket("X: y", " Transfer-Encoding: chunked"), 400),
    "TE, folded value": (ticket("Transfer-Encoding:", " chunked"), 400),
    "TE behind a bare LF": (ticket("X: y\nTransfer-Encoding: chunked"), 400),
    "TE behind a bare CR": (ticket("X: y\rTransfer-Encoding: chunked"), 400),
    "TE behind NEL": (ticket("X: y\x85Transfer-Encoding: chunked"), 400),
    "two CL": (ticket("Content-Length: 3", "Content-Length: 4"), 400),
    "two equal CL": (ticket("Content-Length: 3", "Content-Length: 3"), 400),
    "CL list": (ticket("Content-Length: 3, 3"), 400),
    "CL plus": (ticket("Content-Length: +3"), 400),
    "CL minus": (ticket("Content-Length: -1"), 400),
    "CL hex": (ticket("Content-Length: 0x3"), 400),
    "CL with a space": (ticket("Content-Length: 3 0"), 400),
    "CL with an underscore": (ticket("Content-Length: 1_0"), 400),
    "CL empty": (ticket("Content-Length:"), 400),
    "CL beyond 64 bits": (ticket("Content-Length: 18446744073709551619"), 400),
    "CL in other digits": (ticket("Content-Length: \xb3"), 400),
    "CL, space before the colon": (ticket("Content-Length : 3"), 400),
    "upgrade with CL": (upgrade("Content-Length: 5") + b"hello", 400),
    "upgrade with TE": (upgrade("Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "GET with a body": (head("GET", "/health", f"Content-Length: {len(SMUGGLED)}") + SMUGGLED, 200),
    "pipelined": (SMUGGLED * 5, 200),
    "pipelined behind an error": (head("GET", "/nothing") + SMUGGLED, 404),
    "pipelined behind a refused head": (b"GET /health HTTP/1.1\nHost: localhost\n\n" + SMUGGLED, 400),
    "keep-alive asked for": (head("GET", "/health", "Connection: keep-alive") + SMUGGLED, 200),
}

LINES: dict[str, tuple[bytes, int]] = {
    "bare LF": (b"GET /health HTTP/1.1\nHost: localhost\n\n", 400),
    "a bare LF at the end": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\n", 400),
    "bare CR": (b"GET /health HTTP/1.1\rHost: localhost\r\r", 400),
    "two empty lines first": (b"\r\n\r\n" + head("GET", "/health"), 400),
    "NUL in the target": (head("GET", "/hea\0lth"), 400),
    "NUL in a name": (head("GET", "/health", "X\0: y"), 400),
    "NUL in a value": (head("GET", "/health", "X: \0"), 400),
    "DEL in a value": (head("GET", "/health", "X: \x7f"), 400),
    "escape in a value": (head("GET", "/health", "X: \x1b[2J"), 400),
    "a name with a space": (head("GET", "/health", "X Y: z"), 400),
    "a name in brackets": (head("GET", "/health", "X[]: z"), 400),
    "a name beyond ASCII": (head("GET", "/health", "X\xe9: z"), 400),
    "a value beyond ASCII": (head("GET", "/health", "X: \xe9"), 400),
    "an empty name": (head("GET", "/health", ": z"), 400),
    "no colon": (head("GET", "/health", "nothing"), 400),
    "folded": (head("GET", "/health", "X: y", "\tz"), 400),
    "folded first": (b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n", 400),
    "no Host": (head("GET", "/health", host=""), 400),
    "two Hosts": (head("GET", "/health", "Host: localhost"), 400),
    "a list of Hosts": (head("GET", "/health", host="localhost, evil.test"), 400),
    "Host with credentials": (head("GET", "/health", host="localhost@evil.test"), 400),
    "Host with a path": (head("GET", "/health", host="localhost/evil"), 400),
    "two Origins": (head("GET", "/health", f"Origin: {APP}", f"Origin: {APP}"), 400),
    "the absolute form": (b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    "the absolute form, another Host": (b"GET http://evil.test/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "the absolute form, credentials": (b"GET http://a@localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "the authority form": (b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
    "no slash": (head("GET", "health"), 400),
    "a space in the target": (head("GET", "/health HTTP/1.1 x"), 400),
    "a fragment": (head("GET", "/health#x"), 400),
    "a broken escape": (head("GET", "/%zz"), 400),
    "another path, escaped": (head("GET", "/%68ealth"), 404),
    "dots": (head("GET", "/ws/../health"), 426),
    "lower case": (head("get", "/health"), 405),
    "an unknown method": (head("BREW", "/health"), 405),
    "TRACE": (head("TRACE", "/health", "Cookie: secret=1"), 405),
    "a method that isn't a token": (head("G(T", "/health"), 400),
    "HTTP/0.9": (b"GET /health\r\n", 400),
    "HTTP/1.2": (head("GET", "/health", version="1.2"), 505),
    "HTTP/2": (head("GET", "/health", version="2.0"), 505),
    "HTTP/1.10": (head("GET", "/health", version="1.10"), 400),
    "http/1.1": (b"GET /health http/1.1\r\nHost: localhost\r\n\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400),
    "an upgrade to HTTP/2": (head("GET", "/", "Upgrade: h2c", "Connection: Upgrade", "HTTP2-Settings: AAM"), 426),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
    "JSON": (b'{"jsonrpc":"2.0","id":1,"method":"ping"}\r\n', 400),
    "HTTP/1.0": (head("GET", "/health", version="1.0"), 200),
    "an upgrade in HTTP/1.0": (upgrade(version="1.0"), 400),
    "100 fields": (head("GET", "/health", *["X: y"] * 99), 200),
    "101 fields": (head("GET", "/health", *["X: y"] * 100), 431),
    "16 KiB": (head("GET", "/health", "X: " + "y" * (16_384 - len(head("GET", "/health", "X: ")))), 200),
    "16 KiB and a byte": (head("GET", "/health", "X: " + "y" * (16_385 - len(head("GET", "/health", "X: ")))), 431),
    "an endless line": (b"GET /" + b"a" * 20_000, 414),
    "an endless head": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, 431),
}


FORM = "Content-Type: application/x-www-form-urlencoded"
TYPED = "Content-Type: application/json"


def posted(body: bytes, *fields: str, path: str = "/auth/refresh", length: int | None = None) -> bytes:
    """A POST with its body, or with a length that isn't the body's."""
    return head("POST", path, f"Content-Length: {len(body) if length is None else length}", *fields) + body


BODIES: dict[str, tuple[bytes, int]] = {
    "longer than its length": (posted(b"{}" + SMUGGLED, TYPED, length=2), 400),
    "a length of 0": (posted(SMUGGLED, TYPED, length=0), 400),
    "too long": (posted(b"", TYPED, length=65_537), 413),
    "much too long": (posted(b"{", TYPED, length=999_999_999_999_999), 413),
    "no type": (posted(b"{}"), 415),
    "another type": (posted(b"{}", "Content-Type: text/plain"), 415),
    "a multipart": (posted(b"{}", "Content-Type: multipart/form-data; boundary=x"), 415),
    "another charset": (posted(b"{}", "Content-Type: application/json; charset=utf-16"), 415),
    "no JSON": (posted(b"{", TYPED), 400),
    "JSON of another shape": (posted(b"[]", TYPED), 400),
    "a number for a text": (posted(b'{"refresh_token":1}', TYPED), 400),
    "bytes that are no UTF-8": (posted(b'{"refresh_token":"\xff"}', TYPED), 400),
    "deep JSON": (posted(b'{"a":' + b"[" * 30_000, TYPED), 400),
    "a field twice": (posted(b"refresh_token=a&refresh_token=b", FORM), 400),
    "many fields": (posted(b"&".join(b"f%d=1" % number for number in range(100)), FORM), 400),
    "an unknown token": (posted(b'{"refresh_token":"unknown"}', TYPED), 401),
    "an unknown token in a form": (posted(b"refresh_token=unknown", FORM), 401),
}


@pytest.mark.parametrize("name", [*FRAMING, *LINES, *BODIES])
async def test_a_hostile_request_gets_one_answer_and_hurts_nobody(shared_gateway: Any, name: str) -> None:
    """Whatever is sent, in one piece or byte by byte, is answered once with its status; nothing that came behind it
    is taken for a request; and another client's calls go on."""
    data, status = {**FRAMING, **LINES, **BODIES}[name]
    async with bystander(shared_gateway):
        pieces = [data[index : index + 1] for index in range(min(len(data), 600))] + [data[600:]]
        for parts in ([data], pieces):
            answer = await exchange(shared_gateway.ws_port, *parts)
            assert answer.status == status, answer.body
            check_common(answer)
            if status == 200:
                assert json.loads(answer.body) == {"status": "healthy"}
            else:
                answer.problem()
            assert answer.get("access-control-allow-origin") is None


@pytest.mark.parametrize(
    "host", ["evil.test", "localhost.evil.test", "127.0.0.1.nip.io", "xlocalhost", "127.0.0.2", "0.0.0.0", "[::2]",
             "localhost.", "2130706433", "0x7f000001", "127.1"],
)  # fmt: skip
async def test_a_rebound_name_is_refused(shared_gateway: Any, host: str) -> None:
    """A page that made its own name point here is refused by the Host that its browser sends, with 403, whatever it
    asks for and whatever the port; its credential isn't even looked at."""
    token = f"Authorization: Bearer {shared_gateway.ws_token}"
    port = shared_gateway.ws_port
    for name in (host, f"{host}:{port}"):
        for request in (
            head("GET", "/health", host=name),
            head("POST", "/auth/ticket", token, host=name),
            upgrade(token, host=name),
            head("OPTIONS", "/health", f"Origin: {APP}", "Access-Control-Request-Method: GET", host=name),
        ):
            answer = await exchange(port, request)
            assert answer.status == 403
            assert "Host" in answer.problem()["detail"]
            check_common(answer)


async def test_a_body_that_never_ends_is_no_request(shared_gateway: Any) -> None:
    """The client goes away, in order, in the middle of head or body: nothing is made of the half, nobody notices."""
    whole = posted(b'{"token":"%s"}' % shared_gateway.ws_token.encode(), TYPED, path="/auth/token")
    async with bystander(shared_gateway):
        for cut in (1, 20, len(whole) - 60, len(whole) - 1):
            with trio.fail_after(60):
                stream = await trio.open_tcp_stream("127.0.0.1", shared_gateway.ws_port)
                async with stream:
                    await stream.send_all(whole[:cut])
                    await stream.send_eof()
                    received = await until_end(stream)
            assert not received or only_answer(received).status in (400, 408), received


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(shared_gateway: Any) -> None:
    """100 before the body, once; none for a body that will be refused by its head."""
    body = b'{"refresh_token":"unknown"}'
    fields = (f"Content-Length: {len(body)}", "Expect: 100-continue")
    with trio.fail_after(60):
        stream = await trio.open_tcp_stream("127.0.0.1", shared_gateway.ws_port)
        async with stream:
            await stream.send_all(head("POST", "/auth/refresh", TYPED, *fields))
            assert await stream.receive_some(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send_all(body)
            assert only_answer(await until_end(stream)).status == 401
    for refused, status in (((*fields, "Content-Type: text/plain"), 415), ((fields[1], "Content-Length: 65537"), 413)):
        assert (await exchange(shared_gateway.ws_port, head("POST", "/auth/refresh", *refused))).status == status


# --- methods and paths


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("DELETE", "/health", "GET, HEAD, OPTIONS"),
        ("GET", "/auth/ticket", "POST, OPTIONS"),
        ("GET", "/auth/token", "POST, OPTIONS"),
        ("PUT", "/auth/refresh", "POST, OPTIONS"),
        ("HEAD", "/auth/revoke", "POST, OPTIONS"),
        ("POST", "/auth/session", "GET, HEAD, OPTIONS"),
        ("POST", "/", "GET"),
        ("PUT", "/ws/embedded", "GET"),
        ("OPTIONS", "/ws", "GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(shared_gateway: Any, method: str, path: str, allow: str) -> None:
    """405 with Allow, for a listed origin readable."""
    answer = await exchange(shared_gateway.ws_port, head(method, path, f"Origin: {APP}"))
    assert (answer.status, answer.get("allow")) == (405, allow)
    assert answer.get("access-control-allow-origin") == APP
    check_common(answer)
    if method != "HEAD":
        answer.problem()


async def test_a_plain_request_on_a_websocket_path_is_told_to_upgrade(shared_gateway: Any) -> None:
    """426, with what to upgrade to; also for another version of the protocol."""
    wrong = upgrade().replace(b"Version: 13", b"Version: 8")
    for request in (head("GET", "/"), head("GET", "/ws"), head("GET", "/ws/embedded"), wrong):
        answer = await exchange(shared_gateway.ws_port, request)
        assert answer.status == 426
        assert (answer.get("upgrade"), answer.get("sec-websocket-version")) == ("websocket", "13")
        check_common(answer)


@pytest.mark.parametrize("path", ["/nothing", "/auth", "/auth/", "/auth/none", "/health/", "//health", "/metrics",
                                  "/admin/v1/actors", "/livez", "/wsx"])  # fmt: skip
async def test_nothing_else_is_served(shared_gateway: Any, path: str) -> None:
    """404 for any method; nothing of the health port is reachable here."""
    for method in ("GET", "POST", "OPTIONS", "HEAD"):
        answer = await exchange(shared_gateway.ws_port, head(method, path))
        assert answer.status == 404
        assert (answer.body == b"") is (method == "HEAD")
        check_common(answer)


async def test_head_has_the_head_of_get_and_no_body(shared_gateway: Any) -> None:
    """The same fields, the length included."""
    get = await exchange(shared_gateway.ws_port, head("GET", "/health"))
    without = await exchange(shared_gateway.ws_port, head("HEAD", "/health"))
    assert without.body == b""
    assert without.get("content-length") == get.get("content-length") == str(len(get.body))
    assert {name for name, _ in without.headers} == {name for name, _ in get.headers}


async def test_an_upgrade_carries_the_security_headers_too(shared_gateway: Any) -> None:
    """On the 101 as on every answer; the WebSocket works."""
    with trio.fail_after(60):
        stream = await trio.open_tcp_stream("127.0.0.1", shared_gateway.ws_port)
        async with stream:
            await stream.send_all(upgrade(f"Authorization: Bearer {shared_gateway.ws_token}", f"Origin: {APP}"))
            received = b""
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some(65536)
    lines = received.partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
    assert lines[0] == "http/1.1 101 switching protocols"
    assert "x-content-type-options: nosniff" in lines
    assert "x-frame-options: deny" in lines
    assert any(line.startswith("date: ") for line in lines)


async def test_the_policy_of_the_limits_stands_on_every_answer(shared_gateway: Any) -> None:
    """As structured fields; errors too."""
    for request in (head("GET", "/health"), head("GET", "/nothing"), b"nonsense\r\n"):
        answer = await exchange(shared_gateway.ws_port, request)
        assert answer.get("ratelimit-policy") == '"default";q=1000000;w=60, "burst";q=1000000;w=1'


# --- CORS


def cors_fields(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers if name.startswith("access-control-")}


PREFLIGHT = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type")


async def test_a_listed_origin_reads_every_answer(shared_gateway: Any) -> None:
    """Successes and errors alike carry its name, so that its page can tell what went wrong and when to come back."""
    port, token = shared_gateway.ws_port, f"Authorization: Bearer {shared_gateway.ws_token}"
    origin = f"Origin: {APP}"
    for request, status in (
        (head("GET", "/health", origin), 200),
        (head("POST", "/auth/ticket", origin, token), 200),
        (head("POST", "/auth/ticket", origin), 401),
        (head("POST", "/auth/ticket", origin, "Authorization: Bearer wrong"), 401),
        (head("POST", "/auth/ticket", origin, "Authorization: Basic eDp5"), 401),
        (head("GET", "/nothing", origin), 404),
        (head("GET", "/", origin), 426),
        (upgrade(origin), 401),
    ):
        answer = await exchange(port, request)
        assert answer.status == status
        assert answer.get("access-control-allow-origin") == APP
        assert "Retry-After" in str(answer.get("access-control-expose-headers"))
        assert answer.get("access-control-allow-credentials") is None
        check_common(answer)
        if status == 401:
            assert str(answer.get("www-authenticate")).startswith("Bearer")


@pytest.mark.parametrize("origin", [OTHER, "null", APP + ".evil.test", APP + "/", APP.upper(), "http://localhost:3000",
                                    "https://app.example:443", f"{APP} {OTHER}", "x"])  # fmt: skip
async def test_any_other_origin_is_refused_everywhere(shared_gateway: Any, origin: str) -> None:
    """403 without a CORS field, for requests, preflights and upgrades, and whatever the credential."""
    port, token = shared_gateway.ws_port, f"Authorization: Bearer {shared_gateway.ws_token}"
    field = f"Origin: {origin}"
    for request in (
        head("GET", "/health", field),
        head("POST", "/auth/ticket", field, token),
        head("OPTIONS", "/auth/ticket", field, *PREFLIGHT),
        head("GET", "/nothing", field),
        upgrade(field, token),
        upgrade(field, token, path="/ws/embedded"),
    ):
        answer = await exchange(port, request)
        assert answer.status == 403
        answer.problem()
        assert cors_fields(answer) == {}
        check_common(answer)


async def test_a_preflight_is_answered_by_the_lists(shared_gateway: Any) -> None:
    """204 with what is allowed and for how long, without a credential; 403 for a method or header that isn't listed."""
    port = shared_gateway.ws_port
    for path in ("/health", "/auth/token", "/auth/refresh", "/auth/revoke", "/auth/session", "/auth/ticket"):
        private = "Access-Control-Request-Private-Network: true"
        answer = await exchange(port, head("OPTIONS", path, f"Origin: {APP}", *PREFLIGHT, private))
        assert (answer.status, answer.body, answer.get("content-length")) == (204, b"", None)
        assert answer.get("access-control-allow-origin") == APP
        assert answer.get("access-control-allow-methods") == "GET, POST, PUT, DELETE, OPTIONS"
        assert "Authorization" in str(answer.get("access-control-allow-headers")).split(", ")
        assert answer.get("access-control-max-age") == "600"
        assert len(cors_fields(answer)) == 4
        check_common(answer)
    method, fields = PREFLIGHT
    for asked in (
        ("Access-Control-Request-Method: PATCH", fields),
        ("Access-Control-Request-Method: post", fields),
        (method, "Access-Control-Request-Headers: authorization,x-evil"),
        (method, fields, "Access-Control-Request-Headers: x-evil"),
        (method, "Access-Control-Request-Headers: " + "accept," * 1000),
    ):
        answer = await exchange(port, head("OPTIONS", "/auth/ticket", f"Origin: {APP}", *asked))
        assert answer.status == 403
        assert cors_fields(answer) == {}
        check_common(answer)


async def test_an_options_that_is_no_preflight_is_told_the_methods(shared_gateway: Any) -> None:
    """204 with Allow: without an origin, without a method asked for, and for the server as a whole."""
    for request, allow in (
        (head("OPTIONS", "/health"), "GET, HEAD, OPTIONS"),
        (head("OPTIONS", "/auth/ticket", f"Origin: {APP}"), "POST, OPTIONS"),
        (head("OPTIONS", "/auth/ticket", *PREFLIGHT), "POST, OPTIONS"),
        (head("OPTIONS", "*"), "OPTIONS"),
    ):
        answer = await exchange(shared_gateway.ws_port, request)
        assert (answer.status, answer.get("allow")) == (204, allow)
        check_common(answer)


async def test_switching_cors_off_lets_no_origin_in(start_gateway: Any) -> None:
    """No page reads an answer any more, and a foreign one still opens no WebSocket; a listed one does."""
    environment = QUIET | CORS | {"CORS_ENABLED": "false"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    token = f"Authorization: Bearer {gateway.ws_token}"
    for origin in (OTHER, "null"):
        for request in (upgrade(f"Origin: {origin}", token), head("GET", "/health", f"Origin: {origin}")):
            assert (await exchange(gateway.ws_port, request)).status == 403
    for request, status in (
        (head("GET", "/health", f"Origin: {APP}"), 200),
        (head("OPTIONS", "/health", f"Origin: {APP}", *PREFLIGHT), 204),
    ):
        answer = await exchange(gateway.ws_port, request)
        assert answer.status == status
        assert cors_fields(answer) == {}
        check_common(answer)
    async with ws_client(gateway) as client:
        assert (await client.call("ping"))["result"] == {}


async def test_credentials_only_for_an_origin_listed_by_name(start_gateway: Any) -> None:
    """With ``*`` beside it, others may read, but never with credentials; security headers can be switched off, and the
    framing of the answers stays."""
    environment = QUIET | {
        "CORS_ALLOWED_ORIGINS": f"{APP},*",
        "CORS_ALLOW_CREDENTIALS": "true",
        "SECURITY_HEADERS_ENABLED": "false",
        "RATE_LIMIT_ENABLED": "false",
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    for origin, credentials in ((APP, "true"), (OTHER, None)):
        answer = await exchange(gateway.ws_port, head("GET", "/health", f"Origin: {origin}"))
        assert answer.get("access-control-allow-origin") == origin
        assert answer.get("access-control-allow-credentials") == credentials
        assert answer.get("x-frame-options") is None
        assert answer.get("ratelimit-policy") is None
        assert answer.get("vary") == "Origin"


# --- slow requests


async def test_slow_requests_end_by_the_clock(start_gateway: Any) -> None:
    """A head or a body that comes byte by byte, a head that stops half way, and nothing at all: each is told 408 once
    HANDSHAKE_TIMEOUT_MS is over, however many there are; beyond WS_MAX_CONNECTIONS it is 503 with Retry-After. Those
    who are in go on being served meanwhile, and the places are free again afterwards."""
    environment = QUIET | {"HANDSHAKE_TIMEOUT_MS": "3000", "WS_MAX_CONNECTIONS": "60"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    answers: list[Answer] = []
    over = trio.Event()
    served = 0

    async def slow(parts: list[bytes]) -> None:
        with trio.fail_after(60):
            stream = await trio.open_tcp_stream("127.0.0.1", gateway.ws_port)
            async with stream, trio.open_nursery() as nursery:

                async def dribble() -> None:
                    try:
                        for part in parts:
                            await stream.send_all(part)
                            await trio.sleep(0.1)
                    except trio.BrokenResourceError:
                        return

                nursery.start_soon(dribble)
                answers.append(only_answer(await until_end(stream)))
                nursery.cancel_scope.cancel()

    async def go_on(client: Any) -> None:
        nonlocal served
        while not over.is_set():
            assert (await client.call("ping"))["result"] == {}
            served += 1

    bytewise = [bytes([byte]) for byte in head("GET", "/health", *["X: y"] * 90)]
    slow_body = [head("POST", "/auth/token", TYPED, "Content-Length: 1000"), *[b" "] * 999]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(one(gateway)) for one in (ws_client, tcp_client) * 2]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(go_on, client)
            async with trio.open_nursery() as attackers:
                for number in range(90):
                    parts = (bytewise, [head("GET", "/health")[:-3]], [], slow_body)[number % 4]
                    attackers.start_soon(slow, parts)
            over.set()
        codes = Counter(answer.status for answer in answers)
        assert codes == {408: 58, 503: 32}
        for answer in answers:
            check_common(answer)
            answer.problem()
            assert (answer.get("retry-after") is not None) is (answer.status == 503)
        assert served > 0
        with trio.fail_after(60):  # a place is free again once the gateway has seen its connection end
            while (await exchange(gateway.ws_port, head("GET", "/health"))).status != 200:
                await trio.sleep(0.05)


def audit_text(directory: Path) -> str:
    return "".join(path.read_text() for path in directory.iterdir())


async def test_hostile_requests_leave_their_trace(start_gateway: Any) -> None:
    """Refusals are audited with their reason, and no credential of a refused request is in the log or the audit."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=QUIET | CORS))
    secret = "s3cr3t-that-must-not-be-kept"
    token = f"Authorization: Bearer {secret}"
    for request, status in (
        (upgrade(token, host="evil.test"), 403),
        (upgrade(token, f"Origin: {OTHER}"), 403),
        (head("GET", f"/?token={secret}", token, f"Origin: {secret}"), 403),
        (head("GET", "/", token + "\0"), 400),
        (head("POST", "/auth/ticket", token), 401),
        (head("POST", "/auth/ticket", f"Authorization: Basic {secret}"), 401),
        (head(secret, "/health"), 405),
    ):
        assert (await exchange(gateway.ws_port, request)).status == status
    await trio.to_thread.run_sync(gateway.stop)
    audited = audit_text(gateway.audit_dir)
    for reason in ("host", "origin", "handshake", "auth"):
        assert re.search(rf'"reason": ?"{reason}"', audited), reason
    assert secret not in audited
    assert secret not in "".join([*gateway.log, *gateway.out])


async def test_a_client_over_its_limit_is_told_so_and_for_how_long(start_gateway: Any) -> None:
    """Each request shows what is left; past the limit it is 429 with Retry-After, in a form that a listed page reads.
    The limit is one for both workers, and preflights cost as well: they are requests."""
    environment = QUIET | CORS | {"RATE_LIMIT_MAX_REQUESTS": "6", "RATE_LIMIT_BURST_REQUESTS": "6"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    field = f"Origin: {APP}"
    requests = [head("GET", "/health", field), head("OPTIONS", "/health", field, *PREFLIGHT)] * 10
    answers = [await exchange(gateway.ws_port, request) for request in requests]
    served = [answer for answer in answers if answer.status != 429]
    assert {answer.status for answer in served} == {200, 204}
    assert 2 <= len(served) <= 6
    for answer in answers:
        left = re.fullmatch(r'"(default|burst)";r=([0-9]+);t=([0-9]+)', str(answer.get("ratelimit")))
        assert left is not None
        assert int(left[2]) <= (0 if answer.status == 429 else 5)
        assert int(left[3]) <= 60
        assert answer.get("ratelimit-policy") == '"default";q=6;w=60, "burst";q=6;w=1'
        assert answer.get("access-control-allow-origin") == APP
        check_common(answer)
        if answer.status == 429:
            answer.problem()
            assert 1 <= int(str(answer.get("retry-after"))) <= 60
        else:
            assert answer.get("retry-after") is None
