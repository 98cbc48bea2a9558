"""``mcp-admin backup``: a copy of what the gateway knows, made while it runs.

The databases are copied by SQLite's own backup, each in one consistent state, with what is still in their write-ahead
logs. Journals are read as they are: a record that is being written is left out at the next start, as after a crash.
``backup.json`` comes last, so that a directory without it is no backup.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from .failure import ClientFailure, UsageError
from .version import version

MANIFEST: Final = "backup.json"
FORMAT: Final = 1
DATABASES: Final = "*.sqlite"
FILES: Final = ("audit.key", "admin.token", "jwt.secret")
JOURNALS: Final = "*.journal"
_BUSY_S: Final = 10.0
_CHUNK: Final = 1 << 20


class BackupFailed(ClientFailure, OSError):
    """Nothing of it is left behind."""


def back_up(state_dir: Path, target: Path) -> dict[str, Any]:
    """Copy ``state_dir`` to the new directory ``target``; what is in its ``backup.json``.

    Raises UsageError for a target that exists or a state directory that holds nothing, BackupFailed.
    """
    sources = _sources(state_dir)
    try:
        target.mkdir(mode=0o700)
    except FileExistsError:
        raise UsageError(f"{target} exists; a backup is never written over anything") from None
    except OSError as error:
        raise BackupFailed(f"{target}: {error.strerror}") from None
    try:
        return _fill(target, sources)
    except (OSError, sqlite3.Error) as error:
        _clear(target)
        where = getattr(error, "filename", None) or target
        raise BackupFailed(f"{where}: {getattr(error, 'strerror', None) or error}; nothing was kept") from None
    except BaseException:
        _clear(target)
        raise


def _sources(state_dir: Path) -> list[Path]:
    try:
        there = sorted(path for path in state_dir.iterdir() if path.is_file() and not path.is_symlink())
    except OSError as error:
        raise UsageError(f"{state_dir}: {error.strerror}; --state-dir or STATE_DIR names another place") from None
    wanted = [path for path in there if path.name in FILES or path.match(DATABASES) or path.match(JOURNALS)]
    if not any(path.match(DATABASES) for path in wanted):
        raise UsageError(f"{state_dir} holds no state of a gateway; --state-dir or STATE_DIR names another place")
    return wanted


def _fill(target: Path, sources: list[Path]) -> dict[str, Any]:
    rows = []
    for source in sources:
        copy = target / source.name
        more = _copy_database(source, copy) if source.match(DATABASES) else _copy_file(source, copy)
        rows.append({"name": source.name, **_digest(copy), **more})
    moment = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    manifest = {"format": FORMAT, "made": moment, "version": version(), "files": rows}
    with _created(target / MANIFEST) as fd:
        _write(fd, json.dumps(manifest, indent=2).encode() + b"\n")
    _sync_directory(target)
    _sync_directory(target.absolute().parent)
    return manifest


def _copy_database(source: Path, target: Path) -> dict[str, int]:
    """Raises sqlite3.Error, for a copy that is not sound too: better known now than when it is needed."""
    with _created(target):
        pass
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)) as live,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        live.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE").fetchone()  # all of it in the one file
        (found,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"{source.name} is damaged: {found}")
        (schema,) = copy.execute("PRAGMA user_version").fetchone()
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return {"schema": int(schema)}


def _copy_file(source: Path, target: Path) -> dict[str, int]:
    """One open file, read to its end: a journal that is replaced meanwhile is copied whole, as it was."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        with _created(target) as copy:
            while data := os.read(fd, _CHUNK):
                _write(copy, data)
    finally:
        os.close(fd)
    return {}


@contextlib.contextmanager
def _created(path: Path) -> Iterator[int]:
    """A new file, mode 0600, on the disk when it is closed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _digest(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _clear(target: Path) -> None:
    """What was begun here, and nothing else: the directory is new, so everything in it is ours."""
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
