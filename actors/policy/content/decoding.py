"""What a text may be taken for by whoever resolves percent-encoding (RFC 3986 §2.1) or HTML character references.

A receiver may resolve them more than once, so the text is resolved round by round; a text that still changes after
the last round is written in no honest way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .linear import Pattern, compiled

ROUNDS: Final = 4

_PERCENT: Final = compiled(b"(?:%[0-9A-Fa-f][0-9A-Fa-f])+|%[uU][0-9A-Fa-f]{4}")
_REFERENCE: Final = compiled(b"&(?:#[0-9]{1,8}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});?")
_NAMED: Final = {
    b"lt": b"<", b"gt": b">", b"amp": b"&", b"quot": b'"', b"apos": b"'", b"colon": b":", b"tab": b"\t",
    b"newline": b"\n", b"lpar": b"(", b"rpar": b")", b"sol": b"/", b"bsol": b"\\", b"period": b".", b"equals": b"=",
    b"nbsp": b" ", b"semi": b";", b"num": b"#", b"percnt": b"%", b"grave": b"`", b"excl": b"!",
}  # fmt: skip
# UTF-8 in more bytes than needed (RFC 3629 §3 forbids it; some decoders read it all the same).
_OVERLONG: Final = (
    (b"\xc0\xae", b"."), (b"\xc0\xaf", b"/"), (b"\xc1\x9c", b"\\"), (b"\xc0\xbc", b"<"), (b"\xc0\xbe", b">"),
    (b"\xc0\xa2", b'"'), (b"\xc0\xa7", b"'"), (b"\xe0\x80\xae", b"."), (b"\xe0\x80\xaf", b"/"),
    (b"\xe0\x81\x9c", b"\\"), (b"\xf0\x80\x80\xae", b"."), (b"\xf0\x80\x80\xaf", b"/"), (b"\xe0\x80\xbc", b"<"),
)  # fmt: skip


def views(text: bytes) -> tuple[list[bytes], bool]:
    """What else the text may be taken for, and whether it still changed in the last round. Linear in its length."""
    found: list[bytes] = []
    for _ in range(ROUNDS):
        resolved = _resolved(text)
        if resolved == text:
            return found, False
        found.append(resolved)
        text = resolved
    return found, _resolved(text) != text


def _resolved(text: bytes) -> bytes:
    if b"%" in text:
        text = _replaced(_PERCENT, _character, text)
    if b"&" in text:
        text = _replaced(_REFERENCE, _referred, text)
    return text.replace(b"\0", b"") if b"\0" in text else text


def _replaced(pattern: Pattern, replacement: Callable[[bytes], bytes], text: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    for match in pattern.finditer(text):
        start, end = match.span()
        parts += (text[at:start], replacement(text[start:end]))
        at = end
    if not parts:
        return text
    parts.append(text[at:])
    return b"".join(parts)


def _character(code: bytes) -> bytes:
    if code[1:2] in b"uU":
        return _utf8(int(code[2:], 16))
    octets = bytes.fromhex(code.replace(b"%", b"").decode("ascii"))
    if not octets.isascii():
        for overlong, character in _OVERLONG:
            octets = octets.replace(overlong, character)
        octets = octets.decode("utf-8", "replace").encode()
    return octets


def _referred(reference: bytes) -> bytes:
    name = reference[1:].rstrip(b";")
    if name[:1] != b"#":
        return _NAMED.get(name.lower(), reference)
    return _utf8(int(name[2:], 16) if name[1:2] in b"xX" else int(name[1:]))


def _utf8(number: int) -> bytes:
    return chr(number).encode("utf-8", "replace") if number <= 0x10FFFF else b"?"
