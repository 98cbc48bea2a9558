"""The content stage of the acceptor: what clients say is looked at before it is paid for, and what servers answer.

An ordinary message is looked at here, between two turns. What would keep others waiting goes to the validator's
process, which looks at large messages anyhow.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal

from actors.policy import jsonrpc, pipeline
from actors.policy.catalogue import input_schemas
from actors.policy.content import secrets
from actors.policy.content.checks import CALL, Checks
from actors.policy.content.effort import LIGHT, Effort, TooMuch
from actors.policy.content.schema import MOST_BYTES, TOO_LONG
from actors.policy.content.tool_schemas import LONGEST_LIST, OF_A_SESSION, OF_AN_UPSTREAM, ToolSchemas
from actors.policy.jsonrpc import Refusal
from ipc.messages import Envelope

if TYPE_CHECKING:
    from .connection import Call, Connection, Item
    from .hub import Hub

log = logging.getLogger("portcullis.acceptor")

_LONGEST_TEXT: Final = 128  # of a client's, in an audit record
_LONGEST_POINTER: Final = 256
# Of one turn: past it only what costs less than handing it over would is still looked at here, for however many
# connections send at once, all the others wait for their sum.
_A_TURN: Final = 4 * LIGHT
_AT_LEAST: Final = 100_000


class Screening:
    """The part of the hub that looks at content. Everything here runs in the hub's turn.

    ``results`` is what becomes of answers that hold a secret; None: they aren't looked at.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._listed: dict[str, ToolSchemas] = {}  # by upstream: of lists that the catalogue has no room for
        self._said: set[tuple[str, str]] = set()
        self._turn_ns = 0
        self._left = 0  # of the effort of that turn
        self.configure()

    def configure(self) -> None:
        """Go by the hub's settings."""
        settings = self.hub.settings
        self._checks = Checks(settings)
        outbound = settings.content_policy_outbound
        self.results: Literal["flag", "block"] | None = None if outbound == "off" else outbound

    def looked_at(self, connection: Connection, item: Item, envelope: Envelope, now: int) -> bool:
        """Stamp the message, or put its refusal into it. False: the validator has to look."""
        if not self._checks.needed:
            item.stamps |= pipeline.CONTENT
            return True
        if connection.parked_for == "validator":
            return False
        schema = self.schema(connection, envelope)
        if now != self._turn_ns:
            self._turn_ns, self._left = now, _A_TURN
        allowed = max(_AT_LEAST, min(LIGHT, self._left))
        effort = Effort(allowed)
        try:
            findings, edits = self._checks.light(item.raw, envelope, schema, effort)
            if edits:
                item.raw = jsonrpc.splice(item.raw, edits)
                item.envelope = jsonrpc.parse_client(item.raw, max_depth=self.hub.settings.max_json_depth)
            item.findings = findings
            item.stamps |= pipeline.CONTENT
        except TooMuch:
            connection.parked_for = "validator"
            self.hub.large.validate(connection, item, now, schema)
            return False
        except Refusal as refusal:
            item.refusal = refusal
        finally:
            self._left -= allowed - effort.left
        if self._checks.unusable:
            for what in self._checks.unusable:
                log.warning("%s: %s", connection.upstream, what)
            self._checks.unusable.clear()
        return True

    def validated(self, item: Item) -> None:
        """The validator has looked, and lets it pass."""
        item.stamps |= pipeline.CONTENT

    def schema(self, connection: Connection, envelope: Envelope) -> bytes:
        """What the arguments of this message have to fit; empty where they are not validated."""
        if not self._checks.validates or envelope.method != CALL or envelope.kind != "request":
            return b""
        name, upstream = envelope.name, connection.upstream
        schema = connection.schemas.get(name) if connection.schemas is not None else b""
        if not schema and upstream in self._listed:
            schema = self._listed[upstream].get(name)
        if not schema:
            schema = self.hub.catalogue.tools(upstream).get(name, b"")
        if not schema:
            self._say_once(upstream, "a tool is called whose schema isn't known; its arguments are not validated")
        return schema if len(schema) <= MOST_BYTES else TOO_LONG

    def listed(self, connection: Connection, raw: bytes, *, kept: bool) -> None:
        """A server has answered ``tools/list``.

        Args:
            kept: by the catalogue, whose schemas are every session's.
        """
        if not self._checks.validates:
            return
        upstream = connection.upstream
        if len(raw) > LONGEST_LIST:
            self._say_once(upstream, f"its list of tools is longer than {LONGEST_LIST} bytes, and isn't read")
            return
        schemas, private = input_schemas(raw)
        if kept:  # and newer than what is here
            for name in schemas:
                for known in (connection.schemas, self._listed.get(upstream)):
                    if known is not None:
                        known.forget(name)
            return
        if private or (connection.route is not None and connection.route.per_session):
            if connection.schemas is None:
                connection.schemas = ToolSchemas(OF_A_SESSION)
            known = connection.schemas
        else:
            known = self._listed.setdefault(upstream, ToolSchemas(OF_AN_UPSTREAM))
        if not known.learn(schemas):
            self._say_once(upstream, "its tools' schemas are too many to be kept; not all of them are validated")

    def _say_once(self, upstream: str, what: str) -> None:
        if (upstream, what) not in self._said:
            self._said.add((upstream, what))
            log.warning("%s: %s", upstream, what)

    def condemn(self, connection: Connection, schema: bytes) -> None:
        """The validator died of a message with that schema, twice: from now on it counts as one that can't be used."""
        log.error("%s: an inputSchema takes too long to check against; it is not used again", connection.upstream)
        self._checks.condemn(schema)

    def record(self, connection: Connection, item: Item, envelope: Envelope) -> None:
        """Leave a record of what was found in a message that goes on, and count it. Never what it was."""
        findings, item.findings = item.findings, ()
        for kind, event in (("flag", "content.flagged"), ("strip", "content.stripped")):
            of_kind = [finding for finding in findings if finding.mode == kind]
            if not of_kind:
                continue
            first = of_kind[0]
            self.hub.count(event.replace(".", "_"))
            for rule in {finding.rule for finding in of_kind}:
                self.hub.count(f"{event.replace('.', '_')}_{rule}")
            self.hub.event(
                connection,
                event,
                severity="warning",
                method=envelope.method[:_LONGEST_TEXT],
                rule=first.rule,
                detail={
                    "pointer": first.pointer[:_LONGEST_POINTER],
                    "findings": len(of_kind),
                    "rules": ",".join(sorted({finding.rule for finding in of_kind})),
                    **({"tool": envelope.name[:_LONGEST_TEXT]} if envelope.name else {}),
                },
            )

    def shown(self, connection: Connection, call: Call | None, raw: bytes) -> bytes | None:
        """What the client gets of a server's message: itself, or in its place an error if it answers ``call``, else
        nothing."""
        rule = secrets.find(raw)
        if not rule:
            return raw
        blocked = self.results == "block"
        self.hub.count("results_refused" if blocked else "results_flagged")
        self.hub.event(
            connection,
            "content.refused" if blocked else "content.flagged",
            severity="warning",
            outcome="refused" if blocked else "success",
            method=call.method[:_LONGEST_TEXT] if call is not None else "",
            rule=rule,
            reason="in what the server sent",
            detail={"tool": call.name[:_LONGEST_TEXT]} if call is not None and call.name else None,
        )
        if not blocked:
            return raw
        if call is None:
            return None
        data: dict[str, object] = {"rule": rule, "pointer": "/result", "sent": True}
        return jsonrpc.error_reply(call.id, jsonrpc.CONTENT_REFUSED, "the answer holds a secret and is kept back", data)
