"""A real HTTP server on loopback that serves a key set, or whatever else a test has it answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Answer = Callable[[socket.socket], None]
"""Writes to a connection whose request has been read; it is closed afterwards."""


class KeyServer:
    """``answer`` may be exchanged at any time. ``requests`` counts those that came; ``targets`` are theirs."""

    def __init__(self) -> None:
        self.answer: Answer = says(b"")
        self.targets: list[str] = []
        self.closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/keys"

    @property
    def requests(self) -> int:
        return len(self.targets)

    def serve(self, keys: bytes) -> None:
        self.answer = says(keys)

    def stop_listening(self) -> None:
        """From now on nobody can connect."""
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        if not self.closing.is_set():
            self.stop_listening()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # the other side may have gone first
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
            self._start(lambda connection=connection: self._one(connection))

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                head = b""
                while b"\r\n\r\n" not in head:
                    data = connection.recv(4096)
                    if not data:
                        return
                    head += data
                self.targets.append(head.split(b" ", 2)[1].decode())
                self.answer(connection)
            except OSError:
                return
            finally:
                with self._lock:
                    self._open.discard(connection)


def says(body: bytes, status: str = "200 OK", *headers: str) -> Answer:
    """One complete answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return raw("\r\n".join(lines).encode() + body)


def raw(data: bytes) -> Answer:
    return lambda connection: connection.sendall(data)


def then_silent(data: bytes) -> Answer:
    """Sends this and no more, until the other side goes."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(data)
        while connection.recv(4096):
            pass

    return answer


def endless(head: bytes, piece: bytes) -> Answer:
    """Goes on until the other side goes."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    return answer


def after(event: threading.Event, answer: Answer) -> Answer:
    """Answers when the event is set."""

    def later(connection: socket.socket) -> None:
        event.wait()
        answer(connection)

    return later


@contextmanager
def key_server(keys: bytes = b"") -> Iterator[KeyServer]:
    server = KeyServer()
    server.serve(keys)
    try:
        yield server
    finally:
        server.close()
