"""Sessions on the disk: what was acknowledged is there, and what can't be read is never replaced."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import attrs
import pytest

from actors.policy.sessions import Changes, Revocation, Session
from actors.session_store import FILE, SessionStore, StoreUnusable, backup

SESSION = Session("0" * 24, b"s" * 16, "alice", ("mcp:call", "mcp:read"), 1, 2, 3, 4, 5, b"c" * 16)
REVOCATION = Revocation("token", "jti:1", 6, 7)


class Rig:
    """A store whose answers come into a queue of the test's own thread."""

    def __init__(self, directory: Path) -> None:
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.store = SessionStore(str(directory), self.posted.put)
        self.errors: list[sqlite3.Error | None] = []

    def commit(self, changes: Changes) -> sqlite3.Error | None:
        self.store.commit(changes, self.errors.append)
        before = len(self.errors)
        while len(self.errors) == before:
            self.posted.get(timeout=30)()
        return self.errors[-1]


def test_what_was_acknowledged_is_read_again(tmp_path: Path) -> None:
    """Sessions and revocations come back as they were written last; what was dropped does not."""
    rig = Rig(tmp_path)
    assert rig.store.load().sessions == []
    rig.store.start()
    assert rig.commit(Changes({SESSION.handle: SESSION}, {("token", "jti:1"): REVOCATION})) is None
    changed = attrs.evolve(SESSION, generation=9)
    other = attrs.evolve(SESSION, handle="1" * 24, scopes=())
    assert rig.commit(Changes({SESSION.handle: changed, other.handle: other})) is None
    content = SessionStore(str(tmp_path), rig.posted.put).load()
    assert sorted(content.sessions, key=lambda one: one.handle) == [changed, other]
    assert content.revocations == [REVOCATION]
    assert rig.commit(Changes({other.handle: None}, {("token", "jti:1"): None})) is None
    rig.store.close()
    content = rig.store.load()
    assert (content.sessions, content.revocations) == ([changed], [])
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_each_commit_is_synced(tmp_path: Path) -> None:
    """Revocations and rotations survive the machine: write-ahead logging with a sync at every commit."""
    rig = Rig(tmp_path)
    database = rig.store._open()
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA user_version").fetchone() == (2,)
    database.close()


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"x" * 8192)


def _of_something_else(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (a)")


def _of_another_version(path: Path) -> None:
    rig = Rig(path.parent)
    rig.store.load()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 3")


def _with_many_rows(path: Path) -> None:
    rig = Rig(path.parent)
    rig.store.load()
    rig.store.start()
    rig.commit(Changes({f"{n:024x}": attrs.evolve(SESSION, handle=f"{n:024x}") for n in range(500)}))
    rig.store.close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _with_a_torn_page(path: Path) -> None:
    _with_many_rows(path)
    data = bytearray(path.read_bytes())
    data[8192:12288] = b"\xff" * 4096
    path.write_bytes(data)


def _that_can_be_read_but_is_inconsistent(path: Path) -> None:
    _with_many_rows(path)
    data = bytearray(path.read_bytes())
    data[36:40] = (7).to_bytes(4, "big")  # the number of free pages (https://www.sqlite.org/fileformat2.html §1.3.9)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        _not_a_database,
        _of_something_else,
        _of_another_version,
        _with_a_torn_page,
        _that_can_be_read_but_is_inconsistent,
    ],
)
def test_what_cant_be_read_is_named_and_left_alone(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Loading raises with the file's name and what to do; not a byte of the file is changed."""
    path = tmp_path / FILE
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match=str(path)):
        Rig(tmp_path).store.load()
    assert path.read_bytes() == before


def test_a_failed_commit_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """If one of its rows can't be written, none is; the store goes on with the next commit."""
    rig = Rig(tmp_path)
    rig.store.load()
    rig.store.start()
    broken: Any = attrs.evolve(SESSION, salt=None)
    assert isinstance(rig.commit(Changes({"a": attrs.evolve(SESSION, handle="a"), "b": broken})), sqlite3.Error)
    assert rig.commit(Changes({SESSION.handle: SESSION})) is None
    rig.store.close()
    assert rig.store.load().sessions == [SESSION]


def test_a_backup_is_whole(tmp_path: Path) -> None:
    """The copy, made while the database is in use, holds everything that was acknowledged, for its owner alone."""
    rig = Rig(tmp_path)
    rig.store.load()
    rig.store.start()
    rig.commit(Changes({SESSION.handle: SESSION}))
    copy = tmp_path / "copy"
    copy.mkdir()
    backup(str(tmp_path), copy / FILE)
    rig.store.close()
    assert (copy / FILE).stat().st_mode & 0o777 == 0o600
    assert SessionStore(str(copy), rig.posted.put).load().sessions == [SESSION]
