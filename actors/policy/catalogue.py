"""The last good answers of upstreams to list-type methods, from which clients are answered while a breaker is open.

Kept by upstream, method, cursor and era, of shared instances only (what a server says to one session is nobody
else's), and never what the server calls private. A result is kept as the server wrote it, byte for byte; what is
added to it when it is given again stands in its ``_meta``.

How much is kept is bounded for each upstream by itself, so that none can push out another's answers, and pages that a
client asked for by a cursor never push out a first page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from enum import Enum
from itertools import islice
from typing import Final

import attrs
import msgspec

from ipc.messages import Envelope, ListAnswer

from .eras import LEGACY_VERSIONS, MODERN_VERSION, NO_HANDSHAKE, legacy_version
from .members import DuplicateKey, decode_object, is_utf8, locate, text_of

LISTS: Final = {"tools/list": "tools", "prompts/list": "prompts", "resources/list": "resources"}
"""The methods that list, and the member of the result that is the list."""
METHODS: Final = frozenset({*LISTS, "initialize", "server/discover"})

STALE: Final = "portcullis/stale"
AGE_MS: Final = "portcullis/ageMs"

MAX_ALL: Final = 16 << 20  # bytes, of all upstreams; each worker has a copy
MAX_UPSTREAM: Final = 4 << 20  # of one
MIN_UPSTREAM: Final = 256 << 10  # of one among very many: a list of hundreds of tools
MAX_ANSWER: Final = 1 << 20  # of one answer
MAX_ENTRIES: Final = 256  # of one upstream
MAX_TOOLS: Final = 10_000  # whose schemas are looked up

_MAX_CURSOR: Final = 1024  # characters
_DIGEST_SIZE: Final = 16
_ERAS: Final = frozenset({*LEGACY_VERSIONS, MODERN_VERSION, NO_HANDSHAKE})
_SCOPE_FOLDED: Final = "cacheScope".casefold()
_OWN_PREFIX: Final = "portcullis/"
_READ: Final = frozenset({"cacheScope", "resultType", "_meta"})
_READ_FOLDED: Final = frozenset(key.casefold() for key in _READ)
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])

Key = tuple[str, str, str, str]  # upstream, method, cursor, era


class Unkept(Enum):
    """Why an answer isn't kept."""

    NOT_GOOD = "not good"
    """An error, or nothing that can be given again: the last good one stays."""
    PRIVATE = "private"
    """The server doesn't want it shared: what was kept before goes too."""


@attrs.frozen
class Kept:
    """One result. ``at`` is where its marks are inserted, as ``before`` + marks + ``after``."""

    result: bytes
    digest: bytes
    learnt_ns: int
    at: int
    before: bytes
    after: bytes

    def answer(self, id_raw: bytes, now: int) -> bytes:
        """The whole answer for a client's raw id, marked as stale."""
        age_ms = max(0, now - self.learnt_ns) // 1_000_000
        return b'{"jsonrpc":"2.0","id":%b,"result":%b%b"%b":true,"%b":%d%b%b}' % (
            id_raw,
            self.result[: self.at],
            self.before,
            STALE.encode(),
            AGE_MS.encode(),
            age_ms,
            self.after,
            self.result[self.at :],
        )


def key_of(upstream: str, envelope: Envelope, raw: bytes, version: str) -> Key | None:
    """The key of a request's answer; None when its answer isn't kept.

    ``version`` is the legacy version of the session, "" for none. Only versions that the gateway knows are told
    apart, so that no client makes up keys; and a request that asks for more than a page is no one else's.
    """
    method = envelope.method
    if method not in METHODS:
        return None
    if method == "initialize":
        if envelope.version_at < 0:
            return None
        era = version or legacy_version(envelope.version)
        return (upstream, method, "", era) if era in _ERAS else None
    era = envelope.era or version
    if era not in _ERAS:
        return None
    try:
        params = decode_object(raw).get("params")
        members = decode_object(params) if params is not None else {}
    except (msgspec.DecodeError, RecursionError):
        return None  # params in an array, which no list-type method has
    cursor: str | None = ""
    if "cursor" in members:
        cursor = text_of(members["cursor"])
    if not members.keys() <= {"cursor", "_meta"} or cursor is None or len(cursor) > _MAX_CURSOR:
        return None
    return (upstream, method, cursor, era)


def read(method: str, raw: bytes, now: int) -> Kept | Unkept:
    """What is to be kept of an upstream's answer to ``method``."""
    if len(raw) > MAX_ANSWER or not is_utf8(raw):
        return Unkept.NOT_GOOD
    try:
        members = decode_object(raw)
        spans = locate(raw, 0, len(raw), members)
        if "result" not in members:
            return Unkept.NOT_GOOD
        at, end = spans["result"]
        return read_result(method, raw[at:end], now)
    except (msgspec.DecodeError, DuplicateKey, RecursionError):
        return Unkept.NOT_GOOD


def read_result(method: str, result: bytes, now: int) -> Kept | Unkept:
    """The same of the result alone."""
    if len(result) > MAX_ANSWER:
        return Unkept.NOT_GOOD
    try:
        members = decode_object(result)
        spans = locate(result, 0, len(result), members)
        if any(key not in _READ and key.casefold() in _READ_FOLDED for key in members):
            return Unkept.PRIVATE  # in another spelling: some client reads it, and it may say so
        if "cacheScope" in members and text_of(members["cacheScope"]) != "public":
            return Unkept.PRIVATE
        if "resultType" in members and text_of(members["resultType"]) != "complete":
            return Unkept.NOT_GOOD
        if not _is_good(method, result, members, {key: span[0] for key, span in spans.items()}):
            return Unkept.NOT_GOOD
        place = _place(result, members, spans.get("_meta"))
    except (msgspec.DecodeError, DuplicateKey, RecursionError):
        return Unkept.NOT_GOOD
    if place is None:
        return Unkept.NOT_GOOD
    digest = hashlib.blake2b(result, digest_size=_DIGEST_SIZE).digest()
    return Kept(result, digest, now, *place)


def _is_good(method: str, result: bytes, members: dict[str, msgspec.Raw], starts: dict[str, int]) -> bool:
    if method in LISTS:
        at = starts.get(LISTS[method], -1)
        return at >= 0 and result[at] == 0x5B
    if method == "initialize":
        return "protocolVersion" in members and text_of(members["protocolVersion"]) in LEGACY_VERSIONS
    return True


def _place(
    result: bytes, members: dict[str, msgspec.Raw], meta: tuple[int, int] | None
) -> tuple[int, bytes, bytes] | None:
    """Where the marks go: into ``_meta``, or into one made for them. None: nowhere."""
    if meta is None:
        return result.index(b"{") + 1, b'"_meta":{', b"}," if members else b"}"
    at, end = meta
    if result[at] != 0x7B:
        return None
    entries = decode_object(memoryview(result)[at:end])
    locate(result, at, end, entries)  # raises if one comes twice
    if any(key.casefold().startswith(_OWN_PREFIX) for key in entries):
        return None  # only the gateway speaks of itself
    return at + 1, b"", b"," if entries else b""


class Catalogue:
    """The answers of ``upstreams`` upstreams."""

    def __init__(self, upstreams: int) -> None:
        self._share = max(MIN_UPSTREAM, min(MAX_UPSTREAM, MAX_ALL // max(1, upstreams)))
        self._entries: dict[str, dict[Key, Kept]] = {}
        self._sizes: dict[str, int] = {}

    def get(self, key: Key) -> Kept | None:
        return self._entries.get(key[0], {}).get(key)

    def keep(self, key: Key, kept: Kept) -> bool:
        """Whether this is now what is known: another result, or the same one given later."""
        entries = self._entries.setdefault(key[0], {})
        known = entries.get(key)
        if len(kept.result) > self._share or (known is not None and known.learnt_ns >= kept.learnt_ns):
            return False
        self._sizes[key[0]] = self._sizes.get(key[0], 0) + len(kept.result) - (len(known.result) if known else 0)
        entries[key] = kept
        while self._sizes[key[0]] > self._share or len(entries) > MAX_ENTRIES:
            # Pages behind a cursor go first, the oldest before the newer ones.
            self.forget(min(entries, key=lambda one: (one[2] == "", entries[one].learnt_ns)))
        return key in entries

    def forget(self, key: Key) -> bool:
        """Whether there was one."""
        entries = self._entries.get(key[0], {})
        gone = entries.pop(key, None)
        if gone is None:
            return False
        self._sizes[key[0]] -= len(gone.result)
        return True

    def keys(self) -> Iterator[Key]:
        for entries in self._entries.values():
            yield from entries

    def learn(self, row: ListAnswer) -> bool:
        """What another one keeps. Whether anything has become known, or unknown, by it."""
        if row.method not in METHODS:
            return False
        key = (row.upstream, row.method, row.cursor, row.era)
        known = self.get(key)
        if not row.digest:
            return known is not None and known.learnt_ns <= row.learnt_ns and self.forget(key)
        if known is not None and known.digest == row.digest:
            return self.keep(key, attrs.evolve(known, learnt_ns=row.learnt_ns))
        if not row.result:
            return False
        kept = read_result(row.method, row.result, row.learnt_ns)
        return isinstance(kept, Kept) and self.keep(key, kept)

    def row(self, key: Key, *, whole: bool, now: int) -> ListAnswer:
        """What to tell another one. ``now`` dates what is known no more."""
        kept = self.get(key)
        if kept is None:
            return ListAnswer(*key, now)
        return ListAnswer(*key, kept.learnt_ns, kept.digest, kept.result if whole else b"")

    def tools(self, upstream: str) -> dict[str, bytes]:
        """The raw ``inputSchema`` of each tool that is known, by the tool's name; of two answers the later one's."""
        found: dict[str, bytes] = {}
        entries = self._entries.get(upstream, {})
        lists = [kept for key, kept in entries.items() if key[1] == "tools/list"]
        for kept in sorted(lists, key=lambda one: one.learnt_ns):
            for name, schema in _schemas(kept.result):
                if name in found or len(found) < MAX_TOOLS:
                    found[name] = schema
        return found

    def statistics(self) -> dict[str, dict[str, int]]:
        return {
            upstream: {"answers": len(entries), "bytes": self._sizes.get(upstream, 0)}
            for upstream, entries in self._entries.items()
        }


def input_schemas(raw: bytes) -> tuple[dict[str, bytes], bool]:
    """Of a whole answer to ``tools/list``: the raw ``inputSchema`` by the tool's name, and whether it is for this
    client only. Empty for an answer that can't be read."""
    try:
        result = decode_object(raw)["result"]
        members = decode_object(result)
        private = any(
            key.casefold() == _SCOPE_FOLDED and text_of(value) != "public" for key, value in members.items()
        )
        return dict(islice(_schemas(bytes(result)), MAX_TOOLS)), private
    except (KeyError, msgspec.DecodeError, RecursionError):
        return {}, False


def _schemas(result: bytes) -> Iterator[tuple[str, bytes]]:
    for entry in _ARRAY.decode(decode_object(result)["tools"]):
        try:
            members = decode_object(entry)
        except msgspec.ValidationError:
            continue
        name = text_of(members["name"]) if "name" in members else None
        if name is not None and "inputSchema" in members:
            yield name, bytes(members["inputSchema"])
