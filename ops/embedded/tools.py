"""The tools: what each takes, and what it answers at once. (``sleep`` and ``log`` are finished by the server.)"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")  # RFC 5424 §6.2.1

MAX_SLEEP_S = 60


class ToolError(Exception):
    """What went wrong, for the model to read: it is a result with ``isError``, not a protocol error."""


class Tool(msgspec.Struct, frozen=True):
    """One tool; ``output`` is the schema of ``structuredContent``, where it has one."""

    name: str
    title: str
    description: str
    input: dict[str, Any]
    output: dict[str, Any] | None = None
    idempotent: bool = True


def _object(required: tuple[str, ...] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = list(required)
    return schema


TOOLS: tuple[Tool, ...] = (
    Tool(
        "echo",
        "Echo",
        "Answer with the text that was given.",
        _object(("text",), text={"type": "string", "description": "What to repeat."}),
    ),
    Tool(
        "time",
        "Current time",
        "The current time, in UTC or in a time zone.",
        _object(
            timezone={"type": "string", "description": "An IANA name such as Europe/Berlin.", "default": "UTC"},
        ),
        _object(
            ("utc", "timezone", "local", "offset_s"),
            utc={"type": "string"},
            timezone={"type": "string"},
            local={"type": "string"},
            offset_s={"type": "number"},
        ),
    ),
    Tool(
        "add",
        "Add",
        "The sum of two numbers.",
        _object(("a", "b"), a={"type": "number"}, b={"type": "number"}),
        _object(("sum",), sum={"type": "number"}),
    ),
    Tool(
        "sleep",
        "Sleep",
        "Answer after a while, reporting progress on the way if asked to. It can be cancelled.",
        _object(
            ("seconds",),
            seconds={"type": "number", "minimum": 0, "maximum": MAX_SLEEP_S},
            steps={"type": "integer", "minimum": 1, "maximum": 100, "default": 10,
                   "description": "How many progress notifications to send."},
        ),
    ),
    Tool(
        "log",
        "Log",
        "Write a log message to the client.",
        _object(
            ("message",),
            message={"type": "string"},
            level={"type": "string", "enum": list(LEVELS), "default": "info"},
            logger={"type": "string", "default": "portcullis.embedded"},
        ),
        idempotent=False,
    ),
)

BY_NAME: dict[str, Tool] = {tool.name: tool for tool in TOOLS}

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "number": (int, float), "integer": (int,)}


def check_arguments(tool: Tool, arguments: object) -> dict[str, Any]:
    """The arguments with the defaults filled in. Raises ToolError naming the first that is wrong.

    Only the keywords that the schemas above use are known.
    """
    if not isinstance(arguments, dict):
        raise ToolError("arguments must be an object")
    properties: dict[str, dict[str, Any]] = tool.input["properties"]
    for name in arguments:
        if name not in properties:
            raise ToolError(f"unknown argument {name[:64]!r}; known: {', '.join(properties)}")
    for name in tool.input.get("required", ()):
        if name not in arguments:
            raise ToolError(f"argument {name!r} is missing")
    checked: dict[str, Any] = {}
    for name, schema in properties.items():
        if name in arguments:
            checked[name] = _check(name, arguments[name], schema)
        elif "default" in schema:
            checked[name] = schema["default"]
    return checked


def _check(name: str, value: Any, schema: Mapping[str, Any]) -> Any:  # noqa: ANN401 - it is JSON
    kind = schema["type"]
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON Schema 2020-12 §6.1.1: 1.0 is an integer
    if isinstance(value, bool) or not isinstance(value, _PYTHON_TYPES[kind]):
        raise ToolError(f"argument {name!r} must be of type {kind}")
    if "enum" in schema and value not in schema["enum"]:
        raise ToolError(f"argument {name!r} must be one of {', '.join(schema['enum'])}")
    if value < schema.get("minimum", value) or value > schema.get("maximum", value):
        raise ToolError(f"argument {name!r} must lie between {schema['minimum']} and {schema['maximum']}")
    return value


Answer = tuple[str, dict[str, Any] | None]  # the text, and the structured content if there is some


def echo(arguments: Mapping[str, Any]) -> Answer:
    return arguments["text"], None


def add(arguments: Mapping[str, Any]) -> Answer:
    try:
        total = arguments["a"] + arguments["b"]
    except OverflowError:
        raise ToolError("the sum is too large") from None
    if not math.isfinite(total):
        raise ToolError("the sum is too large")
    return str(total), {"sum": total}


def current_time(arguments: Mapping[str, Any]) -> Answer:
    from zoneinfo import ZoneInfo  # here: not every run needs it, and each run should start fast

    name = arguments["timezone"]
    try:
        zone = ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ToolError(f"no time zone is called {name[:64]!r}; use an IANA name such as Europe/Berlin") from None
    utc = datetime.now(UTC).replace(microsecond=0)
    local = utc.astimezone(zone)
    offset = local.utcoffset()
    return local.isoformat(), {
        "utc": utc.isoformat(),
        "timezone": name,
        "local": local.isoformat(),
        "offset_s": offset.total_seconds() if offset is not None else 0.0,
    }


IMMEDIATE: dict[str, Callable[[Mapping[str, Any]], Answer]] = {"echo": echo, "add": add, "time": current_time}
