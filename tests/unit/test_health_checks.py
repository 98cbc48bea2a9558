"""Active health checks: who is probed, when, and what the breaker hears of it."""

from __future__ import annotations

from typing import Any

import pytest
from pool_rig import META, PoolRig, Wire, private, shared

EVERY = {"health_check_interval": 30_000}


def up(**settings: Any) -> tuple[PoolRig, Wire]:
    rig = PoolRig((shared(),), settings=EVERY | settings)
    rig.pool.attach(1, "s")
    rig.initialize(1, 1)
    [wire] = rig.wires
    return rig, wire


def test_a_quiet_server_is_pinged_and_its_answer_is_a_success() -> None:
    """Once an interval; nothing else is told to the breaker, and no client hears of it."""
    rig, wire = up()
    for number in range(1, 4):
        rig.wait(30)
        assert len(wire.requests("ping")) == number
        rig.answer(wire, wire.requests("ping")[-1])
        assert rig.outcomes == [("s", "success")] * number
    assert len(rig.delivered) == 1  # the greeting
    assert rig.state()["instances"][0]["silent"] is False


def test_the_modern_era_is_asked_to_discover() -> None:
    """``server/discover`` with the request's own metadata; an error is an answer too."""
    rig = PoolRig((shared(),), settings=EVERY)
    rig.pool.attach(1, "s")
    rig.forward(1, 1, "tools/list", {"_meta": META})
    [wire] = rig.wires
    rig.answer(wire, wire.requests("tools/list")[0])
    rig.outcomes.clear()
    rig.wait(31)
    [probe] = wire.requests("server/discover")
    assert probe["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    rig.say(wire, {"jsonrpc": "2.0", "id": probe["id"], "error": {"code": -32601, "message": "what?"}})
    assert rig.outcomes == [("s", "success")]


def test_silence_is_a_failure_each_time() -> None:
    """Five seconds for an answer; whatever comes ends the suspicion."""
    rig, wire = up()
    rig.wait(30)
    assert rig.outcomes == []
    rig.wait(6)
    assert rig.outcomes == [("s", "silent")]
    assert rig.state()["instances"][0]["silent"] is True
    rig.wait(30)
    assert rig.outcomes == [("s", "silent")] * 2
    rig.say(wire, {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
    assert rig.state()["instances"][0]["silent"] is False
    rig.wait(29)
    assert len(wire.requests("ping")) == 2


def test_a_server_that_speaks_or_works_is_left_alone() -> None:
    """Each message puts the probe off; while somebody waits for an answer, that call's own timeout decides."""
    rig, wire = up()
    rig.wait(20)
    rig.say(wire, {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
    rig.wait(20)
    assert not wire.requests("ping")
    rig.forward(1, 2, "tools/call", {"name": "slow"})
    rig.wait(300)
    assert not wire.requests("ping")
    assert not rig.outcomes
    rig.answer(wire, wire.requests("tools/call")[0])
    rig.wait(31)
    assert len(wire.requests("ping")) == 1


def test_requests_that_stay_open_do_not_put_it_off() -> None:
    """A listener may listen for ever."""
    rig = PoolRig((shared(),), settings=EVERY)
    rig.pool.attach(1, "s")
    rig.forward(1, 1, "subscriptions/listen", {"_meta": META, "notifications": {}})
    rig.wait(31)
    assert len(rig.wires[0].requests("server/discover")) == 1


def test_switched_off_nothing_is_sent() -> None:
    """``HEALTH_CHECK_ENABLED=false``."""
    rig, wire = up(health_check_enabled=False)
    rig.wait(200)
    assert not wire.requests("ping")


def test_a_server_of_one_client_is_not_probed() -> None:
    """What a client does to a server of its own says nothing about the others'."""
    rig = PoolRig((private(),), settings=EVERY)
    rig.pool.attach(1, "s")
    rig.initialize(1, 1)
    [wire] = rig.wires
    rig.answer(wire, wire.requests("initialize")[0])
    rig.outcomes.clear()
    rig.wait(200)
    assert not wire.requests("ping")
    assert not rig.outcomes


def test_a_short_interval_gives_a_probe_a_second() -> None:
    """Not less, and never two probes at a time."""
    rig, wire = up(health_check_interval=100)
    rig.wait(0.9)
    assert len(wire.requests("ping")) == 1
    assert not rig.outcomes
    rig.wait(0.6)
    assert rig.outcomes == [("s", "silent")]


@pytest.mark.parametrize(("outcome", "told"), [("success", ["success"]), ("death", ["silent"]), ("", [])])
def test_a_probe_that_is_lost_on_its_own_way(outcome: Any, told: list[str]) -> None:
    """Over HTTP each request has its own way: a refusal shows that somebody is there, a failure decides at once."""
    rig, wire = up()
    rig.wait(30)
    [probe] = wire.requests("ping")
    wire.instance.lost(str(probe["id"]).encode(), 503, "x", rig.now, sent=False, outcome=outcome)
    assert [kind for _, kind in rig.outcomes] == told


def test_a_call_that_is_lost_on_its_own_way() -> None:
    """It is answered as told, its permit comes back, and the others go on."""
    rig, wire = up()
    rig.pool.attach(2, "s")
    rig.initialize(2, 1)
    rig.forward(1, 2, "tools/call", {"name": "a"})
    rig.forward(2, 2, "tools/call", {"name": "b"})
    first, second = (str(call["id"]).encode() for call in wire.requests("tools/call"))
    assert wire.instance.awaits(first)
    wire.instance.lost(first, 503, "full", rig.now, sent=False, outcome="death", retry_after_ms=700)
    assert rig.failures == [(1, 2, 503, "full", False, 700)]
    assert rig.outcomes == [("s", "death")]
    assert not wire.instance.awaits(first)
    assert wire.instance.awaits(second)
    assert rig.state()["in_flight"] == 1
    wire.instance.lost(first, 503, "again", rig.now, sent=False)
    assert len(rig.failures) == 1
    rig.answer(wire, wire.requests("tools/call")[1])
    assert rig.state()["in_flight"] == 0


def test_a_session_that_the_server_has_ended_is_no_failure() -> None:
    """What was in flight fails, a fresh greeting follows at once, and the breaker hears nothing."""
    rig, wire = up()
    rig.forward(1, 2, "tools/call", {"name": "a"})
    wire.instance.expired("the session is over", rig.now)
    assert [failure[2:5] for failure in rig.failures] == [(502, "upstream down: the session is over", True)]
    rig.wait(1)
    assert len(rig.wires) == 2
    assert rig.state()["state"] == "up"
    assert not rig.outcomes
    assert not rig.losses
