"""The server's channel: lines on stdin and stdout, one thread, one poll."""

from __future__ import annotations

import os
import select
import time

from . import jsonrpc
from .server import Server

MAX_LINE = 32 * 1024 * 1024  # twice the gateway's default for one message; longer is a mistake of the sender
_CHUNK = 262_144
_STDIN, _STDOUT = 0, 1


def serve() -> None:
    """Serve until stdin ends. Raises nothing for a client that goes away.

    The descriptors stay in blocking mode: their open file descriptions may be a terminal's, shared with a shell.
    """
    server = Server()
    poll = select.poll()
    poll.register(_STDIN, select.POLLIN)
    lines = _Lines()
    try:
        while True:
            deadline = server.next_deadline_ns()
            wait = None if deadline is None else max(0, -((time.monotonic_ns() - deadline) // 1_000_000))
            ready = poll.poll(wait)
            out = server.tick(time.monotonic_ns())
            if ready:
                chunk = os.read(_STDIN, _CHUNK)
                if not chunk:
                    _write(server.close())
                    return
                now = time.monotonic_ns()
                for line in lines.feed(chunk):
                    out += _TOO_LONG if line is None else server.receive(line, now)
            _write(out)
    except (BrokenPipeError, KeyboardInterrupt):
        return


_TOO_LONG = [jsonrpc.error(jsonrpc.NULL, jsonrpc.INVALID_REQUEST, "the message is too long")]


class _Lines:
    """Cuts a stream into lines, blank ones left out; None stands for one that was longer than MAX_LINE."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._skipping = False

    def feed(self, chunk: bytes) -> list[bytes | None]:
        *complete, rest = chunk.split(b"\n")
        lines: list[bytes | None] = []
        for piece in complete:
            self._hold(piece)
            line = b"".join(self._parts)
            if self._skipping:
                lines.append(None)
            elif line.strip():
                lines.append(line)
            self._parts, self._held, self._skipping = [], 0, False
        self._hold(rest)
        return lines

    def _hold(self, piece: bytes) -> None:
        self._held += len(piece)
        if self._held > MAX_LINE:
            self._skipping = True
            self._parts.clear()
        elif piece:
            self._parts.append(piece)


def _write(lines: list[bytes]) -> None:
    if not lines:
        return
    view = memoryview(b"\n".join(lines) + b"\n")
    while view:
        view = view[os.write(_STDOUT, view):]
