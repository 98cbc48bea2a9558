"""Answers the handshake and then reads nothing more, so that what is sent to it piles up; ends when told by SIGTERM."""

import json
import signal

from channel import arguments, initialize, serve

options = arguments()


def handle(channel):
    for line in channel:
        request = json.loads(line)
        if request.get("method") == "initialize":
            channel.answer(request, initialize(request))
        if request.get("method") == "test/deaf":
            signal.pause()
        elif "id" in request and request["method"] != "initialize":
            channel.answer(request, {})


serve(options, handle)
