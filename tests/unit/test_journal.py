"""The append-only state file."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from actors import journal as journal_module
from actors.journal import Journal, boot_id

RECORDS = [b"one", b"two" * 100, b"\x00", b"four"]


def _open(path: Path, **options: Any) -> tuple[list[bytes], Any]:
    journal, recovered = Journal.open(path, "test", **options)
    journal.close()
    return list(recovered.records), recovered


def test_whatever_is_cut_off_the_end_the_rest_is_intact(tmp_path: Path) -> None:
    """At every possible length of the file the records are a prefix of what was written, and appending goes on."""
    path = tmp_path / "journal"
    journal, recovered = Journal.open(path, "test")
    assert not recovered.found
    empty = journal.size
    journal.append(RECORDS)
    journal.close()
    whole = path.read_bytes()
    seen = set()
    for length in range(empty, len(whole) + 1):
        path.write_bytes(whole[:length])
        records, recovered = _open(path)
        assert records == RECORDS[: len(records)]
        seen.add(len(records))
        journal, recovered = Journal.open(path, "test")
        assert recovered.cut == 0  # what was torn is gone
        journal.append([b"next"])
        journal.close()
        assert _open(path)[0] == [*records, b"next"]
    assert seen == set(range(len(RECORDS) + 1))


def test_a_damaged_byte_is_never_taken_for_a_record(tmp_path: Path) -> None:
    """With any one byte changed the records that are read are a prefix of what was written."""
    path = tmp_path / "journal"
    journal, _ = Journal.open(path, "test")
    start = journal.size
    journal.append(RECORDS)
    journal.close()
    whole = path.read_bytes()
    for position in range(start, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        path.write_bytes(damaged)
        records, recovered = _open(path)
        assert len(records) < len(RECORDS)
        assert records == RECORDS[: len(records)]
        assert recovered.cut > 0


def test_a_run_of_zeros_is_no_record(tmp_path: Path) -> None:
    """What a file system leaves behind a crash of the machine is cut off."""
    path = tmp_path / "journal"
    journal, _ = Journal.open(path, "test")
    journal.append([b"one"])
    journal.close()
    with path.open("ab") as file:
        file.write(bytes(4096))
    records, recovered = _open(path)
    assert records == [b"one"]
    assert recovered.cut == 4096


def test_another_boot_or_kind_is_not_read(tmp_path: Path) -> None:
    """Another boot's records are void without being damage; another kind's are damage."""
    path = tmp_path / "journal"
    journal, _ = Journal.open(path, "test", boot="first")
    journal.append(RECORDS)
    journal.close()
    records, recovered = _open(path, boot="second")
    assert records == []
    assert not recovered.found
    assert not recovered.damaged
    path.write_bytes(b"something else\n")
    records, recovered = _open(path)
    assert records == []
    assert recovered.damaged


def test_rewriting_replaces_everything_at_once(tmp_path: Path) -> None:
    """After a rewrite only the new records are there, private to the owner, and nothing is left beside it."""
    path = tmp_path / "journal"
    journal, _ = Journal.open(path, "test", boot=boot_id())
    journal.append(RECORDS)
    journal.rewrite([b"all"])
    journal.append([b"more"])
    journal.close()
    assert _open(path, boot=boot_id())[0] == [b"all", b"more"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal"]


def test_a_failed_append_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full halfway through a record, the file is as it was and the next append works."""
    path = tmp_path / "journal"
    journal, _ = Journal.open(path, "test")
    journal.append([b"one"])
    real = journal_module.os.write
    calls = 0

    def write(fd: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(fd, data[:5])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(journal_module.os, "write", write)
        with pytest.raises(OSError, match="full"):
            journal.append([b"two"])
    journal.append([b"three"])
    journal.append([b"four"])
    journal.undo()
    journal.close()
    assert _open(path)[0] == [b"one", b"three"]
