"""Per-session servers and the breaker, which is for all clients."""

from __future__ import annotations

import pytest
from pool_rig import PoolRig, private


@pytest.mark.parametrize("how", ["dies", "silent", "struck"])
def test_what_befalls_one_clients_own_server_says_nothing_of_the_others(how: str) -> None:
    """A client can crash or block the process that it has for itself: neither counts against the server."""
    rig = PoolRig((private(),))
    for number in range(6):
        session = f"s{number}"
        rig.pool.attach(session, "s")
        rig.initialize(session, 1)
        wire = rig.wires[-1]
        rig.answer(wire, wire.sent[0])
        rig.forward(session, 2, "tools/call", {"name": "x"})
        if how == "dies":
            wire.instance.closed("exited with status 3", rig.now)
        elif how == "struck":
            wire.instance.struck("a connection broke", rig.now)
        else:
            rig.pool.abandon(session, 2, "timeout", rig.now)
            rig.wait(10)
    assert {kind for _, kind in rig.outcomes} <= {"success"}


@pytest.mark.parametrize("banner", [False, True])
def test_a_program_that_never_works_counts(banner: bool) -> None:
    """A run that ends before it has sent any message is a failure for all, whatever else it has printed."""
    rig = PoolRig((private(),), at_once=False)
    rig.pool.attach("a", "s")
    rig.initialize("a", 1)
    instance = rig.opening.pop()
    if banner:
        instance.line(b"usage: server FILE", rig.now)
    instance.closed("exited with status 2", rig.now)
    assert rig.outcomes == [("s", "death")]


def test_a_program_that_never_answers_counts() -> None:
    """And so is one that is silent from the beginning."""
    rig = PoolRig((private(),), at_once=False)
    rig.pool.attach("a", "s")
    rig.initialize("a", 1)
    rig.open_next()
    rig.pool.abandon("a", 1, "timeout", rig.now)
    rig.wait(10)
    assert rig.outcomes == [("s", "silent")]


def test_a_first_message_that_kills_is_its_senders_doing() -> None:
    """A client chooses what it says first; only ``initialize`` is the same for all of them."""
    rig = PoolRig((private(),))
    for number in range(6):
        session = f"s{number}"
        rig.pool.attach(session, "s")
        rig.forward(session, 1, "tools/call", {"name": "crash"})
        rig.wires[-1].instance.closed("exited with status 3", rig.now)
    assert not rig.outcomes
