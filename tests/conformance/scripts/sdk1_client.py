"""A client of the official Python SDK 1.x: ``sdk1_client.py JOB``, with the job as JSON; the outcome is JSON on stdout.

JOB is ``{"url": "ws://…"}`` for its WebSocket client or ``{"command": …, "args": […], "env": {…}}`` for its stdio
client, and ``"calls": [[tool, arguments], …]``.
"""

import asyncio
import json
import sys
import warnings
from contextlib import asynccontextmanager

from mcp import ClientSession, StdioServerParameters, stdio_client

warnings.simplefilter("ignore", DeprecationWarning)
from mcp.client.websocket import websocket_client  # noqa: E402 - it warns when imported


@asynccontextmanager
async def transport(job):
    if "url" in job:
        async with websocket_client(job["url"]) as streams:
            yield streams
    else:
        parameters = StdioServerParameters(command=job["command"], args=job["args"], env=job["env"])
        async with stdio_client(parameters) as streams:
            yield streams


async def main(job):
    async with transport(job) as streams, ClientSession(*streams) as session:
        initialized = await session.initialize()
        tools = await session.list_tools()
        await session.send_ping()
        results = [await session.call_tool(name, arguments) for name, arguments in job["calls"]]
        return {
            "server": initialized.serverInfo.name,
            "version": str(initialized.protocolVersion),
            "tools": [tool.name for tool in tools.tools],
            "results": [{"error": result.isError, "text": result.content[0].text} for result in results],
        }


print(json.dumps(asyncio.run(asyncio.wait_for(main(json.loads(sys.argv[1])), 60))))
