"""MAX_INFLIGHT_BYTES and the validator of large messages, with real clients and workers that are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from large_clients import MIB, RawClient, echo, raw_client, resident_mib
from test_crashes import incarnations, kill, tree, until

UNBOUND = {
    "RATE_LIMIT_ENABLED": "false",
    "AUTO_BLOCK_ENABLED": "false",
    "LOG_LEVEL": "warning",
    "WORKERS": "2",
}
POOL = UNBOUND | {"MAX_INFLIGHT_BYTES": str(9 * MIB), "MAX_REQUEST_SIZE": str(2 * MIB)}  # three messages fit
WHOLE = 2 * MIB - 4096
PART = 6 * WHOLE // 10


def refused(answer: dict[str, Any], request_id: Any) -> bool:
    """Whether this is the contract's refusal for want of memory."""
    if "error" not in answer:
        return False
    error = answer["error"]
    assert (answer["id"], error["code"], error["data"]["reason"]) == (request_id, 503, "overloaded"), answer
    assert error["data"]["retryAfterMs"] > 0
    return True


async def goes_on(client: RawClient) -> None:
    """The connection still serves."""
    await client.send(b'{"jsonrpc":"2.0","id":"still","method":"ping"}')
    assert (await client.answer())["id"] == "still"


async def test_the_oldest_finishes_when_the_pool_is_dry(start_gateway: Any) -> None:
    """40 clients at 2.4 of 4 MB each, TCP and WebSocket, on two workers and a pool of 15 MiB: the oldest still
    finishes; every other gets its answer or a 503 with its own id, and its connection goes on; and the memory of all
    workers together stays far below what the clients have sent."""
    pool = UNBOUND | {"MAX_INFLIGHT_BYTES": str(15 * MIB)}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=pool))
    idle = resident_mib(gateway)
    most = 0.0
    ready = trio.Event()
    waiting = 39
    outcomes: list[bool] = []

    async def one(number: int) -> None:
        nonlocal waiting
        async with raw_client(gateway, ws=number % 2 == 0) as client:
            raw = echo(2 * WHOLE, b"%d" % number)

            await client.begin(len(raw), raw[: 2 * PART])
            waiting -= 1
            await ready.wait()
            await client.go_on(raw[2 * PART :], last=True)
            outcomes.append(refused(await client.answer(), number))
            await goes_on(client)

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, resident_mib(gateway))
            await trio.sleep(0.02)

    async with raw_client(gateway, ws=False) as oldest, trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        raw = echo(2 * WHOLE, b'"oldest"')
        await oldest.begin(len(raw), raw[: 2 * PART])
        async with trio.open_nursery() as others:
            for number in range(39):
                others.start_soon(one, number)
            with trio.fail_after(60):
                while waiting:
                    await trio.sleep(0.05)
            await oldest.go_on(raw[2 * PART :], last=True)
            answer = await oldest.answer()
            assert answer["id"] == "oldest"
            assert len(answer["result"]["content"][0]["text"]) > 3 * MIB
            ready.set()
        await goes_on(oldest)
        nursery.cancel_scope.cancel()
    assert len(outcomes) == 39
    assert any(outcomes), "the pool was never dry"
    # 96 MB would be held without the pool, and all forty finished with copies on top of it afterwards.
    assert most - idle < 90, (most, idle)


@pytest.mark.parametrize("ws", [True, False])
async def test_the_youngest_is_refused_at_once(start_gateway: Any, ws: bool) -> None:
    """Three messages fit; the fourth is refused while it is being sent, under its own id, and its rest is read away.
    When one of the others has finished, there is room again."""
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(environment=POOL | {"MAX_INFLIGHT_BYTES": str(8 * MIB), "WORKERS": "1"})
    )
    raw = echo(WHOLE, b'"me"')
    async with (
        raw_client(gateway, ws=ws) as a,
        raw_client(gateway, ws=ws) as b,
        raw_client(gateway, ws=ws) as c,
        raw_client(gateway, ws=ws) as d,
    ):
        for client in (a, b, c):
            await client.begin(len(raw), raw[:-100])
        await taken_in(gateway, a, b, c)
        await d.begin(len(raw), raw[: 3 * MIB // 2])
        assert refused(await d.answer(), "me")
        await d.go_on(raw[3 * MIB // 2 :], last=True)
        await goes_on(d)
        await a.go_on(raw[-100:], last=True)
        assert "result" in await a.answer()
        await d.send(raw)
        assert "result" in await d.answer()


async def taken_in(gateway: Any, *clients: Any) -> None:
    """What these have sent is no longer in the kernel's queues: the gateway has it, in the order of the calls."""
    ports = {client.stream.socket.getsockname()[1] for client in clients}
    await until(lambda: not unread(ports), gateway)


def unread(ports: set[int]) -> int:
    """Bytes in the queues between these client ports and whoever they are connected to (proc(5), net/tcp)."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    total = 0
    for fields in rows:
        local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        sending, receiving = (int(queue, 16) for queue in fields[4].split(":"))
        total += sending * (local in ports) + receiving * (remote in ports)
    return total


@pytest.mark.parametrize("victim", ["edge", "others"])
async def test_no_death_leaks_or_renews_the_pool(start_gateway: Any, victim: str) -> None:
    """Three messages fit, half sent. While other workers than the edges die, a fourth is refused all the same; when
    the edges themselves die, what they held is free again, all of it, and not more."""
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=POOL))
    raw = echo(WHOLE, b"7")
    for turn in range(2):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(raw_client(gateway, ws=True)) for _ in range(3)]
            late = await stack.enter_async_context(raw_client(gateway, ws=True))
            for client in clients:
                await client.begin(len(raw), raw[:MIB])
            await taken_in(gateway, *clients)
            if turn == 0 and victim != "edge":
                for role in ("policy", "bridge", "validator"):
                    (pid,) = await kill(gateway, role)
                    await until(lambda pid=pid: pid not in gateway.workers(), gateway)
                await until(lambda: all(state == "up" for _, state in incarnations(tree(gateway)).values()), gateway)
            await late.begin(len(raw), raw[:MIB])
            assert refused(await late.answer(), 7)
            if turn == 0 and victim == "edge":
                await kill(gateway, "edge")
                for client in clients:
                    with pytest.raises((EOFError, trio.BrokenResourceError)):
                        await client.answer()
                await until(lambda: all(state == "up" for _, state in incarnations(tree(gateway)).values()), gateway)
            else:
                for client in clients:
                    await client.go_on(raw[MIB:], last=True)
                    answer = await client.answer()
                    assert "result" in answer, answer


@pytest.mark.parametrize("times", [1, 2])
async def test_the_validator_is_killed_in_the_middle(start_gateway: Any, times: int) -> None:
    """Killed once while it checks a message, that is checked by the next incarnation; killed twice, it is refused
    under its own id, and quarantined; what only waited behind it passes, and nobody else notices anything."""
    gateway = await trio.to_thread.run_sync(
        lambda: start_gateway(environment=UNBOUND | {"WORKERS": "1", "HEARTBEAT_TIMEOUT_MS": "60000"})
    )
    killed: list[int] = []

    def validator() -> int:
        for worker in tree(gateway)["workers"]:
            if worker["role"] == "validator" and worker["state"] == "up" and worker["pid"] not in (0, *killed):
                return int(worker["pid"])
        return 0

    seen: dict[int, float] = {}

    def checks(pid: int) -> bool:
        """Whether it has had the message for a tenth of a second of its processor time."""
        if not any("memfd:message" in name for name in open_files(pid)):
            return False
        return processor_s(pid) > seen.setdefault(pid, processor_s(pid)) + 0.1

    await until(lambda: validator() > 0, gateway)
    # A forbidden key behind millions of numbers: to say where it stands takes the validator a second and more.
    hard = b'{"jsonrpc":"2.0","id":"v","method":"m","params":{"a":[%s0],"__proto__":1}}' % (b"0," * 2_500_000)
    async with (
        raw_client(gateway, ws=False) as client,
        raw_client(gateway, ws=True) as behind,
        raw_client(gateway, ws=True) as other,
    ):
        for turn in range(times):
            await until(lambda: validator() > 0, gateway)
            pid = await trio.to_thread.run_sync(validator)
            if turn == 0:
                await client.send(hard)
            await until(lambda pid=pid: checks(pid), gateway)
            if turn == 0:
                await behind.send(echo(2 * MIB, b'"b"'))
                await goes_on(other)
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        answer = await client.answer()
        assert answer["id"] == "v"
        if times == 1:
            for _ in range(3):
                if answer["error"]["code"] != 503:
                    break
                # The machine is so slow that its time was up.
                assert answer["error"]["data"]["reason"] == "policy actor down"
                await client.send(hard)
                answer = await client.answer()
            assert answer["error"]["code"] == 422
        else:
            assert (answer["error"]["code"], answer["error"]["data"]["reason"]) == (503, "quarantined")
            await until(lambda: "quarantined" in (gateway.audit_dir / "security-audit.log").read_text(), gateway)
        assert "result" in await behind.answer()
        for one in (client, behind, other):
            await goes_on(one)


def open_files(pid: int) -> list[str]:
    """What its descriptors are, without those that are closed while this looks."""
    names = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append(str(entry.readlink()))
    return names


def processor_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_large_message_outlives_nobody(start_gateway: Any) -> None:
    """What was forwarded, refused or abandoned leaves nothing in the pool: twice as many messages as fit pass through
    it one after the other, and a client that goes away in the middle takes nothing with it."""
    small = POOL | {"MAX_INFLIGHT_BYTES": str(3 * MIB)}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=small))
    for number in range(4):
        async with raw_client(gateway, ws=number % 2 == 0) as client:
            raw = echo(WHOLE, b"%d" % number)
            await client.begin(len(raw), raw[:PART])
        async with raw_client(gateway, ws=number % 2 == 1) as client:
            for _ in range(50):  # the other's end may not have been seen yet
                await client.send(echo(WHOLE, b"%d" % number))
                answer = await client.answer()
                if not refused(answer, number):
                    break
            assert "result" in answer, answer
            invalid = echo(MIB, b"3")[:-1] + b"]"
            await client.send(invalid)
            assert (await client.answer())["error"]["code"] == -32700
            await client.send(json.dumps({"jsonrpc": "2.0", "method": "n", "params": ["y" * MIB]}).encode())
