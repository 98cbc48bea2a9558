"""``mcp-security-audit`` on logs that the gateway's own AuditLog has written."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from actors.audit_log import AuditLog, Entry
from ipc.messages import AuditEvent
from ops.cli import audit
from ops.cli.audit_follow import ACTIVE

NOW = time.time_ns()
HOUR = 3_600_000_000_000


def event(number: int, **members: object) -> AuditEvent:
    values: dict[str, object] = {
        "event": "auth.failed",
        "severity": "warning",
        "outcome": "failure",
        "time_ns": NOW,
        "peer_ip": f"192.0.2.{number % 250}",
    }
    return AuditEvent(**(values | members))  # type: ignore[arg-type]


@attrs.define
class Place:
    """A log directory and a state directory; ``run`` is the command on them."""

    logs: Path
    state: Path

    def write(self, *events: AuditEvent, max_bytes: int = 1 << 20, keep: int = 100) -> None:
        log = AuditLog(self.logs, str(self.state), max_bytes=max_bytes, keep=keep, counted=list)
        for one in events:
            log.write(Entry([one]))
        log.close()

    def run(self, *arguments: str) -> int:
        return audit.main(["--log-dir", str(self.logs), "--state-dir", str(self.state), *arguments])

    @property
    def active(self) -> Path:
        return self.logs / ACTIVE


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "logs", tmp_path / "state")


def test_an_untouched_log_verifies_over_rotated_renamed_and_gzipped_files(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """The order of the files comes from their records, so that logrotate's names do not confuse it."""
    place.write(*(event(number) for number in range(60)), max_bytes=4000)
    rotated = sorted(path for path in place.logs.iterdir() if path != place.active)
    assert len(rotated) >= 3
    with gzip.open(place.logs / "security-z.log.9.gz", "wb") as packed:
        packed.write(rotated[0].read_bytes())
    rotated[0].unlink()
    rotated[1].rename(place.logs / "security-a.log-20300101")
    assert place.run("verify", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["intact"] is True
    assert document["files"] == len(rotated) + 1
    assert document["records"] == 60 + document["files"]  # an anchor each
    assert place.run("head") == 0
    assert capsys.readouterr().out.strip() == f"{document['head']['seq']}:{document['head']['hash']}"


def test_what_rotation_has_deleted_is_not_missed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The last record of the deleted files is kept in STATE_DIR, and the chain is checked from there on."""
    place.write(*(event(number) for number in range(60)), max_bytes=4000, keep=2)
    assert place.run("verify") == 0
    assert "intact" in capsys.readouterr().out


@pytest.mark.parametrize("keep", [100, 2])
def test_a_file_that_somebody_else_has_deleted_is_missed(
    place: Place, keep: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the oldest one, whether or not rotation has deleted others before it."""
    place.write(*(event(number) for number in range(60)), max_bytes=4000, keep=keep)
    oldest = min(path for path in place.logs.iterdir() if path != place.active)
    first = json.loads(oldest.read_bytes().splitlines()[0].removeprefix(b"SECURITY "))["seq"]
    oldest.unlink()
    assert place.run("verify") == 1
    assert f"broken: record {first} " in capsys.readouterr().out


@pytest.mark.parametrize("change", ["edit", "remove", "swap", "insert", "cut", "tear", "delete file", "replace all"])
def test_each_kind_of_tampering_is_named(place: Place, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever can write the log but not STATE_DIR is found out, with the first bad record's number and place."""
    place.write(*(event(number) for number in range(10)))
    lines = place.active.read_bytes().splitlines(keepends=True)
    assert place.run("verify") == 0
    first_bad = 5
    match change:
        case "edit":
            lines[4] = lines[4].replace(b"192.0.2.3", b"192.0.2.9")
        case "remove":
            del lines[4]
        case "swap":
            lines[4], lines[5] = lines[5], lines[4]
        case "insert":
            lines.insert(4, lines[1])
        case "cut":
            del lines[4:]
        case "tear":
            lines[4:] = [lines[4][:-9]]
        case "delete file":
            lines = []
            first_bad = 1
        case "replace all":  # by another gateway's, with another key
            other = Place(place.logs.parent / "other", place.logs.parent / "other-state")
            other.write(*(event(number) for number in range(10)))
            lines = other.active.read_bytes().splitlines(keepends=True)
            first_bad = 1
    place.active.write_bytes(b"".join(lines))
    capsys.readouterr()
    assert place.run("verify", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["intact"] is False
    assert document["first_bad"]["seq"] == first_bad
    assert place.run("verify") == 1
    assert f"broken: record {first_bad}" in capsys.readouterr().out


def test_a_head_kept_elsewhere_is_looked_for(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole log that was forged with the key is still not the one whose head was kept."""
    place.write(event(1), event(2))
    place.run("head")
    head = capsys.readouterr().out.strip()
    place.write(event(3))
    assert place.run("verify", "--head", head) == 0
    number, _, digest = head.partition(":")
    assert place.run("verify", "--head", f"{number}:{digest[::-1]}") == 1
    assert place.run("verify", "--head", f"{int(number) + 9}:{digest}") == 1
    assert "is missing" in capsys.readouterr().out


def test_reading_disturbs_nothing(place: Place) -> None:
    """A gateway may be running: no file in STATE_DIR or in the log directory is changed or made."""
    place.write(event(1))
    (place.state / "audit.journal").open("ab").write(b"\x05\x00")  # being written right now

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in [*place.logs.iterdir(), *place.state.iterdir()]}

    before = contents()
    assert place.run("verify") == 0
    assert place.run("head") == 0
    assert place.run() == 0
    assert contents() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {1, 2, 3, 4, 5}),
        (["--since", "90m"], {1, 2, 4, 5}),
        (["--since", "3000-01-01"], set()),
        (["--event", "auth.*"], {1, 3}),
        (["--event", "ip.blocked", "--event", "auth.ok"], {2, 4, 5}),
        (["--ip", "192.0.2.1"], {1}),
        (["--ip", "192.0.2.0/30"], {1, 2, 3, 5}),
        (["--ip", "2001:db8::/32"], {4}),
        (["--severity", "error"], {2, 4}),
        (["--severity", "warning", "--event", "auth.failed", "--since", "1h"], {1}),
    ],
)
def test_filters(place: Place, arguments: list[str], expected: set[int], capsys: pytest.CaptureFixture[str]) -> None:
    """Each option alone, and together they must all hold; an IPv4 address is the same when it is mapped into IPv6."""
    place.write(
        event(1, reason="1"),
        event(2, reason="2", event="ip.blocked", severity="critical"),
        event(3, reason="3", time_ns=NOW - 2 * HOUR),
        event(0, reason="4", event="ip.blocked", severity="error", peer_ip="2001:db8::7"),
        event(0, reason="5", event="ip.blocked", severity="info", peer_ip="::ffff:192.0.2.2"),
    )
    assert place.run("--json", *arguments) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {int(record["reason"]) for record in records if record["event"] != "audit.anchor"} == expected


def test_a_record_cannot_drive_the_terminal(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """What a client wrote into a record is shown, a line a record, without escapes or direction marks."""
    place.write(event(1, principal="a\x1b[2Jb\u202ec\nSECURITY forged", detail={"note": "x\ry"}))
    assert place.run("--event", "auth.failed") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert not any(character in out for character in "\x1b\u202e\r")


def test_lines_that_are_no_records_are_counted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """They are left out of the list, and said to be there."""
    place.write(event(1))
    with place.active.open("ab") as file:
        file.write(b"nonsense\n" + b"SECURITY {\n" + b"x" * 3_000_000 + b"\n")
    assert place.run() == 0
    assert "lines are not records" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["verify"]])
def test_a_missing_directory_exits_2(place: Place, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command says which variable names another one."""
    place.state.mkdir()
    (place.state / "audit.key").write_text("00" * 32)
    assert place.run(*arguments) == 2
    assert capsys.readouterr().err


@pytest.fixture
def follower(place: Place) -> Iterator[subprocess.Popen[str]]:
    place.write(event(1, reason="before"))
    process = subprocess.Popen(
        [sys.executable, "-m", "ops.cli.audit", "--follow", "--json", "--event", "auth.failed"],
        env=os.environ | {"AUDIT_LOG_DIR": str(place.logs), "STATE_DIR": str(place.state)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_follow_goes_on_over_rotation(place: Place, follower: subprocess.Popen[str]) -> None:
    """Every record comes once and in order: those of before, new ones, and those after the file was renamed."""

    def next_reason() -> str:
        return str(json.loads(follower.stdout.readline())["reason"])

    assert next_reason() == "before"
    place.write(event(2, reason="while"))
    assert next_reason() == "while"
    place.write(*(event(3, reason=f"rotated {number}") for number in range(20)), max_bytes=1500)
    place.active.rename(place.logs / "security-audit.log.moved")
    place.write(event(4, reason="after"))
    assert [next_reason() for _ in range(21)][-1] == "after"


def test_the_directories_are_those_of_the_gateway_beside_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the environment or the .env in the working directory, as the gateway reads them; options come first."""
    place.write(event(1))
    monkeypatch.delenv("AUDIT_LOG_DIR", raising=False)
    monkeypatch.delenv("STATE_DIR", raising=False)
    monkeypatch.chdir(place.logs.parent)
    (place.logs.parent / ".env").write_text(f"AUDIT_LOG_DIR={place.logs}\nSTATE_DIR=state\n")
    assert audit.main(["verify"]) == 0
    assert "intact" in capsys.readouterr().out
    assert audit.main(["--log-dir", "none", "verify"]) == 2
