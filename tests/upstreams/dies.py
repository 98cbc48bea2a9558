"""Ends at once with ``--status``, or (``--on METHOD``) when that method is called; prints ``--say`` to stderr first."""

import json
import os
import sys

from channel import arguments, initialize, serve

options = arguments(
    ("--status", {"type": int, "default": 3}), ("--on", {"default": ""}), ("--say", {"default": ""})
)


def end():
    sys.stderr.write(options.say)
    sys.stderr.flush()
    os._exit(options.status)


def handle(channel):
    if not options.on:
        end()
    for line in channel:
        request = json.loads(line)
        if request.get("method") == options.on:
            end()
        if request.get("method") == "initialize":
            channel.answer(request, initialize(request))
        elif "id" in request:
            channel.answer(request, {"pid": os.getpid()})


serve(options, handle)
