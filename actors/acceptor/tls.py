"""TLS on one connection: records in, plaintext out, and the reverse. It holds no socket and knows no hub.

OpenSSL works on memory here, so it never waits for a socket: neither does reading want to write nor writing to read,
and no write has to be repeated. What that leaves to be careful about:

- epoll knows only of ciphertext. So ``receive`` hands out *all* that can be decrypted from what it has read; no
  plaintext ever waits in here, only the beginning of a record that is not complete. The bytes of one call are bounded
  as they are without TLS. The peer's close_notify behind its last data is no readiness either: ``ended`` says so.
- ``send`` keeps the contract of a socket's: it takes bytes off the caller's list only when their records are on their
  way. At most one chunk is sealed ahead, so a peer that doesn't read costs no second copy of what it is to get.
- A handshake computes for milliseconds (a signature with RSA-4096: 4 ms). ``step`` is that part: it runs in a thread,
  and nobody else touches this object meanwhile.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import logging
import socket
import ssl
from typing import Final, cast

from actors.policy import certificate

log = logging.getLogger("portcullis.acceptor")

RECORD_HEADER: Final = 5
MAX_RECORD: Final = 16384 + 2048  # RFC 5246 §6.2.3; TLS 1.3 allows less
RECORD: Final = 16384  # plaintext of one record, at most
CHUNK: Final = 65536  # plaintext sealed at once; four full records
SEND_BYTES: Final = 262_144  # of one connection in one turn: encrypting is work, unlike handing bytes to the kernel
MAX_HANDSHAKE: Final = 65536  # bytes from a client until the handshake is done; a long certificate chain is 10 KB
MAX_STEPS: Final = 64  # calls of ``step``: who sends a handshake in more instalments than this wants to keep us busy
MAX_BARREN: Final = 262_144  # bytes of records in a row that hold no data (key updates, empty records)
HANDSHAKE: Final = 22  # RFC 8446 §5.1: the content type of a ClientHello
ALERT_INTERNAL: Final = 80  # RFC 8446 §6.2
ALERT_ACCESS_DENIED: Final = 49


class TlsTruncated(ConnectionResetError):
    """The peer's stream ended without close_notify: anybody on the way can do that (RFC 8446 §6.1)."""


class TlsAbused(ConnectionAbortedError):
    """The peer sends records without data, on and on."""


class Step(enum.Enum):
    """What became of one step of a handshake."""

    MORE = "more"
    """The peer's turn."""
    DONE = "done"
    FAILED = "failed"
    """``error`` says why. An alert for the peer may be in ``take_output``."""


def why(error: OSError) -> str:
    """The reason of a connection's end, for the audit."""
    if isinstance(error, TlsTruncated):
        return "truncated"
    return "tls" if isinstance(error, ssl.SSLError | TlsAbused) else "reset"


def alert(description: int) -> bytes:
    """A fatal alert for a peer that has no keys yet (RFC 8446 §6)."""
    return bytes((21, 3, 3, 0, 2, 2, description))


class Tls:
    """One connection's TLS, from its first byte to its last.

    Invariant: ``_sealed`` holds the rest of records whose first ``_sealed_plain`` plaintext bytes are still at the
    head of the caller's list; nothing else is sealed before they have left.
    """

    __slots__ = (
        "_barren", "_goodbye", "_held", "_incoming", "_outgoing", "_sealed", "_sealed_plain", "_ssl",
        "busy", "credential", "done", "ended", "error", "handshaking", "seen", "steps",
    )  # fmt: skip

    def __init__(self) -> None:
        self.handshaking = True
        self.busy = False  # ``step`` runs in a thread: hands off
        self.done = False  # no step is left; what is left is to send our last flight
        self.ended = False  # close_notify has come
        self.error = ""  # why the handshake failed
        self.credential = ""  # the verified client certificate's, if there is one
        self.seen = 0  # bytes of the handshake
        self.steps = 0
        self._held = bytearray()  # of the handshake: no complete record yet
        self._ssl: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._sealed: bytes | memoryview = b""
        self._sealed_plain = 0
        self._barren = 0
        self._goodbye = False

    # --- the handshake -----------------------------------------------------------------------------------------

    def offer(self, data: bytes) -> bool:
        """Bytes of the peer's handshake. True: there is something to do for ``step``."""
        self.seen += len(data)
        self._held += data
        return self._complete() > 0

    @property
    def speaks(self) -> bool | None:
        """Whether the first byte is a ClientHello's; None: there is none yet."""
        return self._held[0] == HANDSHAKE if self._held else None

    @property
    def first(self) -> bytes:
        """What came instead of a ClientHello."""
        return bytes(self._held)

    @property
    def unreasonable(self) -> bool:
        """Whether the peer's handshake is longer, or comes in more pieces, than any that is meant well."""
        return self.seen > MAX_HANDSHAKE or self.steps > MAX_STEPS

    def feed(self) -> None:
        """Hand over what is complete; ``step`` is next."""
        end = self._complete()
        self._incoming.write(bytes(self._held[:end]))
        del self._held[:end]
        self.steps += 1

    def step(self, context: ssl.SSLContext) -> Step:
        """In a thread: what can be done with what has been fed. Never raises."""
        try:
            if self._ssl is None:
                self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
            self._ssl.do_handshake()
            self.credential = self._identify()
        except ssl.SSLWantReadError:
            return Step.MORE
        except ssl.SSLError as error:
            self.error = _named(error)
            return Step.FAILED
        except Exception as error:
            # Whatever a certificate may do to its decoder: this thread has no other boundary.
            log.exception("a TLS handshake failed in a way that it should not")
            self.error = type(error).__name__
            return Step.FAILED
        return Step.DONE

    def established(self) -> None:
        """The handshake is done, and its last flight has left."""
        self.handshaking = False
        self._incoming.write(bytes(self._held))
        self._held.clear()

    def say(self, data: bytes) -> None:
        """An alert of our own, before OpenSSL has said anything."""
        self._outgoing.write(data)

    def abandon(self) -> None:
        """There will be no handshake: only what is to be sent is sent, and what comes is thrown away."""
        self.handshaking = False
        self._goodbye = True

    def push(self, sock: socket.socket) -> bool:
        """Send what the handshake has to say. False: some of it has to wait. Raises OSError."""
        self._push(sock)
        return not self._sealed

    def _complete(self) -> int:
        """How many bytes of ``_held`` are whole records (or can't become any, which OpenSSL shall say)."""
        held = self._held
        end = 0
        while len(held) - end >= RECORD_HEADER:
            length = int.from_bytes(held[end + 3 : end + 5], "big")
            if held[end + 1] != 3 or length > MAX_RECORD:
                return len(held)
            if len(held) - end < RECORD_HEADER + length:
                break
            end += RECORD_HEADER + length
        return end

    def _identify(self) -> str:
        found = self._object.getpeercert(binary_form=True)
        if found is None:
            return ""
        decoded = self._object.getpeercert() or {}
        expires_s = ssl.cert_time_to_seconds(str(decoded["notAfter"]))
        return certificate.credential(decoded, hashlib.sha256(found).digest(), (expires_s + 1) * 1000)

    # --- data --------------------------------------------------------------------------------------------------

    def receive(self, sock: socket.socket, size: int) -> bytes:
        """As ``sock.recv``: data, or b"" at the peer's close_notify.

        Raises BlockingIOError when there is nothing, and OSError (TlsTruncated, ssl.SSLError …) when nothing will come
        any more.
        """
        if self._goodbye:
            return sock.recv(size)  # only counted, and thrown away
        if self.ended:
            return b""
        data = b""
        try:
            data = sock.recv(size)
        except BlockingIOError:
            if not self._incoming.pending:
                raise
        else:
            if not data:
                raise TlsTruncated("the stream ended without close_notify")
            self._incoming.write(data)
        try:
            plain = self._open()
        except OSError:
            self._bestow(sock)  # the alert
            raise
        if self._outgoing.pending:
            self._bestow(sock)
        if plain:
            self._barren = 0
        elif not self.ended:
            self._barren += len(data)
            if self._barren > MAX_BARREN:
                raise TlsAbused("records without data")
            raise BlockingIOError
        return plain

    def _open(self) -> bytes:
        """Everything that can be decrypted now."""
        read = self._object.read
        pieces: list[bytes] = []
        with contextlib.suppress(ssl.SSLWantReadError):  # the beginning of a record is left
            while True:
                piece = read(RECORD)
                if not piece:  # close_notify
                    self.ended = True
                    break
                pieces.append(piece)
                if not self._incoming.pending:
                    break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send(self, sock: socket.socket, out: list[bytes | memoryview]) -> int:
        """As ``sock.sendmsg``: how many bytes of the head of ``out`` have left; 0 when none can. Raises OSError."""
        if self.handshaking or self._goodbye:
            raise ConnectionAbortedError("nothing is sent outside the TLS session")
        left = 0
        while True:
            if not self._sealed:
                left += self._sealed_plain
                self._sealed_plain = 0
                chunk = _gather(out, left) if left < SEND_BYTES else b""
                if not chunk:
                    return left
                self._sealed_plain = self._object.write(chunk)
            sent = self._push(sock)
            if self._sealed:
                # Progress is progress, though the chunk is not through: but never so much that the caller's list is
                # empty while something of it is still here.
                gone = max(0, min(sent, self._sealed_plain - 1))
                self._sealed_plain -= gone
                return left + gone

    def goodbye(self, sock: socket.socket) -> bool:
        """Say close_notify behind all that was sent. False: it has to wait for room. Raises OSError."""
        if not self._goodbye:
            self._goodbye = True
            with contextlib.suppress(ssl.SSLError):  # the usual WANT_READ: the peer has not said it yet
                self._object.unwrap()
        self._push(sock)
        return not self._sealed

    def _push(self, sock: socket.socket) -> int:
        """Send what is sealed, and what OpenSSL has to say; ``_sealed`` is what has to wait. The bytes that left."""
        total = 0
        while True:
            if not self._sealed:
                self._sealed = self._outgoing.read()
                if not self._sealed:
                    return total
            try:
                sent = sock.send(self._sealed)
            except BlockingIOError:
                return total
            total += sent
            self._sealed = memoryview(self._sealed)[sent:] if sent < len(self._sealed) else b""

    def _bestow(self, sock: socket.socket) -> None:
        """Send what OpenSSL has to say, if that goes now: alerts and warnings that nobody has to wait for."""
        with contextlib.suppress(OSError):  # the peer has gone; the next read says so
            self._push(sock)
        if self._outgoing.pending > MAX_RECORD:
            raise TlsAbused("it asks and asks, and does not read the answers")

    @property
    def _object(self) -> ssl.SSLObject:
        return cast("ssl.SSLObject", self._ssl)


def _gather(out: list[bytes | memoryview], skip: int) -> bytes | memoryview:
    """Up to a chunk of what is behind the first ``skip`` bytes; small pieces share a record."""
    pieces: list[bytes | memoryview] = []
    room = CHUNK
    for piece in out:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        part = memoryview(piece)[skip : skip + room] if skip or len(piece) > room else piece
        skip = 0
        pieces.append(part)
        room -= len(part)
        if not room:
            break
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _named(error: ssl.SSLError) -> str:
    """OpenSSL's name of it, and what was wrong with a certificate. Both are words of its own, not of the peer."""
    reason = (error.reason or type(error).__name__).replace("_", " ").lower()
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{reason}: {error.verify_message}"
    return reason
