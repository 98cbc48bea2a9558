"""``mcp-admin``: operate a running gateway."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import top
from .api import Api, Reply, add_options, find, segment, state_directory
from .backup import back_up
from .completion import SHELLS, script
from .duration import duration
from .failure import ClientFailure
from .operate import console, ended, print_json, seconds, table
from .version import version

NAME: Final = "mcp-admin"
_API: Final = "/admin/v1"
_PRINCIPAL: Final = "principal:"

_EXIT_CODES: Final = "Exit codes: 0 done, 1 not done, 2 usage, 3 the token is missing or wrong, 4 out of reach."

_Run = Callable[[Api, argparse.Namespace], int]
if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no public name


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 not done, 2 usage, 3 the token is missing or wrong, 4 out of reach."""
    return ended(NAME, lambda: _command(parser().parse_args(arguments)))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=NAME, description="Operate a running gateway.", epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "actors", _actors, "the live tree of workers and actors, with restarts")
    disconnect = _add(commands, "disconnect", _disconnect, "close a client connection")
    disconnect.add_argument("id", metavar="ID", help="as mcp-connections lists it")
    about = "the circuit breakers of the servers"
    breaker = commands.add_parser("breaker", help=about, description=f"T{about[1:]}.", epilog=_EXIT_CODES)
    kinds = breaker.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(kinds, "list", _breakers, "the state of each")
    reset = _add(kinds, "reset", _reset, "close one, so that calls pass again")
    reset.add_argument("name", metavar="NAME", help="the server's name")
    block = _add(commands, "block", _block, "refuse an address, and close its connections")
    block.add_argument("target", metavar="IP", help="an address (IPv6: its /64), or principal:NAME")
    block.add_argument("--for", dest="lasts", type=duration, metavar="TIME", help="such as 1h; else BLOCK_DURATION")
    unblock = _add(commands, "unblock", _unblock, "lift a block, automatic or not")
    unblock.add_argument("target", metavar="IP", help="an address, or principal:NAME")
    _add(commands, "blocks", _blocks, "who is blocked, until when and why")
    _add(commands, "sessions", _sessions, "the issued sessions")
    end = _add(commands, "end-session", _end_session, "end an issued session, and its connections")
    end.add_argument("id", metavar="ID", help="as sessions lists it")
    _add(commands, "reload", _reload, "read the configuration and the certificates anew")
    _add(commands, "drain", _drain, "stop the gateway: calls in flight finish, nothing new is taken")
    top.add_arguments(_add(commands, "top", top.run, "a live view of everything, until Ctrl-C"))
    _add_backup(commands)
    _add_completion(commands)
    return parser


def _add_backup(commands: _Commands) -> None:
    """It works on files, with or without a gateway that runs on them."""
    text = "copy the gateway's state to a new directory, while it runs"
    backup = commands.add_parser("backup", help=text, description=f"C{text[1:]}.")
    backup.epilog = f"It holds secrets: mode 0700. How to restore it is in ops/docs/backup.md. {_EXIT_CODES}"
    backup.add_argument("target", metavar="TARGET", type=Path, help="must not exist yet")
    backup.add_argument("--state-dir", metavar="DIR", help="the gateway's STATE_DIR")
    backup.add_argument("--json", action="store_true", help="print what is in its backup.json")
    backup.set_defaults(local=_backup)


def _add_completion(commands: _Commands) -> None:
    text = "print a shell's completions of all commands"
    completion = commands.add_parser("completion", help=text, description=f"P{text[1:]}.")
    completion.epilog = f"bash: source <({NAME} completion bash); ops/docs/dashboard.md has zsh and fish. {_EXIT_CODES}"
    completion.add_argument("shell", choices=SHELLS, help="whose")
    completion.set_defaults(local=_completion)


def _add(commands: _Commands, name: str, run: _Run, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", epilog=_EXIT_CODES)
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the gateway's own document")
    parser.set_defaults(run=run)
    return parser


def _command(options: argparse.Namespace) -> int:
    if "local" in options:
        done: int = options.local(options)
        return done
    run: _Run = options.run
    return run(find(options, os.environ, Path.cwd()), options)


def _document(reply: Reply) -> dict[str, Any]:
    if not 200 <= reply.status < 300:
        raise ClientFailure(reply.detail)
    return reply.document


def _actors(api: Api, options: argparse.Namespace) -> int:
    document = _document(api.get(f"{_API}/actors"))
    if options.json:
        print_json(document)
        return 0
    screen = console()
    draining = ", draining" if document.get("draining") else ""
    screen.print(f"up {seconds(document.get('uptime_s'))}, restarts {document.get('restarts', 0)}{draining}")
    screen.print(table(("worker", "actor", "state", "pid", "incarnation", "restarts", "memory"), _tree(document)))
    for reason in document.get("degraded", []):
        screen.print(table(("degraded",), [(reason,)]))
    return 0


def _tree(document: dict[str, Any]) -> Iterator[Sequence[Any]]:
    for worker in document.get("workers", []):
        memory = f"{worker['rss_kb'] / 1024:.1f} MiB" if worker.get("rss_kb") else ""
        yield (
            worker.get("name"), "", worker.get("state"), worker.get("pid") or "", worker.get("incarnation"),
            worker.get("restarts"), memory,
        )  # fmt: skip
        for actor in worker.get("actors", []):
            yield "", actor.get("name"), actor.get("state"), "", actor.get("incarnation"), actor.get("restarts"), ""


def _breakers(api: Api, options: argparse.Namespace) -> int:
    document = _document(api.get(f"{_API}/breakers"))
    if options.json:
        print_json(document)
        return 0
    breakers: dict[str, Any] = document.get("breakers", {})
    rows = [
        (name, row.get("state"), seconds(row.get("retry_in_ms", 0) / 1000) if row.get("state") == "open" else "")
        for name, row in breakers.items()
    ]
    console().print(table(("server", "breaker", "next probe in"), rows))
    return 0


def _disconnect(api: Api, options: argparse.Namespace) -> int:
    return _done(api.post(f"{_API}/connections/{segment(options.id)}/disconnect"), options, "disconnected")


def _reset(api: Api, options: argparse.Namespace) -> int:
    return _done(api.post(f"{_API}/breakers/{segment(options.name)}/reset"), options, "reset")


def _block(api: Api, options: argparse.Namespace) -> int:
    principal = options.target.removeprefix(_PRINCIPAL)
    body: dict[str, Any] = {"principal": principal} if principal != options.target else {"ip": options.target}
    if options.lasts is not None:
        body["for_ms"] = max(1, int(options.lasts.total_seconds() * 1000))
    return _done(api.post(f"{_API}/blocks", body), options, "blocked")


def _unblock(api: Api, options: argparse.Namespace) -> int:
    return _done(api.delete(f"{_API}/blocks/{segment(options.target)}"), options, "unblocked")


def _blocks(api: Api, options: argparse.Namespace) -> int:
    document = _document(api.get(f"{_API}/blocks"))
    if options.json:
        print_json(document)
        return 0
    rows = [
        (
            row.get("ip") or f"{_PRINCIPAL}{row.get('principal')}", seconds(row.get("left_s")), row.get("strikes"),
            "threat detection" if row.get("automatic") else "operator", row.get("reason"),
        )
        for row in document.get("blocks", [])
    ]  # fmt: skip
    console().print(table(("client", "for another", "times", "by", "reason"), rows))
    if document.get("total", 0) > len(rows):
        console().print(f"and {document['total'] - len(rows)} more")
    return 0


def _sessions(api: Api, options: argparse.Namespace) -> int:
    document = _document(api.get(f"{_API}/sessions"))
    if options.json:
        print_json(document)
        return 0
    now = time.time()
    rows = [
        (
            row.get("id"), row.get("principal"), " ".join(row.get("scopes", [])),
            seconds(now - row.get("used", 0) / 1000), seconds(row.get("expires", 0) / 1000 - now),
        )
        for row in document.get("sessions", [])
    ]  # fmt: skip
    console().print(table(("session", "principal", "scopes", "unused for", "ends in"), rows))
    if document.get("total", 0) > len(rows):
        console().print(f"and {document['total'] - len(rows)} more")
    return 0


def _end_session(api: Api, options: argparse.Namespace) -> int:
    return _done(api.delete(f"{_API}/sessions/{segment(options.id)}"), options, "ended")


def _reload(api: Api, options: argparse.Namespace) -> int:
    reply = api.post(f"{_API}/reload")
    return _done(reply, options, f"reloaded; {_document(reply).get('detail', '')}")


def _drain(api: Api, options: argparse.Namespace) -> int:
    return _done(api.post(f"{_API}/drain"), options, "draining")


def _backup(options: argparse.Namespace) -> int:
    manifest = back_up(state_directory(options, os.environ, Path.cwd()), options.target)
    if options.json:
        print_json(manifest)
        return 0
    rows = [(row["name"], row["bytes"], row.get("schema", "")) for row in manifest["files"]]
    console().print(table(("file", "bytes", "schema"), rows))
    console().print(f"the backup is in {options.target}; it holds secrets", markup=False)
    return 0


def _completion(options: argparse.Namespace) -> int:
    print(script(options.shell), end="")
    return 0


def _done(reply: Reply, options: argparse.Namespace, word: str) -> int:
    document = _document(reply)
    if options.json:
        print_json(document)
    else:
        console().print(word)
    return 0


if __name__ == "__main__":
    sys.exit(main())
