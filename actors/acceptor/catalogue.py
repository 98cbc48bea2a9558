"""The tools that each server has told of, as far as clients have asked for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

MOST_TOOLS: Final = 4096  # of one server
MOST_BYTES: Final = 8 << 20  # of all their schemas


class _Tool(msgspec.Struct):
    name: str
    inputSchema: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815 - the protocol's own name


class _Tools(msgspec.Struct):
    tools: list[_Tool]


class _Answer(msgspec.Struct):
    result: _Tools


_DECODER: Final = msgspec.json.Decoder(_Answer)


class Catalogue:
    """What stands in the latest answers to ``tools/list``."""

    def __init__(self) -> None:
        self._tools: dict[str, dict[str, bytes]] = {}

    def learn(self, upstream: str, raw: bytes) -> None:
        """Take the tools of one answer; of one that isn't a list of tools nothing is taken."""
        try:
            answer = _DECODER.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            return
        tools = self._tools.setdefault(upstream, {})
        for tool in answer.result.tools:
            if isinstance(tool.inputSchema, msgspec.Raw):
                tools.pop(tool.name, None)
                tools[tool.name] = bytes(tool.inputSchema)
        while len(tools) > MOST_TOOLS or sum(map(len, tools.values())) > MOST_BYTES:
            del tools[next(iter(tools))]

    def tools(self, upstream: str) -> Mapping[str, bytes]:
        """The ``inputSchema`` of each tool that is known, as JSON."""
        return self._tools.get(upstream, {})
