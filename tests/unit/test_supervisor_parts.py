"""The small parts of the supervisor: lock, journal, handover, table, wiring, snapshot, logs, the ready file."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import pytest

from ipc.control import ActorSpec, LinkGrant
from ipc.messages import AuditAck, AuditBatch, Done
from ipc.settings import Settings
from supervisor import handover, kernel, ready, snapshot, wiring
from supervisor.backoff import SECOND
from supervisor.handover import Server
from supervisor.journal import AuditFeed, Journal
from supervisor.specs import SpecTable, WorkerSpec, production
from supervisor.state_lock import NAME, StateLock, StateLocked
from supervisor.strategy import Begin, Exited, State, Up, decide

# --- the platform and the state directory


@pytest.mark.parametrize(
    ("system", "release", "fine"),
    [
        ("linux", "5.10.0-8-amd64", True),
        ("linux", "6.1", True),
        ("linux", "5.9.16", False),
        ("linux", "4.19.0", False),
        ("linux", "unknown", False),
        ("darwin", "23.1.0", False),
    ],
)
def test_only_linux_from_5_10_on(system: str, release: str, fine: bool) -> None:
    """Anything else is refused with a sentence that names what was found."""
    if fine:
        kernel.check(system, release)
        return
    with pytest.raises(kernel.UnsupportedPlatform, match=release if system == "linux" else system):
        kernel.check(system, release)


def test_a_state_directory_has_one_holder(tmp_path: Path) -> None:
    """The second is refused and told the first one's pid; afterwards it is free again."""
    directory = tmp_path / "deep" / "state"
    with StateLock(directory):
        assert directory.stat().st_mode & 0o777 == 0o700
        with pytest.raises(StateLocked, match=f"pid {os.getpid()}"), StateLock(directory):
            pass
    with StateLock(directory):
        assert (directory / NAME).read_text() == f"{os.getpid()}\n"
    assert (directory / NAME).read_text() == ""


# --- audit events


def batches(feed: AuditFeed, sent: list[tuple[int, AuditBatch]]) -> list[tuple[int, int]]:
    return [(batch.first, len(batch.events)) for _, batch in sent]


def test_events_wait_for_the_audit_actor_and_are_numbered() -> None:
    """Nothing is lost while it is away; each event keeps its number, whatever is sent again."""
    sent: list[tuple[int, AuditBatch]] = []
    away = [True]

    def post(number: int, batch: AuditBatch) -> bool:
        if not away[0]:
            sent.append((number, batch))
        return not away[0]

    feed = AuditFeed(post)
    for _ in range(3):
        feed.record("worker.killed", "error", "failure")
    away[0] = False
    feed.retry()
    assert batches(feed, sent) == [(0, 3)]
    feed.retry()
    assert len(sent) == 1, "sent again before an answer was due"
    feed.record("worker.restarted", "info", "success")
    feed.answered(sent[0][0], AuditAck(3), "")
    feed.answered(sent[1][0], None, "down")
    feed.retry()
    assert batches(feed, sent) == [(0, 3), (3, 1), (3, 1)]
    feed.restart()
    feed.answered(sent[2][0], AuditAck(4), "")
    assert feed.journal.waiting == 1, "an answer of the actor before counts no more"
    feed.feed()
    feed.answered(sent[3][0], AuditAck(4), "")
    assert feed.journal.waiting == 0


def test_one_batch_is_on_its_way_at_a_time() -> None:
    """A second one could be taken although the first was lost, which would then look like a repetition; only at the
    end everything is sent at once. A later run is another source: its numbers start anew."""
    sent: list[tuple[int, AuditBatch]] = []
    feed = AuditFeed(lambda number, batch: sent.append((number, batch)) or True)
    feed.record("worker.killed", "error", "failure")
    feed.record("worker.restarted", "info", "success")
    assert batches(feed, sent) == [(0, 1)]
    feed.answered(sent[0][0], None, "down")
    feed.retry()
    assert batches(feed, sent) == [(0, 1), (0, 2)]
    feed.record("gateway.stopped", "info", "success")
    feed.feed(hurry=True)
    assert batches(feed, sent) == [(0, 1), (0, 2), (2, 1)]
    assert AuditFeed(lambda *_: True).journal.source != feed.journal.source


def test_an_answer_that_is_no_ack_sends_again() -> None:
    """Whatever else the audit actor says, the events are not in the log."""
    sent: list[tuple[int, AuditBatch]] = []
    feed = AuditFeed(lambda number, batch: sent.append((number, batch)) or True)
    feed.record("worker.killed", "error", "failure")
    feed.answered(sent[0][0], Done(ok=False), "")
    feed.retry()
    assert batches(feed, sent) == [(0, 1), (0, 1)]


def test_the_ring_is_bounded_and_counts_what_it_lost() -> None:
    """The oldest go first, and the numbers show the gap."""
    journal = Journal(capacity=3)
    for number in range(5):
        journal.add("worker.killed", "error", "failure", reason=str(number))
    batch = journal.next_batch()
    assert batch is not None
    assert (batch.first, [event.reason for event in batch.events]) == (2, ["2", "3", "4"])
    assert journal.lost == 2


# --- handing listeners over


def servers(**serves: bool) -> list[Server]:
    return [Server(name, 1, serves=up, replaced_soon=False) for name, up in serves.items()]


def test_nobody_holds_what_its_owner_serves() -> None:
    """And what was held is given back."""
    assert handover.holders(servers(a=True, b=True), {"a": ("b", 1)}) == {}


def test_a_sibling_holds_what_nobody_serves_and_the_load_is_spread() -> None:
    """Two that are down go to two different siblings, and stay there."""
    held = handover.holders(servers(a=False, b=False, c=True, d=True), {})
    assert sorted(held.values()) == [("c", 1), ("d", 1)]
    assert handover.holders(servers(a=False, b=False, c=True, d=True), held) == held


def test_a_holder_that_fails_is_replaced() -> None:
    """Whether it is down itself or is another incarnation now."""
    assert handover.holders(servers(a=False, b=False, c=True), {"a": ("b", 1)})["a"] == ("c", 1)
    reborn = [Server("a", 1, serves=False, replaced_soon=False), Server("b", 2, serves=True, replaced_soon=False)]
    assert handover.holders(reborn, {"a": ("b", 1)}) == {"a": ("b", 2)}


def test_the_standby_is_quicker_than_a_handover() -> None:
    """While a warm process takes the place nothing is moved; and with no sibling nothing can be."""
    soon = [Server("a", 2, serves=False, replaced_soon=True), Server("b", 1, serves=True, replaced_soon=False)]
    assert handover.holders(soon, {}) == {}
    assert handover.holders(servers(a=False), {}) == {}


# --- the table


def test_the_table_of_the_gateway() -> None:
    """Policy first, edges last; everybody who talks has a channel; nobody gets a secret that it has no use for."""
    settings = Settings(workers=3, ws_auth_token=("t" * 32,), jwt_secret="s" * 32, admin_token="a" * 32)
    table = production(settings)
    assert [worker.name for worker in table.workers] == [
        *("policy", "admin", "bridge", "validator", "edge.0", "edge.1", "edge.2"),
    ]
    assert table.talk("edge.1", "policy")
    assert table.talk("bridge", "policy")
    assert table.talk("admin", "validator")
    assert not table.talk("edge.0", "edge.1")
    assert not table.talk("edge.0", "validator")
    assert list(table.linked()) == [(f"acceptor.{number}", "validator") for number in range(3)]
    seen = {worker.name: table.settings_for(worker, settings) for worker in table.workers}
    assert seen["policy"].jwt_secret
    assert seen["admin"].admin_token
    assert not seen["edge.0"].jwt_secret
    assert not seen["edge.0"].ws_auth_token
    assert not seen["bridge"].admin_token
    mixed = WorkerSpec("x", "edge", 0, (ActorSpec("acceptor.0", "a:b"), ActorSpec("auth", "a:b")))
    assert table.settings_for(mixed, settings).jwt_secret


def test_tables_that_make_no_sense_are_refused() -> None:
    """One name twice, the supervisor's own name, two acceptors behind one key."""
    for names in (("auth", "auth"), ("supervisor",), ("acceptor.0", "acceptor.1")):
        with pytest.raises(ValueError):
            SpecTable((WorkerSpec("w", "edge", 0, tuple(ActorSpec(name, "m:f") for name in names)),))


def test_pairs_are_made_for_those_who_talk_and_closed_for_nobody_else() -> None:
    """Each end is connected to its other one; links are keyed by the validator's and the edge's names."""
    table = production(Settings(workers=1))
    pairs = wiring.connect(table, "edge.0", ["policy", "validator", "admin"])
    by_peer = {own.peer: (own, theirs) for own, theirs in pairs}
    assert set(by_peer) == {"policy", "validator", "admin"}
    own, theirs = by_peer["policy"]
    assert own.stream is not None
    assert theirs.stream is not None
    own.stream.send(b"hello")
    assert theirs.stream.recv(5) == b"hello"
    own, theirs = by_peer["validator"]
    assert own.stream is None
    assert own.grants == (LinkGrant("acceptor.0", "validator"),)
    assert theirs.grants == (LinkGrant("validator", "edge.0"),)
    assert own.links[0][1].type == socket.SOCK_SEQPACKET
    for ends in pairs:
        for end in ends:
            end.close()


# --- what is shown


def running(*names: str) -> State:
    table = SpecTable(tuple(WorkerSpec(name, "edge", 0, (ActorSpec(name, "m:f"),)) for name in names))
    state, _ = decide(State.new(attrs.evolve(table.plan(), escalates=False)), Begin(), 0)
    for name in names:
        state, _ = decide(state, Up(name, 1), 0)
    return state


def test_the_snapshot_says_what_is_wrong() -> None:
    """Nothing for a first restart; a line for a worker that keeps failing, and for one that hangs."""
    views = {"a": snapshot.WorkerView("edge", os.getpid()), "b": snapshot.WorkerView("edge", suspect=True)}
    state = running("a", "b")
    document = json.loads(snapshot.build(state, views, uptime_s=1.5, version="9", draining=False).data)
    assert document["degraded"] == ["b: makes no progress"]
    assert [worker["state"] for worker in document["workers"]] == ["up", "suspect"]
    assert document["workers"][0]["rss_kb"] > 1_000
    state, _ = decide(state, Exited("a", 1, "died", 0.0), SECOND)
    assert list(snapshot.degraded(state, views)) == ["b: makes no progress"]
    state, _ = decide(state, Exited("a", 2, "died", 0.0), SECOND)
    assert list(snapshot.degraded(state, views)) == ["a: failed 2 times in a row", "b: makes no progress"]


def test_the_ready_file_is_whole_or_absent(tmp_path: Path) -> None:
    """Nothing lies beside it; what can't be written leaves nothing behind."""
    path = tmp_path / "ready.json"
    ready.write_ready_file(str(path), {"ws": 1, "tcp": 2, "health": 3})
    assert json.loads(path.read_text()) == {"ws": 1, "tcp": 2, "health": 3, "pid": os.getpid()}
    assert list(tmp_path.iterdir()) == [path]
    ready.remove_ready_file(str(path))
    ready.remove_ready_file(str(path))
    path.mkdir()
    with pytest.raises(OSError):
        ready.write_ready_file(str(path), {"ws": 1})
    assert list(tmp_path.iterdir()) == [path]


def test_the_banner_shows_only_what_was_made_up() -> None:
    """A configured token is never printed; a made-up one comes with a command that reaches the listener."""
    settings = Settings(ws_auth_token=("made-up",), tcp_auth_token=("configured",), ws_host=("::",))
    text = ready.banner(settings, {"ws": 3002, "tcp": 9500}, ("ws_auth_token",))
    assert "WS_AUTH_TOKEN=made-up /" in text
    assert "ws://[::1]:3002" in text
    assert "configured" not in text.replace("No tokens are configured", "")
    assert ready.banner(settings, {"ws": 3002, "tcp": 9500}, ()) == ""


# --- logs


LOGGER = """
import logging, sys
from supervisor import logs
logs.set_up("me", "info", as_json=sys.argv[1] == "json")
log = logging.getLogger("x")
for n in range(int(sys.argv[2])):
    log.info("line %d \\x1b[31m \\u202e evil\\nsecond", n)
log.debug("not shown")
log.info("%d arguments", "wrong")
logs.finish()
"""


def log_lines(form: str, count: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOGGER, form, str(count)], stderr=subprocess.PIPE, check=True, text=True
    )
    return done.stderr.splitlines()


def test_logs_are_json_in_production_and_harmless_on_a_terminal() -> None:
    """One line a record in JSON; elsewhere escapes are shown and not obeyed; a wrong record ends nothing."""
    lines = log_lines("json", 2)
    record = json.loads(lines[0])
    assert (record["process"], record["level"], record["logger"]) == ("me", "info", "x")
    assert record["message"].endswith("second")
    assert "can't be formatted" in lines[-1]
    text = "\n".join(log_lines("text", 2))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[31m \\u202e evil" in text
    assert "not shown" not in text


def test_a_stderr_that_nobody_reads_blocks_nobody() -> None:
    """Far more than the pipe and the queue hold is logged; the process goes on, and the loss is counted."""
    script = LOGGER.replace("logs.finish()", "print('went on', flush=True); sys.stdin.read(1); logs.finish()")
    with subprocess.Popen(
        [sys.executable, "-c", script, "text", "20000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"went on\n"
        collected: list[bytes] = []
        reader = threading.Thread(target=lambda: collected.append(process.stderr.read()))
        reader.start()
        process.stdin.write(b"x")
        process.stdin.close()
        reader.join()
        assert b"log records were dropped" in collected[0]


def test_levels_are_of_the_root_logger() -> None:
    """Setting up twice renames the process and adds no second handler."""
    assert logging.getLogger().handlers is not None
    script = "from supervisor import logs; import logging\nfor n in 'ab': logs.set_up(n, 'info', as_json=False)\n"
    script += "assert len(logging.getLogger().handlers) == 1; logging.getLogger().info('once'); logs.finish()"
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=True, text=True)
    assert done.stderr.count("once") == 1
    assert " b root: once" in done.stderr


# --- what the supervisor may know


def test_the_supervisor_imports_no_actor() -> None:
    """Nor anything that only actors and tools need: an error in them can't take it down, and it starts quickly."""
    script = "import sys, supervisor.run, supervisor.specs, supervisor.worker\n"
    script += "print([m for m in sys.modules if m.split('.')[0] in ('actors', 'ops', 'rich', 'h11', 'jwt', 'sqlite3')])"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout == "[]\n"


