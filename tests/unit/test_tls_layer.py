"""TLS on one connection, against OpenSSL as its client, over sockets that take as little as a test wants."""

from __future__ import annotations

import contextlib
import socket
import ssl

import attrs
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.acceptor.tls import MAX_BARREN, MAX_STEPS, Step, Tls, TlsAbused, TlsTruncated, alert, why

CA = trustme.CA()


@attrs.define
class Wire:
    """A socket in memory: ``rooms`` are the sizes that the next sends may have, 0 for none; then there is room."""

    ahead: bytearray = attrs.field(factory=bytearray)  # what the layer will receive
    sent: bytearray = attrs.field(factory=bytearray)
    rooms: list[int] = attrs.field(factory=list)
    ended: bool = False

    def recv(self, size: int) -> bytes:
        data = bytes(self.ahead[:size])
        del self.ahead[:size]
        if not data and not self.ended:
            raise BlockingIOError
        return data

    def send(self, data: bytes | memoryview) -> int:
        room = self.rooms.pop(0) if self.rooms else len(data)
        if not room:
            raise BlockingIOError
        self.sent += data[:room]
        return min(room, len(data))


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    CA.issue_cert("localhost").configure_cert(context)
    return context


SERVER = server_context()


class Peer:
    """A client whose records go to and come from a wire."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        CA.configure_trust(context)
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def move(self) -> None:
        self.incoming.write(bytes(self.wire.sent))
        self.wire.sent.clear()
        self.wire.ahead += self.outgoing.read()

    def read(self) -> bytes:
        self.move()
        data = b""
        while True:
            try:
                data += self.tls.read(65536)
            except ssl.SSLWantReadError:
                return data


@pytest.fixture
def pair() -> tuple[Tls, Wire, Peer]:
    return handshaken()


def handshaken(piece: int = 65536) -> tuple[Tls, Wire, Peer]:
    tls, wire = Tls(), Wire()
    peer = Peer(wire)
    outcome = Step.MORE
    while outcome is not Step.DONE:
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        peer.move()
        while wire.ahead:
            if tls.offer(wire.recv(piece)):
                tls.feed()
                outcome = tls.step(SERVER)
                assert outcome is not Step.FAILED
                assert tls.push(wire)  # type: ignore[arg-type]
    tls.established()
    return tls, wire, peer


def drain(tls: Tls, wire: Wire, out: list[bytes | memoryview]) -> None:
    """As the hub does: send, take off what has left, again and again."""
    for _ in range(100_000):
        sent = tls.send(wire, out)  # type: ignore[arg-type]
        while out and sent >= len(out[0]):
            sent -= len(out.pop(0))
        if sent:
            out[0] = memoryview(out[0])[sent:]
        if not out:
            return
    raise AssertionError("it never leaves")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=30),
    st.lists(st.integers(0, 30_000), max_size=60),
)
def test_whatever_room_there_is_the_bytes_arrive_in_order(sizes: list[int], rooms: list[int]) -> None:
    """Pieces of any size, sends that take all, some or nothing: the peer reads exactly what was written, and the list
    is not empty as long as a byte of it has not left."""
    tls, wire, peer = handshaken()
    pieces = [bytes([index % 251]) * size for index, size in enumerate(sizes)]
    whole = b"".join(pieces)
    out: list[bytes | memoryview] = [piece for piece in pieces if piece]
    wire.rooms = rooms
    if out:
        drain(tls, wire, out)
    assert peer.read() == whole


def test_nothing_leaves_the_list_before_its_record_has_left(pair: tuple[Tls, Wire, Peer]) -> None:
    """With no room nothing is reported; with room for all but one byte of a record, its last byte stays."""
    tls, wire, peer = pair
    out: list[bytes | memoryview] = [b"x" * 1000]
    wire.rooms = [0]
    assert tls.send(wire, out) == 0  # type: ignore[arg-type]
    assert not wire.sent
    wire.rooms = [1000 + 21, 0]
    assert tls.send(wire, out) == 999  # type: ignore[arg-type]
    out = [b"x"]
    assert tls.send(wire, out) == 1  # type: ignore[arg-type]
    assert peer.read() == b"x" * 1000


def test_all_that_came_is_handed_out(pair: tuple[Tls, Wire, Peer]) -> None:
    """Many records read at once are one result: none waits inside, where no poller would look for it."""
    tls, wire, peer = pair
    for number in range(500):
        peer.tls.write(b"%d," % number)
    peer.move()
    size = len(wire.ahead)
    assert tls.receive(wire, size) == b"".join(b"%d," % n for n in range(500))  # type: ignore[arg-type]
    with pytest.raises(BlockingIOError):
        tls.receive(wire, size)  # type: ignore[arg-type]


@pytest.mark.parametrize("piece", [1, 7, 65536])
def test_a_handshake_in_pieces(piece: int) -> None:
    """However the segments fall, a step is made only for whole records; what follows the handshake is not lost."""
    tls, wire, peer = handshaken(piece)
    assert tls.steps <= 4
    peer.tls.write(b"after it")
    peer.move()
    data = b""
    while wire.ahead:
        with contextlib.suppress(BlockingIOError):
            data += tls.receive(wire, piece)  # type: ignore[arg-type]
    assert data == b"after it"


def test_the_end_with_and_without_close_notify(pair: tuple[Tls, Wire, Peer]) -> None:
    """close_notify is an end, behind the data before it; the end of the stream alone is a truncation."""
    tls, wire, peer = pair
    peer.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.unwrap()
    peer.move()
    assert tls.receive(wire, 65536) == b"last"  # type: ignore[arg-type]
    assert tls.ended
    assert tls.receive(wire, 65536) == b""  # type: ignore[arg-type]
    tls, wire, _ = handshaken()
    wire.ended = True
    with pytest.raises(TlsTruncated) as truncated:
        tls.receive(wire, 65536)  # type: ignore[arg-type]
    assert why(truncated.value) == "truncated"


def test_goodbye_comes_last(pair: tuple[Tls, Wire, Peer]) -> None:
    """The peer sees our close_notify behind all data, and nothing can be sent after it."""
    tls, wire, peer = pair
    drain(tls, wire, [b"bye"])
    wire.rooms = [0]
    assert not tls.goodbye(wire)  # type: ignore[arg-type]
    assert tls.goodbye(wire)  # type: ignore[arg-type]
    peer.move()
    assert peer.tls.read(10) == b"bye"
    assert peer.tls.read(10) == b""  # close_notify; a truncation would raise
    with pytest.raises(OSError, match="outside"):
        tls.send(wire, [b"more"])  # type: ignore[arg-type]


def test_nothing_is_sent_in_the_clear() -> None:
    """Before the handshake is done there is no way to send data."""
    wire = Wire()
    with pytest.raises(OSError, match="outside"):
        Tls().send(wire, [b"secret"])  # type: ignore[arg-type]
    assert not wire.sent


def test_a_changed_record_ends_it_with_an_alert(pair: tuple[Tls, Wire, Peer]) -> None:
    """One flipped bit: an error for us, bad_record_mac for the peer, no byte of plaintext."""
    tls, wire, peer = pair
    peer.tls.write(b"x" * 100)
    peer.move()
    wire.ahead[50] ^= 1
    with pytest.raises(ssl.SSLError) as error:
        tls.receive(wire, 65536)  # type: ignore[arg-type]
    assert why(error.value) == "tls"
    peer.move()
    with pytest.raises(ssl.SSLError, match=r"(?i)bad record mac"):
        peer.tls.read(10)


def test_records_without_data_have_an_end(pair: tuple[Tls, Wire, Peer]) -> None:
    """Megabytes of a record that never ends cost a bounded number of them: each record is at most 16 KiB, so what has
    brought no byte of data after so many of theirs means no good."""
    tls, _, _ = pair

    class Endless(Wire):
        def recv(self, size: int) -> bytes:
            return b"\x17\x03\x03\x40\x00"[:size]

    tls._barren = MAX_BARREN
    with pytest.raises(TlsAbused):
        tls.receive(Endless(), 65536)  # type: ignore[arg-type]


def test_a_handshake_that_goes_on_and_on_is_unreasonable() -> None:
    """By its bytes, and by its steps."""
    tls = Tls()
    tls.offer(b"\x16\x03\x01\x40\x00" * 13107)
    assert not tls.unreasonable
    tls.offer(b"xxxx")
    assert tls.unreasonable
    tls = Tls()
    for _ in range(MAX_STEPS):
        tls.offer(b"\x16\x03\x01\x00\x01\x01")
        tls.feed()
    assert not tls.unreasonable
    tls.feed()
    assert tls.unreasonable


def test_a_step_never_raises() -> None:
    """Garbage is a failure with a name, and leaves an alert to send."""
    tls = Tls()
    assert tls.offer(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00")
    tls.feed()
    assert tls.step(SERVER) is Step.FAILED
    assert tls.error
    wire = Wire()
    assert tls.push(wire)  # type: ignore[arg-type]
    assert wire.sent[:1] == b"\x15"


def test_our_own_alert_is_one() -> None:
    """OpenSSL, as the client, understands it."""
    wire = Wire()
    peer = Peer(wire)
    wire.sent += alert(49)
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    peer.move()
    with pytest.raises(ssl.SSLError, match=r"(?i)access denied"):
        peer.tls.do_handshake()


def test_a_real_socket_that_is_full() -> None:
    """The same over a socket pair whose buffers fill up: everything arrives, once the peer reads."""
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        tls, wire, peer = handshaken()
        out: list[bytes | memoryview] = [b"y" * 3_000_000]
        blocked = 0
        received = 0
        right.setblocking(False)
        while out or received < 3_000_000:
            sent = tls.send(left, out)
            blocked += not sent
            while out and sent >= len(out[0]):
                sent -= len(out.pop(0))
            if sent:
                out[0] = memoryview(out[0])[sent:]
            try:
                wire.sent += right.recv(50_000)
            except BlockingIOError:
                continue
            received += len(peer.read())
        assert blocked
