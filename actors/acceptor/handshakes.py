"""The part of the hub that serves TLS connections until their handshake is done.

    accepted → admitted by the limiter → records … → (thread) step → records … → (thread) step → entry

Before admission nothing is read: who may not come in is told so by an alert, not by a handshake. While a connection
handshakes, its descriptor is served here instead of by the hub, so that the hub's own path knows nothing of it. The
signatures are computed in a few threads, one step of one connection at a time, and what comes of a step is posted to
the hub; a client that is slow holds its place and its deadline, but no thread.
"""

from __future__ import annotations

import functools
import logging
import select
import ssl
import time
from typing import TYPE_CHECKING, Final, Literal

import trio

from actors.policy import jsonrpc
from ipc import tls_context
from ipc.messages import AuditEvent
from ipc.tls_context import TlsUnusable

from . import http, http_answers
from .connection import Connection, Stage
from .tls import ALERT_ACCESS_DENIED, ALERT_INTERNAL, Step, Tls, alert

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

THREADS: Final = 2  # of all connections of this worker together; more would only take the processor from its own loop
RECEIVE_BYTES: Final = 16384
IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
PLAIN: Final = "this port speaks TLS: use https:// or wss://"

Contexts = dict[Literal["ws", "tcp"], ssl.SSLContext]


class Handshakes:
    """Everything here runs in the hub's turn, except ``Tls.step``."""

    def __init__(self, hub: Hub) -> None:
        """Raises TlsUnusable when TLS is on and can't be served: then nothing is."""
        self._hub = hub
        # Kept for a hub that is restarted in this process, for its memory of sessions.
        contexts: Contexts | None = hub.context.keep.get("tls")
        if contexts is None and hub.settings.ssl_enabled:
            contexts = hub.context.keep["tls"] = self._made()
        self._contexts = contexts
        self._threads = trio.CapacityLimiter(THREADS)

    def layer(self) -> Tls | None:
        """For a new connection."""
        return Tls() if self._contexts is not None else None

    def reload(self) -> None:
        """Take what the context holds now, for handshakes from now on. If it can't be used all stays as it is."""
        hub = self._hub
        if self._contexts is None:
            return
        try:
            self._contexts = hub.context.keep["tls"] = self._made()
        except TlsUnusable as error:
            log.error("the certificates were not reloaded, the old ones stay: %s", error)  # noqa: TRY400 - no fault of ours
            self._record("config.refused", str(error))
        else:
            log.info("new TLS handshakes use the certificates as they are now")

    def _made(self) -> Contexts:
        material = self._hub.context.tls
        if material is None:
            raise TlsUnusable("ssl_cert_path", "was not handed to this worker")
        return tls_context.contexts(self._hub.settings, material)

    def _record(self, event: str, reason: str) -> None:
        hub = self._hub
        hub.audit.record(
            AuditEvent(
                event=event,
                severity="error",
                outcome="failure",
                time_ns=time.time_ns(),
                reason=reason,
                detail={"actor": hub.name},
            )
        )

    # --- a connection ------------------------------------------------------------------------------------------

    def begin(self, connection: Connection) -> None:
        """It is admitted (or its hub was restarted): go on with its handshake."""
        connection.waiting_for = ""
        tls = connection.tls
        assert tls is not None  # noqa: S101 - what this part is called for
        tls.busy = False
        if tls.steps:  # of a hub that crashed: what its last step has left is found out by another one
            self._hub.post(functools.partial(self._hub.step, connection, self._start_step, tls))
        else:
            self._interest(connection, IN)

    def on_socket(self, connection: Connection, events: int, now: int) -> None:
        """The readiness of its descriptor."""
        self._hub.step(connection, self._ready, events, now)

    def _ready(self, connection: Connection, events: int, now: int) -> None:
        tls = connection.tls
        assert tls is not None  # noqa: S101 - what this part is called for
        if connection.waiting_for or tls.busy:
            if events & (select.EPOLLHUP | select.EPOLLERR):  # can't be masked
                self._hub.close_now(connection, "reset")
            else:
                self._interest(connection, 0)
            return
        if events & OUT and not self._push(connection, tls):
            return
        if events & ~OUT:
            self._receive(connection, tls, now)

    def _receive(self, connection: Connection, tls: Tls, now: int) -> None:
        try:
            data = connection.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone(connection, tls)
            return
        connection.bytes_in += len(data)
        connection.last_received_ns = now
        complete = tls.offer(data)
        if not tls.steps and not tls.speaks:
            self._not_tls(connection, tls)
        elif tls.unreasonable:
            tls.say(alert(ALERT_INTERNAL))
            self._refuse(connection, "too much of a handshake")
        elif complete:
            tls.feed()
            self._start_step(connection, tls)

    def _start_step(self, connection: Connection, tls: Tls) -> None:
        contexts = self._contexts
        assert contexts is not None  # noqa: S101 - there is no TLS connection without
        tls.busy = True
        self._interest(connection, 0)
        self._hub.start_task(functools.partial(self._step, connection, tls, contexts[connection.listener]))

    async def _step(self, connection: Connection, tls: Tls, context: ssl.SSLContext) -> None:
        if connection.stage is Stage.CLOSED:
            return
        outcome = await trio.to_thread.run_sync(tls.step, context, limiter=self._threads)
        self._hub.post(functools.partial(self._hub.step, connection, self._stepped, tls, outcome))

    def _stepped(self, connection: Connection, tls: Tls, outcome: Step) -> None:
        tls.busy = False
        if connection.stage is Stage.CLOSED:
            return
        if outcome is Step.FAILED:
            self._refuse(connection, tls.error)
            return
        tls.done = outcome is Step.DONE
        if self._push(connection, tls):
            self._interest(connection, IN)

    def _push(self, connection: Connection, tls: Tls) -> bool:
        """Send our flight. True: the handshake goes on, with the client's next one."""
        try:
            sent = tls.push(connection.sock)
        except OSError:
            self._gone(connection, tls)
            return False
        if not sent:
            self._interest(connection, IN * (not tls.done) | OUT)
            return False
        if tls.done:
            self._established(connection, tls)
            return False
        return True

    def _established(self, connection: Connection, tls: Tls) -> None:
        hub = self._hub
        tls.established()
        connection.certificate = tls.credential
        hub.count("tls_handshakes")
        hub.ready[connection.fd] = functools.partial(hub.on_socket, connection)
        self._interest(connection, IN)
        hub.entry.secured(connection)
        if connection.stage < Stage.CLOSING:
            # A client may send its first message right behind its part of the handshake.
            hub.receive(connection, hub.now)

    # --- ends --------------------------------------------------------------------------------------------------

    def refused(self, connection: Connection, reason: str) -> None:
        """It may not come in: say so in the only way there is before the handshake, and close."""
        tls = connection.tls
        if tls is not None and not tls.busy and not tls.steps:
            tls.say(alert(ALERT_ACCESS_DENIED if reason == "block" else ALERT_INTERNAL))
        self._close(connection, reason)

    def timed_out(self, connection: Connection) -> None:
        tls = connection.tls
        if tls is not None and tls.seen:
            self._hub.offence(connection, "handshake")
        self._event(connection, "timeout", "the handshake was not finished" if tls and tls.seen else "no ClientHello")
        self._hub.close_now(connection, "timeout")

    def settled(self, connection: Connection) -> bool:
        """After each turn in which something was written or read. False: the hub has nothing to do for it now."""
        hub = self._hub
        tls = connection.tls
        assert tls is not None  # noqa: S101 - what this part is called for
        if tls.handshaking:
            if connection.stage is Stage.CLOSING:  # ended by an operator, a drain or a fault
                self._close(connection, "closed")
            return False
        if tls.ended and connection.stage < Stage.CLOSING and connection.wants_input:
            hub.post(functools.partial(hub.step, connection, hub.receive, hub.now))
        if connection.stage is not Stage.CLOSING or connection.out or connection.linger_until_ns:
            return True
        try:
            if tls.goodbye(connection.sock):
                return True
        except OSError:
            hub.close_now(connection, "reset")
            return False
        if not connection.blocked_since_ns:
            connection.blocked_since_ns = hub.now
            hub.deadlines.arm(connection)
        self._interest(connection, OUT)
        return False

    def _refuse(self, connection: Connection, error: str) -> None:
        self._hub.count("tls_failed")
        if "ALERT" not in error.upper():  # a client that does not trust our certificate does nothing wrong
            self._hub.offence(connection, "handshake")
        self._event(connection, "tls", error)
        self._close(connection, "tls")

    def _gone(self, connection: Connection, tls: Tls) -> None:
        """The client hung up. One that has said nothing at all is a scanner or a health check."""
        if tls.seen:
            self._hub.count("tls_failed")
            if not tls.steps:  # it can't have seen anything of ours that it might not like
                self._hub.offence(connection, "handshake")
            self._event(connection, "tls", "the client went away")
        self._hub.close_now(connection, "closed")

    def _close(self, connection: Connection, reason: str) -> None:
        """Send what is to be said (an alert), and close behind it, but not before it can have been read."""
        hub = self._hub
        tls = connection.tls
        if tls is None or tls.busy:  # in a thread: hands off
            hub.close_now(connection, reason)
            return
        tls.abandon()
        hub.ready[connection.fd] = functools.partial(hub.on_socket, connection)
        hub.finish(connection, reason)
        hub.dirty[connection.fd] = connection

    def _event(self, connection: Connection, reason: str, error: str) -> None:
        self._hub.refused += 1
        self._hub.event(
            connection,
            "connection.refused",
            severity="warning",
            outcome="refused",
            reason=reason,
            rule=error,  # so that like refusals which are merged are alike in this too
        )

    def _not_tls(self, connection: Connection, tls: Tls) -> None:
        """Its first byte is no ClientHello's. Whoever writes text is answered in text, in the clear."""
        hub = self._hub
        first = tls.first[:1]
        if not first.isascii() or not (first.isspace() or first.decode().isprintable()):
            tls.say(alert(ALERT_INTERNAL))
            self._refuse(connection, "not TLS")
            return
        hub.count("tls_failed")
        self._event(connection, "tls", "not TLS")
        connection.tls = None
        hub.ready[connection.fd] = functools.partial(hub.on_socket, connection)
        if connection.listener == "ws":
            connection.write(http.problem(400, PLAIN, headers=http_answers.unread_fields(hub)))
        else:
            connection.send_message(jsonrpc.error_reply(b"null", -32600, "this port speaks TLS", {"reason": "tls"}))
        hub.finish(connection, "tls")

    def _interest(self, connection: Connection, mask: int) -> None:
        if connection.interest != mask:
            connection.interest = mask
            self._hub.epoll.modify(connection.fd, mask)
