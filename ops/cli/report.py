"""What ``mcp-secure-client`` tells its user: lines for people, or one JSON document for programs."""

from __future__ import annotations

import json
import sys

import attrs

from .failure import CallError, ClientFailure
from .mcp_session import Json, McpSession
from .terminal import printable


@attrs.define
class Report:
    as_json: bool
    _document: Json = attrs.field(factory=dict, init=False)

    def connected(self, session: McpSession, identity: Json) -> None:
        """``identity`` is what the gateway answered to ``authenticate``, if that was sent."""
        self._document |= {
            "peer": session.link.peer,
            "protocolVersion": session.protocol_version,
            "server": session.server,
        }
        if identity.get("principal"):
            self._document["principal"] = identity["principal"]
        self._line(f"connected to {session.link.peer}")
        name = f"{session.server.get('name', '(no name)')} {session.server.get('version', '')}".rstrip()
        self._line(f"server {name}, MCP {session.protocol_version}")

    def tools(self, tools: list[Json]) -> None:
        self._document["tools"] = tools
        self._line("tools:" if tools else "no tools")
        width = max((len(str(tool.get("name", ""))) for tool in tools), default=0)
        for tool in tools:
            self._line(f"  {describe_tool(tool, width)}")

    def called(self, name: str, arguments: Json, result: Json) -> None:
        self._document["call"] = {"tool": name, "arguments": arguments, "result": result}
        self._line(f"{name}({json.dumps(arguments, ensure_ascii=False) if arguments else ''}):")
        for line in render_result(result):
            self._line(line)
        if result.get("isError") is True:
            print(f"the tool {printable(name)} reports an error", file=sys.stderr)

    def failed(self, failure: ClientFailure) -> None:
        error: Json = {"message": str(failure)}
        if isinstance(failure, CallError):
            error = {"code": failure.code, "message": failure.message, "data": failure.data}
        self._document["error"] = error

    def note(self, text: str) -> None:
        self._line(text)

    def finish(self) -> None:
        if self.as_json:
            print(json.dumps(self._document, ensure_ascii=False, indent=2), flush=True)

    def _line(self, text: str) -> None:
        if not self.as_json:
            print(printable(text), flush=True)


def describe_tool(tool: Json, width: int = 0) -> str:
    """One line: the name, and the first line of what it says about itself."""
    about = str(tool.get("description") or tool.get("title") or "").strip().split("\n")[0]
    if len(about) > 100:
        about = about[:99] + "…"
    return f"{tool.get('name', '')!s:<{width}}  {about}".rstrip()


def render_result(result: Json) -> list[str]:
    """A tool's result for people: text as it is, everything else named with its type and size."""
    content = result.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    lines = [_render(block) for block in blocks]
    if not lines and "structuredContent" in result:
        lines = [json.dumps(result["structuredContent"], ensure_ascii=False)]
    return lines or ["(no content)"]


def _render(block: Json) -> str:
    match block.get("type"):
        case "text":
            return str(block.get("text", ""))
        case "resource_link":
            return f"[resource {block.get('uri', '')}]"
        case "resource":
            resource = block.get("resource")
            resource = resource if isinstance(resource, dict) else {}
            return str(resource["text"]) if "text" in resource else f"[resource {resource.get('uri', '')}]"
        case kind:
            return f"[{kind} {block.get('mimeType', '')}, {len(str(block.get('data', '')))} characters of base64]"
