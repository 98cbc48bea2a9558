"""What a crash of its sender does to the audit log: nothing."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import trio
from test_crashes import SABOTAGED, incarnations, tree, until
from wire_clients import tcp_client


async def test_an_acceptor_that_raises_loses_no_record(start_gateway: Any) -> None:
    """Calls are answered while audit does not answer, and the acceptor raises before it has handed their records over:
    its next incarnation does."""
    # Without limits a call needs the policy worker only for its connection.
    environment = {"RATE_LIMIT_ENABLED": "false", "WORKERS": "1", "HEARTBEAT_TIMEOUT_MS": "60000"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(program=(SABOTAGED,), environment=environment))
    fuses = gateway.state_dir.parent / "sabotage"
    fuses.mkdir()
    policy = next(w["pid"] for w in (await trio.to_thread.run_sync(tree, gateway))["workers"] if w["role"] == "policy")
    assert policy
    async with tcp_client(gateway) as client:
        await client.initialize()
        before = incarnations(await trio.to_thread.run_sync(tree, gateway))["acceptor.0"][0]
        assert (await client.call("tools/call", {"name": "echo", "arguments": {"text": "x"}}))["result"]
        os.kill(policy, signal.SIGSTOP)
        try:
            for number in range(20):
                call = {"name": "echo", "arguments": {"text": str(number)}}
                assert (await client.call("tools/call", call, id=b"%d" % number))["result"]
            (fuses / "acceptor.0").touch()
            await until(lambda: incarnations(tree(gateway))["acceptor.0"][0] > before, gateway)
        finally:
            os.kill(policy, signal.SIGCONT)
        await client.call("ping")
    await trio.to_thread.run_sync(gateway.stop)
    text = "".join(path.read_text() for path in gateway.audit_dir.iterdir())
    records = [json.loads(line.removeprefix("SECURITY ")) for line in text.splitlines()]
    assert sum(record["event"] == "call.completed" for record in records) == 21
