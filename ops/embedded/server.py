"""The server as a state machine: a line in, lines out; time comes in as an argument.

It serves both eras of MCP on one channel at the same time, as 2026-07-28 allows a dual-era server to:

- a request that carries ``_meta["io.modelcontextprotocol/protocolVersion"]`` is *modern*: served from what it
  carries alone;
- ``initialize`` opens the *legacy* session, of which there is one, because there is one channel; its log level and
  its resource subscriptions live in it.

Everything that a client can make it keep is bounded.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from . import jsonrpc
from .jsonrpc import Incoming, RpcError
from .tools import BY_NAME, IMMEDIATE, LEVELS, TOOLS, Tool, ToolError, check_arguments

MODERN = ("2026-07-28",)
LEGACY = ("2025-11-25", "2025-06-18", "2024-11-05")  # 2025-03-26 is left out for its batches

UNSUPPORTED_PROTOCOL_VERSION = -32022
RESOURCE_NOT_FOUND_LEGACY = -32002

META_VERSION = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
META_LOG_LEVEL = "io.modelcontextprotocol/logLevel"
META_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
META_SERVER = "io.modelcontextprotocol/serverInfo"

SERVER_INFO = {"name": "portcullis-embedded", "title": "Portcullis embedded server", "version": "1.0.0"}
INSTRUCTIONS = "A small server for trying the gateway out: echo, time, add, sleep and log."

WELCOME = "portcullis://embedded/welcome"
CALLS = "portcullis://embedded/calls"

MAX_SLEEPS = 1024  # a heap entry each; far beyond what one gateway keeps in flight for one upstream
MAX_SUBSCRIPTIONS = 256
UPDATE_INTERVAL_NS = 100_000_000  # many calls in a row are one change of the counter

_LIST_TTL_MS = 3_600_000  # the lists never change while the process lives


class _Sleep(msgspec.Struct):
    request: msgspec.Raw
    token: msgspec.Raw | None
    modern: bool
    seconds: float
    steps: int
    done: int
    started_ns: int

    def due_ns(self) -> int:
        """When the next step is reached."""
        return self.started_ns + int(self.seconds * 1e9 * (self.done + 1) / self.steps)


class _Listener(msgspec.Struct):
    request: msgspec.Raw
    uris: frozenset[str]


class Server:
    """One client's server. ``receive`` and ``tick`` return the lines to write, without newlines."""

    def __init__(self) -> None:
        self._version = ""  # of the legacy session; "" before initialize
        self._level = LEVELS.index("info")
        self._subscribed: set[str] = set()
        self._listeners: dict[bytes, _Listener] = {}
        self._sleeps: dict[bytes, _Sleep] = {}
        self._due: list[tuple[int, bytes]] = []  # a heap; an entry whose sleep is gone or has moved on is skipped
        self._calls = 0
        self._update_at: int | None = None  # when the change of the counter is announced
        self._out: list[bytes] = []

    # --- in -------------------------------------------------------------------------------------------------

    def receive(self, line: bytes, now_ns: int) -> list[bytes]:
        """Take one line."""
        try:
            message = jsonrpc.parse(line)
        except jsonrpc.Malformed as malformed:
            return [malformed.answer] if malformed.answer is not None else []
        if message is None:
            return []
        if message.id is None:
            self._notified(message)
        else:
            self._requested(message.id, message, now_ns)
        return self._take()

    def tick(self, now_ns: int) -> list[bytes]:
        """Do what is due."""
        while self._due and self._due[0][0] <= now_ns:
            due, key = heapq.heappop(self._due)
            sleep = self._sleeps.get(key)
            if sleep is not None and sleep.due_ns() == due:
                self._step(key, sleep)
        if self._update_at is not None and self._update_at <= now_ns:
            self._update_at = None
            self._announce(CALLS)
        return self._take()

    def next_deadline_ns(self) -> int | None:
        """When ``tick`` has something to do, at the latest."""
        times = [self._due[0][0]] if self._due else []
        if self._update_at is not None:
            times.append(self._update_at)
        return min(times, default=None)

    def close(self) -> list[bytes]:
        """The client has closed its end: end the open subscriptions gracefully (2026-07-28 subscriptions)."""
        for listener in self._listeners.values():
            meta = {META_SUBSCRIPTION: listener.request, META_SERVER: SERVER_INFO}
            self._out.append(jsonrpc.result(listener.request, {"resultType": "complete", "_meta": meta}))
        self._listeners.clear()
        return self._take()

    # --- dispatch -------------------------------------------------------------------------------------------

    def _requested(self, identity: msgspec.Raw, message: Incoming, now_ns: int) -> None:
        try:
            modern = self._is_modern(message)
            value = self._method(message, modern=modern)(self, _Call(identity, message, modern, now_ns))
        except RpcError as refusal:
            self._out.append(jsonrpc.error(identity, refusal.code, refusal.message, refusal.data))
        else:
            if value is not None:
                self._out.append(jsonrpc.result(identity, self._complete(value, modern=modern)))

    def _method(self, message: Incoming, *, modern: bool) -> _Method:
        method = (_MODERN_METHODS if modern else _LEGACY_METHODS).get(message.method)
        if method is None:
            raise RpcError(jsonrpc.METHOD_NOT_FOUND, f"no method {message.method[:128]!r}")
        if not modern and not self._version and message.method not in ("initialize", "ping"):
            raise RpcError(jsonrpc.INVALID_REQUEST, "not initialized: send initialize first")
        return method

    def _is_modern(self, message: Incoming) -> bool:
        meta = message.params.get("_meta", {})
        if not isinstance(meta, dict):
            raise RpcError(jsonrpc.INVALID_PARAMS, "_meta is an object")
        version = meta.get(META_VERSION)
        if version is None:
            if message.method in _MODERN_METHODS and message.method not in _LEGACY_METHODS:
                raise RpcError(jsonrpc.INVALID_PARAMS, f"_meta lacks {META_VERSION}")
            return False
        if not isinstance(version, str):
            raise RpcError(jsonrpc.INVALID_PARAMS, f"{META_VERSION} is a string")
        if version not in MODERN:
            data = {"supported": list(MODERN), "requested": version[:64]}
            raise RpcError(UNSUPPORTED_PROTOCOL_VERSION, "Unsupported protocol version", data)
        if not isinstance(meta.get(META_CAPABILITIES), dict):
            raise RpcError(jsonrpc.INVALID_PARAMS, f"_meta lacks {META_CAPABILITIES}")
        if META_LOG_LEVEL in meta and meta[META_LOG_LEVEL] not in LEVELS:
            raise RpcError(jsonrpc.INVALID_PARAMS, f"{META_LOG_LEVEL} is one of {', '.join(LEVELS)}")
        return True

    def _notified(self, message: Incoming) -> None:
        # Cancelling what is unknown or finished is no error (2026-07-28 cancellation, "Error Handling").
        if message.method == "notifications/cancelled" and message.target is not None:
            key = bytes(message.target).strip()
            self._sleeps.pop(key, None)
            self._listeners.pop(key, None)

    def _complete(self, value: Mapping[str, object], *, modern: bool) -> Mapping[str, object]:
        return {"resultType": "complete", **value, "_meta": {META_SERVER: SERVER_INFO}} if modern else value

    def _take(self) -> list[bytes]:
        out, self._out = self._out, []
        return out

    # --- methods: each returns the result, or None when the answer comes later -----------------------------------

    def _initialize(self, call: _Call) -> dict[str, Any]:
        asked = call.params.get("protocolVersion")
        if not isinstance(asked, str):
            raise RpcError(jsonrpc.INVALID_PARAMS, "protocolVersion is a string")
        # Otherwise the newest that a client of that age can know, or else our newest.
        older = [version for version in LEGACY if version < asked]
        self._version = asked if asked in LEGACY else (older or LEGACY)[0]
        self._level = LEVELS.index("info")
        self._subscribed.clear()
        info = {key: SERVER_INFO[key] for key in ("name", "version")} if self._plain() else SERVER_INFO
        return {
            "protocolVersion": self._version,
            "capabilities": {"logging": {}, "prompts": {}, "resources": {"subscribe": True}, "tools": {}},
            "serverInfo": info,
            "instructions": INSTRUCTIONS,
        }

    def _plain(self) -> bool:
        """The legacy session is of 2024-11-05, which knows no titles, annotations or structured results."""
        return self._version == "2024-11-05"

    def _discover(self, _call: _Call) -> dict[str, Any]:
        capabilities = {"logging": {}, "prompts": {}, "resources": {"subscribe": True}, "tools": {}}
        return _cacheable(
            {"supportedVersions": list(MODERN), "capabilities": capabilities, "instructions": INSTRUCTIONS}
        )

    def _ping(self, _call: _Call) -> dict[str, Any]:
        return {}

    def _list_tools(self, call: _Call) -> dict[str, Any]:
        _only_page(call)
        return _listed("tools", [self._describe(tool, plain=call.legacy and self._plain()) for tool in TOOLS], call)

    def _describe(self, tool: Tool, *, plain: bool) -> dict[str, Any]:
        described: dict[str, Any] = {
            "name": tool.name, "description": tool.description, "inputSchema": tool.input,
        }
        if not plain:
            described["title"] = tool.title
            described["annotations"] = {
                "title": tool.title, "readOnlyHint": True, "destructiveHint": False,
                "idempotentHint": tool.idempotent, "openWorldHint": False,
            }
            if tool.output is not None:
                described["outputSchema"] = tool.output
        return described

    def _call_tool(self, call: _Call) -> dict[str, Any] | None:
        name = call.params.get("name")
        tool = BY_NAME.get(name) if isinstance(name, str) else None
        if tool is None:
            raise RpcError(jsonrpc.INVALID_PARAMS, f"Unknown tool: {str(name)[:128]}")
        self._calls += 1
        if self._update_at is None:
            self._update_at = call.now_ns + UPDATE_INTERVAL_NS
        try:
            arguments = check_arguments(tool, call.params.get("arguments", {}))
            if tool.name == "sleep":
                self._sleep(call, arguments)
                return None
            if tool.name == "log":
                return _text(self._log(call, arguments))
            text, structured = IMMEDIATE[tool.name](arguments)
        except ToolError as failure:
            return {**_text(str(failure)), "isError": True}
        answer = _text(text)
        if structured is not None and not (call.legacy and self._plain()):
            answer["structuredContent"] = structured
        return answer

    def _log(self, call: _Call, arguments: Mapping[str, Any]) -> str:
        """Send the message if its level was asked for: by the session (legacy) or by this very request (modern)."""
        level = LEVELS.index(arguments["level"])
        if call.legacy:
            threshold = self._level
        else:
            wanted = call.params["_meta"].get(META_LOG_LEVEL)
            threshold = LEVELS.index(wanted) if wanted is not None else len(LEVELS)
        if level < threshold:
            return "not sent: below the level that the client asked for"
        params = {"level": arguments["level"], "logger": arguments["logger"], "data": arguments["message"]}
        self._out.append(jsonrpc.notification("notifications/message", params))
        return "sent"

    def _sleep(self, call: _Call, arguments: Mapping[str, Any]) -> None:
        key = bytes(call.identity).strip()
        if len(self._sleeps) >= MAX_SLEEPS:
            raise ToolError(f"{MAX_SLEEPS} calls sleep already")
        steps = arguments["steps"] if call.message.progress_token is not None else 1
        sleep = _Sleep(
            msgspec.Raw(key), call.message.progress_token, not call.legacy, float(arguments["seconds"]), steps, 0,
            call.now_ns,
        )
        self._sleeps[key] = sleep
        heapq.heappush(self._due, (sleep.due_ns(), key))

    def _step(self, key: bytes, sleep: _Sleep) -> None:
        sleep.done += 1
        if sleep.token is not None:
            params = {"progressToken": sleep.token, "progress": sleep.done, "total": sleep.steps}
            self._out.append(jsonrpc.notification("notifications/progress", params))
        if sleep.done < sleep.steps:
            heapq.heappush(self._due, (sleep.due_ns(), key))
            return
        del self._sleeps[key]
        answer = self._complete(_text(f"slept for {sleep.seconds:g} s"), modern=sleep.modern)
        self._out.append(jsonrpc.result(sleep.request, answer))

    def _set_level(self, call: _Call) -> dict[str, Any]:
        level = call.params.get("level")
        if level not in LEVELS:
            raise RpcError(jsonrpc.INVALID_PARAMS, f"level is one of {', '.join(LEVELS)}")
        self._level = LEVELS.index(level)
        return {}

    def _list_resources(self, call: _Call) -> dict[str, Any]:
        _only_page(call)
        resources: list[dict[str, Any]] = [
            {"uri": WELCOME, "name": "welcome", "title": "Welcome", "mimeType": "text/plain",
             "description": "What this server is."},
            {"uri": CALLS, "name": "calls", "title": "Calls", "mimeType": "application/json",
             "description": "How many tool calls this server has taken; it changes with each."},
        ]
        if call.legacy and self._plain():
            for resource in resources:
                del resource["title"]
        return _listed("resources", resources, call)

    def _list_templates(self, call: _Call) -> dict[str, Any]:
        _only_page(call)
        return _listed("resourceTemplates", [], call)

    def _read(self, call: _Call) -> dict[str, Any]:
        uri = _uri(call)
        if uri == WELCOME:
            content = {"uri": uri, "mimeType": "text/plain", "text": INSTRUCTIONS}
        else:
            content = {"uri": uri, "mimeType": "application/json", "text": f'{{"calls":{self._calls}}}'}
        value = {"contents": [content]}
        return value if call.legacy else _cacheable(value, ttl_ms=_LIST_TTL_MS if uri == WELCOME else 0)

    def _subscribe(self, call: _Call) -> dict[str, Any]:
        self._subscribed.add(_uri(call))
        return {}

    def _unsubscribe(self, call: _Call) -> dict[str, Any]:
        self._subscribed.discard(_uri(call))
        return {}

    def _listen(self, call: _Call) -> None:
        wanted = call.params.get("notifications")
        uris = wanted.get("resourceSubscriptions", []) if isinstance(wanted, dict) else None
        if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
            raise RpcError(jsonrpc.INVALID_PARAMS, "notifications is an object, resourceSubscriptions a list of URIs")
        if len(self._listeners) >= MAX_SUBSCRIPTIONS:
            raise RpcError(jsonrpc.INTERNAL_ERROR, f"{MAX_SUBSCRIPTIONS} subscriptions are open already")
        key = bytes(call.identity).strip()
        listener = _Listener(msgspec.Raw(key), frozenset(uris) & {WELCOME, CALLS})
        self._listeners[key] = listener
        # What is left out of the acknowledgement is what this server doesn't offer: its lists never change.
        honoured = {"resourceSubscriptions": sorted(listener.uris)} if listener.uris else {}
        params = {"_meta": {META_SUBSCRIPTION: listener.request}, "notifications": honoured}
        self._out.append(jsonrpc.notification("notifications/subscriptions/acknowledged", params))

    def _announce(self, uri: str) -> None:
        if uri in self._subscribed:
            self._out.append(jsonrpc.notification("notifications/resources/updated", {"uri": uri}))
        for listener in self._listeners.values():
            if uri in listener.uris:
                params = {"_meta": {META_SUBSCRIPTION: listener.request}, "uri": uri}
                self._out.append(jsonrpc.notification("notifications/resources/updated", params))

    def _list_prompts(self, call: _Call) -> dict[str, Any]:
        _only_page(call)
        prompt: dict[str, Any] = {
            "name": "greet", "description": "Greet somebody.",
            "arguments": [{"name": "name", "description": "Whom to greet.", "required": True}],
        }
        if not (call.legacy and self._plain()):
            prompt["title"] = "Greet"
        return _listed("prompts", [prompt], call)

    def _get_prompt(self, call: _Call) -> dict[str, Any]:
        name = call.params.get("name")
        if name != "greet":
            raise RpcError(jsonrpc.INVALID_PARAMS, f"Unknown prompt: {str(name)[:128]}")
        arguments = call.params.get("arguments", {})
        whom = arguments.get("name") if isinstance(arguments, dict) else None
        if not isinstance(whom, str):
            raise RpcError(jsonrpc.INVALID_PARAMS, "argument 'name' is a string and must be given")
        text = f"Greet {whom} in one friendly sentence."
        return {"description": "Greet somebody.",
                "messages": [{"role": "user", "content": {"type": "text", "text": text}}]}


class _Call(msgspec.Struct, frozen=True):
    identity: msgspec.Raw
    message: Incoming
    modern: bool
    now_ns: int

    @property
    def params(self) -> dict[str, Any]:
        return self.message.params

    @property
    def legacy(self) -> bool:
        return not self.modern


def _only_page(call: _Call) -> None:
    if call.params.get("cursor") is not None:
        raise RpcError(jsonrpc.INVALID_PARAMS, "unknown cursor")


def _uri(call: _Call) -> str:
    uri = call.params.get("uri")
    if not isinstance(uri, str):
        raise RpcError(jsonrpc.INVALID_PARAMS, "uri is a string")
    if uri not in (WELCOME, CALLS):
        code = RESOURCE_NOT_FOUND_LEGACY if call.legacy else jsonrpc.INVALID_PARAMS
        raise RpcError(code, "Resource not found", {"uri": uri[:1024]})
    return uri


def _text(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}]}


def _cacheable(value: Mapping[str, Any], ttl_ms: int = _LIST_TTL_MS) -> dict[str, Any]:
    """2026-07-28 caching: these results carry hints; nothing here is any one user's."""
    return {**value, "ttlMs": ttl_ms, "cacheScope": "public"}


def _listed(name: str, items: list[dict[str, Any]], call: _Call) -> dict[str, Any]:
    return {name: items} if call.legacy else _cacheable({name: items})


_Method = Callable[[Server, _Call], "dict[str, Any] | None"]

_BOTH: dict[str, _Method] = {
    "tools/list": Server._list_tools,  # noqa: SLF001 - the table of the class above, which can't name itself inside
    "tools/call": Server._call_tool,  # noqa: SLF001
    "resources/list": Server._list_resources,  # noqa: SLF001
    "resources/templates/list": Server._list_templates,  # noqa: SLF001
    "resources/read": Server._read,  # noqa: SLF001
    "prompts/list": Server._list_prompts,  # noqa: SLF001
    "prompts/get": Server._get_prompt,  # noqa: SLF001
}
_LEGACY_METHODS: dict[str, _Method] = {
    **_BOTH,
    "initialize": Server._initialize,  # noqa: SLF001
    "ping": Server._ping,  # noqa: SLF001
    "logging/setLevel": Server._set_level,  # noqa: SLF001
    "resources/subscribe": Server._subscribe,  # noqa: SLF001
    "resources/unsubscribe": Server._unsubscribe,  # noqa: SLF001
}
_MODERN_METHODS: dict[str, _Method] = {
    **_BOTH,
    "server/discover": Server._discover,  # noqa: SLF001
    "subscriptions/listen": Server._listen,  # noqa: SLF001
}
