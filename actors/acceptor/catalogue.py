"""The acceptor's copy of the catalogue: the last good answers to list-type methods, shared by all acceptors.

What an upstream answers here is kept, told to the breaker, and by it to the other acceptors; a restarted acceptor, or
breaker, is told everything by the others. While a circuit lets a call not pass, its client is answered from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from actors.policy import catalogue as policy
from actors.policy.catalogue import Kept, Key, Unkept
from ipc.authorization import LIST_METHODS
from ipc.errors import ActorDown, MailboxFull
from ipc.messages import Envelope, ListAnswer, ListAnswers

from .connection import Call, Connection

if TYPE_CHECKING:
    from .hub import Hub

SAME_EVERY_NS: Final = 10_000_000_000  # how often the others are told that an answer was given again
CHANGED_EVERY_NS: Final = 2_000_000_000  # and that it has changed: some servers put the time into each
MOST_TOLD: Final = 4 * policy.MAX_ENTRIES  # remembered of what was told, before what is kept no more is forgotten
BYTES_A_REPORT: Final = 2 << 20


class Catalogue:
    """The part of the hub that knows what its upstreams last said of themselves. Runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._breaker = hub.context.address("breaker")
        self._kept = policy.Catalogue(len(hub.settings.upstreams))
        self._tools: dict[str, Mapping[str, bytes]] = {}  # by upstream, read when they are asked for
        self._told: dict[Key, tuple[int, bytes]] = {}  # when the breaker was told last, and which digest
        self._unsaid: dict[Key, None] = {}

    # --- for requests ----------------------------------------------------------------------------------------

    def entry(self, connection: Connection, envelope: Envelope, raw: bytes) -> Key | None:
        """Where the answer to this request is kept; None if it isn't."""
        if connection.route is None or connection.route.per_session:
            return None
        return policy.key_of(connection.upstream, envelope, raw, connection.version)

    def answer(self, connection: Connection, envelope: Envelope, entry: Key, size: int, now: int) -> bool:
        """Answer a request whose upstream can't be asked now. False: no answer is known."""
        kept = self._kept.get(entry)
        if kept is None or connection.route is None:
            return False
        hub = self._hub
        raw = kept.answer(envelope.id, now)
        call = Call(
            number=0, id=envelope.id, key=b"", method=envelope.method, name="", started_ns=now, deadline_ns=0,
            limit_ns=0, probe=False, size=size,
        )  # fmt: skip
        if envelope.method == "initialize":
            hub.answers.initialized(connection, raw)
            # The upstream has seen nothing of this handshake: it is told at which version the session stands.
            connection.route.attach(connection.session, connection.upstream, connection.grant, connection.version)
            connection.forwarded = True
        elif envelope.method in LIST_METHODS:
            raw = hub.authorising.shown(connection, call, raw)
        hub.count("stale_answers")
        hub.answers.put(connection, call, raw)
        hub.answers.completed(connection, call, "stale", len(raw))
        return True

    def tools(self, upstream: str) -> Mapping[str, bytes]:
        """The raw ``inputSchema`` by the tool's name. May be incomplete, and is that of the last list that was asked
        for, even if the server has said since that it has changed: anything newer isn't known."""
        known = self._tools.get(upstream)
        if known is None:
            known = self._tools[upstream] = self._kept.tools(upstream)
        return known

    # --- what becomes known ----------------------------------------------------------------------------------

    def keep(self, entry: Key, raw: bytes) -> bool:
        """An upstream has answered the request of that entry. Whether the answer is kept."""
        known = self._kept.get(entry)
        # Two answers in one turn: the later is the later one.
        now = self._hub.now if known is None else max(self._hub.now, known.learnt_ns + 1)
        kept = policy.read(entry[1], raw, now)
        if isinstance(kept, Kept):
            changed = known is None or known.digest != kept.digest
            if not self._kept.keep(entry, kept):
                return False
        else:
            changed = kept is Unkept.PRIVATE and self._kept.forget(entry)
            if not changed:
                return False
        if changed:
            self._tools.pop(entry[0], None)
        self._unsaid[entry] = None
        return isinstance(kept, Kept)

    def learn(self, message: ListAnswers) -> None:
        """What the others keep."""
        for row in message.rows:
            known = self._kept.get((row.upstream, row.method, row.cursor, row.era))
            if self._kept.learn(row) and (known is None or known.digest != row.digest):
                self._tools.pop(row.upstream, None)

    # --- telling the others ----------------------------------------------------------------------------------

    def tell_all(self) -> None:
        """There is a new breaker: it knows nothing."""
        self._told.clear()
        self._unsaid = dict.fromkeys(self._kept.keys())

    def tick(self, now: int) -> None:
        if not self._unsaid:
            return
        rows: list[ListAnswer] = []
        size = 0
        for entry in self._unsaid:
            kept = self._kept.get(entry)
            told_ns, digest = self._told.get(entry, (0, b""))
            same = kept is not None and kept.digest == digest
            if told_ns and now < told_ns + (SAME_EVERY_NS if same else CHANGED_EVERY_NS):
                continue
            row = self._kept.row(entry, whole=not same, now=now)
            size += len(row.result)
            if rows and size > BYTES_A_REPORT:
                break
            rows.append(row)
        if not rows:
            return
        try:
            self._breaker.control(ListAnswers(self._hub.name, rows))
        except (ActorDown, MailboxFull):
            return  # kept, until the breaker is up again
        for row in rows:
            entry = (row.upstream, row.method, row.cursor, row.era)
            self._told[entry] = (now, row.digest)
            del self._unsaid[entry]
        if len(self._told) > MOST_TOLD:
            self._told = {entry: told for entry, told in self._told.items() if self._kept.get(entry) is not None}

    def statistics(self) -> dict[str, dict[str, int]]:
        return self._kept.statistics()
