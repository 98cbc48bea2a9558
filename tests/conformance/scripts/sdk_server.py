"""A server of the official Python SDK, 1.x or 2.x as it is installed: ``sdk_server.py PORT-FILE [OPTION…]``.

Options: ``json`` (answers as JSON instead of event streams), ``stateless``, ``websocket`` (SDK 1.x only: at ``/``;
otherwise Streamable HTTP at ``/mcp``), ``slash`` (at ``/mcp/``, with a redirect from ``/mcp``), ``resumable`` (events
have ids; SDK 1.x), ``port=N``, ``cert=FILE`` and ``key=FILE``. PORT-FILE is complete when it appears.
"""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from pydantic import Field

try:
    from mcp.server.mcpserver import Context, MCPServer

    FIRST = False
except ImportError:
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as MCPServer

    FIRST = True

port_file = Path(sys.argv[1])
options = dict(option.partition("=")[::2] for option in sys.argv[2:])
http = {"json_response": "json" in options, "stateless_http": "stateless" in options}
if "slash" in options:
    http["streamable_http_path"] = "/mcp/"


def event_store():
    from mcp.server.streamable_http import EventMessage, EventStore

    class Kept(EventStore):
        def __init__(self):
            self.events = []

        async def store_event(self, stream_id, message):
            self.events.append((stream_id, message))
            return str(len(self.events))

        async def replay_events_after(self, last_event_id, send_callback):
            at = int(last_event_id)
            stream = self.events[at - 1][0]
            for number, (stream_id, message) in enumerate(self.events[at:], at + 1):
                if stream_id == stream and message is not None:
                    await send_callback(EventMessage(message, str(number)))
            return stream

    return Kept()


if FIRST:
    if "resumable" in options:
        http["event_store"] = event_store()
        http["retry_interval"] = 50
    server = MCPServer("sdk", **http)
else:
    server = MCPServer("sdk")


@server.tool()
async def echo(text: str) -> str:
    """The same text."""
    return text


@server.tool()
async def sleep(seconds: float, steps: int, ctx: Context) -> str:
    """Takes its time, with progress."""
    for step in range(steps):
        await asyncio.sleep(seconds / max(1, steps))
        await ctx.report_progress(step + 1, steps)
    if not steps:
        await asyncio.sleep(seconds)
    return "slept"


@server.tool()
async def big(size: int) -> str:
    """So many characters."""
    return "x" * size


@server.tool()
async def pid() -> str:
    """Of the process."""
    return str(os.getpid())


@server.tool()
async def hang_up(ctx: Context) -> str:
    """Ends the connection before the answer, which waits to be fetched."""
    close = getattr(ctx.request_context, "close_sse_stream", None)
    if close is not None:
        await close()
    await asyncio.sleep(0.1)
    return "fetched"


@server.tool()
async def header(name: str, ctx: Context) -> str:
    """What the request says in that header; "" for none."""
    return ctx.request_context.request.headers.get(name, "")


@server.tool()
async def where(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})], zone: int, ctx: Context
) -> str:
    """The region, and what the request's header says of it."""
    return f"{region} {ctx.request_context.request.headers.get('mcp-param-region', '')}"


@server.tool()
async def grow(ctx: Context) -> str:
    """The list of tools changes."""
    server.add_tool(echo, name=f"echo{os.urandom(4).hex()}")
    if FIRST:
        await ctx.session.send_tool_list_changed()
    else:
        await ctx.notify_tools_changed()
    return "grown"


def websocket_app():
    from mcp.server.websocket import websocket_server
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute

    async def serve(websocket):
        async with websocket_server(websocket.scope, websocket.receive, websocket._send) as (read, write):
            await server._mcp_server.run(read, write, server._mcp_server.create_initialization_options())

    return Starlette(routes=[WebSocketRoute("/", serve)])


if "websocket" in options:
    app = websocket_app()
elif FIRST:
    app = server.streamable_http_app()
else:
    app = server.streamable_http_app(**http)

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(options.get("port", 0))))
listener.listen(256)
temporary = port_file.with_suffix(".new")
temporary.write_text(str(listener.getsockname()[1]))
temporary.rename(port_file)
tls = {"ssl_certfile": options["cert"], "ssl_keyfile": options["key"]} if "cert" in options else {}
config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws_max_size=64 << 20, **tls)
asyncio.run(uvicorn.Server(config).serve([listener]))
