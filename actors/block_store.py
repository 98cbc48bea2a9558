"""Blocks on disk: ``blocks.sqlite`` in STATE_DIR, written by the limiter alone.

A block is worth nothing if a crash lifts it, so each write is one transaction in WAL mode with ``synchronous=FULL``:
once ``write`` returns it survives a crash of the machine (SQLite, "Atomic commit" and "Write-ahead logging").

A file that is damaged, or that another release wrote, is not replaced: it may hold blocks, and without them the ones
who are blocked would be let in. It is refused with an error that says what to do.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from .policy.blocks import Block

FILE: Final = "blocks.sqlite"
SCHEMA: Final = 1
_BUSY_S: Final = 5.0  # somebody makes a backup

_TABLE: Final = """
CREATE TABLE blocks (
    key TEXT PRIMARY KEY NOT NULL,
    since_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    strikes INTEGER NOT NULL,
    automatic INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""


class BlockStoreDamaged(RuntimeError):
    """The file can't be used, and must not be passed over."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path}: {what}; restore it from a backup, or move it away to start without any block; "
            "nobody is let in meanwhile"
        )


class BlockStore:
    """One open file. Every method blocks on the disk, and is for one thread at a time, whichever it is."""

    def __init__(self, path: Path) -> None:
        """Open or create it, mode 0600. Raises BlockStoreDamaged."""
        self.path = path
        try:
            path.touch(mode=0o600)
            self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise BlockStoreDamaged(path, str(error)) from error
        try:
            self._prepare()
        except BaseException as error:
            self._database.close()
            if isinstance(error, sqlite3.Error):
                raise BlockStoreDamaged(path, str(error)) from error
            raise

    def _prepare(self) -> None:
        database = self._database
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with self._transaction():
                database.execute(_TABLE)
                database.execute(f"PRAGMA user_version={SCHEMA}")
        elif version != SCHEMA:
            raise BlockStoreDamaged(self.path, f"has schema version {version}, this release knows {SCHEMA}")
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise BlockStoreDamaged(self.path, str(found))

    def load(self) -> list[Block]:
        """All blocks, past ones that are remembered included, oldest end first. Raises BlockStoreDamaged."""
        try:
            rows = self._database.execute(
                "SELECT key, since_ms, until_ms, strikes, automatic, reason FROM blocks ORDER BY until_ms"
            ).fetchall()
        except sqlite3.Error as error:
            raise BlockStoreDamaged(self.path, str(error)) from error
        return [
            Block(key, since, until, strikes, bool(automatic), reason)
            for key, since, until, strikes, automatic, reason in rows
        ]

    def write(self, blocks: Iterable[Block], gone: Sequence[str]) -> None:
        """Keep these blocks, each in place of an earlier one of its key, and drop those keys: all of it or nothing.

        Raises sqlite3.Error.
        """
        with self._transaction():
            self._database.executemany(
                "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (block.key, block.since_ms, block.until_ms, block.strikes, int(block.automatic), block.reason)
                    for block in blocks
                ],
            )
            self._database.executemany("DELETE FROM blocks WHERE key = ?", [(key,) for key in gone])

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors, a full disk among them.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
