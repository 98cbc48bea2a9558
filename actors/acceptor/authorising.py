"""What the client of a connection may do: asked for each of its messages, and for each list that is shown to it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import attrs

from actors.policy import jsonrpc, list_filter, pipeline
from actors.policy.authorization import ALLOWED, Rights
from ipc.messages import Envelope, Grant
from ipc.settings import Settings

if TYPE_CHECKING:
    from .connection import Call, Connection, Item
    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

_LONGEST_TEXT: Final = 128  # of a client's, in an audit record


@attrs.frozen(eq=False)
class Standing:
    """A connection's rights, and what they were drawn from: with another grant, server or policy they are over."""

    settings: Settings
    grant: Grant
    upstream: str
    rights: Rights


class Authorising:
    """The part of the hub that knows what its clients may do. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def allows(self, connection: Connection, item: Item, envelope: Envelope) -> bool:
        """Stamp the message, or answer it with 403 and leave a record."""
        rights = self._rights(connection)
        if not rights.unrestricted:
            refused_by = rights.refused_by(envelope)
            if refused_by != ALLOWED:
                self._refuse(connection, item, envelope, refused_by)
                return False
        item.stamps |= pipeline.AUTHORISATION
        return True

    def shown(self, connection: Connection, call: Call, raw: bytes) -> bytes:
        """The answer to a list method as this client may see it; an error where that can't be told."""
        allowed = self._rights(connection).shown(call.method)
        if allowed is None:
            return raw
        try:
            return list_filter.filtered(raw, call.method, allowed)
        except list_filter.Unreadable as error:
            log.warning("%s: an answer to %s is kept back: %s", connection.upstream, call.method, error)
            self.hub.count("unreadable_lists")
            self.hub.event(
                connection,
                "authz.denied",
                severity="warning",
                outcome="refused",
                method=call.method,
                reason="unreadable answer",
            )
            data: dict[str, object] = {"reason": "unreadable answer", "sent": True}
            return jsonrpc.error_reply(call.id, 502, "the server's answer can't be shown", data)

    def _rights(self, connection: Connection) -> Rights:
        grant = connection.grant
        assert grant is not None  # noqa: S101 - asked of open connections only
        settings = self.hub.settings
        standing = connection.standing
        if (
            standing is None
            or standing.grant is not grant
            or standing.upstream != connection.upstream
            or standing.settings is not settings
        ):
            rights = Rights(
                settings.authorization.rules,
                settings.authorization_default,
                grant.principal,
                grant.scopes,
                connection.upstream,
            )
            standing = connection.standing = Standing(settings, grant, connection.upstream, rights)
        return standing.rights

    def _refuse(self, connection: Connection, item: Item, envelope: Envelope, refused_by: str) -> None:
        self.hub.count("denied")
        # A tool's or a prompt's name tells what was tried; a URI can hold what must not be logged.
        self.hub.event(
            connection,
            "authz.denied",
            severity="warning",
            outcome="refused",
            method=envelope.method[:_LONGEST_TEXT],
            rule=refused_by,
            detail={"name": envelope.name[:_LONGEST_TEXT]} if envelope.name else None,
        )
        self.hub.dispatch.refuse(connection, item, 403, "not allowed", {"rule": refused_by})
