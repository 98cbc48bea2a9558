"""The bridge actor over real stdio servers, helpful and hostile."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
from bridge_rig import MODERN, embedded, program, rig

from actors.upstream import bridge as bridge_module
from actors.upstream import descendants
from actors.upstream.pool import MAX_OPEN
from ipc.messages import CallFailed
from ipc.settings import Upstream

SECRET = "a-secret-that-no-message-may-hold"
VERSIONS = ("2024-11-05", "2025-06-18", "2025-11-25")


def alive(pid: int) -> bool:
    status = descendants.stat(pid)
    return status is not None and status.state != "Z"


async def test_same_ids_do_not_mix() -> None:
    """24 sessions of two acceptors use the same ids at once on one process: each gets its own answers and progress."""
    ids = [0, 1, "1", -1, 2**53 - 1, "ü"]
    async with rig(embedded(), acceptors=2) as bridge:
        clients = [bridge.client("embedded", number, f"acceptor.{number % 2}") for number in range(24)]
        for client in clients:
            await client.initialize()
        calls = {}
        for number, client in enumerate(clients):
            for index, identity in enumerate(ids):
                arguments = {"name": "echo", "arguments": {"text": f"{number}/{index}"}}
                calls[client, client.request("tools/call", arguments, id=identity)] = (identity, f"{number}/{index}")
            sleep = {"name": "sleep", "arguments": {"seconds": 0.02, "steps": 3}, "_meta": {"progressToken": "same"}}
            calls[client, client.request("tools/call", sleep, id="sleep")] = ("sleep", "slept for 0.02 s")
        for (client, call), (identity, text) in calls.items():
            answer = await client.outcome(call)
            assert isinstance(answer, dict)
            assert (type(answer["id"]), answer["id"]) == (type(identity), identity)
            assert answer["result"]["content"][0]["text"] == text
        for client in clients:
            [notifications] = client.partial.values()
            assert [n["params"]["progressToken"] for n in notifications] == ["same"] * 3
            assert not client.unsolicited
        described = await bridge.describe()
        assert len(described["upstreams"]["embedded"]["instances"]) == 1


async def test_eras_and_versions_side_by_side() -> None:
    """Clients of the modern era and of each legacy version get an instance of their own kind; equals share one."""
    async with rig(embedded()) as bridge:
        for number, version in enumerate((*VERSIONS, *VERSIONS)):
            client = bridge.client("embedded", number)
            assert (await client.initialize(version))["protocolVersion"] == version
            assert "tools" in await client.call("tools/list", {})
        for number in (10, 11):
            modern = bridge.client("embedded", number)
            result = await modern.call("server/discover", {"_meta": MODERN})
            assert result["supportedVersions"] == ["2026-07-28"]
        instances = (await bridge.describe())["upstreams"]["embedded"]["instances"]
        assert sorted((instance["key"], instance["sessions"]) for instance in instances) == [
            ("", 2), *((version, 2) for version in VERSIONS)
        ]
        assert len({instance["pid"] for instance in instances}) == 4


async def test_five_open_subscriptions_one_log_level(tmp_path: Path) -> None:
    """Requests that stay open, and a log level, touch nobody but the client that asked for them."""
    async with rig(program("s", "two_era.py")) as bridge:
        listeners = [bridge.client("s", number) for number in range(5)]
        for number, client in enumerate(listeners):
            wanted = {"resourceSubscriptions": [f"test://{number}"]}
            client.request("subscriptions/listen", {"_meta": MODERN, "notifications": wanted}, id="listen")
        legacy, other = bridge.client("s", 10), bridge.client("s", 11)
        await legacy.initialize()
        await other.initialize()
        await legacy.call("logging/setLevel", {"level": "debug"})
        await legacy.call("test/log", {"level": "debug", "data": "mine"})
        await bridge.until(lambda: legacy.unsolicited)
        await listeners[0].call("test/updated", {"_meta": MODERN, "uri": "test://3"}, id=2)
        await bridge.until(lambda: len(listeners[3].partial.get(1, ())) == 2)
        for number, client in enumerate(listeners):
            notifications = client.partial[1]
            assert [n["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] for n in notifications] == [
                "listen"
            ] * (2 if number == 3 else 1)
        assert not other.unsolicited
        assert legacy.unsolicited[0]["params"]["data"] == "mine"


async def test_death_is_answered_and_mended() -> None:
    """When a shared server dies its calls fail at once, and it comes back by itself knowing what it knew: the level,
    the subscriptions. Its sessions go on as if nothing had been."""
    async with rig(program("s", "two_era.py"), embedded()) as bridge:
        one, two = bridge.client("s", 1), bridge.client("s", 2)
        for client in (one, two):
            await client.initialize()
        await one.call("logging/setLevel", {"level": "warning"})
        await two.call("resources/subscribe", {"uri": "test://a"})
        before = await one.call("test/state", {})
        held = one.request("test/hold", {"name": "x"})
        died = two.request("test/die", {"status": 5})
        for client, call in ((one, held), (two, died)):
            failure = await client.outcome(call)
            assert isinstance(failure, CallFailed)
            assert (failure.code, failure.sent) == (502, True)
            assert "exited with status 5" in failure.reason
        await bridge.until_described(
            lambda d: any(i["restarts"] == 1 and i["state"] == "up" for i in d["upstreams"]["s"]["instances"])
        )
        after = await one.call("test/state", {})
        assert after["pid"] != before["pid"]
        assert (after["levels"], after["subscriptions"], after["initialized"]) == (["warning"], ["test://a"], 1)
        await one.call("test/updated", {"uri": "test://a"})
        await bridge.until(lambda: two.unsolicited)
        assert not one.unsolicited
        await bridge.until(lambda: bridge.outcomes.get("s", [0, 0])[1] == 1)
        assert [(e.event, e.upstream) for e in bridge.events] == [
            ("upstream.up", "s"), ("upstream.down", "s"), ("upstream.restarted", "s")
        ]
        assert not one.lost


@pytest.mark.parametrize(
    ("upstream", "reason"),
    [
        (Upstream(name="s", kind="stdio", command=f"/no/{SECRET}"), "its program does not exist"),
        (program("s", "dies.py", "--status", "9", "--say", SECRET, env={"TOKEN": SECRET}), "exited with status 9"),
        (program("s", "dies.py", cwd=f"/no/{SECRET}"), "its working directory does not exist"),
    ],
)
async def test_a_server_that_cannot_run(upstream: Upstream, reason: str) -> None:
    """Each call to it fails, with the reason and no secret; soon with the time to wait; others are served."""
    async with rig(upstream, embedded()) as bridge:
        client = bridge.client("s", 1)
        reasons = []
        for _ in range(4):
            failure = await client.initialize()
            assert isinstance(failure, CallFailed)
            assert failure.code == 503
            assert not failure.sent
            reasons.append(failure)
        assert all(reason in failure.reason for failure in reasons)
        assert all(SECRET not in failure.reason for failure in reasons)
        assert reasons[-1].retry_after_ms > 0
        other = bridge.client("embedded", 2)
        assert (await other.initialize())["protocolVersion"] == "2025-11-25"
        assert SECRET not in json.dumps(await bridge.describe())


async def test_garbage_does_not_matter() -> None:
    """A server that prints logs, bytes and answers to nobody between its answers is understood all the same."""
    async with rig(program("s", "garbage.py")) as bridge:
        client = bridge.client("s", 1)
        assert (await client.initialize())["protocolVersion"] == "2025-11-25"
        assert await client.call("hello", {}) == {"method": "hello"}
        assert not client.unsolicited


async def test_half_a_line() -> None:
    """Half an answer is none: the call fails when the server ends, and can be given up before."""
    async with rig(program("exits", "half_line.py", "--exit"), program("hangs", "half_line.py"), embedded()) as bridge:
        one = bridge.client("exits", 1)
        await one.initialize()
        failure = await one.call("hello", {})
        assert isinstance(failure, CallFailed)
        assert (failure.code, failure.sent) == (502, True)
        two = bridge.client("hangs", 2)
        await two.initialize()
        hanging = two.request("hello", {})
        await bridge.until_described(lambda d: d["upstreams"]["hangs"]["in_flight"] == 1)
        two.abandon(hanging, "closed")
        await bridge.until_described(lambda d: d["upstreams"]["hangs"]["in_flight"] == 0)
        three = bridge.client("embedded", 3)
        await three.initialize()


@pytest.mark.parametrize("last", [False, True])
async def test_an_answer_that_is_too_large(last: bool) -> None:
    """It becomes 502 response_too_large under its own id, wherever that stands; the server goes on."""
    async with rig(program("s", "huge_line.py"), max_response_size=100_000) as bridge:
        client = bridge.client("s", 1)
        await client.initialize()
        error = await client.call("test/huge", {"bytes": 5_000_000, "last": last}, id="mine")
        assert error["code"] == 502
        assert error["data"]["reason"] == "response_too_large"
        assert await client.call("hello", {}) == {"method": "hello"}


async def test_a_server_for_each_session() -> None:
    """Per-session servers: a process each, which ends with its session; a death is told to that session alone."""
    async with rig(program("s", "two_era.py", instance="per-session")) as bridge:
        one, two = bridge.client("s", 1), bridge.client("s", 2)
        for client in (one, two):
            await client.initialize()
        pids = [(await client.call("test/state", {}))["pid"] for client in (one, two)]
        assert pids[0] != pids[1]
        # What a shared server may not do: ask its client.
        asked = one.request("test/ask", {}, id=7)
        await bridge.until(lambda: one.unsolicited)
        assert one.unsolicited[0]["method"] == "sampling/createMessage"
        one.forward(b'{"jsonrpc":"2.0","id":"server-1","result":{"text":"hi"}}', 0)
        answer = await one.outcome(asked)
        assert isinstance(answer, dict)
        assert answer["result"] == {"answered": {"text": "hi"}}
        failure = await one.outcome(one.request("test/die", {}))
        assert isinstance(failure, CallFailed)
        await bridge.until(lambda: one.lost)
        assert isinstance(await one.call("hello", {}), CallFailed)
        assert not two.lost
        two.detach()
        await bridge.until_described(lambda d: d["processes"]["servers"] == 0)
        assert not any(alive(pid) for pid in pids)


async def test_an_acceptors_sessions_end_with_it() -> None:
    """When an acceptor is replaced, its sessions' processes end and its calls are cancelled; others' are not."""
    upstreams = program("own", "two_era.py", instance="per-session"), program("s", "two_era.py")
    async with rig(*upstreams, acceptors=2) as bridge:
        clients = [bridge.client("own", 1, "acceptor.0"), bridge.client("own", 1, "acceptor.1")]
        for client in clients:
            await client.initialize()
        pids = [(await client.call("test/state", {}))["pid"] for client in clients]
        shared = bridge.client("s", 2, "acceptor.0")
        await shared.initialize()
        shared.request("test/hold", {"name": "x"})
        await bridge.until_described(lambda d: d["upstreams"]["s"]["in_flight"] == 1)
        bridge.replace_acceptor("acceptor.0")
        await bridge.until_described(lambda d: d["sessions"] == 1 and d["upstreams"]["s"]["in_flight"] == 0)
        await bridge.until_described(lambda d: d["processes"]["servers"] == 2)
        assert [alive(pid) for pid in pids] == [False, True]
        again = bridge.client("s", 2, "acceptor.0", version="2025-11-25")
        assert len((await again.call("test/state", {}))["cancelled"]) == 1


async def test_bulkhead() -> None:
    """Past the limit calls of that upstream are refused at once; those that stay open have a cap of their own."""
    async with rig(program("s", "two_era.py"), embedded(), upstream_max_inflight=3) as bridge:
        client = bridge.client("s", 1)
        await client.initialize()
        held = [client.request("test/hold", {"name": str(number)}) for number in range(3)]
        failure = await client.call("hello", {})
        assert isinstance(failure, CallFailed)
        assert (failure.code, failure.reason, failure.sent) == (503, "overloaded", False)
        assert failure.retry_after_ms > 0
        for number in range(MAX_OPEN):
            client.request("subscriptions/listen", {"_meta": MODERN, "notifications": {}}, id=f"l{number}")
        failure = await client.call("subscriptions/listen", {"_meta": MODERN, "notifications": {}})
        assert isinstance(failure, CallFailed)
        assert failure.reason == "overloaded"
        other = bridge.client("embedded", 2)
        await other.initialize()
        client.notify("notifications/cancelled", {"requestId": 1}, call=held[0])
        await bridge.until_described(lambda d: d["upstreams"]["s"]["in_flight"] == 2)
        assert isinstance(await client.call("hello", {}), dict)


async def test_params_pass_byte_for_byte(tmp_path: Path) -> None:
    """Nothing of a message changes on its way but its id and its progress token."""
    record = tmp_path / "record"
    raw = (
        b'{ "jsonrpc":"2.0",\t"id" : 7 ,"method":"tools/call","params":{"name":"\\u00e9x","arguments":'
        b'{"n":1.0,"big":123456789012345678901234567890,"e":1E5,"s":"\\/ \xc3\xa9 \\ud83d\\ude00"  },'
        b'"_meta":{"progressToken":"tok","other":[ 1,2 ]}}, "x-extra" : null }'
    )
    async with rig(program("s", "recorder.py", "--record", str(record))) as bridge:
        client = bridge.client("s", 1)
        await client.initialize()
        client.calls += 1
        client.forward(raw, client.calls)
        await client.outcome(client.calls)
    seen = record.read_bytes().splitlines()[-1]
    minted = json.loads(seen)["id"]
    assert seen == raw.replace(b'"id" : 7 ', b'"id" : %d ' % minted).replace(b'"tok"', b"%d" % minted)


async def test_a_server_of_another_version(tmp_path: Path) -> None:
    """Clients at three versions share the one process of a server that speaks only one of them."""
    record = tmp_path / "record"
    server = program("s", "recorder.py", "--record", str(record), "--version", "2024-11-05")
    async with rig(server) as bridge:
        for number, version in enumerate(VERSIONS):
            client = bridge.client("s", number)
            assert (await client.initialize(version))["protocolVersion"] == "2024-11-05"
            assert (await client.call("hello", {}))["method"] == "hello"
        described = await bridge.until_described(lambda d: d["processes"]["servers"] == 1)
        [instance] = described["upstreams"]["s"]["instances"]
        assert (instance["key"], instance["sessions"]) == ("2024-11-05", 3)


async def test_the_version_with_batches(tmp_path: Path) -> None:
    """A server that insists on 2025-03-26 is asked for 2024-11-05, and given up with a reason if it insists again."""
    server = program("s", "recorder.py", "--record", str(tmp_path / "record"), "--version", "2025-03-26")
    async with rig(server) as bridge:
        failure = await bridge.client("s", 1).initialize("2025-11-25")
        assert isinstance(failure, CallFailed)
        assert "2025-03-26" in failure.reason
        asked = [json.loads(line)["params"]["protocolVersion"] for line in (tmp_path / "record").open()]
        assert asked[:2] == ["2025-11-25", "2024-11-05"]


async def test_drain_lets_calls_finish() -> None:
    """Drained, it takes nothing new, answers what is in flight, ends its servers, and returns."""
    async with rig(embedded()) as bridge:
        client = bridge.client("embedded", 1)
        await client.initialize()
        pid = (await bridge.describe())["upstreams"]["embedded"]["instances"][0]["pid"]
        slow = client.request("tools/call", {"name": "sleep", "arguments": {"seconds": 0.3}})
        await bridge.until_described(lambda d: d["upstreams"]["embedded"]["in_flight"] == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.drain, 10)
            await trio.testing.wait_all_tasks_blocked(0.05)
            refused = await client.call("tools/list", {})
            assert isinstance(refused, CallFailed)
            assert refused.reason == "draining"
            assert isinstance(await client.outcome(slow), dict)
        assert not alive(pid)


async def test_drain_ends_at_its_deadline(tmp_path: Path) -> None:
    """What does not finish, and what does not want to end, is ended in time; the calls are answered."""
    pids = tmp_path / "pids"
    async with rig(program("s", "two_era.py"), program("f", "family.py", "--stubborn", "--pids", str(pids))) as bridge:
        client, other = bridge.client("s", 1), bridge.client("f", 2)
        await client.initialize()
        await other.initialize()
        held = client.request("test/hold", {"name": "x"})
        await bridge.until_described(lambda d: d["upstreams"]["s"]["in_flight"] == 1)
        with trio.fail_after(10):
            await bridge.drain(2)
        failure = await client.outcome(held)
        assert isinstance(failure, CallFailed)
        assert failure.sent
        assert not [name for name, pid in json.loads(pids.read_text()).items() if alive(pid)]


async def test_a_crashed_bridge_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the actor itself raises, its servers and theirs are gone by the time that it has raised."""
    pids = tmp_path / "pids"

    class Bug(Exception):
        pass

    def fail(_self: object) -> Any:
        raise Bug

    with pytest.RaisesGroup(Bug, flatten_subgroups=True, allow_unwrapped=True):
        async with rig(program("f", "family.py", "--stubborn", "--pids", str(pids))) as bridge:
            await bridge.client("f", 1).initialize()
            monkeypatch.setattr(bridge_module.Bridge, "describe", fail)
            await bridge.describe()
    assert not [name for name, pid in json.loads(pids.read_text()).items() if alive(pid)]
    monkeypatch.undo()
    async with rig(embedded()) as bridge:
        await bridge.client("embedded", 1).initialize()


async def test_one_server_bad_step_spares_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """If handling a server's line raises, that server alone is ended and its calls are answered."""
    async with rig(program("bad", "two_era.py"), program("good", "two_era.py")) as bridge:
        bad, good = bridge.client("bad", 1), bridge.client("good", 2)
        await bad.initialize()
        await good.initialize()
        pid = (await good.call("test/state", {}))["pid"]
        real = bridge_module.Instance.line

        def line(self: Any, raw: bytes, now: int) -> None:
            if b"boom" in raw:
                raise ZeroDivisionError
            real(self, raw, now)

        monkeypatch.setattr(bridge_module.Instance, "line", line)
        failure = await bad.outcome(bad.request("boom", {}))
        assert isinstance(failure, CallFailed)
        assert (await good.call("test/state", {}))["pid"] == pid
        assert (await bridge.describe())["counted"]["crashed step"] == 1


async def test_an_acceptor_that_does_not_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """While an acceptor's lane is full its server is not read, little is kept, and nothing is lost or reordered."""
    async with rig(program("s", "two_era.py"), acceptors=2) as bridge:
        client = bridge.client("s", 1)
        await client.initialize()
        mailbox = bridge.mailboxes["acceptor.0"]
        resume = trio.Event()
        real = mailbox.receive

        async def stalled() -> Any:
            await resume.wait()
            return await real()

        mailbox.receive = stalled  # type: ignore[method-assign]
        await bridge.until_described(lambda _d: True)
        steps = 30_000
        call = client.request("test/progress", {"steps": steps, "_meta": {"progressToken": 1}})
        described = await bridge.until_described(lambda d: d["waiting"] > 0)
        with trio.move_on_after(0.3):
            await bridge.until_described(lambda d: d["waiting"] > described["waiting"] + 2000)
            raise AssertionError("it goes on reading")
        resume.set()
        await client.outcome(call)
        assert [n["params"]["progress"] for n in client.partial[call]] == list(range(1, steps + 1))


async def test_giving_up_may_overtake_the_call() -> None:
    """A call that was given up before it came (control overtakes data) is not sent, and leaves nothing behind."""
    async with rig(program("s", "two_era.py")) as bridge:
        client = bridge.client("s", 1)
        await client.initialize()
        client.abandon(client.request("test/hold", {"name": "x"}))
        described = await bridge.until_described(lambda d: d["counted"].get("given up early"))
        assert described["upstreams"]["s"]["in_flight"] == 0
        assert (await client.call("test/state", {}))["cancelled"] == []


async def test_silent_server_times_out_and_is_reported() -> None:
    """Calls given up while nothing comes from the server, and no answer to the probe, are reported as silent."""
    async with rig(program("s", "silent.py", "--handshake")) as bridge:
        client = bridge.client("s", 1)
        await client.initialize()
        call = client.request("hello", {})
        await bridge.until_described(lambda d: d["upstreams"]["s"]["in_flight"] == 1)
        client.abandon(call)
        await bridge.until(lambda: bridge.outcomes.get("s", [0, 0, 0])[2] == 1)
        assert (await bridge.describe())["upstreams"]["s"]["in_flight"] == 0


async def test_launcher_killed_by_hand(tmp_path: Path) -> None:
    """An operator's ``kill -9`` of a server is as a crash: what it started goes, and a fresh one answers."""
    pids = tmp_path / "pids"
    async with rig(program("f", "family.py", "--pids", str(pids))) as bridge:
        client = bridge.client("f", 1)
        await client.initialize()
        family = json.loads(pids.read_text())
        os.kill(family["server"], signal.SIGKILL)
        await bridge.until_described(lambda d: any(i["restarts"] == 1 for i in d["upstreams"]["f"]["instances"]))
        assert await client.call("hello", {}) == {}
        await bridge.until_described(lambda _d: not any(alive(pid) for pid in family.values()))
