"""A client that knows nothing of MCP's SDKs, on ``websockets``: ``websockets_client.py JOB``; JSON on stdout.

JOB is ``{"url": …, "headers": {…}, "subprotocols": […], "messages": […]}``; each message is sent once the answer to
the one before has come. The outcome is ``{"subprotocol": …, "answers": […], "close": code}`` or ``{"status": …}``.
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus


async def main(job):
    try:
        async with connect(
            job["url"], additional_headers=job["headers"], subprotocols=job["subprotocols"] or None
        ) as connection:
            answers = []
            for message in job["messages"]:
                await connection.send(json.dumps(message))
                if "id" in message:
                    answers.append(json.loads(await connection.recv()))
            await (await connection.ping())
    except InvalidStatus as refusal:
        return {"status": refusal.response.status_code}
    return {"subprotocol": connection.subprotocol, "answers": answers, "close": connection.close_code}


print(json.dumps(asyncio.run(asyncio.wait_for(main(json.loads(sys.argv[1])), 60))))
