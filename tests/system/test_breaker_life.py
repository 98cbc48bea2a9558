"""The breaker's whole life, against real servers that hang, die, reset and talk nonsense, and come back."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from wire_clients import CLIENTS, WireClient, request, tcp_client, ws_client

UPSTREAMS = Path(__file__).parent.parent / "upstreams"
PATIENCE_S = 40
SETTINGS = {
    "RATE_LIMIT_BURST_REQUESTS": "100000",
    "RATE_LIMIT_MAX_REQUESTS": "100000",
    "CONNECTION_RATE_LIMIT": "100000",
    "WORKERS": "2",
    "CIRCUITBREAKER_TIMEOUT": "20000",
    "CIRCUITBREAKER_FAILURE_THRESHOLD": "3",
    "CIRCUITBREAKER_RESET_TIMEOUT": "800",
}
FOR_LONG = SETTINGS | {"CIRCUITBREAKER_RESET_TIMEOUT": "3600000"}


@attrs.define
class Moody:
    """A server of ``moody.py``."""

    directory: Path
    config: dict[str, Any] = attrs.field(factory=dict)

    def become(self, mood: str) -> None:
        draft = self.directory / "mood.new"
        draft.write_text(mood)
        draft.rename(self.directory / "mood")

    @property
    def seen(self) -> list[str]:
        """The tags of the tool calls that reached it."""
        path = self.directory / "seen"
        return path.read_text().splitlines() if path.exists() else []


@asynccontextmanager
async def moody(directory: Path, kind: str = "stdio", **config: Any) -> AsyncIterator[Moody]:
    await trio.Path(directory).mkdir()
    server = Moody(directory)
    server.become("well")
    program = [str(UPSTREAMS / "moody.py"), "--mood", str(directory / "mood"), "--seen", str(directory / "seen")]
    if kind == "stdio":
        server.config = {"command": sys.executable, "args": program, **config}
        yield server
        return
    port_file = directory / "port"
    process = await trio.lowlevel.open_process([sys.executable, *program, "--tcp", str(port_file)])
    try:
        while not await trio.Path(port_file).exists():
            await trio.sleep(0.01)
        port = (await trio.Path(port_file).read_text()).strip()
        server.config = {"url": f"tcp://127.0.0.1:{port}", **config}
        yield server
    finally:
        process.kill()
        await process.wait()


def breaker(gateway: Any, name: str) -> str:
    """What ``/health`` says of it."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway.health_port}/health", timeout=10) as answer:
            document = json.load(answer)
    except urllib.error.HTTPError as error:
        document = json.load(error)
    return str(document["upstreams"][name]["breaker"])


async def until(condition: Callable[[], bool], gateway: Any) -> None:
    with trio.move_on_after(PATIENCE_S):
        while not await trio.to_thread.run_sync(condition):
            await trio.sleep(0.02)
        return
    raise AssertionError(f"it did not come to that\n{gateway.tail()}")


def audited(gateway: Any, name: str) -> list[str]:
    """The breaker's events about that server, in order."""
    lines = (gateway.audit_dir / "security-audit.log").read_text().splitlines()
    records = [json.loads(line.removeprefix("SECURITY ")) for line in lines if '"event":"breaker.' in line]
    return [record["event"].removeprefix("breaker.") for record in records if record["upstream"] == name]


async def call_tool(client: WireClient, tag: str, *, id: bytes = b'"t"') -> dict[str, Any]:
    return await client.call("tools/call", {"name": "first", "arguments": {"tag": tag}}, id=id)


async def open_it(client: WireClient) -> list[str]:
    """Call, three at a time, until the breaker refuses. The tags of the calls that it let pass."""
    tags: list[str] = []
    with trio.fail_after(PATIENCE_S):
        while True:
            round_ = {f"t{len(tags) + number}": b'"o%d"' % number for number in range(3)}
            for tag, raw_id in round_.items():
                await client.send(request("tools/call", {"name": "first", "arguments": {"tag": tag}}, id=raw_id))
            answers = {tag: await client.answer_to(raw_id) for tag, raw_id in round_.items()}
            for tag, answer in answers.items():
                assert answer["error"]["code"] in (502, 503, 504), answer
                if answer["error"].get("data", {}).get("reason") != "breaker open":
                    tags.append(tag)
                    continue
                assert answer["error"]["code"] == 503
                assert answer["error"]["data"]["retryAfterMs"] > 0
                return tags
            await trio.sleep(0.05)


async def fresh(client: WireClient, method: str, params: Any = None) -> dict[str, Any]:
    """The result from the server itself, which on a loaded machine may be late for a server with little time."""
    with trio.fail_after(PATIENCE_S):
        while True:
            answer = await client.call(method, params)
            if "result" in answer and "portcullis/stale" not in answer["result"].get("_meta", {}):
                result: dict[str, Any] = answer["result"]
                return result
            await trio.sleep(0.05)


async def stale(client: WireClient, method: str, params: Any = None, *, id: bytes = b"7") -> dict[str, Any]:
    """The result of an answer from the catalogue, without its marks; a request that was let through to probe a server
    which is not well comes to nothing."""
    with trio.fail_after(PATIENCE_S):
        while "result" not in (answer := await client.call(method, params, id=id)):
            assert answer["error"]["code"] in (502, 503, 504), answer
            await trio.sleep(0.05)
    meta = answer["result"]["_meta"]
    assert meta.pop("portcullis/stale") is True, answer
    assert type(meta.pop("portcullis/ageMs")) is int
    if not meta:
        del answer["result"]["_meta"]
    result: dict[str, Any] = answer["result"]
    return result


SOON = 1000  # milliseconds that a server has which is going to say nothing
LIVES = {
    "hangs": ("stdio", "hang"),
    "dies": ("stdio", "die"),
    "nonsense": ("stdio", "garbage"),
    "hangs-tcp": ("tcp", "hang"),
    "resets-tcp": ("tcp", "die"),
}


async def test_the_whole_life(start_gateway: Any, tmp_path: Path) -> None:
    """Five servers hang, die, reset or talk nonsense, all at once: each breaker opens, answers lists and handshakes
    from memory and everything else with 503, tries again, and closes when its server is well; /health and the audit
    log say so. All the while the clients of a sixth server notice nothing, and no tool call reaches a server twice."""
    async with AsyncExitStack() as stack:
        servers = {}
        for name, (kind, trouble) in LIVES.items():
            limits = {} if trouble == "die" else {"timeoutMs": SOON}
            servers[name] = await stack.enter_async_context(moody(tmp_path / name, kind, **limits))
        servers["healthy"] = await stack.enter_async_context(moody(tmp_path / "healthy"))
        gateway = await trio.to_thread.run_sync(
            lambda: start_gateway(servers={name: server.config for name, server in servers.items()},
                                  environment=SETTINGS)
        )  # fmt: skip
        over = trio.Event()
        served = 0

        async def healthy() -> None:
            nonlocal served
            async with tcp_client(gateway, server="healthy") as client:
                await client.initialize()
                while not over.is_set():
                    assert "result" in await call_tool(client, f"h{served}")
                    served += 1
                    await trio.sleep(0.01)

        async def live(name: str, mine: Callable[..., Any], newcomer: Callable[..., Any]) -> None:
            async with mine(gateway, server=name) as client:
                await through(name, client, newcomer)

        async def through(name: str, client: WireClient, newcomer: Callable[..., Any]) -> None:
            server = servers[name]
            params = {"protocolVersion": "2025-11-25", "capabilities": {}}
            greeting = await fresh(client, "initialize", params)
            first = await fresh(client, "tools/list")
            second = await fresh(client, "tools/list", {"cursor": "2"})
            await until(lambda: breaker(gateway, name) == "closed", gateway)

            server.become(LIVES[name][1])
            await open_it(client)
            assert await stale(client, "tools/list") == first
            assert await stale(client, "tools/list", {"cursor": "2"}, id=b'"7"') == second
            async with newcomer(gateway, server=name) as other:
                answer = await other.call("initialize", params)
                while "error" in answer:  # it was let through, to probe
                    answer = await other.call("initialize", params)
                if "portcullis/stale" in answer["result"].get("_meta", {}):
                    del answer["result"]["_meta"]
                assert answer["result"] == greeting
            await until(lambda: "opened" in audited(gateway, name), gateway)

            server.become("well")
            with trio.fail_after(PATIENCE_S):
                while await trio.to_thread.run_sync(lambda: audited(gateway, name)[-1:]) != ["closed"]:
                    await call_tool(client, "probe")
                    await trio.sleep(0.05)
            assert await fresh(client, "tools/list") == first
            assert "result" in await client.call("prompts/list")
            await until(lambda: breaker(gateway, name) == "closed", gateway)
            events = audited(gateway, name)
            assert events[:2] == ["opened", "half_open"]
            assert set(itertools.pairwise(events)) <= {
                ("opened", "half_open"), ("half_open", "opened"), ("half_open", "closed"), ("closed", "opened"),
            }  # fmt: skip

        async with trio.open_nursery() as nursery:
            nursery.start_soon(healthy)
            async with trio.open_nursery() as lives:
                for number, name in enumerate(LIVES):
                    mine, others = ((ws_client, tcp_client), (tcp_client, ws_client))[number % 2]
                    lives.start_soon(live, name, mine, others)
            over.set()
        assert served > 10
        assert audited(gateway, "healthy") == []
        tags = [tag for tag in servers["healthy"].seen if tag]
        assert len(tags) == len(set(tags))


async def test_while_open_a_call_reaches_no_server(start_gateway: Any, tmp_path: Path) -> None:
    """Each call that was let pass reached the server once at most, and none that was refused; what lists are answered
    with is the client's own: its id to the byte, what it may see, its own version; what is private is not kept; an
    operator's reset closes it."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"rules": [{"name": "hidden", "effect": "deny", "tool": ["second"]}]}))
    environment = FOR_LONG | {"AUTHORIZATION_POLICY": str(policy)}
    async with moody(tmp_path / "a") as server, moody(tmp_path / "b") as private:
        gateway = await trio.to_thread.run_sync(
            lambda: start_gateway(servers={"a": server.config, "b": private.config}, environment=environment)
        )
        private.become("private")
        async with tcp_client(gateway) as old, ws_client(gateway) as new, tcp_client(gateway, server="b") as mine:
            await old.initialize("2025-06-18")
            await new.initialize("2025-11-25")
            await mine.initialize()
            first = (await new.call("tools/list"))["result"]
            assert [tool["name"] for tool in first["tools"]] == ["first"]
            assert (await new.call("tools/list", {"cursor": "2"}))["result"]["tools"] == []
            assert "result" in await mine.call("tools/list")
            server.become("die")
            private.become("die")
            tags = await open_it(new)
            assert [tag for tag in server.seen if tag] == [tag for tag in tags if tag in server.seen]
            assert len(server.seen) == len(set(server.seen))
            for raw_id in (b"7", b'"7"', b'"\\u0037"', b"-0", b"9007199254740993"):
                await new.send(request("tools/list", {}, id=raw_id))
                raw = await new.next()
                assert raw.startswith(b'{"jsonrpc":"2.0","id":' + raw_id + b',"result":{"_meta":{"portcullis/stale":')
                assert json.loads(raw)["result"]["tools"] == first["tools"]
            assert await stale(new, "tools/list", {"cursor": "2"}) == {"tools": [], "_meta": {"k": 1}}
            for params in ({"cursor": "unknown"}, {"filter": "x"}, [1]):
                assert (await new.call("tools/list", params))["error"]["code"] == 503
            # 2025-06-18 has not asked for its list, only for its handshake.
            assert (await old.call("tools/list"))["error"]["code"] == 503
            again = await stale(old, "initialize", {"protocolVersion": "2025-06-18"})
            assert again["protocolVersion"] == "2025-06-18"
            assert (await new.call("prompts/list"))["error"]["data"]["reason"] == "breaker open"
            assert (await new.call("resources/read", {"uri": "file:///x"}))["error"]["code"] == 503
            await open_it(mine)
            assert (await mine.call("tools/list"))["error"]["code"] == 503
            assert server.seen == [tag for tag in server.seen if tag in tags]

            # A newcomer's handshake is answered from memory, and its session stands when the server is back.
            async with tcp_client(gateway) as late:
                params = {"protocolVersion": "1999-01-01", "capabilities": {}}
                assert (await stale(late, "initialize", params))["protocolVersion"] == "2025-11-25"
                assert await stale(late, "tools/list") == first
                server.become("well")
                assert admin(gateway, "breaker", "reset", "a").returncode == 0
                await until(lambda: breaker(gateway, "a") == "closed", gateway)
                with trio.fail_after(PATIENCE_S):
                    while "result" not in (answer := await call_tool(late, "after")):
                        assert answer["error"]["code"] == 503
                        await trio.sleep(0.05)
                assert (await late.call("tools/list"))["result"] == first
            assert admin(gateway, "breaker", "reset", "nobody").returncode != 0
            await until(lambda: audited(gateway, "a") == ["opened", "closed"], gateway)


def admin(gateway: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, as an operator calls it."""
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.admin", *arguments],
        env=os.environ | {"HEALTH_PORT": str(gateway.health_port), "ADMIN_TOKEN": gateway.admin_token},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def worker_pids(gateway: Any, role: str) -> list[int]:
    """All of that role, once all run; nothing before."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{gateway.health_port}/admin/v1/actors",
        headers={"Authorization": f"Bearer {gateway.admin_token}"},
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        workers = [worker for worker in json.load(answer)["workers"] if worker["role"] == role]
    ready = all(worker["state"] == "up" and worker["pid"] > 0 for worker in workers)
    return [worker["pid"] for worker in workers] if ready else []


async def kill(gateway: Any, role: str) -> None:
    """``kill -9`` all workers of that role, and wait for their successors."""
    found: list[int] = []

    def up() -> bool:
        pids = worker_pids(gateway, role)
        new = bool(pids) and not set(pids) & set(found)
        if new and not found:
            found.extend(pids)
        return new

    await until(up, gateway)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    await until(up, gateway)


async def test_open_circuits_and_their_lists_outlive_their_keepers(start_gateway: Any, tmp_path: Path) -> None:
    """``kill -9`` of the policy worker, then of every edge, then of both at once one after the other: the circuit
    stays open, and every worker has the lists, those that it never saw included."""
    async with moody(tmp_path / "a", "tcp") as server:
        servers = {"a": server.config}
        gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=servers, environment=FOR_LONG))
        async with ws_client(gateway) as client:
            await client.initialize()
            first = (await client.call("tools/list"))["result"]
            server.become("die")
            await open_it(client)

        async def all_know() -> None:
            """New clients, as many as surely reach both workers, are answered from memory."""
            for number in range(6):
                with trio.fail_after(PATIENCE_S):
                    while True:  # a worker that has just begun counts it as half-open until it is told
                        async with CLIENTS[("tcp", "ws")[number % 2]](gateway) as one:
                            answer = await one.initialize()
                            if "result" in answer and "_meta" in answer["result"]:
                                assert await stale(one, "tools/list") == first
                                assert (await call_tool(one, "never"))["error"]["code"] == 503
                                break
                        await trio.sleep(0.05)

        await all_know()
        for role in ("policy", "edge", "policy"):
            await kill(gateway, role)
            await until(lambda: breaker(gateway, "a") == "open", gateway)
            await all_know()
        assert "never" not in server.seen
        assert audited(gateway, "a") == ["opened"]


async def test_it_heals_after_its_keeper_was_killed_half_open(start_gateway: Any, tmp_path: Path) -> None:
    """The policy worker is killed while the circuit is open and its server well again: the time runs on, the probes
    are sent, it closes."""
    async with moody(tmp_path / "a") as server:
        servers = {"a": server.config}
        gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=servers, environment=SETTINGS))
        async with ws_client(gateway) as client:
            await client.initialize()
            server.become("die")
            await open_it(client)
            server.become("well")
            await kill(gateway, "policy")
            with trio.fail_after(PATIENCE_S):
                while await trio.to_thread.run_sync(breaker, gateway, "a") != "closed":
                    await call_tool(client, "probe")
                    await trio.sleep(0.05)
            assert "result" in await call_tool(client, "after")


async def test_neither_errors_nor_one_slow_tool_open_it(start_gateway: Any, tmp_path: Path) -> None:
    """Thirty application errors, and calls that time out while the server answers others, leave it closed; so do
    slow tool calls, unless the server asks for them to count. Switched off, nothing opens."""
    async with moody(tmp_path / "a") as server, moody(tmp_path / "s", slowToolCalls=True) as strict:
        environment = SETTINGS | {
            "CIRCUITBREAKER_TIMEOUT": "20000",
            "CIRCUITBREAKER_SLOW_CALL_MS": "300",
            "CIRCUITBREAKER_MINIMUM_CALLS": "4",
        }
        gateway = await trio.to_thread.run_sync(
            lambda: start_gateway(servers={"a": server.config, "s": strict.config}, environment=environment)
        )
        async with ws_client(gateway) as client, tcp_client(gateway, server="s") as other:
            await client.initialize()
            await other.initialize()
            server.become("fail")
            for number in range(30):
                assert (await call_tool(client, f"e{number}"))["error"]["code"] == -32000
            server.become("slow")
            strict.become("slow")
            for one in (client, other):
                for number in range(5):
                    await one.send(request("tools/call", {"name": "first"}, id=b"%d" % number))
            for number in range(5):
                assert "result" in await client.answer_to(b"%d" % number)
            await until(lambda: breaker(gateway, "s") == "open", gateway)
            assert breaker(gateway, "a") == "closed"
            assert audited(gateway, "a") == []


async def test_a_full_bulkhead_costs_its_own_clients_only(start_gateway: Any, tmp_path: Path) -> None:
    """All calls that one server may have in flight, over both workers together, are in flight and it hangs: the next
    is refused at once, wherever it comes from; another server's clients, on the same workers and the same bridge, are
    served; and what is given up makes room."""
    limit = 6
    environment = SETTINGS | {
        "UPSTREAM_MAX_INFLIGHT": str(limit),
        "CIRCUITBREAKER_TIMEOUT": "600000",
        "DRAIN_TIMEOUT_MS": "1000",  # what hangs is not worth waiting for
    }
    names = {f"{what}-{kind}": kind for what in ("stuck", "fine") for kind in ("stdio", "tcp")}
    async with AsyncExitStack() as stack:
        servers = {name: await stack.enter_async_context(moody(tmp_path / name, names[name])) for name in names}
        configs = {name: server.config for name, server in servers.items()}
        gateway = await trio.to_thread.run_sync(lambda: start_gateway(servers=configs, environment=environment))
        for kind in ("stdio", "tcp"):
            stuck = f"stuck-{kind}"
            clients = [
                await stack.enter_async_context((ws_client, tcp_client)[n % 2](gateway, server=stuck)) for n in range(8)
            ]
            for client in clients:
                await client.initialize()
                assert "result" in await call_tool(client, "")
            servers[stuck].become("hang")
            for number in range(limit):
                params = {"name": "first", "arguments": {"tag": "held"}}
                await clients[number].send(request("tools/call", params, id=b'"held"'))
            await until(lambda stuck=stuck: _in_flight(gateway, stuck) == limit, gateway)
            for client in clients:
                answer = await call_tool(client, "more", id=b'"more"')
                assert answer["error"]["code"] == 503
                assert answer["error"]["data"]["reason"] == "overloaded"
                assert answer["error"]["data"]["retryAfterMs"] > 0
            for transport, fine in itertools.product(CLIENTS, ("fine-stdio", "fine-tcp")):
                async with CLIENTS[transport](gateway, server=fine) as client:
                    await client.initialize()
                    for number in range(10):
                        assert "result" in await call_tool(client, f"{transport}{number}")
            await clients[0].send(
                b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"held"}}'
            )
            await until(lambda stuck=stuck: _in_flight(gateway, stuck) == limit - 1, gateway)
            await clients[-1].send(request("tools/call", {"name": "first"}, id=b'"again"'))
            await until(lambda stuck=stuck: _in_flight(gateway, stuck) == limit, gateway)
            assert "more" not in servers[stuck].seen
            assert breaker(gateway, stuck) == "closed"


def _in_flight(gateway: Any, name: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.health_port}/health", timeout=10) as answer:
        return int(json.load(answer)["upstreams"][name]["in_flight"])
