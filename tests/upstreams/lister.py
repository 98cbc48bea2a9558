"""Answers ``tools/list`` with the text that the request's ``result`` holds, as it is, or with an error."""

import json

from channel import arguments, initialize, serve

options = arguments()


def handle(channel):
    for line in channel:
        message = json.loads(line)
        params = message.get("params") or {}
        if message.get("method") == "initialize":
            channel.answer(message, initialize(message))
        elif "error" in params:
            channel.refuse(message, -32603, "no list")
        elif "result" in params:
            identity = json.dumps(message["id"])
            channel.write(f'{{"jsonrpc":"2.0","id":{identity},"result":{params["result"]}}}\n'.encode())
        elif "id" in message:
            channel.answer(message, {})


serve(options, handle)
