"""What a text may be taken for by whoever resolves percent-encoding (RFC 3986 §2.1) or HTML character references.

A receiver may resolve them more than once, so the text is resolved round by round; a text that still changes after
the last round is written in no honest way.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Final

from .effort import Effort

ROUNDS: Final = 4

# What stands behind a percent sign, so the text is parted there and every part looked up: ten times as fast as a
# match for each.
_OCTETS: Final = {
    f"{high}{low}".encode(): bytes((int(f"{high}{low}", 16),))
    for high, low in product("0123456789abcdefABCDEF", repeat=2)
}
_UNIT: Final = re.compile(rb"[uU][0-9A-Fa-f]{4}")  # of the encoding that is no standard's
# Possessive, so linear in the text.
_REFERENCE: Final = re.compile(rb"&(?:#[0-9]{1,8}+|#[xX][0-9A-Fa-f]{1,6}+|[A-Za-z]{2,8}+);?+")
_NAMED: Final = {
    b"lt": b"<", b"gt": b">", b"amp": b"&", b"quot": b'"', b"apos": b"'", b"colon": b":", b"tab": b"\t",
    b"newline": b"\n", b"lpar": b"(", b"rpar": b")", b"sol": b"/", b"bsol": b"\\", b"period": b".", b"equals": b"=",
    b"nbsp": b" ", b"semi": b";", b"num": b"#", b"percnt": b"%", b"grave": b"`", b"excl": b"!",
}  # fmt: skip
NAMES: Final = frozenset(name.decode() for name in _NAMED)
"""Of the references that are resolved, in lower case."""
# UTF-8 in more bytes than needed (RFC 3629 §3 forbids it; some decoders read it all the same).
_OVERLONG: Final = (
    (b"\xc0\xae", b"."), (b"\xc0\xaf", b"/"), (b"\xc1\x9c", b"\\"), (b"\xc0\xbc", b"<"), (b"\xc0\xbe", b">"),
    (b"\xc0\xa2", b'"'), (b"\xc0\xa7", b"'"), (b"\xe0\x80\xae", b"."), (b"\xe0\x80\xaf", b"/"),
    (b"\xe0\x81\x9c", b"\\"), (b"\xf0\x80\x80\xae", b"."), (b"\xf0\x80\x80\xaf", b"/"), (b"\xe0\x80\xbc", b"<"),
)  # fmt: skip


def views(text: bytes, effort: Effort) -> tuple[list[bytes], bool]:
    """What else the text may be taken for, and whether it still changed in the last round. Linear in its length.

    Raises:
        TooMuch
    """
    found: list[bytes] = []
    for _ in range(ROUNDS):
        effort.spend(_cost(text))
        resolved = _resolved(text)
        if resolved == text:
            return found, False
        found.append(resolved)
        text = resolved
    effort.spend(_cost(text))
    return found, _resolved(text) != text


def _cost(text: bytes) -> int:
    """Before a round, in units of effort."""
    dear = text.count(b"%u") + text.count(b"%U") + text.count(b"&")
    return 2_000 + 5 * len(text) + 250 * text.count(b"%") + 1_200 * dear


def _resolved(text: bytes) -> bytes:
    if b"%" in text:
        text = _unquoted(text)
    if b"&" in text:
        text = _REFERENCE.sub(_referred, text)
    return text.replace(b"\0", b"") if b"\0" in text else text


def _unquoted(text: bytes) -> bytes:
    first, *parts = text.split(b"%")
    found = [first]
    for part in parts:
        octet = _OCTETS.get(part[:2])
        if octet is not None:
            found.append(octet)
            found.append(part[2:])
        elif _UNIT.match(part) is not None:
            found.append(_utf8(int(part[1:5], 16)))
            found.append(part[5:])
        else:
            found.append(b"%")
            found.append(part)
    resolved = b"".join(found)
    if resolved.isascii():
        return resolved
    for overlong, character in _OVERLONG:
        resolved = resolved.replace(overlong, character)
    return resolved.decode("utf-8", "replace").encode()


def _referred(match: re.Match[bytes]) -> bytes:
    reference = match[0]
    name = reference[1:].rstrip(b";")
    if name[:1] != b"#":
        return _NAMED.get(name.lower(), reference)
    return _utf8(int(name[2:], 16) if name[1:2] in b"xX" else int(name[1:]))


def _utf8(number: int) -> bytes:
    return chr(number).encode("utf-8", "replace") if number <= 0x10FFFF else b"?"
