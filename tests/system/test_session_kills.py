"""``kill -9`` of the policy worker in the middle of rotations and revocations: nothing answered is lost or undone."""

from __future__ import annotations

import random
import time
from typing import Any

import attrs
import pytest
import trio
from session_clients import Answer, post, session
from test_crashes import kill
from test_sessions import admits, started

KILLS = 6
CHAINS = 6
REPEAT_S = 8.0  # a repeat must come within 10 s; what a slow machine delays beyond that proves nothing


@attrs.define
class Chain:
    """One client that rotates its token again and again, repeats what isn't answered, and revokes as it goes."""

    tokens: list[str]  # refresh tokens, in order
    access: list[str]
    revoked: list[str] = attrs.field(factory=list)  # access tokens whose revocation was answered
    given_up: bool = False


async def answered(gateway: Any, path: str, fields: dict[str, str]) -> Answer | None:
    """Ask until there is an answer. None: it took so long that the answer tells nothing."""
    begun = time.monotonic()
    while True:
        try:
            answer = await post(gateway, path, fields)
        except OSError:
            answer = None
        if answer is not None and answer.status != 503:
            return answer if answer.status == 200 or time.monotonic() - begun < REPEAT_S else None
        await trio.sleep(0.05)


async def rotate(gateway: Any, chain: Chain, chance: random.Random, stop: trio.Event) -> None:
    while not stop.is_set():
        if chance.random() < 0.3:
            token = chain.access[-1]
            answer = await answered(gateway, "/auth/revoke", {"token": token})
            if answer is not None:
                assert answer.status == 200
                chain.revoked.append(token)
        answer = await answered(gateway, "/auth/refresh", {"refresh_token": chain.tokens[-1]})
        if answer is None:
            chain.given_up = True
            return
        assert answer.status == 200, answer
        assert answer.document["refresh_token"] not in chain.tokens
        chain.tokens.append(answer.document["refresh_token"])
        chain.access.append(answer.document["access_token"])


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_kill_loses_a_revocation_or_revives_a_token(start_gateway: Any, seed: int) -> None:
    """Clients rotate and revoke while their policy worker is killed at random moments: whoever repeats goes on with
    the same session, each answered revocation holds, and every used token is known as used in the end."""
    chance = random.Random(seed)
    gateway = await started(start_gateway)
    chains: list[Chain] = []
    for _ in range(CHAINS):
        first = await session(gateway)
        chains.append(Chain([first["refresh_token"]], [first["access_token"]]))
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        for chain in chains:
            nursery.start_soon(rotate, gateway, chain, random.Random(chance.random()), stop)
        for _ in range(KILLS):
            await trio.sleep(chance.uniform(0.05, 0.6))
            assert await kill(gateway, "policy")
        await trio.sleep(0.5)
        stop.set()
    going = [chain for chain in chains if not chain.given_up]
    assert going, "no client got its answers in time"
    for chain in chains:
        for token in chain.revoked[-3:]:
            assert not await admits(gateway, token)
    for chain in going:
        assert len(chain.tokens) > 3
        if chain.access[-1] not in chain.revoked:
            assert await admits(gateway, chain.access[-1])
        old = chance.choice(chain.tokens[:-2])
        assert (await post(gateway, "/auth/refresh", {"refresh_token": old})).status == 401
        assert (await post(gateway, "/auth/refresh", {"refresh_token": chain.tokens[-1]})).status == 401
        assert not await admits(gateway, chain.access[-1])
