"""The blocks in force, for operators: asked of the limiter, who keeps them."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from ipc.address import Address
from ipc.errors import ActorDown, DeadlineExceeded
from ipc.messages import BlockClient, BlockListing, ListBlocks, UnblockClient

from ..policy.credential_like import is_credential
from .answers import Problem

MOST: Final = 10_000
"""Rows in one answer; ``total`` tells how many there are."""
_PATIENCE_NS: Final = 1_000_000_000
_PRINCIPAL: Final = "principal:"


class BlockWish(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST: ``ip`` or ``principal``, and for how long (0: BLOCK_DURATION)."""

    ip: str = ""
    principal: str = ""
    for_ms: int = 0


def wish(body: bytes) -> BlockClient:
    """Raises Problem (400)."""
    try:
        wanted = msgspec.json.decode(body, type=BlockWish)
    except msgspec.MsgspecError as error:
        raise Problem(400, f'the body must be such as {{"ip": "192.0.2.1", "for_ms": 3600000}}: {error}') from None
    if bool(wanted.ip) == bool(wanted.principal):
        raise Problem(400, "either an ip or a principal")
    if wanted.for_ms < 0:
        raise Problem(400, "for_ms is negative")
    if is_credential(wanted.principal):
        raise Problem(400, "this is a credential, not the name of a principal")
    return BlockClient(wanted.ip or _PRINCIPAL + wanted.principal, wanted.for_ms)


def pardon(target: str) -> UnblockClient:
    """``target`` is an address, or ``principal:`` and a name."""
    return UnblockClient(target)


async def listing(limiter: Address, most: int = MOST) -> dict[str, Any]:
    """All of them, by key, about ``most`` at most. Raises Problem (503) while the limiter does not answer."""
    rows: list[dict[str, Any]] = []
    after, total, more = "", 0, True
    now_ms = time.time_ns() // 1_000_000
    while more and len(rows) < most:
        try:
            answer = await limiter.ask(ListBlocks(after), time.monotonic_ns() + _PATIENCE_NS)
        except (ActorDown, DeadlineExceeded):
            answer = None
        if not isinstance(answer, BlockListing):
            raise Problem(503, "the limiter does not answer", (("Retry-After", "1"),))
        total, more = answer.total, answer.more and bool(answer.rows)
        for key, since_ms, until_ms, strikes, automatic, reason in answer.rows:
            after = key
            name = {"principal": key.removeprefix(_PRINCIPAL)} if key.startswith(_PRINCIPAL) else {
                "ip": key.removeprefix("ip:")
            }
            rows.append(
                {
                    **name,
                    "since_ms": since_ms,
                    "until_ms": until_ms,
                    "left_s": max(0, until_ms - now_ms) // 1000,
                    "strikes": strikes,
                    "automatic": automatic,
                    "reason": reason,
                }
            )
    return {"blocks": rows[:most], "total": total}
