"""What a live view asks for again and again: the overview, and the newest records of the audit log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import attrs
import trio

from . import blocks
from .answers import Answer, Problem, document
from .overview import overview
from .recent import MOST_AT_ONCE

if TYPE_CHECKING:
    from .connection import Request
    from .routes import Routes, State

_MOST_BLOCKS: Final = 200
_NUMBER: Final = re.compile(r"[0-9]{1,15}\Z", re.ASCII)


async def events(routes: Routes, request: Request, _segment: str) -> Answer:
    """Records after the number ``after``, the newest ``limit`` of them, oldest first; calls only with ``calls=1``.

    Raises Problem (400).
    """
    return document(await _events(routes.state, _wanted(request)))


async def whole(routes: Routes, request: Request, _segment: str) -> Answer:
    """All of a live view: the overview with the blocks, and the events that the query asks for, as above."""
    wanted = _wanted(request)
    state = routes.state
    found: dict[str, Any] = {}

    async def ask_for_blocks() -> None:
        try:
            found["blocks"] = await blocks.listing(state.context.address("limiter"), _MOST_BLOCKS)
        except Problem as problem:
            found["blocks"] = {"blocks": [], "total": 0, "trouble": problem.detail}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_for_blocks)
        found["events"] = await _events(state, wanted)
    shown = overview(state.context.settings, state.health(), state.tree, state.survey.views(), state.rates)
    return document({**shown, **found})


async def _events(state: State, wanted: _Wanted) -> dict[str, Any]:
    """``last`` is the newest number: one below ``after`` means that the log has begun anew."""
    if not state.context.settings.security_audit_log:
        return {"events": [], "last": 0, "trouble": "the audit log is switched off (SECURITY_AUDIT_LOG)"}
    recent = state.recent
    await recent.look()
    found = recent.after(wanted.after, wanted.limit, calls=bool(wanted.calls))
    answer: dict[str, Any] = {"events": found, "last": recent.last}
    return {**answer, "trouble": recent.trouble} if recent.trouble else answer


@attrs.frozen
class _Wanted:
    after: int = 0
    limit: int = MOST_AT_ONCE
    calls: int = 0


def _wanted(request: Request) -> _Wanted:
    try:
        given = dict(parse_qsl(request.query, keep_blank_values=True, strict_parsing=True, max_num_fields=8))
    except ValueError:
        given = {"": ""} if request.query else {}
    if not given.keys() <= {"after", "limit", "calls"} or not all(_NUMBER.match(value) for value in given.values()):
        raise Problem(400, "the query may have after, limit and calls, all of them whole numbers")
    wanted = _Wanted(**{name: int(value) for name, value in given.items()})
    if not 1 <= wanted.limit <= MOST_AT_ONCE:
        raise Problem(400, f"limit is between 1 and {MOST_AT_ONCE}")
    return wanted
