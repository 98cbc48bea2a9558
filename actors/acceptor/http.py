"""The head of an HTTP/1.1 request, the WebSocket handshake and the answers to both (RFC 9112, 9110, 6455), without I/O.

Strict where RFC 9112 leaves a recipient the choice, because what two readers understand in two ways can be smuggled:
lines end with CRLF, fields don't fold, names are tokens with the colon right behind, no byte is ≥ 0x80 or a control
character, and what may stand once stands once. A body is framed by ``Content-Length`` alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import attrs
import msgspec

from actors.policy.origin import split_host
from ipc.settings import Settings

MAX_HEAD: Final = 16_384
"""Bytes of a request head. It must hold an 8 KiB token twice over: once in ``Authorization``, once offered as a
subprotocol, in base64url; nginx and Envoy allow 32 and 60 KiB, which nothing that speaks to a gateway needs."""
MAX_LINE: Final = 8_192
"""Bytes of a request line: RFC 9112 §3 asks for at least 8000."""
MAX_HEADERS: Final = 100

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TOKEN_ONLY = re.compile(_TOKEN)
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e]*)")
# What no head contains: controls, bytes ≥ 0x80, CR and LF apart. A CR at the very end may still get its LF.
_FORBIDDEN = re.compile(rb"[^\t\r\n\x20-\x7e]|\r(?!\n|\Z)|(?<!\r)\n")
# RFC 3986 §3.3 and §3.4; the query also takes what browsers send as it is (WHATWG URL's query percent-encode set).
_PATH = re.compile(rb"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]\\^`{|}-]*")
_ABSOLUTE = re.compile(rb"(?i:https?|wss?)://([^/?]*)")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")  # 16 bytes leave 4 bits of the last digit, and they are zero

_SINGLE = frozenset(
    (
        b"authorization",
        b"content-length",
        b"content-type",
        b"host",
        b"origin",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Fields that change what is done with a request, and so stand at most once."""

_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n"
_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_RENAMED: Final = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}  # RFC 9110 §15.5

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
"""For a client that ``expects_continue``, before its body is read."""


class HttpError(ValueError):
    """A request that is refused with ``status``; ``headers`` belong on the answer, ``detail`` holds nothing secret."""

    def __init__(self, status: int, detail: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.headers = tuple(headers)


@attrs.frozen
class Request:
    """One request head.

    Attributes:
        target: as it was sent; ``path`` and ``query`` are its parts, not decoded. ``path`` is ``*`` for ``OPTIONS *``.
        version: ``1.1`` or ``1.0``.
        headers: names in lower case, values without the whitespace around them, in order. All ASCII.
        content_length: bytes of the body that follows the head; 0 without one.
        keep_alive: whether the client is ready for a next request on this connection.
        rest: what followed the head in the bytes received: body, a next request, or frames.
    """

    method: str
    target: str
    path: str
    query: str
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    content_length: int
    keep_alive: bool
    rest: bytes

    def get(self, name: str) -> bytes | None:
        """The field's value; several lines are one list (RFC 9110 §5.3). ``name`` is in lower case."""
        values = self.get_all(name)
        return b", ".join(values) if values else None

    def get_all(self, name: str) -> list[bytes]:
        """The value of each of the field's lines. ``name`` is in lower case."""
        wanted = name.encode("ascii")
        return [value for key, value in self.headers if key == wanted]

    def tokens(self, name: str) -> frozenset[bytes]:
        """The elements of a list field, in lower case."""
        return frozenset(_elements(self.get_all(name), lower=True))

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for ``CONTINUE`` before it sends its body, having one (RFC 9110 §10.1.1)."""
        return self.version == "1.1" and self.content_length > 0 and b"100-continue" in self.tokens("expect")


def with_rest(request: Request, rest: bytes) -> Request:
    """The same request with other bytes behind it."""
    return attrs.evolve(request, rest=rest)


class HeadReader:
    """Collects one request head at a time; after one it is ready for the next.

    What is held never exceeds ``max_head``, and every byte is looked at a bounded number of times, however the head is
    split over calls.

    Args:
        max_head: bytes, the empty line included.
        max_headers: field lines.
        max_line: bytes of the request line, its CRLF not counted.
    """

    __slots__ = ("_begun", "_held", "_line_read", "_max_head", "_max_headers", "_max_line")

    def __init__(self, *, max_head: int = MAX_HEAD, max_headers: int = MAX_HEADERS, max_line: int = MAX_LINE) -> None:
        self._max_head = max_head
        self._max_headers = max_headers
        self._max_line = max_line
        self._held = bytearray()
        self._begun = False  # an empty line before the request line was there, or can't be any more
        self._line_read = False  # the first line of what is held was looked at, and is a request line

    @property
    def pending(self) -> int:
        """Bytes held of an unfinished head."""
        return len(self._held)

    def receive(self, data: bytes) -> Request | None:
        """The request, once its head is complete; None: more is needed.

        Raises:
            HttpError: 400, 414, 431, 501 or 505. Whatever follows on this connection can't be understood any more.
        """
        held = self._held
        before = len(held)
        held += data[: self._max_head - before]
        if not self._begun:
            # RFC 9112 §2.2: at least one empty line before the request line is to be ignored.
            if not held or (len(held) == 1 and held[0] == 0x0D):
                return None
            self._begun = True
            if held.startswith(b"\r\n"):
                del held[:2]
                before -= 2
        if not self._line_read:
            # Whoever speaks something else (HTTP/0.9, SSH, TLS …) is told at once, and not after a time-out.
            line_end = held.find(b"\r\n", max(0, before - 1), self._max_line + 2)
            self._check_bytes(max(0, before - 1), len(held) if line_end < 0 else line_end + 2)
            if line_end < 0:
                if len(held) >= self._max_line + 2 or before + len(data) > self._max_head:
                    raise HttpError(414, "request line too long")
                return None
            _request_line(bytes(held[:line_end]))
            self._line_read = True
        end = held.find(b"\r\n\r\n", max(0, before - 3))
        self._check_bytes(max(0, before - 1), len(held) if end < 0 else end + 4)
        if end < 0:
            if before + len(data) > self._max_head:
                raise HttpError(431, "request head too large")
            return None
        lines = bytes(held[:end]).split(b"\r\n")
        rest = data[end + 4 - before :]
        held.clear()
        self._begun = self._line_read = False
        return self._parse(lines, rest)

    def _check_bytes(self, start: int, end: int) -> None:
        """Refuse what can't become a head, as soon as it shows and with a reason that helps."""
        held = self._held
        if held[:1] == b"\x16":
            raise HttpError(400, "this looks like a TLS handshake, but this port speaks plain HTTP")
        if held.startswith(_HTTP2_PREFACE):
            raise HttpError(400, "HTTP/2 is not spoken here, use HTTP/1.1")
        bad = _FORBIDDEN.search(held, start, end)
        if bad is None:
            return
        byte = held[bad.start()]
        if byte in b"\r\n":
            raise HttpError(400, "lines must end with CR LF")
        raise HttpError(400, "non-ASCII byte in the head" if byte >= 0x80 else "control character in the head")

    def _parse(self, lines: list[bytes], rest: bytes) -> Request:
        method, target, minor = _request_line(lines[0])
        if len(lines) - 1 > self._max_headers:
            raise HttpError(431, "too many header fields")
        headers = tuple([_field(line) for line in lines[1:]])
        single = _single(headers)

        host = single.get(b"host")
        if host is None and minor == b"1":
            raise HttpError(400, "no Host header")
        if host and split_host(host) is None:
            raise HttpError(400, "malformed Host header")
        path, query = _split_target(method, target, host)
        request = Request(
            method=method.decode("ascii"),
            target=target.decode("ascii"),
            path=path,
            query=query,
            version="1." + minor.decode("ascii"),
            headers=headers,
            content_length=_content_length(single),
            keep_alive=False,
            rest=rest,
        )
        connection = request.tokens("connection")
        if minor == b"1" and b"close" not in connection:
            request = attrs.evolve(request, keep_alive=True)
        return request


def _request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and minor version."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise HttpError(400, "malformed request line")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    return method, target, minor


def _field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    if match is None:
        if line[:1] in (b" ", b"\t"):
            raise HttpError(400, "folded header line")
        raise HttpError(400, "malformed header line")
    name, value = match.groups()
    return name.lower(), value.strip(b" \t")


def _single(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _SINGLE:
            if name in found:
                raise HttpError(400, f"more than one {name.decode('ascii')} header")
            found[name] = value
    return found


def _content_length(single: Mapping[bytes, bytes]) -> int:
    """RFC 9112 §6: both framings at once are an attack, and chunks are of no use to requests as small as ours."""
    value = single.get(b"content-length")
    if b"transfer-encoding" in single:
        if value is not None:
            raise HttpError(400, "both Transfer-Encoding and Content-Length")
        if b"upgrade" in single:
            raise HttpError(400, "an upgrade has no body")
        raise HttpError(501, "Transfer-Encoding is not implemented, use Content-Length")
    if value is None:
        return 0
    if not _LENGTH.fullmatch(value):
        raise HttpError(400, "malformed Content-Length")
    return int(value)


def _split_target(method: bytes, target: bytes, host: bytes | None) -> tuple[str, str]:
    """The four forms of RFC 9112 §3.2."""
    if method == b"CONNECT":
        raise HttpError(501, "this is not a proxy")
    if target == b"*":
        if method != b"OPTIONS":
            raise HttpError(400, "malformed request target")
        return "*", ""
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.match(target)
        if absolute is None:
            raise HttpError(400, "malformed request target")
        # §3.2.2 lets the target's authority win over Host; a client that means two different ones means harm.
        if split_host(absolute[1]) is None or absolute[1].lower() != (host or b"").lower():
            raise HttpError(400, "request target and Host header differ")
        target = target[absolute.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    path, _, query = target.partition(b"?")
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        raise HttpError(400, "malformed request target")
    return path.decode("ascii"), query.decode("ascii")


def _elements(values: Iterable[bytes], *, lower: bool = False) -> list[bytes]:
    """The elements of a comma-separated list over several lines; empty ones don't count (RFC 9110 §5.6.1.2)."""
    joined = b",".join(values)
    parts = [part.strip(b" \t") for part in (joined.lower() if lower else joined).split(b",")]
    return [part for part in parts if part]


@attrs.frozen
class Handshake:
    """A valid WebSocket upgrade: the ``Sec-WebSocket-Accept`` to answer, and the subprotocols offered, in order."""

    accept: bytes
    subprotocols: tuple[str, ...]


def is_upgrade(request: Request) -> bool:
    """Whether the client asks for a WebSocket, rightly or not: ``websocket_handshake`` tells."""
    return b"websocket" in request.tokens("upgrade")


def websocket_handshake(request: Request) -> Handshake:
    """RFC 6455 §4.2.1.

    Raises:
        HttpError: 400; 405 for another method than GET; 426 where the client should come back with an upgrade, or with
            version 13 of it.
    """
    if request.method != "GET":
        raise HttpError(405, "a WebSocket begins with GET", headers=(("Allow", "GET"),))
    if not is_upgrade(request):
        raise _upgrade_required("this is a WebSocket: ask for an upgrade")
    if request.version != "1.1":
        raise HttpError(400, "a WebSocket needs HTTP/1.1")
    if b"upgrade" not in request.tokens("connection"):
        raise HttpError(400, "Connection does not name Upgrade")
    if request.content_length:
        raise HttpError(400, "an upgrade has no body")
    if request.get("sec-websocket-version") != b"13":
        raise _upgrade_required("only WebSocket version 13 is spoken here")
    key = request.get("sec-websocket-key")
    if key is None or not _KEY.fullmatch(key):
        raise HttpError(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    digest = hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest()
    return Handshake(accept=base64.b64encode(digest), subprotocols=_subprotocols(request))


def _upgrade_required(detail: str) -> HttpError:
    return HttpError(426, detail, headers=(("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")))


def _subprotocols(request: Request) -> tuple[str, ...]:
    """RFC 6455 §11.3.4: a list of tokens, not empty, none twice; it may be spread over several lines."""
    lines = request.get_all("sec-websocket-protocol")
    offered = _elements(lines)
    if lines and not offered:
        raise HttpError(400, "empty Sec-WebSocket-Protocol")
    if not all(_TOKEN_ONLY.fullmatch(name) for name in offered):
        raise HttpError(400, "malformed Sec-WebSocket-Protocol")
    if len(set(offered)) != len(offered):
        raise HttpError(400, "a subprotocol is offered twice")
    return tuple([name.decode("ascii") for name in offered])


def switching_protocols(
    handshake: Handshake, subprotocol: str | None, headers: Sequence[tuple[str, str]] = ()
) -> bytes:
    """The 101 answer, after which the connection speaks WebSocket.

    Raises:
        ValueError: for a subprotocol that was not offered.
    """
    chosen = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    chosen.append(("Sec-WebSocket-Accept", handshake.accept.decode("ascii")))
    if subprotocol is not None:
        if subprotocol not in handshake.subprotocols:
            raise ValueError("this subprotocol was not offered")
        chosen.append(("Sec-WebSocket-Protocol", subprotocol))
    return _head(101, [*chosen, *headers])


def response(
    status: int, headers: Sequence[tuple[str, str]], body: bytes, *, close: bool, head_only: bool = False
) -> bytes:
    """A whole answer with its ``Content-Length``.

    Args:
        close: says ``Connection: close``; the caller closes after writing.
        head_only: the answer to HEAD: everything but the body.

    Raises:
        ValueError: for a field that would break the head, or a body where there can't be one (1xx, 204, 304).
    """
    fields = list(headers)
    if status < 200 or status in (204, 304):
        if body:
            raise ValueError(f"a {status} answer has no body")
    else:
        fields.append(("Content-Length", str(len(body))))
    if close:
        # RFC 9110 §7.8: who sends Upgrade says so in Connection, too.
        upgrades = any(name == "Upgrade" for name, _ in fields)
        fields.append(("Connection", "Upgrade, close" if upgrades else "close"))
    return _head(status, fields) + (b"" if head_only else body)


def problem(
    status: int,
    detail: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    close: bool = True,
    title: str | None = None,
    head_only: bool = False,
    members: Mapping[str, object] | None = None,
) -> bytes:
    """An RFC 9457 problem document. ``members`` are its extension members (§3.2)."""
    document = {
        "type": "about:blank",
        "title": title if title is not None else _reason(status),
        "status": status,
        "detail": detail,
        **(members or {}),
    }
    fields = [("Content-Type", "application/problem+json"), *headers]
    return response(status, fields, msgspec.json.encode(document), close=close, head_only=head_only)


def date_header(now_s: float) -> tuple[str, str]:
    """``Date``, which answers of a server with a clock carry (RFC 9110 §6.6.1), for a wall time in Unix seconds."""
    return "Date", formatdate(now_s, usegmt=True)


def security_headers(settings: Settings) -> list[tuple[str, str]]:
    """What goes on every HTTP answer. HSTS only as the settings say: off without TLS (RFC 6797 §7.2)."""
    headers: list[tuple[str, str]] = []
    if settings.security_headers_enabled:
        if settings.x_content_type_options:
            headers.append(("X-Content-Type-Options", settings.x_content_type_options))
        if settings.x_frame_options:
            headers.append(("X-Frame-Options", settings.x_frame_options))
        if settings.csp_enabled:
            headers.append(("Content-Security-Policy", "default-src 'none'"))
        headers.append(("Referrer-Policy", "no-referrer"))
        if settings.hsts_enabled:
            headers.append(("Strict-Transport-Security", f"max-age={settings.hsts_max_age}"))
    headers.append(("Cache-Control", "no-store"))
    return headers


def _reason(status: int) -> str:
    return _RENAMED.get(status) or HTTPStatus(status).phrase


def _head(status: int, fields: Iterable[tuple[str, str]]) -> bytes:
    """Raises ValueError for a name or a value that would end its line, or the head, early."""
    lines = [f"HTTP/1.1 {status} {_reason(status)}".encode("ascii")]
    for name, value in fields:
        line = f"{name}: {value}".encode("ascii", "replace")
        match = _FIELD.fullmatch(line)
        if match is None or match[1] != name.encode() or not value.isascii():
            raise ValueError(f"header {name!r} can't be sent")
        lines.append(line)
    return b"\r\n".join([*lines, b"", b""])
