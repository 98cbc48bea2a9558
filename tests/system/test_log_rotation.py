"""The audit log under logrotate: the file is moved, the gateway is told, and the chain runs on."""

from __future__ import annotations

import signal
import sys
from typing import Any

import trio
from wire_clients import ws_client


async def test_sigusr1_begins_a_new_file(start_gateway: Any) -> None:
    """After a rename and SIGUSR1 records go to a new file under the old name; both together verify."""
    gateway = await trio.to_thread.run_sync(start_gateway)
    active = gateway.audit_dir / "security-audit.log"
    moved = gateway.audit_dir / "security-audit.log.1"
    async with ws_client(gateway) as client:
        await client.initialize()
    await trio.to_thread.run_sync(active.rename, moved)
    gateway.process.send_signal(signal.SIGUSR1)
    with trio.fail_after(30):
        while not active.exists() or not active.stat().st_size:
            await trio.sleep(0.02)
    async with ws_client(gateway) as client:
        await client.initialize()
    await trio.to_thread.run_sync(gateway.stop)
    assert '"event":"gateway.started"' in moved.read_text()
    assert '"event":"gateway.stopped"' in active.read_text()
    places = ["--log-dir", str(gateway.audit_dir), "--state-dir", str(gateway.state_dir)]
    verify = [sys.executable, "-m", "ops.cli.audit", "verify", *places]
    done = await trio.run_process(verify, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
