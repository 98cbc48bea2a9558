"""An MCP client on one link: requests and their answers, both eras of the protocol, tools."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar

import attrs
import msgspec
import trio

from .failure import CallError, ClientFailure, LinkClosed, NoAnswer, Refused, Unreachable
from .link import CLOSE_GRACE, Link

Era = Literal["legacy", "modern"]
Json = dict[str, Any]

LEGACY_VERSION: Final = "2025-11-25"
LEGACY_VERSIONS: Final = frozenset({"2024-11-05", "2025-03-26", "2025-06-18", LEGACY_VERSION})
MODERN_VERSION: Final = "2026-07-28"

METHOD_NOT_FOUND: Final = -32601

# A server that never stops giving cursors would otherwise be listed for ever.
MAX_PAGES: Final = 1000

_T = TypeVar("_T")


@attrs.define
class _Pending:
    """A request in flight. Invariant: exactly one of ``answer`` and ``failure`` is set when ``done`` is."""

    done: trio.Event = attrs.field(factory=trio.Event)
    answer: Json | None = None
    failure: ClientFailure | None = None


@attrs.define
class McpSession:
    """Made by ``in_session``, whose background task reads the link.

    ``timeout`` is how long a request waits for its answer, in seconds. ``on_notification`` gets every notification.
    """

    link: Link
    client_name: str
    client_version: str
    era: Era = "legacy"
    timeout: float = 30.0
    on_notification: Callable[[Json], None] = lambda _: None
    server: Json = attrs.field(factory=dict)
    protocol_version: str = ""
    _next_id: int = attrs.field(default=1, init=False)
    _pending: dict[int, _Pending] = attrs.field(factory=dict, init=False)
    _closed: ClientFailure | None = attrs.field(default=None, init=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)  # set with _closed
    _last_words: Json | None = attrs.field(default=None, init=False)  # an error that answers nothing of ours

    async def request(self, method: str, params: Json | None = None) -> Json:
        """Send a request and return its result.

        Raises CallError (Refused for 401 and 403), NoAnswer, and LinkClosed when the connection ends first.
        """
        return _result(method, await self._exchange(method, self._stamped(params)))

    async def notify(self, method: str, params: Json | None = None) -> None:
        message: Json = {"jsonrpc": "2.0", "method": method}
        if params:
            message["params"] = params
        await self._send(message)

    async def authenticate(self, token: str, server: str = "") -> Json:
        """Say to the gateway who we are, as the first message on TCP. Raises Refused, or Unreachable after silence."""
        method = "authenticate"
        params = {key: value for key, value in (("token", token), ("server", server)) if value}
        try:
            return _result(method, await self._exchange(method, params))
        except NoAnswer as silence:
            raise Unreachable(str(silence)) from None
        except CallError as error:
            raise Refused(str(error)) from None

    async def _exchange(self, method: str, params: Json) -> Json:
        if self._closed is not None:
            raise self._closed
        request_id, self._next_id = self._next_id, self._next_id + 1
        pending = self._pending[request_id] = _Pending()
        try:
            await self._send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
            with trio.move_on_after(self.timeout) as scope:
                await pending.done.wait()
        finally:
            del self._pending[request_id]
        if scope.cancelled_caught:
            raise NoAnswer(f"{method}: no answer within {self.timeout:g} s")
        if pending.failure is not None:
            raise pending.failure
        assert pending.answer is not None  # noqa: S101 - the invariant of _Pending
        return pending.answer

    async def initialise(self) -> Json:
        """Introduce ourselves in the way of the era; ``server`` and ``protocol_version`` are known then."""
        if self.era == "modern":
            self.protocol_version = MODERN_VERSION
            result = await self.request("server/discover")
            offered = result.get("supportedVersions")
            if isinstance(offered, list) and MODERN_VERSION not in offered:
                raise ClientFailure(f"the server does not speak {MODERN_VERSION}; it offers {offered!r}")
            meta = result.get("_meta")
            info = meta.get("io.modelcontextprotocol/serverInfo") if isinstance(meta, dict) else None
        else:
            params = {
                "protocolVersion": LEGACY_VERSION,
                "capabilities": {},
                "clientInfo": {"name": self.client_name, "version": self.client_version},
            }
            result = await self.request("initialize", params)
            version = result.get("protocolVersion")
            if version not in LEGACY_VERSIONS:
                raise ClientFailure(f"the server chose protocol version {version!r}, which this client doesn't speak")
            self.protocol_version = version
            await self.notify("notifications/initialized")
            info = result.get("serverInfo")
        self.server = info if isinstance(info, dict) else {}
        return result

    async def list_tools(self) -> list[Json]:
        """All tools, over all pages. Raises as ``request`` does, and ClientFailure for endless paging."""
        tools: list[Json] = []
        seen: set[str] = set()
        params: Json = {}
        for _ in range(MAX_PAGES):
            page = await self.request("tools/list", params)
            listed = page.get("tools")
            if not isinstance(listed, list):
                raise ClientFailure("tools/list: the result holds no list of tools")
            tools += [tool for tool in listed if isinstance(tool, dict)]
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str):
                return tools
            if cursor in seen:
                break
            seen.add(cursor)
            params = {"cursor": cursor}
        raise ClientFailure("tools/list: the server pages without an end")

    async def call_tool(self, name: str, arguments: Json) -> Json:
        """The tool's result, whether or not it says ``isError``."""
        result = await self.request("tools/call", {"name": name, "arguments": arguments})
        if result.get("resultType") == "input_required":
            raise ClientFailure(f"{name}: the server asks for input from a user, which this client can't give")
        return result

    async def read(self) -> None:
        """Take in messages until the link ends; then fail what still waits. For ``in_session``."""
        try:
            while True:
                await self._take(await self.link.receive())
        except LinkClosed as closed:
            self._closed = self._explain(closed)
            self._ended.set()
            for pending in self._pending.values():
                pending.failure = self._closed
                pending.done.set()

    async def _take(self, raw: bytes) -> None:
        try:
            message = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise LinkClosed(1002, "what came is not JSON") from None
        if not isinstance(message, dict):
            raise LinkClosed(1002, "what came is not a JSON-RPC message")
        if isinstance(message.get("method"), str):
            if "id" in message:
                await self._answer(message)
            else:
                self.on_notification(message)
            return
        message_id = message.get("id")
        # type(), because True == 1 and 1.0 == 1
        pending = self._pending.get(message_id) if type(message_id) is int else None
        if pending is not None and not pending.done.is_set():
            pending.answer = message
            pending.done.set()
        elif message_id is None and "error" in message:
            self._last_words = message

    async def _answer(self, request: Json) -> None:
        """A server may ask clients too; we declare nothing but life."""
        answer: Json = {"jsonrpc": "2.0", "id": request["id"]}
        if request["method"] == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": METHOD_NOT_FOUND, "message": "this client offers no such method"}
        await self.link.send(msgspec.json.encode(answer))

    async def _send(self, message: Json) -> None:
        try:
            await self.link.send(msgspec.json.encode(message))
        except LinkClosed as closed:
            # Why it was closed may still have to be read.
            with trio.move_on_after(CLOSE_GRACE):
                await self._ended.wait()
            raise self._closed or closed from None

    def _explain(self, closed: LinkClosed) -> ClientFailure:
        """A refusal on TCP is an error that answers nothing, followed by the end of the stream."""
        if self._last_words is not None:
            error = _error("the gateway closed the connection", self._last_words["error"])
            return error if isinstance(error, Refused) else Refused(str(error))
        return closed

    def _stamped(self, params: Json | None) -> Json:
        """In the modern era every request says who asks, in which version and with which capabilities."""
        params = dict(params or {})
        if self.era == "modern":
            params["_meta"] = {
                **params.get("_meta", {}),
                "io.modelcontextprotocol/protocolVersion": MODERN_VERSION,
                "io.modelcontextprotocol/clientInfo": {"name": self.client_name, "version": self.client_version},
                "io.modelcontextprotocol/clientCapabilities": {},
            }
        return params


async def in_session(session: McpSession, work: Callable[[McpSession], Awaitable[_T]]) -> _T:
    """Run ``work`` while the link is read. Raises what ``work`` raises, not wrapped in a group."""
    failure: ClientFailure | None = None
    result: list[_T] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.read)
        try:
            result.append(await work(session))
        except ClientFailure as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result[0]


def _result(method: str, answer: Json) -> Json:
    if "error" in answer:
        raise _error(method, answer["error"])
    result = answer.get("result")
    if not isinstance(result, dict):
        raise ClientFailure(f"{method}: the result is not an object")
    return result


def _error(method: str, error: object) -> ClientFailure:
    if not isinstance(error, dict):
        return CallError(method, 0, "an error that says nothing")
    code, message = error.get("code"), str(error.get("message", ""))
    if code in (401, 403):
        return Refused(f"{method}: error {code}: {message}")
    return CallError(method, code if isinstance(code, int) else 0, message, error.get("data"))
