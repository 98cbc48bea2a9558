"""A client of the official Python SDK 2.x over stdio: ``sdk2_client.py JOB``; the outcome is JSON on stdout.

JOB is ``{"command": …, "args": […], "env": {…}, "mode": "legacy" | "auto" | "2026-07-28", "calls": […]}``.
"""

import asyncio
import json
import sys

from mcp import Client, StdioServerParameters


async def main(job):
    parameters = StdioServerParameters(command=job["command"], args=job["args"], env=job["env"])
    async with Client(parameters, mode=job["mode"]) as client:
        tools = await client.list_tools()
        results = [await client.call_tool(name, arguments) for name, arguments in job["calls"]]
        return {
            "version": str(client.protocol_version),
            "tools": [tool.name for tool in tools.tools],
            "results": [{"error": bool(result.is_error), "text": result.content[0].text} for result in results],
        }


print(json.dumps(asyncio.run(asyncio.wait_for(main(json.loads(sys.argv[1])), 60))))
