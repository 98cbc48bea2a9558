"""A server of both eras that does on demand what disturbs others.

Methods beside MCP's own, all of which answer ``{}`` unless said otherwise:

- ``test/log {level, data}``: a notifications/message.
- ``test/updated {uri}``: notifications/resources/updated, to the legacy session and to each listener of that URI.
- ``test/changed``: notifications/tools/list_changed, likewise.
- ``test/progress {steps}``: that many progress notifications, then the answer.
- ``test/ask``: a server request ``sampling/createMessage``; answers with what came back.
- ``test/hold {name}`` is answered when ``test/release {name}`` comes.
- ``test/state``: answers ``{"levels", "subscriptions", "listeners", "cancelled", "initialized"}``.
- ``test/die {status}``: exits without an answer.
"""

import json
import os

from channel import arguments, initialize, serve

options = arguments(("--version", {"default": ""}))

META = "io.modelcontextprotocol/"


def handle(channel):
    levels, subscriptions, listeners, cancelled, held = [], set(), {}, [], {}
    asking = None
    initialized = 0
    for line in channel:
        message = json.loads(line)
        method, params = message.get("method"), message.get("params") or {}
        if method is None:
            channel.answer(asking, {"answered": message.get("result")})
        elif method == "initialize":
            result = initialize(message, tools={"listChanged": True}, logging={}, resources={"subscribe": True})
            channel.answer(message, result | ({"protocolVersion": options.version} if options.version else {}))
        elif method == "notifications/initialized":
            initialized += 1
        elif method == "notifications/cancelled":
            cancelled.append(params.get("requestId"))
            listeners.pop(json.dumps(params.get("requestId")), None)
        elif method == "server/discover":
            channel.answer(message, {"resultType": "complete", "supportedVersions": ["2026-07-28"],
                                     "capabilities": {}, "ttlMs": 0, "cacheScope": "public"})
        elif method == "subscriptions/listen":
            listeners[json.dumps(message["id"])] = params["notifications"]
            channel.notify("notifications/subscriptions/acknowledged",
                           {"_meta": {META + "subscriptionId": message["id"]},
                            "notifications": params["notifications"]})
        elif method == "logging/setLevel":
            levels.append(params["level"])
            channel.answer(message, {})
        elif method == "resources/subscribe":
            subscriptions.add(params["uri"])
            channel.answer(message, {})
        elif method == "resources/unsubscribe":
            subscriptions.discard(params["uri"])
            channel.answer(message, {})
        elif method == "test/log":
            channel.notify("notifications/message", {"level": params["level"], "data": params.get("data")})
            channel.answer(message, {})
        elif method == "test/updated":
            if params["uri"] in subscriptions:
                channel.notify("notifications/resources/updated", {"uri": params["uri"]})
            for identity, wanted in listeners.items():
                if params["uri"] in wanted.get("resourceSubscriptions", ()):
                    channel.notify("notifications/resources/updated",
                                   {"uri": params["uri"], "_meta": {META + "subscriptionId": json.loads(identity)}})
            channel.answer(message, {})
        elif method == "test/changed":
            channel.notify("notifications/tools/list_changed", {})
            for identity, wanted in listeners.items():
                if wanted.get("toolsListChanged"):
                    channel.notify("notifications/tools/list_changed",
                                   {"_meta": {META + "subscriptionId": json.loads(identity)}})
            channel.answer(message, {})
        elif method == "test/progress":
            token = params["_meta"]["progressToken"]
            for step in range(params["steps"]):
                channel.notify("notifications/progress", {"progressToken": token, "progress": step + 1})
            channel.answer(message, {})
        elif method == "test/ask":
            asking = message
            channel.send({"jsonrpc": "2.0", "id": "server-1", "method": "sampling/createMessage", "params": {}})
        elif method == "test/hold":
            held[params["name"]] = message
        elif method == "test/release":
            channel.answer(held.pop(params["name"]), {"released": params["name"]})
            channel.answer(message, {})
        elif method == "test/state":
            channel.answer(message, {"levels": levels, "subscriptions": sorted(subscriptions), "cancelled": cancelled,
                                     "listeners": list(listeners.values()), "initialized": initialized,
                                     "pid": os.getpid()})
        elif method == "test/die":
            os._exit(params.get("status", 1))
        elif method == "tools/list":
            channel.answer(message, {"tools": []})
        elif "id" in message:
            channel.answer(message, {"method": method, "params": params})


serve(options, handle)
