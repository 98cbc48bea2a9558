"""RFC 6455 §5.3: the masking of client payloads, undone as fast as plain Python can.

Two ways, each the faster one on its side of ``LANES_FROM``. Up to there the payload and the repeated key are two big
integers and one XOR: three calls, whatever the length. Above it integer conversion (base 2³⁰ digits, about 350 MB/s)
costs more than four strided ``bytes.translate`` passes, one for each byte of the key (about 640 MB/s).

Where the C masker of the ``websockets`` distribution is installed it is used instead, for every size.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

Masker = Callable[[bytes, bytes], bytes]

LANES_FROM = 4096
"""Payload bytes from which the lanes win; measured on CPython 3.11, where the two cross between 2 and 8 KiB."""

_XOR_WITH = tuple(bytes(byte ^ key for byte in range(256)) for key in range(256))


def unmask_plain(payload: bytes, key: bytes) -> bytes:
    """``payload`` XOR the repeated 4-byte ``key``, as new bytes."""
    size = len(payload)
    if size < LANES_FROM:
        mask = int.from_bytes((key * ((size + 3) >> 2))[:size], "little")
        return (int.from_bytes(payload, "little") ^ mask).to_bytes(size, "little")
    out = bytearray(size)
    out[0::4] = payload[0::4].translate(_XOR_WITH[key[0]])
    out[1::4] = payload[1::4].translate(_XOR_WITH[key[1]])
    out[2::4] = payload[2::4].translate(_XOR_WITH[key[2]])
    out[3::4] = payload[3::4].translate(_XOR_WITH[key[3]])
    return bytes(out)


def rotate(key: bytes, count: int) -> bytes:
    """The key as it applies ``count`` bytes further into the payload."""
    count &= 3
    return key[count:] + key[:count]


def _installed_masker() -> Masker | None:
    """The C masker, if there is one and it does what is expected of it: it is not a documented interface."""
    try:
        masker: Masker = importlib.import_module("websockets.speedups").apply_mask
        works = masker(b"\x00\x01\x02\x03\x04", b"\x01\x02\x03\x04") == b"\x01\x03\x01\x07\x05"
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return masker if works else None


unmask: Masker = _installed_masker() or unmask_plain
