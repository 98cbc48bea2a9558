"""WebSocket frames of clients: the receiver against wsproto, whole and in pieces.

The invariant is that of ``fuzz_codecs``: the same items, close code and number of frames however the bytes are divided,
and those of wsproto; and under a limit, what is held and what is given out never exceed it.
"""

from __future__ import annotations

import random

from fuzz.fuzz_codecs import check_ws, client_frame, cut, ws_stream
from fuzz.targets import cuts_of, knobs

from actors.acceptor.ws import WsProtocolError, WsReceiver

SEEDS = [bytes([7, 3, 2, 11]) + ws_stream(random.Random(seed))[:600] for seed in range(24)] + [
    bytes(4) + client_frame(random.Random(1), 0x81, "aä€😀".encode()) + client_frame(random.Random(2), 0x89, b"p"),
    bytes([255, 0, 0, 0]) + client_frame(random.Random(3), 0x88, b"\x03\xe8bye"),
]


def check(data: bytes) -> None:
    knob, stream = knobs(data, 4)
    cuts = cuts_of(knob, len(stream))
    check_ws(stream, cuts)
    limit = 1 + knob[3]
    receiver = WsReceiver(max_message=limit)
    for piece in cut(stream, cuts):
        try:
            items = receiver.receive(piece)
        except WsProtocolError as error:
            items = error.items
        assert all(len(item) <= limit for item in items if isinstance(item, bytes))
        assert receiver.pending <= limit + 14 + 125
        assert receiver.declared <= limit
