"""Fixtures of the tests between actors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from arrangement import Arrangement, VirtualClock, join, open_descriptors

from ipc.exchange import Exchange


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(params=["local", "channel"])
async def arrangement(
    request: pytest.FixtureRequest, clock: VirtualClock
) -> AsyncIterator[Arrangement]:
    async with trio.open_nursery() as nursery:
        if request.param == "local":
            near = far = Exchange("near", {"user": "near", "target": "near"}, clock=clock)
            await nursery.start(near.run)
            made = Arrangement(near, far, clock)
        else:
            placement = {"user": "near", "target": "far"}
            near = Exchange("near", placement, clock=clock)
            far = Exchange("far", placement, clock=clock)
            await nursery.start(near.run)
            await nursery.start(far.run)
            join(near, far)
            made = Arrangement(near, far, clock)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
def no_descriptor_leak() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before
