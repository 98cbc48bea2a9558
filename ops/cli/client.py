"""``mcp-secure-client``: a real MCP client for the gateway, over WebSocket or TCP, and a bridge for stdio hosts."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from .credentials import add_token_options, find_token
from .failure import ClientFailure, LinkClosed, UsageError
from .interactive import converse
from .link import Link
from .mcp_session import Json, McpSession, in_session
from .report import Report
from .stdio_bridge import bridge
from .tcp_link import open_tcp
from .trust import add_tls_options, tls_context
from .version import version
from .ws_link import open_ws, websocket_url

NAME: Final = "mcp-secure-client"

# A call that needs nothing known of the server, tried in this order when none is asked for.
DEMONSTRATIONS: Final[tuple[tuple[str, Json], ...]] = (("echo", {"text": "hello"}), ("time", {}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the call failed, 2 usage, 3 refused, 4 unreachable."""
    try:
        return _command(parser().parse_args(arguments), os.environ)
    except LinkClosed as closed:
        return _fail(closed.meaning())
    except ClientFailure as failure:
        return _fail(failure)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _nobody_reads()
    except BaseExceptionGroup as group:  # trio's nurseries wrap what comes from outside, such as Ctrl-C
        interrupted, others = group.split(KeyboardInterrupt)
        if interrupted is not None:
            return 128 + signal.SIGINT
        if others is not None and others.split(BrokenPipeError)[1] is None:
            return _nobody_reads()
        raise


def _nobody_reads() -> int:
    """Who read our output has gone; Python would complain about that again when it flushes stdout at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + signal.SIGPIPE


def _fail(failure: ClientFailure) -> int:
    print(f"{NAME}: {failure}", file=sys.stderr)
    return failure.exit_code


class _Parser(argparse.ArgumentParser):
    """Names in an error the options that it doesn't know, but no values: one of them may be a token."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            self.error(f"unrecognised arguments: {' '.join(names) or f'{len(unknown)} too many'}")
        return options


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError("between 0 and 86400 seconds, please")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 < value < 65536:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return value


def parser() -> argparse.ArgumentParser:
    parser = _Parser(
        NAME,
        description="A client for the gateway: authenticates, initialises, lists the tools and calls one.",
        epilog="Exit codes: 0 done, 1 the call failed, 2 usage, 3 not authenticated or refused, 4 unreachable.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = parser.add_subparsers(dest="transport", required=True, metavar="ws|tcp|stdio")

    over_ws = commands.add_parser("ws", help="over WebSocket", allow_abbrev=False)
    _add_url(over_ws)
    _add_work(over_ws)
    over_tcp = commands.add_parser("tcp", help="over TCP, one message a line", allow_abbrev=False)
    over_tcp.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    over_tcp.add_argument("--port", type=_port, help="default: $TCP_PORT or 9500")
    over_tcp.add_argument("--tls", action="store_true", help="the port speaks TLS")
    add_tls_options(over_tcp, "--tls")
    add_token_options(over_tcp, "TCP_AUTH_TOKEN")
    _add_work(over_tcp)
    over_stdio = commands.add_parser(
        "stdio",
        help="bridge stdin and stdout to a WebSocket, for hosts that start MCP servers as commands",
        allow_abbrev=False,
    )
    _add_url(over_stdio)
    over_stdio.add_argument("--server", default="", metavar="NAME", help="which of the gateway's servers to talk to")
    over_stdio.add_argument(
        "--timeout", type=_seconds, default=10.0, metavar="S",
        help="for connecting, and after the end of stdin for the answers still in flight (default: %(default)g)",
    )  # fmt: skip
    return parser


def _add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="default: ws://127.0.0.1:3002, with $WS_PORT if that is set")
    add_tls_options(parser, "wss://")
    add_token_options(parser, "WS_AUTH_TOKEN")


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default="", metavar="NAME", help="which of the gateway's servers to talk to")
    parser.add_argument(
        "--era", choices=("legacy", "modern"), default="legacy",
        help="legacy: initialize handshake, MCP 2025-11-25; modern: a request speaks for itself, MCP 2026-07-28",
    )  # fmt: skip
    work = parser.add_mutually_exclusive_group()
    work.add_argument("--list", action="store_true", help="list the tools, call none")
    work.add_argument("--call", nargs="+", metavar="TOOL [JSON]", help="call this tool, with an object of arguments")
    work.add_argument("--interactive", action="store_true", help="a prompt for requests, one after another")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument(
        "--timeout", type=_seconds, default=30.0, metavar="S", help="seconds for each answer (default: %(default)g)"
    )


def _command(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    token = find_token(options, environment)
    if options.transport == "tcp":
        port = options.port or _port_from(environment, "TCP_PORT", "MCP_TCP_PORT", 9500)
        context = tls_context(options, tls=options.tls)
        opening: Callable[[], AbstractAsyncContextManager[Link]] = lambda: open_tcp(  # noqa: E731
            options.host, port, within=options.timeout, ssl_context=context
        )
    else:
        fallback = f"ws://127.0.0.1:{_port_from(environment, 'WS_PORT', 'MCP_BRIDGE_PORT', 3002)}"
        url = websocket_url(options.url or fallback, options.server)
        context = tls_context(options, tls=url.startswith("wss:"))
        opening = lambda: open_ws(url, token, within=options.timeout, ssl_context=context)  # noqa: E731
    if options.transport == "stdio":
        return trio.run(bridge, opening, options.timeout)
    if options.interactive and options.json:
        raise UsageError("--interactive and --json exclude each other")
    call = _wanted_call(options.call)
    return trio.run(_work, options, opening, token, call)


def _port_from(environment: Mapping[str, str], name: str, alias: str, default: int) -> int:
    text = environment.get(name) or environment.get(alias)
    if not text or text == "0":
        return default
    try:
        return _port(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise UsageError(f"${name}: {text!r} is no port") from None


def _wanted_call(words: list[str] | None) -> tuple[str, Json] | None:
    if words is None:
        return None
    if len(words) > 2:
        raise UsageError("--call takes a tool and one JSON object; quote the object for the shell")
    try:
        arguments = json.loads(words[1]) if len(words) == 2 else {}
    except ValueError as error:
        raise UsageError(f"--call: the arguments are not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise UsageError("--call: the arguments must be a JSON object")
    return words[0], arguments


async def _work(
    options: argparse.Namespace,
    opening: Callable[[], AbstractAsyncContextManager[Link]],
    token: str,
    call: tuple[str, Json] | None,
) -> int:
    report = Report(as_json=options.json)

    async def converse_or_call(session: McpSession) -> int:
        await _enter(session, options, token, report)
        if options.interactive:
            return await converse(session)
        return await _list_and_call(session, options, call, report)

    try:
        async with opening() as link:
            session = McpSession(link, NAME, version(), era=options.era, timeout=options.timeout)
            return await in_session(session, converse_or_call)
    except ClientFailure as failure:
        report.failed(failure)
        raise
    finally:
        report.finish()


async def _enter(session: McpSession, options: argparse.Namespace, token: str, report: Report) -> None:
    """Authenticate (on TCP; a WebSocket's upgrade has done it) and initialise."""
    identity: Json = {}
    try:
        if options.transport == "tcp" and (token or options.server):
            identity = await session.authenticate(token, options.server)
        await session.initialise()
    except LinkClosed as closed:
        raise closed.meaning() from None
    report.connected(session, identity)


async def _list_and_call(
    session: McpSession, options: argparse.Namespace, call: tuple[str, Json] | None, report: Report
) -> int:
    tools = await session.list_tools()
    report.tools(tools)
    if options.list:
        return 0
    if call is None:
        call = _demonstration(tools)
    if call is None:
        report.note("no tool here is known to need no thought; --call TOOL '{…}' calls one")
        return 0
    name, arguments = call
    result = await session.call_tool(name, arguments)
    report.called(name, arguments, result)
    return 1 if result.get("isError") is True else 0


def _demonstration(tools: list[Json]) -> tuple[str, Json] | None:
    names = {tool.get("name") for tool in tools}
    return next(((name, dict(arguments)) for name, arguments in DEMONSTRATIONS if name in names), None)


if __name__ == "__main__":
    sys.exit(main())
