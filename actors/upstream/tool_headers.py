"""``x-mcp-header`` (2026-07-28, "Custom Headers from Tool Parameters"): which arguments of which tools a server wants
to see in headers too, learnt from its own ``tools/list`` answers. No input or output here.

A definition that breaks the specification's rules teaches nothing: its tool is called without such headers, and the
server says what it thinks of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from actors.policy.members import decode_object

from .http_messages import field_value

ANNOTATION: Final = b"x-mcp-header"
HEADER_MISMATCH: Final = -32020
MAX_TOOLS: Final = 1024  # with annotations, of one server
MAX_HEADERS: Final = 32  # of one tool
MAX_VALUE: Final = 8192
_LONGEST: Final = 6 * MAX_VALUE + 2  # a text of that length, if each character of it is escaped
_MAX_DEPTH: Final = 16
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}\Z")
_SAFE_INTEGER: Final = (1 << 53) - 1

Path = tuple[str, ...]


class ToolHeaders:
    """Of one server."""

    def __init__(self) -> None:
        self._tools: dict[str, tuple[tuple[Path, str], ...]] = {}

    def learn(self, answer: bytes) -> None:
        """From an answer to ``tools/list``; anything else teaches nothing."""
        if ANNOTATION not in answer and not self._tools:
            return
        try:
            tools = msgspec.json.decode(answer)["result"]["tools"]
        except (msgspec.DecodeError, RecursionError, LookupError, TypeError):
            return
        for tool in tools if isinstance(tools, list) else ():
            if not isinstance(tool, dict) or not isinstance(name := tool.get("name"), str):
                continue
            annotated = _annotated(tool.get("inputSchema"))
            if annotated and (name in self._tools or len(self._tools) < MAX_TOOLS):
                self._tools[name] = annotated
            elif not annotated:
                self._tools.pop(name, None)

    def of_call(self, name: str, message: bytes) -> list[tuple[bytes, bytes]]:
        """The headers of one ``tools/call``, which is well-formed."""
        annotated = self._tools.get(name)
        if not annotated:
            return []
        found = _Members(message)
        headers = []
        for path, header in annotated:
            text = _text(found.value(("params", "arguments", *path)))
            if text is not None and len(text) <= MAX_VALUE:
                headers.append((b"Mcp-Param-" + header.encode(), field_value(text)))
        return headers


def _annotated(schema: object) -> tuple[tuple[Path, str], ...]:
    found = []
    for path, header, kind in _properties(schema, ()):
        if not isinstance(header, str) or not _TOKEN.match(header) or kind not in ("string", "integer", "boolean"):
            return ()
        found.append((path, header))
    unique = len({header.lower() for _, header in found}) == len(found)
    return tuple(found) if unique and len(found) <= MAX_HEADERS else ()


def _properties(schema: object, path: Path) -> Iterator[tuple[Path, Any, Any]]:
    properties = schema.get("properties") if isinstance(schema, dict) and len(path) < _MAX_DEPTH else None
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        if isinstance(inner, dict):
            if "x-mcp-header" in inner:
                yield (*path, name), inner["x-mcp-header"], inner.get("type")
            yield from _properties(inner, (*path, name))


class _Members:
    """Members of a JSON text, of which no more is decoded than the way to them, and that once: it may be large."""

    def __init__(self, text: bytes) -> None:
        self._objects: dict[Path, dict[str, msgspec.Raw]] = {(): decode_object(text)}

    def value(self, path: Path) -> object:
        """What stands there; None where nothing does, or nothing that a header could hold."""
        raw = self._object(path[:-1]).get(path[-1])
        if raw is None or len(bytes(raw)) > _LONGEST:
            return None
        return msgspec.json.decode(raw)

    def _object(self, path: Path) -> dict[str, msgspec.Raw]:
        known = self._objects.get(path)
        if known is None:
            raw = self._object(path[:-1]).get(path[-1])
            try:
                known = decode_object(raw) if raw is not None else {}
            except msgspec.DecodeError:
                known = {}
            self._objects[path] = known
        return known


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) <= _SAFE_INTEGER else None
    return value if isinstance(value, str) else None
