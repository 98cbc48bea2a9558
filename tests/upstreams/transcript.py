"""Writes every line that it receives to ``--record FILE``, and answers every request with an empty result."""

import json
from pathlib import Path

from channel import arguments, serve

options = arguments(("--record", {"required": True}))


def handle(channel):
    with Path(options.record).open("ab", buffering=0) as record:
        for line in channel:
            record.write(line)
            # Numbers stay as they are written: none is too large for this program.
            request = json.loads(line, parse_int=str, parse_float=str)
            if "method" in request and "id" in request:
                channel.write(b'{"jsonrpc":"2.0","id":%b,"result":{}}\n' % request["id"].encode())


serve(options, handle)
