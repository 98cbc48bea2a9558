"""Everything that actors say to each other, as tagged msgspec Structs.

All times named ``*_ns`` are absolute CLOCK_MONOTONIC nanoseconds (``time.monotonic_ns()``), which all
processes of one machine share; all times named ``*_ms`` are durations in milliseconds, except
``expires_at_ms``, which is wall-clock milliseconds since the epoch.

A *session* is one client connection as an upstream sees it: an integer minted by the acceptor, unique in that
acceptor's incarnation. A *call* is one request in flight: an integer > 0 minted likewise; 0 means "no call".
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of everything that travels between actors."""


LARGE: Final = 64 * 1024
"""Bytes from which on a client's message is counted by itself, and told with its envelope. It is what an acceptor reads
of a connection at a time, so that no message which arrives in one read is."""

# --- the envelope of a client's JSON-RPC message ---------------------------------------------------------------

Kind = Literal["request", "notification", "response"]


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the validator found in one client message; offsets are byte positions in its ``raw``.

    ``id``, ``progress`` and ``target`` are the raw JSON bytes of the value as the client wrote it, ``b""`` when it
    is absent; ``*_at`` is where that value starts, -1 when it is absent.
    """

    kind: Kind
    method: str = ""  # empty for a response
    id: bytes = b""
    id_at: int = -1
    progress: bytes = b""  # params._meta.progressToken
    progress_at: int = -1
    target: bytes = b""  # notifications/cancelled: params.requestId
    target_at: int = -1
    era: str = ""  # params._meta["io.modelcontextprotocol/protocolVersion"]: the modern era (2026-07-28 on)
    version: str = ""  # initialize: params.protocolVersion
    version_at: int = -1  # where that JSON string value starts (its opening quote)
    name: str = ""  # tools/call and prompts/get: params.name; completion/complete: the prompt's
    uri: str = ""  # resources/*: params.uri; completion/complete: the resource's, or its template
    level: str = ""  # logging/setLevel: params.level; otherwise _meta["io.modelcontextprotocol/logLevel"]
    uris: tuple[str, ...] = ()  # subscriptions/listen: the resources; ("",) when it can't be told which


# --- lifecycle: supervisor/worker -> actor -----------------------------------------------------------------------


class Drain(Message, frozen=True):
    """Finish what is in flight, take nothing new, then return from the actor's function."""

    deadline_ns: int


class ListenersChanged(Message, frozen=True):
    """``Context.listeners`` has changed: listeners were handed to this worker or taken back."""


class ReloadCertificates(Message, frozen=True):
    """``Context.tls`` was read anew, and is good: use it for handshakes from now on."""


class SettingsChanged(Message, frozen=True):
    """``Context.settings`` has changed: go by the new ones from now on, or ask to be renewed."""


class ReopenLog(Message, frozen=True):
    """The audit log's file was moved (SIGUSR1, as logrotate's postrotate sends it): begin a new one now."""


class LinksChanged(Message, frozen=True):
    """``Context.links`` has changed: ``key`` is a new link. Its predecessor's process has gone; it is closed soon."""

    key: str


class Describe(Message, frozen=True):
    """Ask any actor for its statistics; answered with Description."""


class Description(Message, frozen=True):
    """``data`` is a JSON object: counters and gauges of one actor, for the admin process."""

    data: bytes


# --- acceptor <-> limiter: connections ---------------------------------------------------------------------------


class Admit(Message, frozen=True):
    """May this connection exist? Answered with Admitted or Refused. ``key`` is the client key of its address."""

    acceptor: str
    session: int
    listener: Literal["ws", "tcp"]
    key: str
    exempt: bool = False  # trusted or allow-listed: automatic blocks of its key don't hold for this address
    trusted: bool = False  # a proxy of TRUSTED_PROXIES: no block holds for it
    ripe_ns: int = 0  # until it has authenticated: from when on it may have to make room for another; 0: never


class Admitted(Message, frozen=True):
    pass


class Refused(Message, frozen=True):
    """``reason`` is one of limit, rate, block, auth, unavailable, timeout."""

    reason: str
    retry_after_ms: int = 0
    detail: str = ""


class Released(Message, frozen=True):
    """These connections have ended (control lane)."""

    acceptor: str
    sessions: list[int]


class Established(Message, frozen=True):
    """These connections have authenticated, and keep their places (control lane)."""

    acceptor: str
    sessions: list[int]


class Evict(Message, frozen=True):
    """From the limiter, control lane: these connections make room for others, unless they have authenticated."""

    sessions: list[int]


class Resync(Message, frozen=True):
    """An acceptor's live connections, told to each new incarnation of the limiter: (session, listener, key, ripe_ns
    as in Admit, or 0 for one that has authenticated)."""

    acceptor: str
    connections: list[tuple[int, Literal["ws", "tcp"], str, int]]


# --- acceptor <-> limiter: offences and blocks -------------------------------------------------------------------

OffenceKind = Literal["auth", "malformed", "rate", "content", "probe", "handshake"]


class Offences(Message, frozen=True):
    """What clients did wrong since the last report (control lane): (address key, principal, kind, count).

    The principal is empty for what was done without one; otherwise it is held against the principal alone.
    """

    acceptor: str
    rows: list[tuple[str, str, OffenceKind, int]]


class Blocked(Message, frozen=True):
    """Broadcast by the limiter: (key, end in wall-clock milliseconds, whether the block is automatic).

    An address key, or ``principal:`` and a name. ``first`` and ``last`` bracket a list of all blocks, in one message
    or several, which takes the place of what was known once the last part is there.
    """

    rows: list[tuple[str, int, bool]]
    first: bool = False
    last: bool = False


class Unblocked(Message, frozen=True):
    """Broadcast by the limiter: these blocks have ended or were lifted."""

    keys: list[str]


class BlockClient(Message, frozen=True):
    """An operator's block of an address or of ``principal:NAME``; ``lasts_ms`` 0 is BLOCK_DURATION. Answered with Done
    once it is on disk."""

    target: str
    lasts_ms: int = 0


class UnblockClient(Message, frozen=True):
    """An operator lifts a block. Answered with Done."""

    target: str


class ListBlocks(Message, frozen=True):
    """The blocks in force, by key, from the one behind ``after`` on. Answered with BlockListing."""

    after: str = ""


class BlockListing(Message, frozen=True):
    """(key, since, until, strikes, automatic, reason), times in wall-clock milliseconds. ``more``: ask on."""

    rows: list[tuple[str, int, int, int, bool, str]]
    total: int
    more: bool


# --- acceptor <-> limiter: leases --------------------------------------------------------------------------------


class LeaseRequest(Message, frozen=True):
    """Up to ``want`` units of message budget for ``keys`` (all are charged). Answered with Lease or Exhausted.

    Fewer than ``least``, what one message costs, are of no use.
    """

    acceptor: str
    keys: tuple[str, ...]
    want: int
    least: int = 1


class Lease(Message, frozen=True):
    """``units`` messages may pass for ``keys`` until ``until_ns``. A LeaseReport accounts for every one of them.

    ``remaining`` units of the tightest window are not given out, and there are more in ``reset_ms``; ``burst`` says
    that it is the burst window.
    """

    lease: int
    keys: tuple[str, ...]
    units: int
    until_ns: int
    remaining: int = 0
    reset_ms: int = 0
    burst: bool = False


class Exhausted(Message, frozen=True):
    """No budget: nothing may pass for ``retry_after_ms``."""

    keys: tuple[str, ...]
    retry_after_ms: int


class LeaseReport(Message, frozen=True):
    """When units of a lease were spent, and how many come back unused. Sent on the control lane, in batches.

    ``closed`` says that the acceptor will spend nothing more of this lease.
    """

    acceptor: str
    lease: int
    used_at_ns: list[int]
    returned: int
    closed: bool


class Recall(Message, frozen=True):
    """The limiter to an acceptor: account for these leases of ``keys`` now, and give back what is left of them.

    Somebody else needs it: answered with a closing LeaseReport for each that is held.
    """

    keys: tuple[str, ...]
    leases: list[int]


# --- acceptor <-> auth -------------------------------------------------------------------------------------------


class Authenticate(Message, frozen=True):
    """Who is this? Answered with Grant or Refused."""

    listener: Literal["ws", "tcp"]
    scheme: Literal["token", "ticket", "certificate", "anonymous"]
    credential: str  # of a certificate: what the acceptor learnt of a verified one (actors.policy.certificate)
    peer_ip: str
    peer_port: int = 0
    connection: str = ""  # its public name, for the audit log
    again: bool = False  # it bears a grant already
    principal: str = ""  # whom the connection has authenticated as before: a failure is then on that account


class AuthenticateAdmin(Message, frozen=True):
    """Who wants to use the admin API with this token? Answered with Grant (of its scopes one is ``admin``) or Refused
    (auth, forbidden, unavailable)."""

    token: str
    peer_ip: str


class Grant(Message, frozen=True):
    """An answer that the acceptor keeps for the life of the connection.

    ``principal`` is empty for a static token's holder without a name of its own; ``session`` is the public session
    id; ``expires_at_ms`` is 0 when the credential does not expire; ``limit_keys`` are the client keys charged for
    each message.
    """

    principal: str
    session: str
    scopes: tuple[str, ...]
    expires_at_ms: int
    epoch: int
    limit_keys: tuple[str, ...] = ()
    family: str = ""  # the issued session that it belongs to (equal to ``session`` then); empty for one of its own
    tokens: tuple[str, ...] = ()  # the names under which the credential itself can be revoked
    issued_ms: int = 0  # wall clock: when the credential was issued; 0 when it says nothing of that
    standing: str = ""  # what of the settings it rests on alone: a digest; without it there, the grant is over


class IssueTicket(Message, frozen=True):
    """A one-time ticket for the holder of ``credential``. Answered with Ticket or Refused."""

    credential: str
    peer_ip: str
    scheme: Literal["token", "certificate"] = "token"


class Ticket(Message, frozen=True):
    ticket: str
    expires_in: int  # seconds


class Revoked(Message, frozen=True):
    """Broadcast by auth, control lane: grants of these public session ids, or below this epoch, are over.

    So are those that bear one of ``tokens``, and those of a principal whose credential was issued up to the wall time
    (milliseconds) beside its name.
    """

    sessions: tuple[str, ...] = ()
    epoch: int = 0
    tokens: tuple[str, ...] = ()
    principals: tuple[tuple[str, int], ...] = ()
    reason: str = "revoked"


class Revalidate(Message, frozen=True):
    """An acceptor's live grants, asked of each new incarnation of auth, and for a grant that a revocation may have
    overtaken: (connection's session, family, tokens, principal, issued_ms, standing). Answered with Lapsed."""

    acceptor: str
    grants: list[tuple[int, str, tuple[str, ...], str, int, str]]


class Lapsed(Message, frozen=True):
    """The connections whose grants are over."""

    sessions: list[int]


class SessionsUsed(Message, frozen=True):
    """Issued sessions that clients were active in since the last report (control lane)."""

    families: list[str]


class IssueSession(Message, frozen=True):
    """A session for the holder of a static token or a client certificate. Answered with TokenSet or Refused.

    ``nonce`` is made by the asker, 24 hex digits; who asks again with the same one gets the same session.
    """

    scheme: Literal["token", "certificate", "anonymous"]
    credential: str
    peer_ip: str
    nonce: str


class RefreshSession(Message, frozen=True):
    """Answered with TokenSet or Refused."""

    refresh_token: str
    peer_ip: str


class TokenSet(Message, frozen=True):
    """``grant`` is what the access token is worth."""

    access_token: str
    refresh_token: str
    session: str  # usable as a bearer token
    expires_in: int  # seconds
    grant: Grant


class RevokeToken(Message, frozen=True):
    """What the holder of a token may revoke: it alone. Answered with Done or Refused, whatever it was."""

    token: str
    peer_ip: str


class Logout(Message, frozen=True):
    """A client ends its own session, or without one its own token. Answered with Done."""

    family: str
    tokens: tuple[str, ...]
    expires_at_ms: int


class ShowSession(Message, frozen=True):
    """What a credential is worth. Answered with Description (a JSON object) or Refused."""

    scheme: Literal["token", "certificate", "anonymous"]
    credential: str
    peer_ip: str


class RevokeTokens(Message, frozen=True):
    """An operator's revocation: a token, one by its jti, or all that were issued so far to a principal (sessions
    included). Answered with Done."""

    token: str = ""
    jti: str = ""
    principal: str = ""


class ListSessions(Message, frozen=True):
    """Answered with Description: {"sessions": [{id, principal, scopes, created, used, expires}]}."""


class EndSession(Message, frozen=True):
    """An operator ends an issued session by its public id. Answered with Done."""

    session: str


# --- acceptor/bridge <-> breaker ---------------------------------------------------------------------------------

CircuitState = Literal["closed", "open", "half_open"]


class BreakerSubscribe(Message, frozen=True):
    """Answered with BreakerSnapshot; later changes come as BreakerSnapshot on the control lane of ``subscriber``."""

    subscriber: str


class Circuit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    upstream: str
    state: CircuitState
    retry_at_ns: int = 0  # open: when the next probe may pass
    permits: int = 0  # half-open: how many calls this subscriber may have in flight


class BreakerSnapshot(Message, frozen=True):
    circuits: list[Circuit]


class Outcomes(Message, frozen=True):
    """What became of calls, counted, since the last report: one row an upstream (control lane).

    ``deaths`` counts deaths of the upstream itself (one, however many calls were in flight); ``silent`` counts calls
    that timed out while nothing at all came from the upstream and whose probe failed too.
    """

    source: str
    rows: list[tuple[str, int, int, int, int]]  # upstream, successes, deaths, silent, slow


class ProbesInFlight(Message, frozen=True):
    """What a subscriber makes of its permits of half-open circuits: (upstream, probes in flight, whether a call was
    refused for want of a permit since the last report). Control lane, at each change."""

    subscriber: str
    rows: list[tuple[str, int, bool]]


class ResetBreaker(Message, frozen=True):
    upstream: str


class ListAnswer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The result of a good answer to a list-type method, as the upstream wrote it.

    ``learnt_ns`` is when the upstream gave it. Without ``result`` it is the one of that digest, given again; without
    ``digest`` too there is none any more.
    """

    upstream: str
    method: str
    cursor: str
    era: str
    learnt_ns: int
    digest: bytes = b""
    result: bytes = b""


class ListAnswers(Message, frozen=True):
    """Told by acceptors to the breaker, and by it to its other subscribers (control lane)."""

    source: str
    rows: list[ListAnswer]


# --- anyone -> audit ---------------------------------------------------------------------------------------------


class AuditEvent(msgspec.Struct, frozen=True, array_like=True, gc=False, omit_defaults=True):
    """One event; the names are the contract's. Never holds a token or an argument.

    ``time_ns`` is wall-clock nanoseconds since the epoch.
    """

    event: str
    severity: Literal["info", "warning", "error", "critical"]
    outcome: Literal["success", "failure", "refused", "unknown"]
    time_ns: int
    connection: str = ""
    transport: str = ""
    peer_ip: str = ""
    peer_port: int = 0
    principal: str = ""
    method: str = ""
    rule: str = ""
    upstream: str = ""
    reason: str = ""
    detail: dict[str, str | int | float | bool] = {}


class AuditBatch(Message, frozen=True):
    """Events of one source, the first of which is its ``first``-th since its start. Answered with AuditAck."""

    source: str
    first: int
    events: list[AuditEvent]


class AuditAck(Message, frozen=True):
    """Everything of that source up to and without ``upto`` is in the log file."""

    upto: int


# --- acceptor <-> validator (large messages; the bytes travel as a sealed memfd beside the message) ---------------


class Validate(Message, frozen=True):
    """One descriptor comes with it: a sealed memfd that holds ``size`` bytes."""

    ticket: int
    size: int
    max_depth: int
    schema: bytes = b""  # of the arguments of a tools/call, as JSON; empty: they are not validated


class Checking(Message, frozen=True):
    """The validator begins with this one."""

    ticket: int


class Valid(Message, frozen=True):
    """What the content policy found is beside it: (rule, pointer, mode), and what is to be replaced before the message
    goes on: (start, end, bytes), ascending. ``envelope`` is that of the message with them."""

    ticket: int
    envelope: Envelope
    findings: list[tuple[str, str, str]] = []
    edits: list[tuple[int, int, bytes]] = []


class Invalid(Message, frozen=True):
    """``id`` is the raw JSON id to answer with, ``b"null"`` when it isn't known; a ``notification`` gets no answer."""

    ticket: int
    code: int
    message: str
    id: bytes
    notification: bool
    data: bytes = b""  # a JSON object, or nothing
    rule: str = ""  # what was broken, for audit and metrics


# --- acceptor <-> bridge (an upstream that lives in another worker) ----------------------------------------------


class AttachSession(Message, frozen=True):
    """A client connection begins to use an upstream.

    ``version`` is not empty when this session has already been initialised at that legacy protocol version (its
    acceptor or the bridge was restarted, or the gateway answered ``initialize`` before authentication): the client
    will not say ``initialize`` again.
    """

    acceptor: str
    session: int
    upstream: str
    principal: str = ""
    version: str = ""


class DetachSession(Message, frozen=True):
    acceptor: str
    session: int


class Forward(Message, frozen=True):
    """One checked message of a client. ``raw`` is the client's own bytes."""

    acceptor: str
    session: int
    call: int  # 0 for notifications and responses; for notifications/cancelled, the call that it names
    envelope: Envelope
    raw: bytes


class Taken(Message, frozen=True):
    """The bridge holds, and counts, this large Forward of the session from now on. ``size`` is that of its bytes."""

    session: int
    size: int


class Abandon(Message, frozen=True):
    """The acceptor gave this call up (timeout, client gone). Cancel it upstream and swallow its answer."""

    acceptor: str
    session: int
    call: int
    reason: Literal["timeout", "closed"]


class Deliver(Message, frozen=True):
    """Bytes for a client, ids already restored. ``final`` ends ``call``; progress comes with ``final`` false."""

    session: int
    call: int
    final: bool
    raw: bytes


class CallFailed(Message, frozen=True):
    """No answer will come. ``code`` is the contract's; ``sent`` says whether the upstream may have seen the call."""

    session: int
    call: int
    code: int
    reason: str
    sent: bool
    retry_after_ms: int = 0


class SessionLost(Message, frozen=True):
    """The session's own upstream process is gone, and its state with it: the client has to connect anew."""

    session: int
    reason: str


# --- operators ---------------------------------------------------------------------------------------------------


class Disconnect(Message, frozen=True):
    """Close this connection (by its public id). Answered with Done."""

    connection: str


class Done(Message, frozen=True):
    ok: bool
    detail: str = ""


class GatewayStatus(Message, frozen=True):
    """Broadcast by admin to acceptors: what /health says on the client port. ``body`` is the JSON document."""

    healthy: Literal["healthy", "degraded", "unhealthy"]
    ready: bool
    body: bytes


class TreeSnapshot(Message, frozen=True):
    """The process tree, told to admin by the supervisor at each change and every second (control lane).

    ``data`` is a JSON object: uptime_s, version, draining, degraded (a list of reasons), restarts, workers: [{name,
    role, pid, state, incarnation, restarts, rss_kb (when known), actors: [{name, state, incarnation, restarts,
    mailbox: {queued, received, refused}}]}].
    """

    data: bytes


class AdminRequest(Message, frozen=True):
    """An operator's wish that only the supervisor can grant. Sent to ``supervisor``; answered with Done."""

    verb: Literal["drain", "reload"]
    argument: str = ""


AnyMessage = (
    Drain | ListenersChanged | ReloadCertificates | SettingsChanged | ReopenLog | LinksChanged | Describe | Description
    | Admit | Admitted | Refused | Released | Established | Evict | Resync
    | Offences | Blocked | Unblocked | BlockClient | UnblockClient | ListBlocks | BlockListing
    | LeaseRequest | Lease | Exhausted | LeaseReport | Recall
    | Authenticate | AuthenticateAdmin | Grant | IssueTicket | Ticket | Revoked
    | Revalidate | Lapsed | SessionsUsed
    | IssueSession | RefreshSession | TokenSet | RevokeToken | Logout | ShowSession
    | RevokeTokens | ListSessions | EndSession
    | BreakerSubscribe | BreakerSnapshot | Outcomes | ProbesInFlight | ResetBreaker | ListAnswers
    | AuditBatch | AuditAck
    | Validate | Checking | Valid | Invalid
    | AttachSession | DetachSession | Forward | Taken | Abandon | Deliver | CallFailed | SessionLost
    | Disconnect | Done | GatewayStatus
    | TreeSnapshot | AdminRequest
)
