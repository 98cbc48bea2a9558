"""Answers "initialize" and "ping"; at any other request it prints its arguments as a line, for ever."""

import json
import sys

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    if message["method"] in ("initialize", "ping"):
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "floods", "version": "1"}}
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}) + "\n")
        sys.stdout.flush()
        continue
    flood = (sys.argv[1] + "\n") * 16384
    while True:
        sys.stdout.write(flood)
