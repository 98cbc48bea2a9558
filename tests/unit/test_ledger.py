"""The table that the workers share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc import ledger
from ipc.ledger import ROWS, Ledger

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def table() -> Iterator[int]:
    descriptor = ledger.create()
    yield descriptor
    os.close(descriptor)


def test_each_owner_has_a_row_and_sees_all(table: int) -> None:
    """What one writes the other reads, and a row that was given up is free, and empty, for the next."""
    one, other = Ledger(table), Ledger(table)
    assert one.row != other.row
    one.write(0, 7)
    other.write(0, 2**62)
    assert sorted(one.column(0))[-2:] == sorted(other.column(0))[-2:] == [7, 2**62]
    assert not other.bury()  # nobody is dead
    row = one.row
    one.close()
    again = Ledger(table)
    assert (again.row, again.read(0)) == (row, 0)
    again.close()
    other.close()


def test_a_killed_owner_counts_no_more(table: int) -> None:
    """The row of a process that was killed stays until somebody looks, and is cleared then; a living one's isn't."""
    living = Ledger(table)
    living.write(0, 1)
    program = f"""
import sys
from ipc.ledger import Ledger
owner = Ledger({table})
owner.write(0, 42)
print(owner.row, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        pass_fds=(table,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    row = int(process.stdout.readline())
    assert not living.bury()
    assert living.column(0)[row] == 42
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert living.column(0)[row] == 42
    assert living.bury()
    assert (living.column(0)[row], living.read(0)) == (0, 1)
    living.close()


def test_a_full_table_is_an_error(table: int) -> None:
    """Nobody shares a row, and what was opened for nothing is closed."""
    owners = [Ledger(table) for _ in range(ROWS)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="taken"):
        Ledger(table)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for owner in owners:
        owner.close()
