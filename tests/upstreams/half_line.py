"""Answers the handshake; of the answer to any other request it sends the first half, and then nothing (or, with
``--exit``, its end)."""

import json
import os

from channel import arguments, initialize, serve

options = arguments(("--exit", {"action": "store_true"}))


def handle(channel):
    for line in channel:
        request = json.loads(line)
        if request.get("method") == "initialize":
            channel.answer(request, initialize(request))
        elif "id" in request:
            channel.write(b'{"jsonrpc":"2.0","id":%s,"result":{"half' % json.dumps(request["id"]).encode())
            if options.exit:
                os._exit(0)


serve(options, handle)
