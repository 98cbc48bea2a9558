"""The parsers of the security boundary, each with what must hold of it for any bytes whatever.

A target is a module with ``check(data)``, which raises when its invariant does not hold, and ``SEEDS``, inputs to start
from. ``tests/fuzz/scripts/guided.py`` feeds them what coverage leads it to; the ordinary tests replay the corpora.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Callable
from pathlib import Path

import attrs

CORPUS = Path(__file__).parent.parent / "corpus"
NAMES = (
    "forwarded",
    "http_request",
    "jsonrpc_client",
    "jwt",
    "lines",
    "list_filter",
    "mux",
    "proxy_header",
    "upstream_message",
    "websocket",
)


@attrs.frozen
class Target:
    name: str
    invariant: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]

    @property
    def corpus(self) -> tuple[bytes, ...]:
        """What an earlier run found worth keeping, and every input that once failed."""
        file = CORPUS / self.name
        return tuple(unpacked(file.read_text())) if file.exists() else ()


def target(name: str) -> Target:
    module = importlib.import_module(f"fuzz.targets.{name}")
    return Target(name, module.__doc__ or "", module.check, tuple(module.SEEDS))


def packed(inputs: list[bytes]) -> str:
    """One input a line, in base64; sorted, so that two runs differ in what they found only."""
    lines = sorted({base64.b64encode(one).decode() for one in inputs}, key=lambda line: (len(line), line))
    return "".join(f"{line}\n" for line in lines)


def unpacked(text: str) -> list[bytes]:
    return [base64.b64decode(line, validate=True) for line in text.splitlines()]


def knobs(data: bytes, count: int) -> tuple[bytes, bytes]:
    """The first ``count`` bytes, which choose how the rest is presented, and the rest."""
    return data[:count].ljust(count, b"\0"), data[count:]


def cuts_of(knob: bytes, size: int) -> list[int]:
    """Where to divide ``size`` bytes: after each byte if the knob's first byte is 255, at its places otherwise."""
    if knob[:1] == b"\xff" and size < 4096:
        return list(range(size))
    places = []
    at = 0
    for byte in knob:
        at += byte
        places.append(at)
    return places
