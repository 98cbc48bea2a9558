"""Sessions and revocations on the disk: ``STATE_DIR/sessions.sqlite``, written by the actor auth alone.

SQLite syncs with each commit (WAL, ``synchronous=FULL``), which must not hold up the other actors of the worker; so
one thread of its own owns the database, takes what has gathered since its last commit, and commits it at once.
``commit`` calls back when the changes are on the disk, in the order of the calls.

Nothing in the file can be presented to the gateway: see ``policy/session_tokens``. A file that is damaged, or of
another version, is never replaced: that would forget revocations.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import msgspec

from ipc.messages import AuditEvent

from .journal import state_file
from .policy.sessions import Changes, Revocation, Session

log = logging.getLogger("portcullis.auth")

FILE: Final = "sessions.sqlite"
VERSION: Final = 2
_APPLICATION: Final = 0x50435353  # "PCSS"
_BATCH: Final = 256
_BUSY_S: Final = 2.0  # a backup command may hold a lock for a moment

_SCHEMA: Final = """
CREATE TABLE sessions (
    handle TEXT PRIMARY KEY, salt BLOB NOT NULL, principal TEXT NOT NULL, scopes TEXT NOT NULL,
    created_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL, generation INTEGER NOT NULL, rotated_ms INTEGER NOT NULL,
    access_ms INTEGER NOT NULL, client BLOB NOT NULL, not_after_ms INTEGER NOT NULL DEFAULT 0,
    standing TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE TABLE revocations (
    kind TEXT NOT NULL, value TEXT NOT NULL, at_ms INTEGER NOT NULL, until_ms INTEGER NOT NULL,
    PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;
"""

_ADDED_BY_2: Final = """
CREATE TABLE records (number INTEGER PRIMARY KEY, event BLOB NOT NULL) STRICT;
CREATE TABLE keys (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO keys VALUES ('static names', randomblob(32));
"""
_FROM_1_TO_2: Final = (
    """
ALTER TABLE sessions ADD COLUMN not_after_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN standing TEXT NOT NULL DEFAULT '';
"""
    + _ADDED_BY_2
)


class StoreUnusable(OSError):
    """The database can't be read or written. The message names the file, and what to do."""


@attrs.frozen
class Content:
    """``records``: audit events of what was committed, by number, which may not have reached the audit log.
    ``name_key``: of the names of static tokens' holders."""

    sessions: Sequence[Session] = ()
    revocations: Sequence[Revocation] = ()
    records: Mapping[int, AuditEvent] = attrs.field(factory=dict)
    name_key: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen
class _Job:
    changes: Changes
    done: Callable[[sqlite3.Error | None], None]


class SessionStore:
    """Args:
    post: runs a callable in the thread of the loop, from any thread; it may raise when the loop has ended.
    """

    def __init__(self, state_dir: str, post: Callable[[Callable[[], None]], None]) -> None:
        self.path = state_file(state_dir, FILE)
        self.commits = 0
        self.failures = 0
        self._post = post
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Commits that are not on the disk yet."""
        return self._waiting

    def load(self) -> Content:
        """Everything there is; the file is made, mode 0600, when there is none. Blocks; not while ``start``ed.

        Raises StoreUnusable.
        """
        try:
            with contextlib.closing(self._open()) as database:
                return _read(database)
        except (sqlite3.Error, OSError, ValueError, TypeError, msgspec.MsgspecError) as error:
            raise self._unusable(error) from error

    def start(self) -> None:
        """Begin to write. Call ``close`` in the end."""
        self._thread = threading.Thread(target=self._run, name="session store", daemon=True)
        self._thread.start()

    def commit(self, changes: Changes, done: Callable[[sqlite3.Error | None], None]) -> None:
        """Write, sync, then run ``done`` in the loop: with None, or with why nothing of this was written.

        Without changes ``done`` still runs only after everything that was committed before.
        """
        self._waiting += 1
        self._jobs.put(_Job(changes, done))

    def close(self) -> None:
        """Stop the thread after what has been given to it; waits for its last sync."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        database: sqlite3.Connection | None = None
        more = True
        while more:
            jobs: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                jobs.append(job)
                if len(jobs) >= _BATCH or self._jobs.empty():
                    break
                job = self._jobs.get()
            more = job is not None
            error: sqlite3.Error | None = None
            try:
                if any(one.changes for one in jobs):
                    database = database if database is not None else self._open()
                    _write(database, [one.changes for one in jobs])
            except (sqlite3.Error, OSError) as failure:
                error = failure if isinstance(failure, sqlite3.Error) else sqlite3.OperationalError(str(failure))
                if database is not None:
                    database.close()  # whatever is wrong with it, the next commit begins anew
                    database = None
            if jobs:
                try:
                    self._post(lambda jobs=jobs, error=error: self._done(jobs, error))  # type: ignore[misc]
                except RuntimeError:  # the loop has ended, and with it whoever waits
                    break
        if database is not None:
            database.close()

    def _done(self, jobs: list[_Job], error: sqlite3.Error | None) -> None:
        self._waiting -= len(jobs)
        if error is None:
            self.commits += 1
        else:
            self.failures += 1
            log.error("%s can't be written: %s", self.path, error)
        for job in jobs:
            job.done(error)

    def _open(self) -> sqlite3.Connection:
        with contextlib.suppress(FileExistsError):  # SQLite would make it with the umask's mode
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            _prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    def _unusable(self, error: Exception) -> StoreUnusable:
        return StoreUnusable(
            f"{self.path}: the session database can't be used ({error}). Nobody can come in until it can: restore a "
            "copy, or move the file away, which ends all sessions and forgets all revocations"
        )


def backup(state_dir: str, target: Path) -> None:
    """Copy the database, whole and in one state, while it is in use. Raises sqlite3.Error, OSError."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    source = Path(state_dir) / FILE
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as database,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        database.backup(copy)


def _prepare(database: sqlite3.Connection) -> None:
    """Raises sqlite3.Error for a file that is no sound database of ours."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    is_new = version == 0 and not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if not is_new and database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise sqlite3.DatabaseError("it is a database of something else")
    if not is_new and version not in (1, VERSION):
        raise sqlite3.DatabaseError(f"its schema is of version {version}, this release knows {VERSION}")
    if database.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
        raise sqlite3.OperationalError("write-ahead logging is not possible there")
    database.execute("PRAGMA synchronous=FULL")
    if is_new:
        pragmas = f"PRAGMA application_id={_APPLICATION}; PRAGMA user_version={VERSION};"
        database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {_ADDED_BY_2} {pragmas} COMMIT;")
    elif version == 1:
        database.executescript(f"BEGIN IMMEDIATE; {_FROM_1_TO_2} PRAGMA user_version={VERSION}; COMMIT;")


def _read(database: sqlite3.Connection) -> Content:
    problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(problem)
    sessions = [
        Session(handle, salt, principal, tuple(scopes.split()), *rest)
        for handle, salt, principal, scopes, *rest in database.execute(
            "SELECT handle, salt, principal, scopes, created_ms, used_ms, generation, rotated_ms, access_ms, client,"
            " not_after_ms, standing FROM sessions"
        )
    ]
    revocations = [Revocation(*row) for row in database.execute("SELECT kind, value, at_ms, until_ms FROM revocations")]
    records = {
        number: msgspec.msgpack.decode(event, type=AuditEvent)
        for number, event in database.execute("SELECT number, event FROM records ORDER BY number")
    }
    (name_key,) = database.execute("SELECT value FROM keys WHERE name = 'static names'").fetchone()
    return Content(sessions, revocations, records, name_key)


def _write(database: sqlite3.Connection, batch: Sequence[Changes]) -> None:
    """All of it, in order, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        for changes in batch:
            for handle, session in changes.sessions.items():
                if session is None:
                    database.execute("DELETE FROM sessions WHERE handle = ?", (handle,))
                else:
                    _put(database, session)
            for key, revocation in changes.revocations.items():
                if revocation is None:
                    database.execute("DELETE FROM revocations WHERE kind = ? AND value = ?", key)
                else:
                    row = (*key, revocation.at_ms, revocation.until_ms)
                    database.execute("INSERT OR REPLACE INTO revocations VALUES (?, ?, ?, ?)", row)
            for number, event in changes.records.items():
                if event is None:
                    database.execute("DELETE FROM records WHERE number = ?", (number,))
                else:
                    row_ = (number, msgspec.msgpack.encode(event))
                    database.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", row_)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _put(database: sqlite3.Connection, session: Session) -> None:
    row = (
        session.handle, session.salt, session.principal, " ".join(session.scopes), session.created_ms,
        session.used_ms, session.generation, session.rotated_ms, session.access_ms, session.client,
        session.not_after_ms, session.standing,
    )  # fmt: skip
    database.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
