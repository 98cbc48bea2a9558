"""Records like ``recorder``, and answers ``tools/list`` with the tools in the file that ``--tools`` names.

With ``--private`` the list is for nobody else. A call of the tool ``change`` makes it say that its list has changed.
"""

import json
from pathlib import Path

from channel import arguments, initialize, serve

options = arguments(
    ("--record", {"required": True}), ("--tools", {"required": True}), ("--private", {"action": "store_true"})
)


def handle(channel):
    with Path(options.record).open("ab", buffering=0) as record:
        for line in channel:
            record.write(line)
            message = json.loads(line)
            if "method" not in message or "id" not in message:
                continue
            if message["method"] == "initialize":
                channel.answer(message, initialize(message))
            elif message["method"] == "tools/list":
                scope = {"cacheScope": "private"} if options.private else {}
                channel.answer(message, {"tools": json.loads(Path(options.tools).read_text()), **scope})
            else:
                if message["method"] == "tools/call" and message["params"]["name"] == "change":
                    channel.notify("notifications/tools/list_changed", {})
                    channel.notify("notifications/message", {"level": "error", "data": "list_changed"})
                channel.answer(message, {"content": []})


serve(options, handle)
