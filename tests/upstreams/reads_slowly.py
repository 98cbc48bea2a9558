"""Answers the handshake and ``ping``; from ``test/stop`` on it reads nothing until the file ``--go FILE`` appears."""

import json
import time
from pathlib import Path

from channel import arguments, initialize, serve

options = arguments(("--go", {"required": True}))


def handle(channel):
    for line in channel:
        request = json.loads(line)
        if request.get("method") == "initialize":
            channel.answer(request, initialize(request))
        elif "id" in request:
            channel.answer(request, {})
        if request.get("method") == "test/stop":
            while not Path(options.go).exists():
                time.sleep(0.01)


serve(options, handle)
