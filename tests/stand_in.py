"""A small gateway in this process, for tests of the client side only: one token, one MCP server with three tools."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
import trio_websocket

TOKEN = "a-token-that-must-never-be-printed"

TOOLS = [
    {"name": "echo", "description": "Says it back", "inputSchema": {"type": "object"}},
    {"name": "fails", "description": "Always \x1b[31mfails", "inputSchema": {"type": "object"}},
    {"name": "never", "description": "Never answers", "inputSchema": {"type": "object"}},
]


@attrs.define
class StandIn:
    ws_port: int = 0
    tcp_port: int = 0
    seen: list[dict[str, Any]] = attrs.field(factory=list)
    paths: list[str] = attrs.field(factory=list)
    asked: trio.Event = attrs.field(factory=trio.Event)  # set when the tool `never` was called
    endless_pages: bool = False
    version: str = "2025-11-25"

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.ws_port}"

    def answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        self.seen.append(message)
        if "method" not in message or "id" not in message:
            return None
        method, params = message["method"], message.get("params", {})
        result: dict[str, Any]
        match method:
            case "initialize":
                result = {
                    "protocolVersion": self.version,
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "stand-in", "version": "1"},
                }
            case "server/discover":
                result = {
                    "supportedVersions": ["2026-07-28"],
                    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "stand-in", "version": "2"}},
                }
            case "tools/list":
                page = int(params.get("cursor", "0"))
                result = {"tools": [] if self.endless_pages else TOOLS[page : page + 1]}
                if self.endless_pages:
                    result["nextCursor"] = "0"
                elif page + 1 < len(TOOLS):
                    result["nextCursor"] = str(page + 1)
            case "tools/call" if params["name"] == "echo":
                result = {"content": [{"type": "text", "text": params["arguments"].get("text", "")}]}
            case "tools/call" if params["name"] == "fails":
                result = {"content": [{"type": "text", "text": "no \x1b[2Jluck"}], "isError": True}
            case "tools/call" if params["name"] == "never":
                self.asked.set()
                return None
            case "forbidden":
                return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": 403, "message": "forbidden"}}
            case _:
                return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "unknown"}}
        return {"jsonrpc": "2.0", "id": message["id"], "result": result}

    async def serve_ws(self, request: trio_websocket.WebSocketRequest) -> None:
        headers = dict(request.headers)
        if headers.get(b"authorization") != b"Bearer " + TOKEN.encode():
            body = json.dumps({"title": "Unauthorized", "detail": "a bearer token is needed"}).encode()
            await request.reject(401, extra_headers=[(b"www-authenticate", b"Bearer")], body=body)
            return
        self.paths.append(request.path)
        connection = await request.accept(subprotocol="mcp" if "mcp" in request.proposed_subprotocols else None)
        try:
            while True:
                message = json.loads(await connection.get_message())
                if message.get("method") == "close-me":
                    await connection.aclose(1008, "policy says no")
                    return
                answer = self.answer(message)
                if answer is not None:
                    # Spread over lines: whoever frames by lines must undo that.
                    await connection.send_message(json.dumps(answer, indent=1))
        except trio_websocket.ConnectionClosed:
            return

    async def serve_tcp(self, stream: trio.SocketStream) -> None:
        buffer = b""
        authenticated = False
        async for data in stream:
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                message = json.loads(line)
                if message["method"] == "authenticate":
                    authenticated = message["params"].get("token") == TOKEN
                    answer: dict[str, Any] | None = {"jsonrpc": "2.0", "id": message["id"]}
                    if authenticated:
                        answer["result"] = {"authenticated": True, "principal": "tester"}
                    else:
                        answer["error"] = {"code": 401, "message": "unauthenticated"}
                elif not authenticated:
                    refusal = {"jsonrpc": "2.0", "id": None, "error": {"code": 401, "message": "unauthenticated"}}
                    await stream.send_all(json.dumps(refusal).encode() + b"\n")
                    return
                else:
                    answer = self.answer(message)
                if answer is not None:
                    await stream.send_all(json.dumps(answer).encode() + b"\n")


@asynccontextmanager
async def stand_in(**options: Any) -> AsyncIterator[StandIn]:
    gateway = StandIn(**options)
    async with trio.open_nursery() as nursery:

        async def tcp(stream: trio.SocketStream) -> None:
            try:
                async with stream:
                    await gateway.serve_tcp(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        gateway.tcp_port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, tcp, listeners)
        server = await nursery.start(
            lambda task_status: trio_websocket.serve_websocket(
                gateway.serve_ws, "127.0.0.1", 0, ssl_context=None, task_status=task_status
            )
        )
        gateway.ws_port = server.port
        yield gateway
        nursery.cancel_scope.cancel()
