"""Answers ``test/huge {bytes}`` with a line of that many bytes (the id first, or last with ``"last": true``)."""

import json

from channel import arguments, initialize, serve

CHUNK = b"x" * 1_048_576

options = arguments()


def handle(channel):
    for line in channel:
        request = json.loads(line)
        if request.get("method") == "initialize":
            channel.answer(request, initialize(request))
        elif request.get("method") == "test/huge":
            identity = json.dumps(request["id"]).encode()
            last = request["params"].get("last", False)
            channel.write(b'{"jsonrpc":"2.0",' + (b'' if last else b'"id":%s,' % identity) + b'"result":{"text":"')
            left = request["params"]["bytes"]
            while left > 0:
                channel.write(CHUNK[:left])
                left -= len(CHUNK)
            channel.write(b'"}' + (b',"id":%s}\n' % identity if last else b"}\n"))
        elif "id" in request:
            channel.answer(request, {"method": request["method"]})


serve(options, handle)
