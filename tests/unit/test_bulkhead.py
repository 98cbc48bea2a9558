"""How many calls are in flight to one upstream, counted by several owners."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from actors.upstream.bulkhead import OwnBulkhead, SharedBulkhead

NAMES = ("a", "b")


def _shared(path: Path, row: int, limit: int = 3, rows: int = 3) -> SharedBulkhead:
    return SharedBulkhead(path / "inflight", row, rows, NAMES, limit)


def test_alone() -> None:
    """Each upstream by itself, up to the limit; what leaves makes room."""
    bulkhead = OwnBulkhead(2)
    assert [bulkhead.enter("a") for _ in range(3)] == [True, True, False]
    assert bulkhead.enter("b")
    bulkhead.leave("a")
    assert [bulkhead.enter("a") for _ in range(2)] == [True, False]


def test_together(tmp_path: Path) -> None:
    """All owners together have the limit, each upstream by itself; a refusal leaves nothing behind."""
    owners = [_shared(tmp_path, row) for row in range(3)]
    assert [owner.enter("a") for owner in owners * 2] == [True] * 3 + [False] * 3
    assert all(owner.enter("b") for owner in owners)
    owners[1].leave("a")
    assert [owners[0].enter("a") for _ in range(2)] == [True, False]
    assert (tmp_path / "inflight").stat().st_mode & 0o777 == 0o600


def test_a_successor_begins_with_nothing(tmp_path: Path) -> None:
    """An owner that is restarted takes its row anew; what its predecessor had in flight is over."""
    one, other = _shared(tmp_path, 0), _shared(tmp_path, 1)
    assert all(one.enter("a") for _ in range(3))
    assert not other.enter("a")
    one = _shared(tmp_path, 0)
    assert other.enter("a")
    assert [one.enter("a") for _ in range(3)] == [True, True, False]


def test_a_killed_owner_counts_for_nothing(tmp_path: Path) -> None:
    """Another process fills the bulkhead and is killed with SIGKILL: from then on there is room, restart or not."""
    program = f"""
        import sys, time
        from pathlib import Path
        from actors.upstream.bulkhead import SharedBulkhead
        owner = SharedBulkhead(Path({str(tmp_path / "inflight")!r}), 1, 3, {NAMES!r}, 3)
        print(all(owner.enter("a") for _ in range(3)), flush=True)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"True\n"
            mine = _shared(tmp_path, 0)
            assert not mine.enter("a")
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert [mine.enter("a") for _ in range(4)] == [True, True, True, False]


def test_two_processes_never_have_more_than_the_limit(tmp_path: Path) -> None:
    """Two processes enter and leave a bulkhead of one as fast as they can: neither ever sees the other inside."""
    program = f"""
        import sys
        from pathlib import Path
        from actors.upstream.bulkhead import SharedBulkhead
        row = int(sys.argv[1])
        owner = SharedBulkhead(Path({str(tmp_path / "inflight")!r}), row, 2, {NAMES!r}, 1)
        flag, other = (Path({str(tmp_path)!r}) / f"in{{n}}" for n in (row, 1 - row))
        print("ready", flush=True)
        sys.stdin.readline()
        entered = both = 0
        for _ in range(10_000_000):
            if entered == 500:
                break
            if owner.enter("a"):
                entered += 1
                flag.touch()
                both += other.exists()
                flag.unlink()
                owner.leave("a")
        print(entered, both, flush=True)
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(row)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for row in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            entered, both = map(int, process.stdout.readline().split())
            assert (entered, both) == (500, 0)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_no_table_is_an_error(tmp_path: Path) -> None:
    """Where the file can't be made, whoever asks is told."""
    with pytest.raises(FileNotFoundError):
        _shared(tmp_path / "nowhere", 0)
