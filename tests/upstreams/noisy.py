"""Writes ``--lines`` lines to stderr, each with ``--text``, before it answers each request: a full pipe must not stop
it."""

import json
import sys

from channel import arguments, initialize, serve

options = arguments(("--lines", {"type": int, "default": 20_000}), ("--text", {"default": "\x1b[2J\u202eevil\x07"}))


def handle(channel):
    for line in channel:
        request = json.loads(line)
        for number in range(options.lines):
            sys.stderr.write(f"{number} {options.text}\n")
        sys.stderr.write("y" * 1_000_000 + "\n")
        sys.stderr.flush()
        if request.get("method") == "initialize":
            channel.answer(request, initialize(request))
        elif "id" in request:
            channel.answer(request, {"method": request["method"]})


serve(options, handle)
