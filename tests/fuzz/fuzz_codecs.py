"""Random streams against the acceptor's codecs, judged by wsproto, h11 and a plain model.

The invariants, for every stream whatever it holds:

* only the declared exceptions are raised, and after one nothing is taken any more;
* how the stream is split over reads changes neither what comes out of it nor whether it is refused;
* WebSocket: the messages, control frames and close codes are those that wsproto sees, up to the rules that are ours
  alone (no binary messages);
* HTTP: what is accepted, h11 accepts and understands in the same way;
* lines: the lines are those of ``bytes.split``.

Run it for longer than the tests do with ``python tests/fuzz/fuzz_codecs.py --seconds 60 --seed 7``; a failure prints
the round's seed, which alone makes it come again (``--seed N --rounds 1``).
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Sequence

import h11
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from actors.acceptor.http import HeadReader, HttpError, Request, is_upgrade, websocket_handshake, with_rest
from actors.acceptor.lines import KEPT_HEAD, KEPT_TAIL, LineReader, LineTooLong, Oversize
from actors.acceptor.ws import Close, Item, Ping, Pong, WsProtocolError, WsReceiver

UNLIMITED = 1 << 63


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """``data`` in pieces, divided at each of ``cuts`` (taken modulo its length)."""
    places = [0, *sorted({place % (len(data) + 1) for place in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places) if a < b]


# --- WebSocket


def ws_ours(pieces: Sequence[bytes], limit: int = UNLIMITED) -> tuple[list[Item], int, int]:
    """Items, the error's close code (0: none) and the number of frames."""
    receiver = WsReceiver(max_message=limit)
    items: list[Item] = []
    code = 0
    for piece in pieces:
        try:
            got = receiver.receive(piece)
        except WsProtocolError as error:
            assert not code
            items += error.items
            code = error.code
        else:
            assert not (code and got)
            items += got
        assert receiver.pending <= sum(map(len, pieces))
    return items, code, receiver.frames


def ws_theirs(data: bytes) -> tuple[list[Item], int]:
    """What wsproto, as a server, makes of the bytes of a client; binary messages are left out."""
    protocol = FrameProtocol(client=False, extensions=[])
    protocol.receive_bytes(data)
    items: list[Item] = []
    text: list[str] = []
    try:
        for frame in protocol.received_frames():
            payload = frame.payload
            if frame.opcode is Opcode.TEXT:
                assert isinstance(payload, str)
                text.append(payload)
                if frame.message_finished:
                    items.append("".join(text).encode())
                    text.clear()
            elif frame.opcode is Opcode.CLOSE:
                assert isinstance(payload, tuple)
                items.append(Close(None if payload[0] == 1005 else int(payload[0]), payload[1]))
                break
            elif frame.opcode in (Opcode.PING, Opcode.PONG):
                assert isinstance(payload, bytes)
                items.append(Ping(payload) if frame.opcode is Opcode.PING else Pong(payload))
    except ParseFailed as error:
        return items, int(error.code)
    return items, 0


def check_ws(data: bytes, cuts: Sequence[int]) -> None:
    items, code, frames = ws_ours([data])
    assert ws_ours(cut(data, cuts)) == (items, code, frames)
    if any(isinstance(item, Close) and item.code == 1014 for item in items):
        return  # registered after wsproto's list was written; wsproto calls it unknown
    theirs, their_code = ws_theirs(data)
    if code == 1003:
        assert theirs[: len(items)] == items  # wsproto goes on with the binary message
    elif code == 1007 and (theirs, their_code) != (items, code):
        # A surrogate cut in two: we stop at its second byte, wsproto at the third, or at whatever ends the connection
        # before it. But a message never comes of it.
        assert theirs[: len(items)] == items
        assert not any(isinstance(item, bytes) for item in theirs[len(items) :])
        assert their_code in (0, 1002, 1007)
    elif code and not their_code:
        # We don't wait for the rest of a header that can't become right. Wsproto must agree once there is a rest.
        assert theirs == items
        assert ws_theirs(data + bytes(16))[1] == code
    else:
        assert (theirs, their_code) == (items, code)


def client_frame(rng: random.Random, first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    key = rng.randbytes(4)
    stretched = key * (size // 4 + 1)
    return head + key + bytes(map(int.__xor__, payload, stretched))


def ws_stream(rng: random.Random) -> bytes:
    """Mostly well-formed frames, then a few wrong bytes."""
    out = b""
    fragmented = False
    for _ in range(rng.randrange(1, 8)):
        kind = rng.random()
        if kind < 0.25:
            size = rng.choice([0, 1, 5, 124, 125, 125, 126])
            out += client_frame(rng, rng.choice([0x89, 0x8A]), rng.randbytes(size))
        elif kind < 0.32:
            code = rng.choice([rng.randrange(65536), rng.randrange(990, 1020), rng.randrange(2990, 5010)])
            body = b"" if rng.random() < 0.2 else code.to_bytes(2, "big") + text(rng, rng.randrange(20))
            out += client_frame(rng, 0x88, body[: rng.choice([1, 125, 125, 125])])
        else:
            final = rng.random() < 0.6
            opcode = 0 if fragmented else 1
            if rng.random() < 0.04:
                opcode = rng.choice([2, rng.randrange(16)])
            size = rng.choice([0, 1, 3, 50, 125, 126, 300, 4096, 65535, 65536]) if rng.random() < 0.3 else 20
            out += client_frame(rng, (0x80 if final else 0) | opcode, text(rng, size))
            fragmented = not final
    return mutated(rng, out)


def text(rng: random.Random, size: int) -> bytes:
    """About ``size`` bytes of text, now and then cut inside a character or not UTF-8 at all."""
    alphabet = rng.choice(["abc{}", "aä€😀", "\x00\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"])
    data = "".join(rng.choices(alphabet, k=min(size, 40))).encode() * (size // 40 + 1)
    data = data[:size]
    if rng.random() < 0.1:
        data += rng.choice([b"\xed", b"\xed\xa0", b"\xed\xa0\x80", b"\xc0", b"\xf4\x90", b"\xf5", b"\xe2\x82", b"\x80"])
    return data


def mutated(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.5:
        return data
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        where = rng.randrange(len(out) + 1)
        how = rng.random()
        if how < 0.4 and where < len(out):
            out[where] ^= 1 << rng.randrange(8)
        elif how < 0.6:
            out[where:where] = rng.randbytes(rng.randrange(1, 5))
        elif how < 0.8:
            del out[where : where + rng.randrange(1, 5)]
        else:
            del out[where:]
    return bytes(out)


# --- HTTP


def head_ours(pieces: Sequence[bytes]) -> Request | int | None:
    """The request with all that follows it, the status of the refusal, or None: not complete."""
    reader = HeadReader()
    for number, piece in enumerate(pieces):
        try:
            request = reader.receive(piece)
        except HttpError as error:
            return error.status
        assert reader.pending <= 16_384
        if request is not None:
            return with_rest(request, request.rest + b"".join(pieces[number + 1 :]))
    return None


def check_head(data: bytes, cuts: Sequence[int]) -> None:
    ours = head_ours([data])
    split = head_ours(cut(data, cuts))
    # Of two offences the one that a read brings first is named; that there is one doesn't depend on the reads.
    assert split == ours or (isinstance(split, int) and isinstance(ours, int))
    if not isinstance(ours, Request):
        assert ours in (None, 400, 414, 431, 501, 505)
        return
    check_handshake(ours)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    theirs = connection.next_event()
    assert isinstance(theirs, h11.Request)
    assert theirs.method == ours.method.encode()
    assert theirs.target == ours.target.encode()
    assert theirs.http_version == ours.version.encode()
    assert tuple(theirs.headers) == ours.headers
    waiting = connection.they_are_waiting_for_100_continue and ours.content_length > 0
    assert ours.expects_continue == waiting
    body = b""
    event = connection.next_event()
    while isinstance(event, h11.Data):
        body += event.data
        event = connection.next_event()
    assert body == ours.rest[: ours.content_length]
    if len(ours.rest) >= ours.content_length:
        assert isinstance(event, h11.EndOfMessage)
        assert connection.trailing_data[0] == ours.rest[ours.content_length :]
        connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        connection.send(h11.EndOfMessage())
        assert (connection.our_state is not h11.MUST_CLOSE) == ours.keep_alive
    else:
        assert event is h11.NEED_DATA


def check_handshake(request: Request) -> None:
    try:
        handshake = websocket_handshake(request)
    except HttpError as error:
        assert error.status in (400, 405, 426)  # noqa: PT017 - whichever of the declared ones it is
        return
    assert is_upgrade(request)
    assert (request.method, request.version, request.content_length) == ("GET", "1.1", 0)
    assert len(handshake.accept) == 28
    assert len(set(handshake.subprotocols)) == len(handshake.subprotocols)


LINES = [
    "Host: h",
    "Host: localhost:3002",
    "Connection: close",
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: mcp, bearer.x",
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: 05",
    "Transfer-Encoding: chunked",
    "Expect: 100-continue",
    "Origin: http://localhost:5173",
    "Accept: */*",
    "X:",
    "X: \t a\tb  c \t",
    "X : y",
    " folded",
]
FIRST = [
    "GET / HTTP/1.1",
    "GET /ws?ticket=1 HTTP/1.1",
    "POST /auth/token HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "GET http://h/ws HTTP/1.1",
    "HEAD /health HTTP/1.0",
    "CONNECT h:1 HTTP/1.1",
    "GET /%zz HTTP/1.1",
    "GET / HTTP/1.2",
    "PRI * HTTP/2.0",
]


def head_stream(rng: random.Random) -> bytes:
    lines = [rng.choice(FIRST[:4]) if rng.random() < 0.8 else rng.choice(FIRST)]
    if rng.random() < 0.9:
        lines.append("Host: h")
    if rng.random() < 0.4:
        lines += LINES[3:7]
    lines += rng.choices(LINES[2:] if rng.random() < 0.7 else LINES, k=rng.randrange(4))
    data = "\r\n".join([*lines, "", ""]).encode() + rng.randbytes(rng.choice([0, 0, 3, 5, 9]))
    return mutated(rng, data) if rng.random() < 0.6 else data


# --- lines


def lines_model(data: bytes, limit: int) -> tuple[list[bytes | Oversize], int, int | None]:
    """Items in the mode that discards, empty lines, and how many items come before the first line too long."""
    items: list[bytes | Oversize] = []
    empty = 0
    refused: int | None = None
    *whole, rest = data.split(b"\n")
    for line in [each.removesuffix(b"\r") for each in whole]:
        if not line:
            empty += 1
        elif len(line) <= limit:
            items.append(line)
        else:
            refused = len(items) if refused is None else refused
            items.append(Oversize(line[:KEPT_HEAD], line[KEPT_HEAD:][-KEPT_TAIL:], len(line)))
    if refused is None and len(rest.removesuffix(b"\r")) > limit:
        refused = len(items)
    return items, empty, refused


def check_lines(data: bytes, cuts: Sequence[int], limit: int) -> None:
    items, empty, refused = lines_model(data, limit)
    for pieces in ([data], cut(data, cuts)):
        lenient = LineReader(max_line=limit, on_overflow="discard")
        assert [item for piece in pieces for item in lenient.receive(piece)] == items
        assert lenient.empty == empty

        strict = LineReader(max_line=limit)
        lines: list[bytes] = []
        raised = False
        for piece in pieces:
            try:
                lines += strict.receive(piece)
            except LineTooLong as error:
                assert not raised
                raised = True
                lines += error.items
        assert raised == (refused is not None)
        assert lines == items[:refused]


def line_stream(rng: random.Random) -> tuple[bytes, int]:
    limit = rng.choice([1, 3, 10, 100, KEPT_HEAD, KEPT_HEAD + KEPT_TAIL])
    parts: list[bytes] = []
    for _ in range(rng.randrange(1, 8)):
        size = max(0, rng.choice([0, 1, limit, limit + rng.randrange(-2, 4), rng.randrange(2 * limit + 10)]))
        parts.append(rng.choice([b"x", b"\r", b"ab\r", b'{"a":1}']) * size)
        parts[-1] = parts[-1][:size] + rng.choice([b"\n", b"\r\n", b"\n\n", b"\r", b""])
    return b"".join(parts), limit


# --- the rounds


def some_cuts(rng: random.Random, size: int) -> list[int]:
    if rng.random() < 0.2 and size < 2000:
        return list(range(size))
    return [rng.randrange(size + 1) for _ in range(rng.randrange(8))]


def ws_round(rng: random.Random) -> None:
    data = ws_stream(rng) if rng.random() < 0.95 else rng.randbytes(rng.randrange(200))
    check_ws(data, some_cuts(rng, len(data)))


def head_round(rng: random.Random) -> None:
    data = head_stream(rng) if rng.random() < 0.95 else rng.randbytes(rng.randrange(200))
    check_head(data, some_cuts(rng, len(data)))


def line_round(rng: random.Random) -> None:
    data, limit = line_stream(rng)
    check_lines(data, some_cuts(rng, len(data)), limit)


TARGETS: dict[str, Callable[[random.Random], None]] = {"ws": ws_round, "head": head_round, "lines": line_round}


def run_round(target: str, seed: int) -> None:
    """One round; the seed alone decides what happens in it."""
    TARGETS[target](random.Random(seed))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next ones count up from it")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each target")
    parser.add_argument("--rounds", type=int, default=0, help="for each target, whatever the time")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    options = parser.parse_args()
    failures = 0
    for target in options.target or list(TARGETS):
        end = time.monotonic() + options.seconds
        seed = options.seed
        while seed < options.seed + options.rounds if options.rounds else time.monotonic() < end:
            try:
                run_round(target, seed)
            except Exception:  # noqa: BLE001 - a fuzzer reports whatever it finds, and goes on with the next target
                sys.excepthook(*sys.exc_info())
                sys.stdout.write(f"{target}: failed in the round of seed {seed}\n")
                failures += 1
                break
            seed += 1
        sys.stdout.write(f"{target}: {seed - options.seed} rounds passed\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
