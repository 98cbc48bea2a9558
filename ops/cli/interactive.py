"""The prompt of ``mcp-secure-client --interactive``."""

from __future__ import annotations

import json
import sys
from typing import Final

import trio

from .failure import CallError, ClientFailure, NoAnswer
from .mcp_session import Json, McpSession
from .report import describe_tool, render_result
from .terminal import printable

HELP: Final = """\
  tools                  list the tools
  call TOOL [JSON]       call one, with a JSON object of arguments
  METHOD [JSON]          any other request, e.g. resources/list or ping
  help                   this
  quit                   leave (Ctrl-D too)"""


async def converse(session: McpSession) -> int:
    """Read requests from stdin until its end. An error that the server answers with ends nothing."""
    session.on_notification = lambda message: print(printable(f"« {json.dumps(message, ensure_ascii=False)}"))
    tty = sys.stdin.isatty()
    if tty:
        import readline  # noqa: F401 - importing it gives input() editing and a history

        print("help lists what can be said here")
    while True:
        try:
            # A thread of its own: stdin may be a file, a pipe or a terminal, and only a pipe can be polled.
            line = await trio.to_thread.run_sync(input, "» " if tty else "", abandon_on_cancel=True)
        except EOFError:
            return 0
        words = line.strip().split(maxsplit=1)
        if not words:
            continue
        if words[0] in ("quit", "exit"):
            return 0
        try:
            await _one(session, words[0], words[1] if len(words) > 1 else "")
        except (CallError, NoAnswer, _Misunderstood) as failure:
            print(printable(f"! {failure}"))


class _Misunderstood(ClientFailure, ValueError):
    pass


async def _one(session: McpSession, word: str, rest: str) -> None:
    match word:
        case "help":
            print(HELP)
        case "tools":
            for tool in await session.list_tools():
                print(printable(f"  {describe_tool(tool, 20)}"))
        case "call":
            name, _, arguments = rest.partition(" ")
            if not name:
                raise _Misunderstood("call TOOL [JSON]")
            for text in render_result(await session.call_tool(name, _object(arguments))):
                print(printable(text))
        case _:
            result = await session.request(word, _object(rest))
            print(printable(json.dumps(result, ensure_ascii=False, indent=2)))


def _object(text: str) -> Json:
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise _Misunderstood(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _Misunderstood("the arguments must be a JSON object")
    return value
