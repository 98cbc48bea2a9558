"""Everything that the content stage checks of one message: the detectors, then the tool's own schema.

The same in the acceptor, for ordinary messages, and in the validator's process, for what would keep others waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from actors.policy.jsonrpc import CONTENT_REFUSED, Refusal, splice
from actors.policy.members import decode_object
from ipc.content import SCHEMA, Mode, decide
from ipc.messages import Envelope
from ipc.settings import Settings

from .effort import Effort, TooMuch
from .schema import Schemas
from .screen import Finding, Screen, Verdict

CALL: Final = "tools/call"
Edits = Sequence[tuple[int, int, bytes]]
_NO_ARGUMENTS: Final = b"{}"


class Checks:
    """``unusable`` collects why schemas could not be used, each once, for the log."""

    def __init__(self, settings: Settings) -> None:
        self.screen = Screen.of(settings)
        self._validation: Mode = settings.schema_validation
        self._rules = settings.content.rules
        self._schemas = Schemas()
        self.validates = self._validation != "off"
        self.needed = self.screen is not None or self.validates
        self.unusable: list[str] = []

    def condemn(self, schema: bytes) -> None:
        """A check with that schema took the validator's process down, twice."""
        self._schemas.condemn(schema)

    def light(self, raw: bytes, envelope: Envelope, schema: bytes, effort: Effort) -> tuple[Sequence[Finding], Edits]:
        """``whole``, as long as that costs no more than the effort.

        Raises:
            TooMuch
            Refusal
        """
        try:
            return self._check(raw, envelope, schema, effort)
        except MemoryError:
            raise TooMuch from None

    def whole(self, raw: bytes, envelope: Envelope, schema: bytes) -> tuple[Sequence[Finding], Edits]:
        """What was found in a message that may go on, and what is to be replaced in it first.

        Args:
            schema: of the arguments; empty where they are not validated.

        Raises:
            Refusal
            MemoryError
        """
        return self._check(raw, envelope, schema, None)

    def _check(
        self, raw: bytes, envelope: Envelope, schema: bytes, effort: Effort | None
    ) -> tuple[Sequence[Finding], Edits]:
        tool = envelope.name if envelope.method == CALL else ""
        verdict: Verdict | None = None
        if self.screen is not None:
            verdict = self.screen.check(raw, envelope.method, tool, effort)
            if verdict is not None and verdict.refused:
                raise _refusal(envelope, verdict.findings[0])
        if schema and verdict is not None and verdict.edits:
            raw = splice(raw, verdict.edits)  # what the tool will get
        misfit = self._misfit(raw, envelope, tool, schema, effort) if schema else None
        if misfit is not None and misfit.mode == "block":
            raise _refusal(envelope, misfit)
        findings = verdict.findings if verdict is not None else ()
        if misfit is not None:
            findings = (*findings, misfit)
        return findings, verdict.edits if verdict is not None else ()

    def _misfit(self, raw: bytes, envelope: Envelope, tool: str, text: bytes, effort: Effort | None) -> Finding | None:
        if envelope.kind != "request" or envelope.method != CALL:
            return None
        schema, reason = self._schemas.of(text)
        if schema is None:
            if reason:
                self.unusable.append(f"the inputSchema of tool {tool[:64]!a} can't be used: it is {reason}")
            return self._finding(envelope, tool, "/params/name")
        arguments = _arguments(raw)
        if effort is not None:
            if schema.is_heavy_for(len(arguments)):
                raise TooMuch
            effort.spend(schema.cost(len(arguments)))
        fault = schema.fault(arguments)
        return None if fault is None else self._finding(envelope, tool, f"/params/arguments{fault}")

    def _finding(self, envelope: Envelope, tool: str, pointer: str) -> Finding | None:
        mode = decide(self._rules, SCHEMA, envelope.method, tool, pointer) or self._validation
        if mode == "strip":  # nothing can be cut out that would make it fit
            mode = self._validation
        return None if mode == "off" else Finding(SCHEMA, pointer, mode)


def _arguments(raw: bytes) -> bytes:
    params = decode_object(raw).get("params")
    try:
        found = decode_object(params).get("arguments") if params is not None else None
    except msgspec.ValidationError:  # an array
        return _NO_ARGUMENTS
    return _NO_ARGUMENTS if found is None else bytes(found)


def _refusal(envelope: Envelope, finding: Finding) -> Refusal:
    what = "the arguments do not fit the tool's schema" if finding.rule == SCHEMA else finding.rule
    return Refusal(
        CONTENT_REFUSED,
        f"Content refused: {what}",
        rule=finding.rule,
        id=envelope.id or b"null",
        notification=envelope.kind != "request",
        data={"rule": finding.rule, "pointer": finding.pointer},
    )
