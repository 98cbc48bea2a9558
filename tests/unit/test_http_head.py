"""Request heads, the WebSocket handshake, and what is answered."""

from __future__ import annotations

import json

import h11
import pytest

from actors.acceptor.http import (
    HeadReader,
    HttpError,
    Request,
    date_header,
    is_upgrade,
    problem,
    response,
    security_headers,
    switching_protocols,
    websocket_handshake,
    with_rest,
)
from ipc.settings import Settings

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def parse(data: bytes, step: int = 0) -> Request:
    reader = HeadReader()
    if not step:
        request = reader.receive(data)
    else:
        for start in range(0, len(data), step):
            request = reader.receive(data[start : start + step])
            if request is not None:
                request = with_rest(request, request.rest + data[start + step :])
                break
    assert request is not None
    return request


def head(*lines: str, first: str = "GET / HTTP/1.1", host: str | None = "localhost") -> bytes:
    fields = ([f"Host: {host}"] if host is not None else []) + list(lines)
    return "\r\n".join([first, *fields, "", ""]).encode("latin-1")


def status(data: bytes, step: int = 0) -> int:
    """The status that the head is refused with."""
    with pytest.raises(HttpError) as caught:
        parse(data, step)
    return caught.value.status


# --- what is understood


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_request_comes_apart(step: int) -> None:
    """Method, target, path, query, version, fields and what follows the head, however it was cut."""
    request = parse(
        b"POST /auth/token?a=b&c HTTP/1.1\r\nHost: h:1\r\nX-Twice: 1\r\nx-tWICE:\t 2 \t\r\nEmpty:\r\n"
        b"Content-Length: 4\r\n\r\nbody",
        step,
    )
    assert (request.method, request.target, request.path, request.query, request.version) == (
        "POST",
        "/auth/token?a=b&c",
        "/auth/token",
        "a=b&c",
        "1.1",
    )
    assert request.headers[0] == (b"host", b"h:1")
    assert request.get("x-twice") == b"1, 2"
    assert request.get_all("x-twice") == [b"1", b"2"]
    assert request.get("empty") == b""
    assert request.get("absent") is None
    assert request.get_all("absent") == []
    assert request.content_length == 4
    assert request.keep_alive
    assert request.rest == b"body"


def test_a_reader_reads_one_head_after_another() -> None:
    """What follows a head without a body is the next one."""
    reader = HeadReader()
    first = reader.receive(head() + head(first="GET /second HTTP/1.1"))
    assert first is not None
    second = reader.receive(first.rest)
    assert second is not None
    assert second.path == "/second"
    assert second.rest == b""
    assert reader.pending == 0


def test_half_a_head_is_no_request() -> None:
    """Nothing comes of a head without its empty line, and it is held."""
    reader = HeadReader()
    assert reader.receive(head()[:-1]) is None
    assert reader.pending == len(head()) - 1
    assert reader.receive(b"\n") is not None


@pytest.mark.parametrize(
    ("lines", "version", "keep_alive"),
    [
        ((), "1.1", True),
        (("Connection: close",), "1.1", False),
        (("Connection: Upgrade, CLOSE",), "1.1", False),
        (("Connection: keep-alive", "Connection: close"), "1.1", False),
        (("Connection: closed",), "1.1", True),
        ((), "1.0", False),
        (("Connection: keep-alive",), "1.0", False),
    ],
)
def test_keep_alive(lines: tuple[str, ...], version: str, keep_alive: bool) -> None:
    """HTTP/1.1 unless ``close`` is among the options of any Connection line; HTTP/1.0 never."""
    assert parse(head(*lines, first=f"GET / HTTP/{version}")).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/ws/a%20b", "/ws/a%20b", ""),
        ("/?", "/", ""),
        ("/a?b?c", "/a", "b?c"),
        ("//evil.example/x", "//evil.example/x", ""),
        ("/?q={[|]}^`", "/", "q={[|]}^`"),
        ("http://localhost", "/", ""),
        ("http://LOCALHOST/ws?x", "/ws", "x"),
        ("ws://localhost?x", "/", "x"),
        ("wss://localhost/", "/", ""),
    ],
)
def test_targets_that_are_understood(target: str, path: str, query: str) -> None:
    """Origin form and absolute form (RFC 9112 §3.2.1, §3.2.2); nothing is decoded."""
    request = parse(head(first=f"GET {target} HTTP/1.1"))
    assert (request.path, request.query, request.target) == (path, query, target)


def test_the_asterisk_form_is_for_options() -> None:
    """RFC 9112 §3.2.4."""
    assert parse(head(first="OPTIONS * HTTP/1.1")).path == "*"
    assert status(head(first="GET * HTTP/1.1")) == 400


@pytest.mark.parametrize(
    "target",
    [
        "localhost:80",
        "ws",
        "?x",
        "/a#b",
        "/a b",
        "/%",
        "/%2",
        "/%zz",
        "/<x>",
        '/"',
        "/\\x",
        "/?<x>",
        "ftp://localhost/",
        "http:///x",
        "http://other/",
        "http://localhost:80/",
        "http://user@localhost/",
        "http://localhost#x",
    ],
)
def test_targets_that_are_refused(target: str) -> None:
    """Neither a path nor an absolute URI of the very host that the Host field names."""
    assert status(head(first=f"GET {target} HTTP/1.1")) == 400


def test_connect_is_not_implemented() -> None:
    """The gateway tunnels for nobody (authority form, RFC 9112 §3.2.3)."""
    assert status(head(first="CONNECT localhost:80 HTTP/1.1")) == 501


# --- what is refused


@pytest.mark.parametrize(
    "first",
    [
        "",
        "GET",
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1",
        "GET / HTTP/1.10",
        "G(T / HTTP/1.1",
        "GET / FTP/1.1",
    ],
)
def test_malformed_request_lines(first: str) -> None:
    """RFC 9112 §3: method SP target SP version, single spaces, nothing before or behind."""
    assert status(head(first=first)) == 400


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "3.0", "9.9"])
def test_other_versions(version: str) -> None:
    """Only 1.0 and 1.1 are spoken."""
    assert status(head(first=f"GET / HTTP/{version}")) == 505


@pytest.mark.parametrize(
    "line",
    [
        "NoColon",
        ": no name",
        "Space : x",
        "Sp ace: x",
        "\tTab: x",
        " folded",
        "N\x00ul: x",
        "Nul: \x00",
        "Vt: a\x0bb",
        "Bell: \x07",
        "Del: \x7f",
        "Cr: a\rb",
        "Lf: a\nb",
        "Umlaut: \xe4",
        "Umläut: x",
        "Name(: x",
        'Na"me: x',
    ],
)
@pytest.mark.parametrize("step", [0, 1])
def test_malformed_fields(line: str, step: int) -> None:
    """RFC 9112 §5: a token, a colon right behind it, a value of visible ASCII, spaces and tabs."""
    assert status(head("A: b", line), step) == 400


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: localhost\n\n",
        b"GET / HTTP/1.1\r\nHost: localhost\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\r\n\r\n",
        b"\nGET / HTTP/1.1",
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_line_ends_are_crlf(data: bytes, step: int) -> None:
    """A bare LF or CR is refused (at once where it can't become anything), and so are two empty lines at
    the beginning."""
    assert status(data, step) == 400


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_one_empty_line_before_the_request_line_is_ignored(step: int) -> None:
    """RFC 9112 §2.2; what follows the request is left as it is, and the next request may have one, too."""
    data = b"\r\nGET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reader = HeadReader()
    for _ in range(2):
        pieces = [data[at : at + step] for at in range(0, len(data), step)] if step else [data + b"rest"]
        found = [request for piece in pieces if (request := reader.receive(piece)) is not None]
        assert [request.path for request in found] == ["/a"]
        assert found[0].rest == (b"" if step else b"rest")
        assert reader.pending == 0


def test_a_bare_lf_is_refused_without_waiting_for_the_end() -> None:
    """A head that never can be complete is not waited for."""
    reader = HeadReader()
    assert reader.receive(b"GET / HTTP/1.1\r") is None
    assert reader.receive(b"\nHost: x") is None
    with pytest.raises(HttpError):
        reader.receive(b"\n")


@pytest.mark.parametrize(
    ("line", "code"),
    [(b"SSH-2.0-OpenSSH_9.2\r\n", 400), (b"GET /health\r\n", 400), (b"GET / HTTP/3.0\r\n", 505), (b"\r\n\r\n", 400)],
)
@pytest.mark.parametrize("step", [0, 1])
def test_a_line_that_is_no_request_line_is_refused_at_its_end(line: bytes, code: int, step: int) -> None:
    """Whoever speaks another protocol needs no time-out to learn it; the refusal doesn't depend on what follows."""
    for rest in (b"", b"X: \0\r\n\r\n", b"Host: h\r\n\r\n"):
        assert status(line + rest, step) == code


def test_a_bare_cr_is_refused_without_waiting_for_the_end() -> None:
    """A CR at the end of a read may still get its LF; what comes instead is refused at once."""
    reader = HeadReader()
    assert reader.receive(b"GET / HTTP/1.1\r") is None
    with pytest.raises(HttpError):
        reader.receive(b"x")


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("Lf: a\nb", "lines must end with CR LF"),
        ("Cr: a\rb", "lines must end with CR LF"),
        ("Umlaut: \xe4", "non-ASCII byte in the head"),
        ("Nul: \x00", "control character in the head"),
        (" folded", "folded header line"),
        ("\tfolded", "folded header line"),
        ("NoColon", "malformed header line"),
    ],
)
def test_a_refusal_names_the_offence(line: str, detail: str) -> None:
    """The detail says what is wrong, not just that something is."""
    with pytest.raises(HttpError) as caught:
        parse(head(line))
    assert caught.value.detail == detail


@pytest.mark.parametrize("byte", [0x80, 0xA0, 0xE4, 0xFF])
@pytest.mark.parametrize("place", ["first", "target", "name", "value"])
def test_no_byte_of_a_head_is_beyond_ascii(byte: int, place: str) -> None:
    """SPEC: non-ASCII header bytes get 400, wherever they stand; in a body they are nobody's business."""
    data = {"first": b"?", "target": b"GET /? HTTP/1.1\r\n", "name": b"GET / HTTP/1.1\r\nHost: x\r\n?: y\r\n"}.get(
        place, b"GET / HTTP/1.1\r\nHost: x\r\nY: ?\r\n"
    )
    assert status(data.replace(b"?", bytes([byte]))) == 400
    assert parse(head("Content-Length: 1") + bytes([byte])).rest == bytes([byte])


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "Origin",
        "Authorization",
        "Content-Length",
        "Content-Type",
        "Upgrade",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Version",
    ],
)
def test_fields_that_stand_at_most_once(name: str) -> None:
    """Two values, even equal ones, are refused for every field that decides something; one is not."""
    host = None if name == "Host" else "localhost"
    assert parse(head(f"{name}: 1", host=host)).get_all(name.lower()) == [b"1"]
    assert status(head(f"{name}: 1", f"{name.upper()}: 1", host=host)) == 400


@pytest.mark.parametrize("name", ["Connection", "Sec-WebSocket-Protocol", "X-Forwarded-For", "Accept"])
def test_list_fields_may_stand_often(name: str) -> None:
    """RFC 9110 §5.3: several lines are one list."""
    assert parse(head(f"{name}: a", f"{name}: b")).get(name.lower()) == b"a, b"


def test_http_1_1_needs_a_host() -> None:
    """RFC 9112 §3.2: 400 without it; HTTP/1.0 does without."""
    assert status(head(host=None)) == 400
    assert parse(head(first="GET / HTTP/1.0", host=None)).get("host") is None


@pytest.mark.parametrize("host", ["a b", "a,b", "http://a", "a/b", "user@a", "a:b", "a:99999", "[::1"])
def test_a_malformed_host_is_refused(host: str) -> None:
    """RFC 9112 §3.2: an invalid Host value is 400."""
    assert status(head(host=host)) == 400


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.0", "1, 1", "0x10", "1 1", "1e3", "9" * 16])
def test_content_length_is_digits(value: str) -> None:
    """RFC 9110 §8.6, and no number that only an attacker needs."""
    assert status(head(f"Content-Length: {value}")) == 400


def test_transfer_encoding_is_not_implemented() -> None:
    """501; together with Content-Length it is 400 (RFC 9112 §6.3)."""
    for value in ("chunked", "gzip, chunked", "identity", "xchunked"):
        assert status(head(f"Transfer-Encoding: {value}")) == 501
        assert status(head(f"Transfer-Encoding: {value}", "Upgrade: websocket")) == 400
        assert status(head(f"Transfer-Encoding: {value}", "Content-Length: 3")) == 400
        assert status(head("Content-Length: 3", f"Transfer-Encoding: {value}")) == 400


@pytest.mark.parametrize("data", [bytes.fromhex("16030100c8010000c40303"), bytes.fromhex("1603030000"), b"\x16"])
def test_tls_on_the_plain_port_is_told_so(data: bytes) -> None:
    """A ClientHello gets a clear 400, from its first byte on."""
    with pytest.raises(HttpError, match="TLS") as caught:
        parse(data)
    assert caught.value.status == 400


@pytest.mark.parametrize("step", [0, 1, 16])
def test_http_2_is_told_so(step: int) -> None:
    """The HTTP/2 preface gets a clear 400."""
    with pytest.raises(HttpError, match="HTTP/2") as caught:
        parse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", step)
    assert caught.value.status == 400


# --- sizes


def test_a_head_may_be_exactly_as_large_as_allowed() -> None:
    """The limit counts the empty line, not what follows; one byte more is 431, before anything is parsed."""
    data = head("X: " + "y" * 500)
    for step in (0, 1, 100):
        for limit, good in ((len(data), True), (len(data) - 1, False)):
            reader = HeadReader(max_head=limit)
            stream = data + b"body" * 1000
            chunks = [stream[i : i + step] for i in range(0, len(stream), step)] if step else [stream]
            found = None
            refused = 0
            for chunk in chunks:
                try:
                    found = reader.receive(chunk)
                except HttpError as error:
                    refused = error.status
                assert reader.pending <= limit
                if found or refused:
                    break
            assert (found is not None, refused) == ((True, 0) if good else (False, 431))


def test_an_endless_head_is_refused_at_the_limit() -> None:
    """Not one byte more than the limit is held, in fields or in the request line."""
    reader = HeadReader()
    with pytest.raises(HttpError) as caught:
        reader.receive(b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000)
    assert caught.value.status == 431
    assert reader.pending <= 16_384
    assert status(b"GET /" + b"y" * 1_000_000) == 414
    assert status(b"GET /" + b"y" * 20_000, step=100) == 414


@pytest.mark.parametrize("step", [0, 1, 4096])
def test_the_request_line_has_a_limit_of_its_own(step: int) -> None:
    """8192 bytes pass (RFC 9112 §3 asks for 8000), 8193 are 414."""
    line = "GET /" + "y" * (8192 - 14) + " HTTP/1.1"
    assert len(line) == 8192
    assert len(parse(head(first=line), step).path) == 8192 - 13
    assert status(head(first=line.replace("/y", "/yy")), step) == 414


def test_a_request_line_too_long_is_refused_before_its_end() -> None:
    """With the 8193rd byte and its successor there, no line end can make it right."""
    reader = HeadReader()
    assert reader.receive(b"GET /" + b"y" * (8193 - 5)) is None
    with pytest.raises(HttpError) as caught:
        reader.receive(b"y")
    assert caught.value.status == 414


def test_the_number_of_fields_is_bounded() -> None:
    """100 fields pass, 101 are 431."""
    assert len(parse(head(*["A: b"] * 99)).headers) == 100
    assert status(head(*["A: b"] * 100)) == 431


# --- the WebSocket handshake


def upgrade(*lines: str, drop: str = "", first: str = "GET /ws HTTP/1.1") -> bytes:
    """RFC 6455 §1.3's request, without the fields that begin with ``drop``."""
    fields = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13"]
    return head(*[field for field in fields if not (drop and field.startswith(drop))], *lines, first=first)


def refused(data: bytes) -> HttpError:
    with pytest.raises(HttpError) as caught:
        websocket_handshake(parse(data))
    return caught.value


def test_the_handshake_of_section_1_3() -> None:
    """The accept value of RFC 6455 §1.3, and a 101 answer that h11 understands."""
    handshake = websocket_handshake(parse(upgrade("Sec-WebSocket-Protocol: chat, superchat")))
    assert handshake.accept == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert handshake.subprotocols == ("chat", "superchat")
    answer = switching_protocols(handshake, "chat", headers=[("X-More", "1")])
    client = h11.Connection(h11.CLIENT)
    asked = [("Host", "h"), ("Upgrade", "websocket"), ("Connection", "Upgrade")]
    client.send(h11.Request(method="GET", target="/ws", headers=asked))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    event = client.next_event()
    assert isinstance(event, h11.InformationalResponse)
    assert event.status_code == 101
    assert dict(event.headers) == {
        b"upgrade": b"websocket",
        b"connection": b"Upgrade",
        b"sec-websocket-accept": b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        b"sec-websocket-protocol": b"chat",
        b"x-more": b"1",
    }


def test_only_an_offered_subprotocol_is_agreed_to() -> None:
    """RFC 6455 §4.2.2: one of those offered, or none."""
    handshake = websocket_handshake(parse(upgrade("Sec-WebSocket-Protocol: mcp")))
    assert b"Sec-WebSocket-Protocol" not in switching_protocols(handshake, None)
    with pytest.raises(ValueError):
        switching_protocols(handshake, "other")


def test_subprotocols_keep_their_case() -> None:
    """They may carry a token: RFC 6455 §11.3.4 compares them as they are."""
    request = parse(upgrade("Sec-WebSocket-Protocol: mcp", "Sec-WebSocket-Protocol: bearer.aBcD, MCP"))
    assert websocket_handshake(request).subprotocols == ("mcp", "bearer.aBcD", "MCP")


@pytest.mark.parametrize(
    "data",
    [
        upgrade(drop="Upgrade").replace(b"\r\n\r\n", b"\r\nUpgrade: WebSocket\r\n\r\n"),
        upgrade("Upgrade: h2c, websocket", drop="Upgrade"),
        upgrade("Connection: keep-alive, upgrade", drop="Connection"),
        upgrade("Connection: keep-alive", "Connection: UPGRADE", drop="Connection"),
        upgrade("Content-Length: 0"),
        upgrade("Origin: null", "Sec-WebSocket-Extensions: permessage-deflate"),
    ],
)
def test_handshakes_that_are_good(data: bytes) -> None:
    """Lists, any case, an explicit absence of a body, and extensions that are simply not agreed to."""
    assert is_upgrade(parse(data))
    assert websocket_handshake(parse(data)).accept == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (upgrade(first="POST /ws HTTP/1.1"), 405),
        (upgrade(first="get /ws HTTP/1.1"), 405),
        (upgrade(first="HEAD /ws HTTP/1.1"), 405),
        (upgrade(first="GET /ws HTTP/1.0"), 400),
        (upgrade(drop="Upgrade"), 426),
        (upgrade("Upgrade: h2c", drop="Upgrade"), 426),
        (upgrade("Upgrade: xwebsocket", drop="Upgrade"), 426),
        (upgrade(drop="Connection"), 400),
        (upgrade("Connection: keep-alive", drop="Connection"), 400),
        (upgrade("Connection: upgraded", drop="Connection"), 400),
        (upgrade("Content-Length: 1"), 400),
        (upgrade(drop="Sec-WebSocket-Version"), 426),
        (upgrade("Sec-WebSocket-Version: 8", drop="Sec-WebSocket-Version"), 426),
        (upgrade("Sec-WebSocket-Version: 013", drop="Sec-WebSocket-Version"), 426),
        (upgrade("Sec-WebSocket-Version: 13, 8", drop="Sec-WebSocket-Version"), 426),
        (upgrade(drop="Sec-WebSocket-Key"), 400),
        (upgrade("Sec-WebSocket-Protocol:"), 400),
        (upgrade("Sec-WebSocket-Protocol: ,"), 400),
        (upgrade("Sec-WebSocket-Protocol: a b"), 400),
        (upgrade("Sec-WebSocket-Protocol: a=b"), 400),
        (upgrade("Sec-WebSocket-Protocol: a, a"), 400),
        (upgrade("Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: b, a"), 400),
    ],
)
def test_handshakes_that_are_refused(data: bytes, code: int) -> None:
    """RFC 6455 §4.2.1, point by point."""
    assert refused(data).status == code


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("AAAAAAAAAAAAAAAAAAAAAA==", True),
        ("/////////////////////w==", True),
        ("AAAAAAAAAAAAAAAAAAAAAB==", False),
        ("AAAAAAAAAAAAAAAAAAAAA===", False),
        ("AAAAAAAAAAAAAAAAAAAAAA", False),
        ("AAAAAAAAAAAAAAAAAAAAAAA=", False),
        ("AAAAAAAAAAAAAAAAAAAAAAAA", False),
        ("AAAAAAAAAAAAAAAAAAAA", False),
        ("AAAAAAAAAAAAAAAAAAAA-A==", False),
        ("AAAAAAAAAA AAAAAAAAAAA==", False),
        ("", False),
    ],
)
def test_the_key_is_canonical_base64_of_16_bytes(key: str, good: bool) -> None:
    """No other length, alphabet, padding, nor bits that decode to nothing."""
    data = upgrade(f"Sec-WebSocket-Key: {key}", drop="Sec-WebSocket-Key")
    if good:
        assert websocket_handshake(parse(data)).subprotocols == ()
    else:
        assert refused(data).status == 400


def test_refusals_say_what_to_do_instead() -> None:
    """405 names the method, 426 the protocol and its version (RFC 9110 §15.5.6, §15.5.22; RFC 6455 §4.4)."""
    assert refused(upgrade(first="POST /ws HTTP/1.1")).headers == (("Allow", "GET"),)
    for data in (upgrade(drop="Upgrade"), upgrade(drop="Sec-WebSocket-Version")):
        assert dict(refused(data).headers) == {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


def test_whether_an_upgrade_is_asked_for() -> None:
    """By the Upgrade field alone, so that a wrong one is answered as an upgrade."""
    assert is_upgrade(parse(upgrade(drop="Connection")))
    assert not is_upgrade(parse(upgrade(drop="Upgrade")))
    assert not is_upgrade(parse(upgrade("Upgrade: h2c", drop="Upgrade")))


@pytest.mark.parametrize(
    ("line", "first", "size", "expected"),
    [
        ("Expect: 100-Continue", "POST / HTTP/1.1", 1, True),
        ("Expect: 100-continue", "POST / HTTP/1.1", 0, False),
        ("Expect: other", "POST / HTTP/1.1", 1, False),
        ("X: 100-continue", "POST / HTTP/1.1", 1, False),
        ("Expect: 100-continue", "POST / HTTP/1.0", 1, False),
    ],
)
def test_who_waits_for_100(line: str, first: str, size: int, expected: bool) -> None:
    """RFC 9110 §10.1.1: any case, only with a body, and never HTTP/1.0."""
    assert parse(head(line, f"Content-Length: {size}", first=first)).expects_continue is expected


# --- answers


def read_answer(data: bytes, method: str = "GET") -> tuple[h11.Response, bytes, h11.Connection]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    event = client.next_event()
    assert isinstance(event, h11.Response)
    body = b""
    while isinstance(part := client.next_event(), h11.Data):
        body += part.data
    assert isinstance(part, h11.EndOfMessage)
    return event, body, client


@pytest.mark.parametrize("close", [True, False])
def test_an_answer_is_framed_by_its_length(close: bool) -> None:
    """h11 reads the answer whole, and whether the connection goes on."""
    event, body, client = read_answer(response(200, [("Content-Type", "text/plain")], b"hello", close=close))
    assert (event.status_code, event.reason, body) == (200, b"OK", b"hello")
    assert client.their_state is (h11.MUST_CLOSE if close else h11.DONE)
    assert dict(event.headers)[b"content-length"] == b"5"


def test_an_answer_to_head_has_a_length_but_no_body() -> None:
    """RFC 9110 §9.3.2."""
    event, body, _ = read_answer(response(200, [], b"hello", close=False, head_only=True), "HEAD")
    assert dict(event.headers)[b"content-length"] == b"5"
    assert body == b""


def test_answers_without_a_body_have_no_length() -> None:
    """RFC 9110 §8.6: none in 1xx and 204; a body there is a defect."""
    event, body, _ = read_answer(response(204, [("Vary", "Origin")], b"", close=False))
    assert b"content-length" not in dict(event.headers)
    assert body == b""
    for code in (100, 204, 304):
        with pytest.raises(ValueError):
            response(code, [], b"x", close=False)


@pytest.mark.parametrize(
    "field",
    [
        ("X", "a\r\nY: b"),
        ("X", "a\nb"),
        ("X\r\nY", "b"),
        ("X", "\x00"),
        ("X Y", "b"),
        ("", "b"),
        ("X", "ä"),
        ("Ä", "b"),
        ("X:", "b"),
    ],
)
def test_no_answer_can_be_split(field: tuple[str, str]) -> None:
    """A field that would end its line early is never written."""
    with pytest.raises(ValueError):
        response(200, [field], b"", close=True)


def test_problems_are_rfc_9457_documents() -> None:
    """Type, title, status and detail, the media type, and the extra fields and members."""
    event, body, _ = read_answer(
        problem(413, 'too "big"\n', headers=[("Retry-After", "1")], close=True, members={"limit": 7})
    )
    assert event.status_code == 413
    assert dict(event.headers)[b"content-type"] == b"application/problem+json"
    assert dict(event.headers)[b"retry-after"] == b"1"
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Content Too Large",
        "status": 413,
        "detail": 'too "big"\n',
        "limit": 7,
    }
    _, body, client = read_answer(problem(403, "no", title="Refused"))
    assert json.loads(body)["title"] == "Refused"
    assert client.their_state is h11.MUST_CLOSE
    assert read_answer(problem(403, "no", close=False))[2].their_state is h11.DONE
    event, body, _ = read_answer(problem(403, "no", head_only=True), "HEAD")
    assert body == b""
    assert int(dict(event.headers)[b"content-length"]) > 0


@pytest.mark.parametrize(
    "code", [400, 401, 403, 404, 405, 408, 411, 413, 414, 417, 421, 422, 426, 429, 431, 500, 501, 502, 503, 504, 505]
)
def test_every_status_that_is_used_has_a_reason(code: int) -> None:
    """No answer fails for want of its phrase."""
    event, _, _ = read_answer(problem(code, "x"))
    assert event.status_code == code
    assert event.reason


def test_the_date_is_an_imf_fixdate() -> None:
    """RFC 9110 §5.6.7's own example."""
    assert date_header(784111777.5) == ("Date", "Sun, 06 Nov 1994 08:49:37 GMT")


def test_security_headers_follow_the_settings() -> None:
    """The contract's row: each field by its switch, HSTS off unless it is on, no caching ever."""
    assert dict(security_headers(Settings())) == {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Content-Security-Policy": "default-src 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    strict = dict(security_headers(Settings(hsts_enabled=True, hsts_max_age=60, x_frame_options="SAMEORIGIN")))
    assert strict["Strict-Transport-Security"] == "max-age=60"
    assert strict["X-Frame-Options"] == "SAMEORIGIN"
    assert "Content-Security-Policy" not in dict(security_headers(Settings(csp_enabled=False)))
    assert dict(security_headers(Settings(security_headers_enabled=False, hsts_enabled=True))) == {
        "Cache-Control": "no-store"
    }
