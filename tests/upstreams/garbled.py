"""Answers every call with lines that are nearly JSON-RPC."""

import json

from channel import arguments, initialize, serve

options = arguments()

FORMS = (
    '{"jsonrpc":"2.0","id":%s,"result":{"a":1}',
    '{"jsonrpc":"2.0","id":%s,"result":{"a":01}}',
    '{"jsonrpc":"2.0","id":%s,"result":{"a":"\t"}}',
    '{"jsonrpc":"2.0","id":%s,"result":{"a":tru}}',
    '{"jsonrpc":"2.0","id":%s,"result":{"a":1}} x',
    '{"jsonrpc":"2.0","id":%s,"result":{"a":"\\x"}}',
    '{"jsonrpc":"2.0","id":%s,"result":{"a":"\\ud800"}}',
)


def handle(channel):
    for line in channel:
        message = json.loads(line)
        if message.get("method") == "initialize":
            channel.answer(message, initialize(message))
        elif "id" in message:
            identity = json.dumps(message["id"])
            for form in FORMS:
                channel.write((form % identity).encode() + b"\n")
            channel.write(b'{"jsonrpc":"2.0","id":' + identity.encode() + b',"result":{"a":"\xff"}}\n')


serve(options, handle)
