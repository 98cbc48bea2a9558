"""Paths in fields that hold paths: whether they leave where they belong.

A relative path belongs below the directory it starts from; ``a/../b`` stays there, ``a/../../b`` doesn't. An absolute
one belongs below the configured roots; where none are configured it may name any place, but not climb out of the
top-level directory that it begins with. Nothing is looked up in any file system.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .linear import compiled

OUTSIDE: Final = "path-outside-roots"
TRAVERSAL: Final = "path-traversal"

FOLDED: Final = (
    {"．": ".", "․": ".", "‥": "..", "…": "...", "／": "/", "⁄": "/", "∕": "/", "⧸": "/", "＼": "\\", "∖": "\\",
     "﹨": "\\"}
)  # fmt: skip
"""Characters that some systems fold into the plain ones (by NFKC or a code page's best fit)."""
_PLAIN: Final = str.maketrans({**FOLDED, "\0": ""})
_DRIVE: Final = compiled(r"[A-Za-z]:")
_SCHEME: Final = compiled(r"([A-Za-z][A-Za-z0-9+.-]{1,31}):(//[^/\\]*)?", groups=True)
_WEB: Final = frozenset({"http", "https", "ws", "wss", "data", "mailto", "urn"})

_WORDS: Final = compiled("[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_PATH_WORDS: Final = frozenset(
    {"path", "paths", "pathname", "file", "files", "filename", "filenames", "filepath", "filepaths", "dir", "dirs",
     "directory", "directories", "dirname", "folder", "folders", "cwd", "workdir", "basedir", "rootdir"}
)  # fmt: skip
_PATH_ENDS: Final = ("filepath", "filename", "pathname")
_URI_WORDS: Final = frozenset({"uri", "uris"})
LINE_NAMES: Final = frozenset(
    {"header", "headers", "cookie", "cookies", "host", "url", "urls", "uri", "uris", "subject", "email", "recipient",
     "recipients", "to", "from", "cc", "bcc"}
)  # fmt: skip
"""Of fields that hold one line, in lower case."""
_LONGEST_NAME: Final = 64


def is_path_name(key: str) -> bool:
    """Whether a field of that name holds a path: ``path``, ``filePath``, ``log_file``, ``uri`` …"""
    if len(key) > _LONGEST_NAME:
        return False
    words = [match.group().lower() for match in _WORDS.finditer(key)]
    return bool(words) and (words[-1] in _PATH_WORDS or words[-1] in _URI_WORDS or words[-1].endswith(_PATH_ENDS))


def is_line_name(key: str) -> bool:
    """Whether a field of that name holds one line: ``subject``, ``url`` …"""
    return len(key) <= _LONGEST_NAME and key.lower() in LINE_NAMES


def fault(text: str, roots: Sequence[str]) -> str:
    """What is wrong with a path, or a URI that holds one: TRAVERSAL, OUTSIDE or nothing. Linear in its length."""
    path = text.strip().translate(_PLAIN)
    scheme = _SCHEME.match(path)
    if scheme is not None:
        name = scheme.group(1).lower()
        if name in _WEB:
            return ""
        path = path[scheme.end() :]
        if name != "file":
            path = path.lstrip("/")  # of a space of names of its own
            return TRAVERSAL if _climbs(path.replace("\\", "/")) else ""
    path = path.replace("\\", "/")
    drive = _DRIVE.match(path) is not None
    absolute = drive or path[:1] in ("/", "~")
    if not absolute:
        return TRAVERSAL if _climbs(path) else ""
    if not roots:
        return TRAVERSAL if _climbs(path[2:] if drive else path, least=1) else ""
    dotted, place = _normal(path)
    if any(place == root or root == "/" or place.startswith(f"{root}/") for root in _comparable(roots, drive)):
        return ""
    return TRAVERSAL if dotted else OUTSIDE


def segments_at_most(text: bytes) -> int:
    """How many segments such a path has at most; what takes the time."""
    folded = 0 if text.isascii() else text.count(b"\xe2") + text.count(b"\xef")
    return text.count(b"/") + text.count(b"\\") + folded + 1


def _comparable(roots: Sequence[str], drive: bool) -> Sequence[str]:
    return [root for root in roots if (_DRIVE.match(root) is not None) == drive]


def _segments(path: str) -> list[str]:
    """Without what is nothing to a file system; ``..;x`` and ``.. `` are ``..`` to some servers."""
    found: list[str] = []
    parts = path.split("/")
    for number, segment in enumerate(parts, 1):
        name = segment.strip()
        if ";" in name:
            name = name.partition(";")[0]
        if not name.strip(".") and (len(name) > 3 or (len(name) == 3 and number < len(parts))):
            name = ".."  # "....//" becomes "../" where "../" is cut out once; "..." at the end is a pattern of Go's
        if name not in ("", "."):
            found.append(name)
    return found


def _climbs(path: str, least: int = 0) -> bool:
    """Whether dot segments lead above the start, or in an absolute path to less than ``least`` below it."""
    depth = 0
    for segment in _segments(path):
        if segment == "..":
            depth -= 1
            if depth < least:
                return True
        else:
            depth += 1
    return False


def _normal(path: str) -> tuple[bool, str]:
    """Whether there are dot segments, and where the path leads."""
    place: list[str] = []
    dotted = False
    for segment in _segments(path):
        if segment == "..":
            dotted = True
            if place:
                place.pop()
        else:
            place.append(segment)
    lead = "" if path[:1] != "/" else "/"
    return dotted, lead + "/".join(place)
