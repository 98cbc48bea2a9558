"""``mcp-security-audit``: read the audit log, follow it, and check that nobody has changed it."""

from __future__ import annotations

import argparse
import fnmatch
import ipaddress
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import attrs

from actors.policy.chain import PREFIX, BadRecord, Head, Verification, read_unverified, verify

from .audit_files import LONGEST_LINE, files, kept, lines
from .duration import duration
from .failure import ClientFailure, UsageError
from .terminal import printable
from .version import version

NAME: Final = "mcp-security-audit"

SEVERITIES: Final = ("info", "warning", "error", "critical")

# The file that is written to keeps its name; rotated ones get another.
ACTIVE: Final = "security-audit.log"

# Shown in columns of their own, or of use to programs only.
_APART: Final = frozenset({"time", "seq", "event", "severity", "outcome", "prev", "hash", "detail"})

FOLLOW_INTERVAL: Final = 0.2  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done (``verify``: intact), 1 the chain is broken, 2 usage, or a file that can't be read."""
    options = _parser().parse_args(arguments)
    log_dir = Path(options.log_dir or os.environ.get("AUDIT_LOG_DIR") or "var/log/security").expanduser()
    state_dir = Path(options.state_dir or os.environ.get("STATE_DIR") or "var/state").expanduser()
    try:
        if options.command == "verify":
            return _verify(log_dir, state_dir, options)
        if options.command == "head":
            return _head(state_dir, options)
        return _show(log_dir, options)
    except ClientFailure as failure:
        print(f"{NAME}: {failure}", file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Who read our output has gone; Python would complain about that again when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE


def _parser() -> argparse.ArgumentParser:
    places = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: given before the command's name, it must not be overwritten by the default of the one after it.
    places.add_argument("--log-dir", metavar="DIR", default=argparse.SUPPRESS, help="default: $AUDIT_LOG_DIR or var/log/security")
    places.add_argument("--state-dir", metavar="DIR", default=argparse.SUPPRESS, help="default: $STATE_DIR or var/state")
    places.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="JSON, one document a line")
    parser = argparse.ArgumentParser(NAME, parents=[places], description="Read, follow and verify the audit log.")
    parser.set_defaults(log_dir=None, state_dir=None, json=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    parser.add_argument("--since", type=_since, metavar="1h", help="records of the last hour, or since 2030-01-31T12:00:00Z")
    parser.add_argument(
        "--event", action="append", default=[], metavar="NAME", help="only this event; auth.* works too; may be repeated"
    )
    parser.add_argument("--ip", type=_network, metavar="ADDRESS", help="only this address or network")
    parser.add_argument("--severity", choices=SEVERITIES, help="only records at least so severe")
    parser.add_argument("--follow", action="store_true", help="then go on with what is written from now on")
    commands = parser.add_subparsers(dest="command", metavar="verify|head")
    check = commands.add_parser(
        "verify", parents=[places], help="check the hash chain over all files; name the first bad record"
    )
    check.add_argument(
        "--head", type=_kept_head, metavar="SEQ:HASH", help="a head that was kept elsewhere has to be in the log, too"
    )
    commands.add_parser("head", parents=[places], help="print the last record's number and hash, for keeping elsewhere")
    return parser


def _since(text: str) -> datetime:
    try:
        return datetime.now(UTC) - duration(text)
    except (argparse.ArgumentTypeError, OverflowError):
        pass  # then it is a moment, or nothing
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a duration (1h) nor a time (2030-01-31T12:00Z)") from None
    return moment.astimezone(UTC)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address or network") from None


def _kept_head(text: str) -> Head:
    seq, _, digest = text.partition(":")
    if not (seq.isascii() and seq.isdigit() and len(digest) == 64):
        raise argparse.ArgumentTypeError("a head looks like 4711:89ab…, as `head` prints it")
    return Head(int(seq), digest.lower())


# --- reading


@attrs.frozen
class Filter:
    since: str  # as the records write times; empty: all
    events: Sequence[str]
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    severity: int  # index in SEVERITIES

    def wants(self, record: Mapping[str, Any]) -> bool:
        if self.since and str(record.get("time", "")) < self.since:
            return False
        if self.events and not any(fnmatch.fnmatchcase(str(record.get("event")), one) for one in self.events):
            return False
        severity = record.get("severity")
        if self.severity and (severity not in SEVERITIES or SEVERITIES.index(severity) < self.severity):
            return False
        return self.network is None or _is_in(str(record.get("peer_ip", "")), self.network)


def _is_in(text: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address in network


def _show(log_dir: Path, options: argparse.Namespace) -> int:
    wanted = Filter(
        f"{options.since:%Y-%m-%dT%H:%M:%S.%fZ}" if options.since else "",
        options.event,
        options.ip,
        SEVERITIES.index(options.severity or "info"),
    )
    strange = 0
    source: Iterable[bytes] = _follow(log_dir) if options.follow else _all_lines(log_dir)
    for line in source:
        try:
            record = read_unverified(line.rstrip(b"\n"))[0].members
        except BadRecord:
            strange += 1
            continue
        if wanted.wants(record):
            if options.json:
                # As it is in the file, which is JSON already.
                sys.stdout.buffer.write(line.removeprefix(PREFIX))
                sys.stdout.buffer.flush()
            else:
                print(_for_people(record), flush=options.follow)
    if strange:
        print(f"{NAME}: {strange} lines are not records; `verify` names the first", file=sys.stderr)
    return 0


def _all_lines(log_dir: Path) -> Iterator[bytes]:
    for path in files(log_dir):
        yield from lines(path)


def _follow(log_dir: Path) -> Iterator[bytes]:
    """All lines there are, then each new one, over rotations; never ends."""
    active = log_dir / ACTIVE
    for path in files(log_dir):
        if path != active:
            yield from lines(path)
    while True:
        try:
            file = active.open("rb")
        except FileNotFoundError:
            time.sleep(FOLLOW_INTERVAL)
            continue
        except OSError as error:
            raise UsageError(f"{active}: {error.strerror}") from None
        with file:
            yield from _follow_one(file, active)


def _follow_one(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Whole lines of this file, until another one has its name and all of it has been read, or it was emptied."""
    rest = b""
    ours = os.fstat(file.fileno())
    moved = False
    while True:
        data = file.read(LONGEST_LINE)
        if data:
            *whole, rest = (rest + data).split(b"\n")
            yield from (line + b"\n" for line in whole)
            continue
        if moved:
            return
        time.sleep(FOLLOW_INTERVAL)
        try:
            there = path.stat()
        except FileNotFoundError:
            continue  # renamed; the next one is about to be made
        # One more look at the old file, because it was written to until it was renamed.
        moved = (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
        if not moved and there.st_size < file.tell():
            return


def _for_people(record: Mapping[str, Any]) -> str:
    details = [f"{name}={value}" for name, value in record.items() if name not in _APART]
    more = record.get("detail")
    if isinstance(more, dict):
        details += [f"{name}={value}" for name, value in more.items()]
    columns = (
        f"{record.get('time')!s:27} {record.get('severity')!s:8} {record.get('event')!s:22} "
        f"{record.get('outcome')!s:8} {' '.join(details)}"
    )
    return printable(columns.rstrip().replace("\n", "\\n"))


# --- verifying


def _head(state_dir: Path, options: argparse.Namespace) -> int:
    head = kept(state_dir).head
    print(json.dumps({"seq": head.seq, "hash": head.hash}) if options.json else f"{head.seq}:{head.hash}")
    return 0


@attrs.define
class _Reading:
    """Every line of all files, with a memory of where each file began."""

    paths: Sequence[Path]
    looked_for: Head | None = None
    starts: list[tuple[int, Path]] = attrs.field(factory=list, init=False)
    found: str = attrs.field(default="", init=False)  # the hash of the record whose number `looked_for` has
    _read: int = attrs.field(default=0, init=False)

    def __iter__(self) -> Iterator[bytes]:
        for path in self.paths:
            self.starts.append((self._read, path))
            for line in lines(path):
                self._read += 1
                self._look(line)
                yield line

    def _look(self, line: bytes) -> None:
        if self.looked_for is None or b'"seq":%d,' % self.looked_for.seq not in line:
            return
        try:
            record = read_unverified(line.rstrip(b"\n"))[0]
        except BadRecord:
            return  # verify says so
        if record.seq == self.looked_for.seq:
            self.found = record.hash

    def place(self, line: int) -> str:
        """Where the ``line``-th of all lines, counted from 1, is."""
        before, path = next((start, path) for start, path in reversed(self.starts) if start < line)
        return f"{path.name}:{line - before}"


def _verify(log_dir: Path, state_dir: Path, options: argparse.Namespace) -> int:
    state = kept(state_dir)  # first: what is written while we read makes the log longer than this head, never shorter
    reading = _Reading(files(log_dir), options.head)
    result = verify(reading, state.key, before=state.floor, head=state.head)
    bad = result.first_bad
    document: dict[str, Any] = {
        "intact": bad is None,
        "records": result.records,
        "files": len(reading.paths),
        "head": {"seq": result.head.seq, "hash": result.head.hash},
        "gaps": [{"seq": gap.seq, "where": reading.place(gap.line), "why": gap.why} for gap in result.gaps],
    }
    if bad is not None:
        where = reading.place(bad.line) if bad.line else "end"
        document["first_bad"] = {"seq": bad.seq, "where": where, "why": bad.why}
    elif options.head is not None and (why := _missed(options.head, reading.found, state.floor)):
        document |= {"intact": False, "first_bad": {"seq": options.head.seq, "where": "", "why": why}}
    if options.json:
        print(json.dumps(document))
    else:
        _tell(document, result)
    return 0 if document["intact"] else 1


def _missed(head: Head, found: str, floor: Head | None) -> str:
    """Why a head that was kept elsewhere is not in an intact log; empty if it is, or if it has been rotated away."""
    if found:
        return "" if found == head.hash else f"record {head.seq} is not the one whose hash was kept"
    if floor is not None and head.seq <= floor.seq:
        return ""
    return f"record {head.seq}, whose hash was kept, is missing"


def _tell(document: Mapping[str, Any], result: Verification) -> None:
    for gap in document["gaps"]:
        print(printable(f"gap: record {gap['seq']} ({gap['where']}): {gap['why']}"))
    if document["intact"]:
        print(f"intact: {result.records} records in {document['files']} files, head {result.head.seq}:{result.head.hash}")
    else:
        bad = document["first_bad"]
        print(printable(f"broken: record {bad['seq']} ({bad['where'] or 'nowhere'}): {bad['why']}"))


if __name__ == "__main__":
    sys.exit(main())
