"""Writes every line that it receives to ``--record FILE``, and answers every request with the params it got."""

import json
from pathlib import Path

from channel import arguments, initialize, serve

options = arguments(("--record", {"required": True}), ("--version", {"default": ""}))


def handle(channel):
    with Path(options.record).open("ab", buffering=0) as record:
        for line in channel:
            record.write(line)
            request = json.loads(line)
            if "method" not in request or "id" not in request:
                continue
            if request["method"] == "initialize":
                result = initialize(request)
                channel.answer(request, result | ({"protocolVersion": options.version} if options.version else {}))
            else:
                channel.answer(request, {"echo": request.get("params"), "method": request["method"]})


serve(options, handle)
