"""What a running gateway says at ``/metrics``: complete, of few labels, and never less than before."""

from __future__ import annotations

import os
import re
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dashboards
import pytest
import scrape
import trio
from gateway import started
from prometheus_client.parser import text_string_to_metric_families
from requirement import need
from test_crashes import tree
from wire_clients import CLIENTS, tcp_client, ws_client

from actors.admin.families import FAMILIES

CALLS = "mcp_server_operation_duration_seconds_count"
SECRETS = ("xyzzy-method", "xyzzy-tool", "xyzzy-argument", "127.0.0.2", "Authorization")
RARE = "portcullis_upstream_events"
"""There only once something has gone wrong with a server, which it does not here."""


async def stir(gateway: Any) -> None:
    """A little of everything that is counted."""
    async with tcp_client(gateway) as client, ws_client(gateway) as other:
        for one in (client, other):
            await one.initialize()
            await one.call("tools/call", {"name": "echo", "arguments": {"text": "<script>alert(1)</script>"}})
            await one.call("xyzzy-method", {"a": "xyzzy-argument"})
            await one.call("tools/call", {"name": "xyzzy-tool", "arguments": {}})
            await one.call("tools/call", {"name": "echo", "arguments": {"__proto__": 1}})
            await one.send(b"{bad")
            await one.next()
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.ws_port}/auth/token", method="POST", headers={"Authorization": "Bearer wrong"}
    )
    with pytest.raises(urllib.error.HTTPError):
        await trio.to_thread.run_sync(urllib.request.urlopen, request)


async def test_every_metric_is_in_the_table_and_every_one_of_the_table_is_there(start_gateway: Any) -> None:
    """Names, kinds and labels are those of ``FAMILIES``, no more and no less; nothing that a client said is in it."""
    gateway = start_gateway(environment={"WORKERS": "2"})
    await stir(gateway)

    def complete(found: dict[scrape.Sample, float]) -> bool:
        names = {name for name, _ in found}
        return all(
            set(family.samples) <= names for family in FAMILIES.values() if family.name != RARE
        ) and bool(scrape.total(found, "portcullis_audit_events_total", event="auth.failed"))

    found = await scrape.until(gateway, complete)
    text = scrape.scraped(gateway)
    for family in text_string_to_metric_families(text):
        name = family.name.removesuffix("_info") if family.type in ("info", "gauge") else family.name
        known = FAMILIES[name if name in FAMILIES else family.name]
        for sample in family.samples:
            labels = set(sample.labels) - {"le"}
            assert labels == set(known.labels), sample
    for secret in (*SECRETS, gateway.tcp_token, gateway.ws_token, gateway.admin_token):
        assert secret not in text
    assert scrape.total(found, CALLS, mcp_method_name="other") == 2
    assert scrape.total(found, CALLS, mcp_method_name="tools/call") == 4
    assert scrape.total(found, "portcullis_refusals_total", code="422") == 2
    assert scrape.total(found, "portcullis_refusals_total", code="-32700") == 2
    assert scrape.total(found, "portcullis_content_findings_total", action="flag") >= 2
    assert scrape.total(found, "portcullis_authentications_total", outcome="failed") == 1
    # What dashboards and alerts ask for is there, with the labels that they ask of it.
    exported: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            exported.setdefault(sample.name, set()).update(sample.labels)
    for name, wanted in dashboards.used():
        assert wanted <= exported[name], name
    promtool = shutil.which("promtool")
    need(promtool, "promtool is not installed (Debian: apt-get install prometheus)")
    command = [str(promtool), "check", "metrics"]
    checked = await trio.run_process(
        command, stdin=text.encode(), capture_stdout=True, capture_stderr=True, check=False
    )
    assert checked.returncode == 0, (checked.stdout + checked.stderr).decode()


async def test_latencies_are_split_into_stages(start_gateway: Any) -> None:
    """Every stage of every call is measured, and their parts make up the whole."""
    gateway = start_gateway(environment={"WORKERS": "2"})
    await stir(gateway)
    found = await scrape.until(gateway, lambda found: scrape.total(found, CALLS) == 8)
    stages = {
        stage: scrape.total(found, "portcullis_call_duration_seconds_count", stage=stage)
        for stage in ("policy", "upstream", "total")
    }
    assert stages == dict.fromkeys(stages, 8)
    took = {
        stage: scrape.total(found, "portcullis_call_duration_seconds_sum", stage=stage)
        for stage in ("policy", "upstream", "total")
    }
    assert 0 < took["policy"] + took["upstream"] <= took["total"] * 1.001


async def test_nothing_goes_back_whoever_is_killed(start_gateway: Any) -> None:
    """kill -9 of every worker, admin included: no counter and no histogram is ever less than it was, and calls are
    counted exactly, over all incarnations of both edge workers."""
    gateway = start_gateway(environment={"WORKERS": "2", "RATE_LIMIT_ENABLED": "false"})
    counted = 0
    before: dict[scrape.Sample, float] = {}

    def grown(found: dict[scrape.Sample, float]) -> bool:
        shown = scrape.total(found, CALLS, mcp_method_name="tools/list")
        assert shown <= counted
        for (name, labels), value in before.items():
            if name.endswith(("_total", "_bucket", "_count", "_sum")):
                now = found.get((name, labels))
                # The tree has to be told again to a new admin before what hangs on it is shown.
                assert now is None or now >= value, (name, labels)
        return shown == counted and before.keys() - found.keys() <= passing(before)

    def passing(found: dict[scrape.Sample, float]) -> set[scrape.Sample]:
        return {key for key in found if not key[0].endswith(("_total", "_bucket", "_count", "_sum"))}

    for role in ("edge", "policy", "bridge", "validator", "admin", ""):
        for transport in ("tcp", "ws"):
            for _ in range(4):  # several connections: some to each edge worker
                async with CLIENTS[transport](gateway) as client:
                    await client.initialize()
                    for _ in range(5):
                        await client.call("tools/list", {})
                        counted += 1
        before = await scrape.until(gateway, grown)
        if role:
            await killed(gateway, role)
            await scrape.until(gateway, lambda found: all_up(found) and grown(found))
    restarts = {worker: scrape.total(before, "portcullis_worker_restarts_total", worker=worker) for worker in
                ("edge.0", "edge.1", "policy", "bridge", "validator", "admin")}
    assert restarts == dict.fromkeys(restarts, 1)


def all_up(found: dict[scrape.Sample, float]) -> bool:
    up = [value for (name, _), value in found.items() if name in ("portcullis_worker_up", "portcullis_actor_up")]
    return len(up) == 6 + 8 and all(up)


async def killed(gateway: Any, role: str) -> None:
    """``kill -9`` its workers, and wait until others run in their place."""
    pids = {w["name"]: w["pid"] for w in tree(gateway)["workers"] if w["role"] == role}
    assert pids
    assert all(pid > 0 and started(pid) for pid in pids.values())
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        try:
            now = {w["name"]: w for w in tree(gateway)["workers"]}
        except OSError:  # admin itself is on its way
            return False
        return all(now[name]["pid"] not in (0, pid) and now[name]["state"] == "up" for name, pid in pids.items())

    with trio.fail_after(60):
        while not await trio.to_thread.run_sync(replaced):
            await trio.sleep(0.05)


async def test_without_performance_monitoring_nothing_is_measured(start_gateway: Any) -> None:
    """No durations, sizes, lags or mailboxes; what is counted is counted all the same."""
    gateway = start_gateway(environment={"PERFORMANCE_MONITORING": "false", "WORKERS": "1"})
    await stir(gateway)
    found = await scrape.until(
        gateway, lambda found: scrape.total(found, "portcullis_connections_closed_total") == 2
    )
    measured = re.compile(r".*_(duration|lag)_seconds|portcullis_(mailbox|turn|call_\w+_size)_.*")
    for (name, labels), value in found.items():
        if measured.match(name) and not name.startswith("portcullis_audit_lag"):
            assert value == 0, (name, labels)
    assert scrape.total(found, "portcullis_messages_received_total") > 10
    assert scrape.total(found, "portcullis_refusals_total") == 4


async def test_monitoring_is_switched_by_a_reload(start_gateway: Any, tmp_path: Path) -> None:
    """Off and on without a restart: what was measured until then stays and grows on."""
    work = tmp_path / "gateway0" / "work"
    work.mkdir(parents=True)
    work.joinpath(".env").write_text("PERFORMANCE_MONITORING=false\n")
    gateway = start_gateway(environment={"WORKERS": "1"})
    calls = lambda found: scrape.total(found, CALLS)  # noqa: E731
    async with tcp_client(gateway) as client:
        await client.initialize()
        found = await scrape.until(gateway, received(3))
        assert calls(found) == 0
        work.joinpath(".env").write_text("PERFORMANCE_MONITORING=true\n")
        os.kill(gateway.pid, signal.SIGHUP)
        # The reload reaches the workers one by one: ask until the acceptor measures.
        number = 0
        with trio.fail_after(60):
            while not calls(found):
                number += 1
                await client.call("tools/list", {}, id=b"%d" % number)
                found = await scrape.until(gateway, received(3 + number))
        await scrape.until(gateway, lambda found: scrape.total(found, "portcullis_loop_lag_seconds_count") > 0)


def received(messages: int) -> Callable[[dict[scrape.Sample, float]], bool]:
    return lambda found: scrape.total(found, "portcullis_messages_received_total", listener="tcp") >= messages
