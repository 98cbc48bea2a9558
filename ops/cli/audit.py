"""``mcp-security-audit``: read the audit log, follow it, and check that nobody has changed it."""

from __future__ import annotations

import argparse
import fnmatch
import ipaddress
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from actors.policy.chain import PREFIX, BadRecord, Head, read_unverified
from supervisor.settings import ConfigurationError, load_some

from .audit_files import files, lines
from .audit_follow import follow
from .audit_verify import check, show_head
from .duration import duration
from .failure import ClientFailure, UsageError
from .terminal import printable
from .version import version

NAME: Final = "mcp-security-audit"

SEVERITIES: Final = ("info", "warning", "error", "critical")

# Shown in columns of their own, or of use to programs only.
_APART: Final = frozenset({"time", "seq", "event", "severity", "outcome", "prev", "hash", "detail"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done (``verify``: intact), 1 the chain is broken, 2 usage, or a file that can't be read."""
    options = parser().parse_args(arguments, argparse.Namespace(log_dir=None, state_dir=None, json=False))
    try:
        log_dir, state_dir = _places(options)
        if options.command == "verify":
            return check(log_dir, state_dir, options.head, as_json=options.json)
        if options.command == "head":
            return show_head(state_dir, as_json=options.json)
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


def parser() -> argparse.ArgumentParser:
    places = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: given before the command's name, it must not be overwritten by the default of the one after it.
    defaults = {"--log-dir": "$AUDIT_LOG_DIR or var/log/security", "--state-dir": "$STATE_DIR or var/state"}
    for option, default in defaults.items():
        places.add_argument(option, metavar="DIR", default=argparse.SUPPRESS, help=f"default: {default}")
    places.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="JSON, one document a line")
    parser = argparse.ArgumentParser(NAME, parents=[places], description="Read, follow and verify the audit log.")
    parser.epilog = "Exit codes: 0 done (verify: intact), 1 the chain is broken, 2 usage, or a file that can't be read."
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    parser.add_argument("--since", type=_since, metavar="1h", help="of the last hour, or since 2030-01-31T12:00:00Z")
    parser.add_argument(
        "--event", action="append", default=[], metavar="NAME", help="only this event, or auth.*; may be repeated"
    )
    parser.add_argument("--ip", type=_network, metavar="ADDRESS", help="only this address or network")
    parser.add_argument("--severity", choices=SEVERITIES, help="only records at least so severe")
    parser.add_argument("--follow", action="store_true", help="then go on with what is written from now on")
    commands = parser.add_subparsers(dest="command", metavar="verify|head")
    verifying = commands.add_parser(
        "verify", parents=[places], help="check the hash chain over all files; name the first bad record"
    )
    verifying.add_argument(
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
        raise argparse.ArgumentTypeError(f"{text!r} is neither a duration like 1h nor a time") from None
    return moment.astimezone(UTC)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address or network") from None


def _kept_head(text: str) -> Head:
    seq, _, digest = text.partition(":")
    if not (seq.isascii() and seq.isdigit() and re.fullmatch("[0-9a-fA-F]{64}", digest)):
        raise argparse.ArgumentTypeError("a head looks like 4711:89ab…, as `head` prints it")
    return Head(int(seq), digest.lower())


def _places(options: argparse.Namespace) -> tuple[Path, Path]:
    """The log directory and the state directory, where the gateway beside this command has them. Raises UsageError."""
    given = {"AUDIT_LOG_DIR": options.log_dir, "STATE_DIR": options.state_dir}
    named = {name: str(Path(value).expanduser()) for name, value in given.items() if value}
    try:
        found = load_some(given, {**os.environ, **named}, Path.cwd())
    except ConfigurationError as error:
        raise UsageError(str(error)) from None
    return Path(str(found["audit_log_dir"])), Path(str(found["state_dir"]))


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
    source: Iterable[bytes] = follow(log_dir) if options.follow else _all_lines(log_dir)
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


if __name__ == "__main__":
    sys.exit(main())
