"""One client connection: its socket, buffers, offsets and table of calls in flight, behind one object.

Nothing here decides anything. The hub moves bytes in and out, ``entry`` takes a connection from accepted to open,
``dispatch`` deals with its messages.
"""

from __future__ import annotations

import enum
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal

import attrs

from actors.policy.catalogue import Key
from actors.policy.proxy_protocol import ProxyHeaderReader
from actors.policy.rate_headers import Quota
from ipc.messages import Envelope, Grant

from .http import HeadReader, Request
from .lines import LineReader
from .tls import Tls
from .ws import WsReceiver

if TYPE_CHECKING:
    from actors.policy.content.screen import Finding
    from actors.policy.content.tool_schemas import ToolSchemas
    from actors.policy.jsonrpc import Refusal

    from .authorising import Standing
    from .inflight import Hold
    from .routes import Route

Codec = HeadReader | WsReceiver | LineReader[bytes]

RECEIVE_BYTES: Final = 65536  # of one connection in one turn: fairness among ready sockets
LINGER_NS: Final = 2_000_000_000  # a refused peer gets this long to read its refusal before the socket is closed
RETRY_MS: Final = 1000  # what a refusal that knows nothing better tells a client: the order of an actor's restart
LINGER_BYTES: Final = 1 << 20  # and may send this much more, unread, meanwhile


class Stage(enum.IntEnum):
    """The life of a connection; it only ever moves forward."""

    ENTRY = 0
    """Accepted; admission pending, HTTP head not complete."""
    LOGIN = 1
    """May speak, but only to authenticate."""
    OPEN = 2
    """Bears a grant."""
    CLOSING = 3
    """A last answer is being written; whatever arrives is thrown away."""
    CLOSED = 4


@attrs.define(slots=True, eq=False)
class Call:
    """A request in flight. ``id`` is the client's own raw JSON id, to be answered with; ``key`` what it stands for."""

    number: int
    id: bytes
    key: str | int | bytes
    method: str
    name: str
    started_ns: int
    deadline_ns: int  # 0: stays open as long as it likes
    limit_ns: int  # progress never moves the deadline past this
    probe: bool  # it takes a permit of a half-open breaker while it is in flight
    size: int
    entry: Key | None = None  # where its answer is kept in the catalogue
    received_ns: int = 0  # these two are set where calls are measured
    forwarded_ns: int = 0


@attrs.define(slots=True, eq=False)
class Item:
    """One complete message on its way through the checks; in the end ``envelope`` or ``refusal`` is set.

    Both are when its content is what is refused.
    """

    raw: bytes
    stamps: int = 0
    envelope: Envelope | None = None
    refusal: Refusal | None = None
    findings: Sequence[Finding] = ()  # of the content policy, not recorded yet
    hold: Hold | None = None  # of a large message: what it holds of MAX_INFLIGHT_BYTES
    received_ns: int = 0  # 0: not measured


@attrs.define(slots=True, eq=False)
class Connection:
    """Invariants: ``ids`` maps the key of each call in ``calls`` to its number; ``out_bytes`` is the sum of ``out``'s
    lengths; a connection with ``parked`` items hands out no later item before them."""

    session: int
    sock: socket.socket
    fd: int
    listener: Literal["ws", "tcp"]
    peer_ip: str
    peer_port: int
    key: str  # the client key of its address; empty while that is not known
    codec: Codec
    opened_ns: int
    wall_opened_ns: int
    stage: Stage = Stage.ENTRY
    transport: Literal["http", "ws", "tcp"] = "http"
    encode: Callable[[bytes], bytes] = bytes
    subprotocol: str | None = None

    # TLS
    tls: Tls | None = None  # None: the socket carries plaintext
    certificate: str = ""  # the verified client certificate's credential (``actors.policy.certificate``)

    # whose it is
    preface: ProxyHeaderReader | None = None  # the PROXY header is being read
    hop: Literal["", "awaited", "asked"] = ""  # behind a trusted proxy: its client isn't known, or isn't admitted yet
    exempt: bool = False  # no automatic block holds for its address, and nothing is held against it
    presented: bool = False  # auth was last asked with a credential
    authenticated: bool = False  # its grant is for a credential

    # entry
    admitted: bool | None = None  # None: the limiter has not answered yet
    entry_deadline_ns: int = 0
    ripe_ns: int = 0  # from when on it may have to make room for another; 0: it has authenticated, or has no place
    request: Request | None = None
    body: bytearray | None = None  # what has come of the request's body, where it has a use
    nonce: str = ""  # of the session that this request asks for
    quota: Quota | None = None  # what the client has left, once it was charged for its HTTP request
    waiting_for: str = ""  # the policy actor whose answer this connection awaits; it takes no message meanwhile
    login_id: bytes = b""  # the raw id of an ``authenticate`` that isn't answered yet
    failed_logins: int = 0
    login_second_ns: int = 0  # when the second began in which ``second_logins`` succeeded
    second_logins: int = 0
    introductions: int = 0  # messages before authentication, of any kind
    strangers: int = 0  # messages before authentication that nobody may send then
    early_version: str = ""  # initialised before authentication, at this protocol version

    # open
    grant: Grant | None = None
    revocations_seen: int = 0  # by the acceptor, when it asked for the grant
    standing: Standing | None = None  # what the grant comes to under the policy
    route: Route | None = None
    upstream: str = ""
    forwarded: bool = False  # something has been sent upstream: the choice of the server is final
    schemas: ToolSchemas | None = None  # of tools that only this session was told of
    version: str = ""  # the legacy protocol version this session was initialised at
    calls: dict[int, Call] = attrs.field(factory=dict)
    ids: dict[str | int | bytes, int] = attrs.field(factory=dict)
    open_ended: int = 0  # calls in flight without a deadline

    # messages
    parked: deque[Item] = attrs.field(factory=deque)
    parked_bytes: int = 0
    parked_for: Literal["", "budget", "room", "validator"] = ""
    parked_since_ns: int = 0
    hold: Hold | None = None  # what its unfinished message holds of MAX_INFLIGHT_BYTES, if that is large
    starved: bool = False  # and that waits for more
    owes_refusal: bool = False  # it has been given up, and its id wasn't known yet
    second_ns: int = 0  # when the second began in which frames are metered
    second_frames: int = 0

    armed_ns: int = 0  # when the wheel looks at this connection next; 0: never

    # output
    out: list[bytes | memoryview] = attrs.field(factory=list)
    out_bytes: int = 0
    blocked_since_ns: int = 0  # when the peer stopped reading; 0: it reads
    interest: int = 0  # the epoll mask that is registered
    eof: bool = False
    linger_until_ns: int = 0
    linger_left: int = LINGER_BYTES
    close_sent: bool = False

    # counters
    idle_since_ns: int = 0  # the last complete message, or the end of the last call
    last_received_ns: int = 0
    last_ping_ns: int = 0
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def free(self) -> None:
        """It takes no more messages: let go of what it holds of them, which may be megabytes."""
        self.codec = _SPENT
        self.request = None
        self.parked.clear()
        self.parked_for = ""
        self.waiting_for = ""

    def write(self, data: bytes) -> None:
        """Queue bytes; the hub sends them at the end of its turn."""
        self.out.append(data)
        self.out_bytes += len(data)

    def send_message(self, raw: bytes) -> None:
        """Queue one JSON-RPC message, framed for this transport. ``raw`` holds no newline."""
        self.messages_out += 1
        self.write(self.encode(raw))

    def add_call(self, call: Call) -> None:
        self.calls[call.number] = call
        self.ids[call.key] = call.number
        if call.probe and self.route is not None:
            self.route.probe(1)
        if not call.deadline_ns:
            self.open_ended += 1

    def end_call(self, number: int, now: int) -> Call | None:
        """Take a call out of the table. None: it has ended before (answered, cancelled or timed out)."""
        call = self.calls.pop(number, None)
        if call is not None:
            if call.probe and self.route is not None:
                self.route.probe(-1)
            del self.ids[call.key]
            if not call.deadline_ns:
                self.open_ended -= 1
            self.idle_since_ns = max(self.idle_since_ns, now)
        return call

    @property
    def wants_input(self) -> bool:
        """Whether to read more: not while messages are parked or find no room, a policy actor is asked, or the peer
        doesn't read."""
        if self.stage is Stage.CLOSING:
            return not self.eof
        return (
            not (self.eof or self.parked or self.waiting_for or self.blocked_since_ns or self.starved)
            and self.stage < Stage.CLOSED
        )


_SPENT: Final[Codec] = LineReader(max_line=1)
"""The codec of every connection that takes no more input: never fed."""


def line(raw: bytes) -> bytes:
    """Framing on TCP."""
    return raw + b"\n"
