"""A server that behaves as the word in the file ``--mood FILE`` says, read anew for each message.

``well``: answers. ``hang``: says nothing. ``slow``: answers after a third of a second. ``garbage``: answers with what
is no message. ``die``: ends on the next ``tools/call``, and at once when it is started so (over TCP: closes the
connection). ``fail``: answers every call with an error. ``private``: answers, for this client only.

Before the handshake it refuses everything. ``tools/list`` has two pages. Each ``tools/call`` appends its ``tag``
argument to ``--seen FILE`` as a line.
"""

import json
import os
import time
from pathlib import Path

from channel import arguments, initialize, serve

options = arguments(("--mood", {"required": True}), ("--seen", {"default": os.devnull}))


def mood():
    return Path(options.mood).read_text().strip()


class Reset(OSError):
    pass


def end(channel):
    if options.tcp:
        channel.close()
        raise Reset
    os._exit(1)


def handle(channel):
    now = mood()
    if now == "die":
        end(channel)
    greeted = False
    for line in channel:
        message = json.loads(line)
        method = message.get("method")
        params = message.get("params") or {}
        now = mood()
        if method == "tools/call":
            with Path(options.seen).open("a") as seen:
                seen.write(f"{params.get('arguments', {}).get('tag', '')}\n")
            if now == "die":
                end(channel)
        if now == "hang" or "id" not in message:
            continue
        if now == "slow":
            time.sleep(0.34)
        if now == "garbage":
            channel.write(b"Traceback (most recent call last):\n\xff\xfe\x00 {]\n")
        elif now == "fail" and method != "initialize":
            channel.refuse(message, -32000, "not today")
        elif method == "initialize":
            greeted = True
            channel.answer(message, initialize(message))
        elif not greeted:
            channel.refuse(message, -32002, "not initialised")
        elif method == "tools/list":
            scope = {"cacheScope": "private"} if now == "private" else {}
            if params.get("cursor") == "2":
                channel.answer(message, {"tools": [tool("second")], "_meta": {"k": 1}, **scope})
            else:
                channel.answer(message, {"tools": [tool("first")], "nextCursor": "2", **scope})
        else:
            channel.answer(message, {"content": [{"type": "text", "text": method}]})


def tool(name):
    return {"name": name, "inputSchema": {"type": "object", "properties": {"tag": {"type": "string"}}}}


serve(options, handle)
