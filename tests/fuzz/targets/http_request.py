"""HTTP requests: the head's reader against h11, whole and in pieces, and the body of ``/auth/*`` behind it.

The invariant is that of ``fuzz_codecs``: what is accepted, h11 accepts and understands in the same way; what is
refused is refused with a declared status, however it is divided. And a body's fields are read, or refused with 400 or
415; nothing else is raised.
"""

from __future__ import annotations

import random

from fuzz.fuzz_codecs import check_head, head_ours, head_stream
from fuzz.targets import cuts_of, knobs

from actors.acceptor.auth_endpoints import _fields
from actors.acceptor.http import HttpError, Request

JSON = b"POST /auth/token HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
FORM = JSON.replace(b"application/json", b"application/x-www-form-urlencoded")
BODIES = [b'{"token":"a"}', b'{"refresh_token":"\\u0061","token":""}', b"token=a%20b&refresh_token=c", b"token=%ff"]
SEEDS = (
    [bytes([3, 40, 9, 0]) + head_stream(random.Random(seed)) for seed in range(24)]
    + [bytes(4) + JSON % (len(body), body) for body in BODIES]
    + [bytes(4) + FORM % (len(body), body) for body in BODIES]
    + [
        b"\xff\0\0\0GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ]
)


def check(data: bytes) -> None:
    knob, stream = knobs(data, 4)
    check_head(stream, cuts_of(knob, len(stream)))
    request = head_ours([stream])
    if not isinstance(request, Request):
        return
    try:
        fields = _fields(request, request.rest[: request.content_length])
    except HttpError as error:
        assert error.status in (400, 415)  # noqa: PT017 - whichever of the declared ones it is
    else:
        assert isinstance(fields.token, str)
        assert isinstance(fields.refresh_token, str)
