"""Unfinished answers together: waiting, and never failing."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from actors.upstream.held import SMALL, Held


async def test_large_answers_wait_for_the_oldest_and_small_ones_for_none() -> None:
    """Beyond the limit the oldest large one goes on, the others as soon as there is room; when the oldest ends, the
    next one is the oldest."""
    held = Held(10 * SMALL)
    oldest, second, third, small = (held.begin() for _ in range(4))
    done: list[str] = []
    async with trio.open_nursery() as nursery:
        await oldest.hold(4 * SMALL)
        await second.hold(4 * SMALL)

        async def grow(name: str, holding: object, size: int) -> None:
            await holding.hold(size)  # type: ignore[attr-defined]
            done.append(name)

        nursery.start_soon(grow, "third", third, 4 * SMALL)
        nursery.start_soon(grow, "second", second, 7 * SMALL)
        await wait_all_tasks_blocked()
        assert done == []
        await oldest.hold(8 * SMALL)
        await small.hold(SMALL)
        oldest.end()
        await wait_all_tasks_blocked()
        assert done == ["second"]
        second.end()
    assert done == ["second", "third"]
    for holding in (third, small):
        holding.end()
    assert held.total == 0
    assert not held.large
