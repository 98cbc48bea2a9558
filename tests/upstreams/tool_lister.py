"""Records like ``recorder``, and answers ``tools/list`` with the tools in the file that ``--tools`` names."""

import json
from pathlib import Path

from channel import arguments, initialize, serve

options = arguments(("--record", {"required": True}), ("--tools", {"required": True}))


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
                channel.answer(message, {"tools": json.loads(Path(options.tools).read_text())})
            else:
                channel.answer(message, {"content": []})


serve(options, handle)
