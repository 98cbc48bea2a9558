"""Reads everything and never answers; with ``--handshake`` it answers ``initialize``."""

import json

from channel import arguments, initialize, serve

options = arguments(("--handshake", {"action": "store_true"}))


def handle(channel):
    for line in channel:
        request = json.loads(line)
        if options.handshake and request.get("method") == "initialize":
            channel.answer(request, initialize(request))


serve(options, handle)
