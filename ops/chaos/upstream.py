"""``python -m ops.chaos.upstream``: the server behind the gateway, which writes down each call that it executes.

It answers ``tools/call`` with the tool's name. How, the word in the file ``--mood`` says, read anew for each message:

``well``     at once
``late``     after up to a second and a half, in another order than asked
``twice``    each answer two times
``halves``   each answer in two pieces, with a pause between
``garbage``  between lines that are no messages and answers that nobody asked for
``hang``     not at all; it executes the call
``deaf``     it does not even read
``die``      it executes the call, and ends
``torn``     it executes the call, writes half of the answer, and ends

Over TCP (``--tcp PORT``) "ends" means the connection. The ledger has a line ``MONOTONIC_NS UPSTREAM PID NAME`` for each
call, in one write, before its answer. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

MOODS = ("well", "late", "twice", "halves", "garbage", "hang", "deaf", "die", "torn")
_GARBAGE = b'Traceback (most recent call last):\n\xff\xfe\x00 {]\n{"jsonrpc":"2.0","id":999999999,"result":{}}\n'


class _Over(Exception):
    """This connection ends."""


class _File(Protocol):
    def __iter__(self) -> Iterator[bytes]: ...
    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...


class _Channel:
    """Lines in, lines out; late ones are written by a thread of their own."""

    def __init__(self, source: _File, sink: _File) -> None:
        self._source = source
        self._sink = sink
        self._lock = threading.Condition()
        self._late: list[tuple[float, int, bytes]] = []
        self._order = 0
        threading.Thread(target=self._write_late, daemon=True).start()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._source)

    def write(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        with self._lock:
            for number, piece in enumerate(pieces):
                if number:
                    time.sleep(pause_s)
                self._sink.write(piece)
                self._sink.flush()

    def write_later(self, line: bytes, after_s: float) -> None:
        with self._lock:
            self._order += 1
            heapq.heappush(self._late, (time.monotonic() + after_s, self._order, line))
            self._lock.notify()

    def _write_late(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has been closed meanwhile
            while True:
                with self._lock:
                    wait_s = self._late[0][0] - time.monotonic() if self._late else None
                    if wait_s is None or wait_s > 0:
                        self._lock.wait(wait_s)
                        continue
                    self._sink.write(heapq.heappop(self._late)[2])
                    self._sink.flush()


class _Server:
    def __init__(self, name: str, ledger: Path, mood: Path, *, process: bool) -> None:
        self._name = name
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._mood = mood
        self._process = process
        self._random = random.Random()

    def mood(self) -> str:
        return self._mood.read_text().strip()

    def serve(self, channel: _Channel) -> None:
        for line in channel:
            while self.mood() == "deaf":
                time.sleep(0.02)
            message = json.loads(line)
            if "id" in message and "method" in message:
                self._answer(channel, message)

    def _answer(self, channel: _Channel, message: dict[str, Any]) -> None:
        method, mood = message["method"], self.mood()
        if method != "tools/call":
            if mood != "hang":
                channel.write(_line(message["id"], _result(method, message)))
            return
        params = message["params"]
        name = str(params["name"])
        os.write(self._ledger, f"{time.monotonic_ns()} {self._name} {os.getpid()} {name}\n".encode())
        pad = "x" * int(params.get("arguments", {}).get("pad", 0))
        content = [{"type": "text", "text": name}] + ([{"type": "text", "text": pad}] if pad else [])
        line = _line(message["id"], {"content": content})
        match mood:
            case "late":
                channel.write_later(line, self._random.uniform(0.05, 1.5))
            case "twice":
                channel.write(line, line)
            case "halves":
                channel.write(line[: len(line) // 2], line[len(line) // 2 :], pause_s=0.03)
            case "garbage":
                channel.write(_GARBAGE, line, _GARBAGE)
            case "hang":
                pass
            case "die":
                self._end()
            case "torn":
                channel.write(line[: len(line) // 2])
                self._end()
            case _:
                channel.write(line)

    def _end(self) -> None:
        if self._process:
            os._exit(1)
        raise _Over


def _line(identity: object, result: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": identity, "result": result}, separators=(",", ":")).encode() + b"\n"


def _result(method: str, message: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        return {
            "protocolVersion": message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "chaos", "version": "1"},
        }
    return {"tools": []} if method == "tools/list" else {}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.upstream", description=__doc__.partition("\n")[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--mood", type=Path, required=True)
    parser.add_argument("--tcp", type=int, metavar="PORT")
    options = parser.parse_args()
    server = _Server(options.name, options.ledger, options.mood, process=options.tcp is None)
    if options.tcp is None:
        with contextlib.suppress(BrokenPipeError):
            server.serve(_Channel(sys.stdin.buffer, sys.stdout.buffer))
        return
    listener = socket.create_server(("127.0.0.1", options.tcp))
    while True:
        connection, _ = listener.accept()

        def run(connection: socket.socket = connection) -> None:
            with contextlib.suppress(OSError, ValueError, _Over), connection, connection.makefile("rwb") as stream:
                server.serve(_Channel(stream, stream))

        threading.Thread(target=run, daemon=True).start()


if __name__ == "__main__":
    main()
