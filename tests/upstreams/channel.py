"""How the upstream programs of the tests speak: lines on stdio or, with ``--tcp PORT-FILE``, on TCP connections.

Over TCP the program listens on a free port of 127.0.0.1, writes its number to the file (complete when it appears) and
serves each connection in a thread of its own. Standard library only, so that any interpreter runs them.
"""

import argparse
import contextlib
import json
import socket
import sys
import threading
from pathlib import Path


class Channel:
    """One line-framed connection."""

    def __init__(self, source, sink, close=None):
        self._source = source
        self._sink = sink
        self._lock = threading.Lock()
        self.close = close or (lambda: None)

    def __iter__(self):
        return iter(self._source)

    def write(self, data):
        """Raw bytes, as they are."""
        with self._lock:
            self._sink.write(data)
            self._sink.flush()

    def send(self, message):
        self.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def answer(self, request, result):
        self.send({"jsonrpc": "2.0", "id": request["id"], "result": result})

    def refuse(self, request, code, text):
        self.send({"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": text}})

    def notify(self, method, params):
        self.send({"jsonrpc": "2.0", "method": method, "params": params})


def arguments(*extra):
    """The program's own arguments beside ``--tcp``: each of ``extra`` is (name, keyword arguments)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tcp", metavar="PORT-FILE")
    for name, options in extra:
        parser.add_argument(name, **options)
    return parser.parse_args()


def serve(options, handle):
    """Call ``handle(channel)`` for stdio, or in a thread for each TCP connection."""
    if not options.tcp:
        with contextlib.suppress(BrokenPipeError):
            handle(Channel(sys.stdin.buffer, sys.stdout.buffer))
        return
    listener = socket.create_server(("127.0.0.1", 0))
    publish(options.tcp, str(listener.getsockname()[1]))
    while True:
        connection, _ = listener.accept()

        def run(connection=connection):
            stream = connection.makefile("rwb")
            with contextlib.suppress(OSError):
                handle(Channel(stream, stream, lambda: connection.shutdown(socket.SHUT_RDWR)))
            connection.close()

        threading.Thread(target=run, daemon=True).start()


def publish(path, text):
    """Write a file that is complete when it appears."""
    draft = Path(path + ".new")
    draft.write_text(text)
    draft.rename(path)


def initialize(request, **capabilities):
    """A legacy server's answer, at whatever version was asked for."""
    return {
        "protocolVersion": request["params"]["protocolVersion"],
        "capabilities": capabilities or {"tools": {}},
        "serverInfo": {"name": "test", "version": "1"},
    }
