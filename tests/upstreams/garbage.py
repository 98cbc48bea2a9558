"""Prints what is no JSON-RPC before each answer, and still answers: logs, bytes ≥ 0x80, answers to nobody."""

import json

from channel import arguments, initialize, serve

GARBAGE = (
    b"Server starting on stdio...\n",
    b"\xff\xfe\x00\x80\n",
    b"\n\r\n",
    b"{\n",
    b"[]\n",
    b'"text"\n',
    b'{"jsonrpc":"2.0","id":987654321,"result":{}}\n',
    b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}\n',
    b'{"jsonrpc":"2.0","id":{"a":1},"result":{}}\n',
    b'{"jsonrpc":"1.0","result":1}\n',
    b'{"jsonrpc":"2.0","method":7}\n',
    b"[" * 100_000 + b"\n",
)

options = arguments()


def handle(channel):
    for line in channel:
        request = json.loads(line)
        for piece in GARBAGE:
            channel.write(piece)
        if request.get("method") == "initialize":
            channel.answer(request, initialize(request))
        elif "id" in request:
            channel.answer(request, {"method": request["method"]})


serve(options, handle)
