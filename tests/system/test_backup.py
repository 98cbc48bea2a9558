"""``mcp-admin backup`` of a gateway that runs, and a gateway that starts from the copy."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from session_clients import admin, ask, post, refresh, session

from ops.cli import backup as backups
from ops.cli.failure import UsageError
from supervisor.settings.variables import VARIABLES

TOKENS = {"WS_AUTH_TOKEN": "w" * 40, "TCP_AUTH_TOKEN": "t" * 40, "RATE_LIMIT_ENABLED": "false"}


def command(module: str, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    names = {name for variable in VARIABLES for name in variable.names}
    environment = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in names}
    return subprocess.run(
        [sys.executable, "-m", f"ops.cli.{module}", *arguments], capture_output=True, text=True, check=False,
        cwd=directory, env=environment, timeout=120,
    )  # fmt: skip


async def worth(gateway: Any, issued: dict[str, Any]) -> Any:
    """What the gateway says of an access token."""
    return await ask(gateway, "GET", "/auth/session", Authorization=f"Bearer {issued['access_token']}")


async def test_a_gateway_that_starts_from_a_backup_knows_what_it_knew(
    start_gateway: Callable[..., Any], tmp_path: Path
) -> None:
    """Sessions with their refresh tokens, revocations, blocks, the admin token and the key of the audit chain; made
    while tokens are being rotated, and restored by copying the directory."""
    first = await trio.to_thread.run_sync(lambda: start_gateway(environment=TOKENS))
    kept, revoked = await session(first), await session(first)
    public = (await worth(first, kept)).document["session"]
    assert (await admin(first, "POST", "/tokens/revoke", {"token": revoked["access_token"]})).status == 200
    assert (await admin(first, "POST", "/blocks", {"ip": "203.0.113.7", "for_ms": 3_600_000})).status == 200
    target = tmp_path / "backup"
    async with trio.open_nursery() as nursery:

        async def go_on() -> None:
            busy = await session(first)
            while True:
                answer = await refresh(first, busy["refresh_token"])
                assert answer.status == 200, answer
                busy = answer.document
                await trio.sleep(0.03)  # within the connection rate

        nursery.start_soon(go_on)
        made = await trio.to_thread.run_sync(
            lambda: command("admin", "backup", "--state-dir", str(first.state_dir), "--json", str(target),
                            directory=tmp_path)
        )  # fmt: skip
        nursery.cancel_scope.cancel()
    assert made.returncode == 0, made.stderr
    manifest = json.loads(made.stdout)
    assert json.loads((target / "backup.json").read_text()) == manifest
    names = {row["name"] for row in manifest["files"]}
    assert names >= {"sessions.sqlite", "blocks.sqlite", "audit.key", "audit.journal", "admin.token", "jwt.secret"}
    assert {path.name for path in target.iterdir()} == names | {"backup.json"}
    assert target.stat().st_mode & 0o777 == 0o700
    for row in manifest["files"]:
        data = (target / row["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["bytes"], row["sha256"])
        assert (target / row["name"]).stat().st_mode & 0o777 == 0o600
    admin_token = first.admin_token
    await trio.to_thread.run_sync(first.stop)

    shutil.copytree(target, tmp_path / "gateway1" / "state")
    logs = {"AUDIT_LOG_DIR": str(first.audit_dir)}
    second = await trio.to_thread.run_sync(lambda: start_gateway(environment=TOKENS | logs))
    assert second.admin_token == admin_token
    shown = await worth(second, kept)
    assert (shown.status, shown.document["session"]) == (200, public)
    assert (await worth(second, revoked)).status == 401
    rotated = await refresh(second, kept["refresh_token"])
    assert (await worth(second, rotated.document)).document["session"] == public
    blocks = (await admin(second, "GET", "/blocks")).document["blocks"]
    assert [row["ip"] for row in blocks] == ["203.0.113.7"]
    assert (await post(second, "/auth/ticket", token=second.ws_token)).status == 200
    # The chain goes on under the same key, behind the last record of the log, which is newer than the backup.
    places = ("--log-dir", str(first.audit_dir), "--state-dir", str(second.state_dir))
    await trio.to_thread.run_sync(second.stop)
    verified = command("audit", *places, "verify", directory=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def state(directory: Path) -> Path:
    """A state directory with a database that somebody has open, with rows that are only in its write-ahead log."""
    directory.mkdir(mode=0o700)
    (directory / "audit.key").write_text("00" * 32)
    (directory / "limiter.journal").write_bytes(b"portcullis-journal 1 limiter any\n")
    (directory / "gateway.lock").write_text("1\n")
    with sqlite3.connect(directory / "blocks.sqlite") as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (x)")
    database.close()
    return directory


def test_what_is_only_in_the_write_ahead_log_is_in_the_copy(tmp_path: Path) -> None:
    """A copy of the file alone would be without it; the copy needs no other file."""
    source = state(tmp_path / "state")
    database = sqlite3.connect(source / "blocks.sqlite")
    database.execute("INSERT INTO t VALUES ('committed')")
    database.commit()
    database.execute("INSERT INTO t VALUES ('not committed')")
    backups.back_up(source, tmp_path / "copy")
    database.close()
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        "audit.key", "limiter.journal", "blocks.sqlite", "backup.json"
    }  # fmt: skip
    with sqlite3.connect(f"file:{tmp_path / 'copy' / 'blocks.sqlite'}?mode=ro&immutable=1", uri=True) as copy:
        assert copy.execute("SELECT x FROM t").fetchall() == [("committed",)]
    copy.close()


@pytest.mark.parametrize("there", ["empty directory", "file", "dangling link"])
def test_nothing_is_written_over(tmp_path: Path, there: str) -> None:
    """Whatever has the target's name already, it stays as it is; exit code 2."""
    source, target = state(tmp_path / "state"), tmp_path / "copy"
    match there:
        case "file":
            target.write_text("precious")
        case "dangling link":
            target.symlink_to(tmp_path / "elsewhere")
        case _:
            target.mkdir()
    with pytest.raises(UsageError, match="exists"):
        backups.back_up(source, target)
    done = command("admin", "backup", "--state-dir", str(source), str(target), directory=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert not (tmp_path / "elsewhere").exists()
    assert target.is_symlink() or (target.read_text() == "precious" if target.is_file() else not list(target.iterdir()))


def test_a_damaged_database_is_noticed_and_nothing_is_left(tmp_path: Path) -> None:
    """It is named, the exit code is 1, and no half a backup can be taken for one."""
    source = state(tmp_path / "state")
    with sqlite3.connect(source / "blocks.sqlite") as database:
        database.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 2000)
    database.close()
    data = bytearray((source / "blocks.sqlite").read_bytes())
    data[8192:40960] = b"\xff" * 32768
    (source / "blocks.sqlite").write_bytes(data)
    done = command("admin", "backup", "--state-dir", str(source), str(tmp_path / "copy"), directory=tmp_path)
    assert done.returncode == 1
    assert "blocks.sqlite is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_directory_without_state_is_refused(tmp_path: Path, what: str) -> None:
    """Better than a backup of nothing, found out when it is needed."""
    if what == "empty":
        (tmp_path / "state").mkdir()
    places = (str(tmp_path / "state"), str(tmp_path / "copy"))
    done = command("admin", "backup", "--state-dir", *places, directory=tmp_path)
    assert (done.returncode, "names another place" in done.stderr) == (2, True)
    assert not (tmp_path / "copy").exists()
