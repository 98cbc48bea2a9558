"""State of the policy actors under kill -9 at random instructions of a real process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from actors.audit_log import AuditLog, Entry
from actors.journal import Journal, boot_id
from actors.policy.chain import START, verify
from actors.policy.leases import Denied, Forfeited, Granted, LeasePolicy, Logged, Reported
from actors.policy.window import WindowRule
from ipc.messages import AuditEvent

GRANTING = """
import os, sys, time
from pathlib import Path
import msgspec
from actors import journal
from actors.policy.leases import Denied, Granted, LeasePolicy, Reported
from actors.policy.window import WindowRule
journal._SMALLEST_LIMIT = 20_000
rules = (WindowRule(1_000_000, 3_600_000_000_000),)
policy = LeasePolicy(rules)
file, _ = journal.Journal.open(Path(sys.argv[1]), "limiter", boot=journal.boot_id())
encode = msgspec.msgpack.Encoder().encode
while True:
    now = time.monotonic_ns()
    granted = policy.request("acceptor.0", 1, ("ip:k",), 3, now)
    policy.apply(granted)
    if file.is_grown:
        file.rewrite(map(encode, policy.snapshot(now)))
    else:
        file.append([encode(granted)])
    os.write(1, b"%d\\n" % granted.units)
"""

WRITING = """
import os, sys
from pathlib import Path
from actors import audit_log, journal
from ipc.messages import AuditEvent
journal._SMALLEST_LIMIT = 20_000
directory, state, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
log = audit_log.AuditLog(directory, state, max_bytes=100_000, keep=1000, counted=list)
number = first
while True:
    batch = [AuditEvent("call.completed", "info", "success", i, method=str(i)) for i in range(number, number + 3)]
    fresh = batch[max(0, log.next_of("test~1") - number):]
    if fresh:
        log.write(audit_log.Entry(fresh, {"test~1": number + 3}))
    number += 3
    os.write(1, b"%d\\n" % number)
"""


def _run_and_kill(script: str, *arguments: str, after: float) -> list[int]:
    """Let it run for a moment after its first answer, kill it, and return all its whole answers."""
    with subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        drained = bytearray(first)
        os.set_blocking(process.stdout.fileno(), False)
        until = time.monotonic() + after
        while time.monotonic() < until:
            drained += process.stdout.read() or b""
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.set_blocking(process.stdout.fileno(), True)
        drained += process.stdout.read()
    return [int(line) for line in bytes(drained).split(b"\n")[:-1]]


@pytest.mark.parametrize("seed", range(4))
def test_every_unit_that_was_announced_is_remembered(tmp_path: Path, seed: int) -> None:
    """After kill -9 the journal accounts for each grant that was answered, and at most for one more."""
    path = tmp_path / "limiter.journal"
    after = random.Random(seed).uniform(0, 0.15)
    announced = _run_and_kill(GRANTING, str(path), after=after)
    policy = LeasePolicy((WindowRule(1_000_000, 3_600_000_000_000),))
    decode = msgspec.msgpack.Decoder(Granted | Reported | Forfeited | Logged).decode
    journal, recovered = Journal.open(path, "limiter", boot=boot_id())
    journal.close()
    for record in recovered.records:
        policy.apply(decode(record))
    assert not isinstance(policy.request("acceptor.0", 1, ("ip:k",), 1, time.monotonic_ns()), Denied)
    remembered = 1_000_000 - policy.table.left("ip:k", time.monotonic_ns())
    assert sum(announced) <= remembered <= sum(announced) + 3
    assert announced


def test_the_log_holds_each_event_once_over_many_kills(tmp_path: Path) -> None:
    """Killed again and again while writing, rotating and compacting: no acknowledged event is missing, none is twice,
    and the chain verifies from the first record to the last."""
    directory, state = tmp_path / "log", str(tmp_path / "state")
    chance = random.Random(7)
    acknowledged = 0
    for _ in range(6):
        answers = _run_and_kill(WRITING, str(directory), state, str(acknowledged), after=chance.uniform(0, 0.12))
        acknowledged = answers[-1]
    log = AuditLog(directory, state, max_bytes=1 << 30, keep=1000, counted=list)
    log.write(Entry([AuditEvent("gateway.stopped", "info", "success", 0)]))
    head = log.head
    written = log.next_of("test~1")
    log.close()
    active = directory / "security-audit.log"
    files = [*sorted(directory.glob("security-audit.log.*")), active]
    lines = [line for path in files for line in path.read_bytes().splitlines(keepends=True)]
    key = bytes.fromhex((tmp_path / "state" / "audit.key").read_text())
    checked = verify(lines, key, before=START, head=head)
    assert checked.first_bad is None
    records = [json.loads(line.removeprefix(b"SECURITY ")) for line in lines]
    methods = [int(record["method"]) for record in records if "method" in record]
    assert methods == list(range(written))
    assert acknowledged <= written <= acknowledged + 3
    assert len(files) > 1
