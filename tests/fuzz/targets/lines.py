"""Lines of TCP clients and of stdio servers: the reader against ``bytes.split``, whole and in pieces.

The invariant is that of ``fuzz_codecs``, for any limit: the same lines, empty lines and refusals however the bytes are
divided, and never more held than the limit and the end of a line.
"""

from __future__ import annotations

import random

from fuzz.fuzz_codecs import check_lines, cut, line_stream
from fuzz.targets import cuts_of, knobs

from actors.acceptor.lines import LineReader, LineTooLong

SEEDS = [bytes([2, 5, 1, 9]) + line_stream(random.Random(seed))[0][:500] for seed in range(16)] + [
    b"\xff\0\0\3abc\r\n\r\n\nabcd\nab\r\r\n"
]


def check(data: bytes) -> None:
    knob, stream = knobs(data, 4)
    limit = 1 + knob[3]
    cuts = cuts_of(knob, len(stream))
    check_lines(stream, cuts, limit)
    reader = LineReader(max_line=limit)
    for piece in cut(stream, cuts):
        try:
            reader.receive(piece)
        except LineTooLong:
            break
        assert reader.pending <= limit + 1
