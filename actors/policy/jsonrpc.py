"""JSON-RPC 2.0 messages of clients: what may pass, and where the values that the gateway replaces stand.

A message that passes is forwarded as the client's own bytes; nothing here rebuilds it. Two ways lead to the same
answer: patterns for the layouts that MCP's SDKs write, in which the whole message but ``params`` is matched by one
pattern, and a walk along the members for everything else. What the first can't vouch for is left to the second,
so only the second ever refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial

import msgspec

from ipc.messages import Envelope

from .eras import LISTEN, META_LOG_LEVEL, META_SUBSCRIPTION, META_VERSION
from .members import DuplicateKey, Span, decode_object, is_error_object, is_utf8, locate, nested_deeper, text_of
from .pollution import find_pollution, may_pollute
from .server_message import UpstreamMessage, parse_upstream

__all__ = [
    "CONTENT_REFUSED",
    "INTERNAL_ERROR",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "Refusal",
    "UpstreamMessage",
    "error_reply",
    "fast_path",
    "flatten",
    "has_no_id",
    "id_key",
    "is_valid_id",
    "parse_client",
    "parse_upstream",
    "result_reply",
    "slow_path",
    "splice",
]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INTERNAL_ERROR = -32603
CONTENT_REFUSED = 422

_ENVELOPE_KEYS = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
# What is read, or replaced, in params: there a second spelling could say something else to the server.
_READ_KEYS = frozenset({"_meta", "name", "uri", "level", "requestId", "protocolVersion"})
_READ_FOLDED = frozenset(key.casefold() for key in _READ_KEYS)
_META_KEYS = frozenset({"progressToken", META_VERSION, META_LOG_LEVEL, META_SUBSCRIPTION})
_META_FOLDED = frozenset(key.casefold() for key in _META_KEYS)
_USUAL_PARAMS = _READ_KEYS | {"arguments", "cursor", "clientInfo", "capabilities", "reason", "notifications"}
_NAMED_METHODS = frozenset({"tools/call", "prompts/get"})
_REFERENCE_KEYS = frozenset({"type", "name", "uri"})
_SUBSCRIPTIONS = "resourceSubscriptions"
_UNREADABLE_URIS = ("",)  # what asks for resources in a way that can't be read: it may mean any
_DEEPER = {"completion/complete": "ref", LISTEN: "notifications"}  # what is read there is an object
_URIS = msgspec.json.Decoder(tuple[str, ...] | None)
_MAX_URIS = 256  # of one subscriptions/listen; each may have to be compared with every rule

_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*+)\Z")

# One optional space after "," and ":" is what JSON libraries write that write any.
_PLAIN_ID = rb'(-?(?:0|[1-9][0-9]{0,18})|"[A-Za-z0-9_.:/+=-]{0,128}")'
_PLAIN_METHOD = rb'"([A-Za-z0-9_.$/-]{1,128})"'
_HEAD = re.compile(
    rb'\{"jsonrpc": ?"2\.0", ?(?:"id": ?' + _PLAIN_ID + rb', ?)?"method": ?' + _PLAIN_METHOD + rb'(?:, ?"params": ?)?'
)
_METHOD_FIRST = re.compile(rb'\{"method": ?' + _PLAIN_METHOD + rb'(?:, ?"params": ?)?')
_VERSION_LAST = re.compile(rb', ?"jsonrpc": ?"2\.0"(?:, ?"id": ?' + _PLAIN_ID + rb")?\}\Z")

# For a text too deep to be decoded: an id before or after everything that could be deep. A quote that follows a
# delimiter is never an escaped one, so both are the message's own member if the text is well-formed at all.
_ANY_ID = rb'(-?(?:0|[1-9][0-9]*+)(?=[,} \t\n\r])|"(?:[^"\\]++|\\.)*+")'
_ID_AT_HEAD = re.compile(
    rb'\s*+\{\s*+(?:"(?:jsonrpc|method)"\s*+:\s*+"(?:[^"\\]++|\\.)*+"\s*+,\s*+)*+"id"\s*+:\s*+' + _ANY_ID, re.DOTALL
)
_ID_AT_TAIL = re.compile(
    rb'[,{]\s*+"id"\s*+:\s*+' + _ANY_ID + rb'(?:\s*+,\s*+"(?:jsonrpc|method)"\s*+:\s*+"[^"\\]*+")*+\s*+\}\s*+\Z'
)
_TAIL_BYTES = 512
# A notification in the order of members that libraries write: nothing but these before its params, and nothing but
# the version behind.
_NOTIFICATION_HEAD = re.compile(
    rb'\s*+\{\s*+(?:"(?:jsonrpc|method)"\s*+:\s*+"(?:[^"\\]++|\\.)*+"\s*+,\s*+)++"params"\s*+:', re.DOTALL
)
_ODD_ID = re.compile(rb'"id"\s*+:\s*+[{\[]')
_NOTIFICATION_TAIL = re.compile(rb'[}\]]\s*+(?:,\s*+"jsonrpc"\s*+:\s*+"2\.0"\s*+)?\}\s*+\Z')


class Refusal(Exception):
    """A client message that may not pass.

    ``id`` is the raw JSON id to answer with, ``b"null"`` when the message has none that can be read. A refused
    ``notification`` is never answered (JSON-RPC §4.1). ``rule`` names what was broken, for audit and metrics.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        rule: str,
        id: bytes = b"null",  # noqa: A002 - JSON-RPC's own word
        notification: bool = False,
        data: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.rule = rule
        self.id = id
        self.notification = notification
        self.data = data


# What the gateway reads in params, as Envelope has it: progress, progress_at, target, target_at, era, version,
# version_at, name, uri, level, uris.
_Fields = tuple[bytes, int, bytes, int, str, str, int, str, str, str, tuple[str, ...]]
_NO_FIELDS: _Fields = (b"", -1, b"", -1, "", "", -1, "", "", "", ())


class AmbiguousParams(ValueError):
    """A value that the gateway reads or replaces stands in params twice, or in two spellings."""


def parse_client(raw: bytes, *, max_depth: int = 64) -> Envelope:
    """Check one whole client message.

    Args:
        raw: the bytes of one message, without framing; any size, the time taken is linear in it.
        max_depth: how many arrays and objects may be open at once, the message itself included.

    Raises:
        Refusal: it may not pass.
    """
    envelope = fast_path(raw, max_depth)
    return envelope if envelope is not None else slow_path(raw, max_depth)


def fast_path(raw: bytes, max_depth: int) -> Envelope | None:
    """The envelope of a message in one of the usual layouts; None means only that the slow path must look."""
    if not raw.isascii() and not is_utf8(raw):
        return None
    head = _HEAD.match(raw)
    if head is not None:
        id_raw, method = head.groups()
        id_at = head.start(1)
        end = len(raw) - 1
        if raw[end] != 0x7D:
            return None
    else:
        head = _METHOD_FIRST.match(raw)
        if head is None:
            return None
        end = raw.rfind(b'"jsonrpc"') - 1
        if end > 0 and raw[end] == 0x20:
            end -= 1
        tail = _VERSION_LAST.match(raw, end) if end > 0 else None
        if tail is None:
            return None
        method = head[1]
        id_raw = tail[1]
        id_at = tail.start(1)
    at = head.end()
    params: dict[str, msgspec.Raw] | None = None
    if raw[at - 1] == 0x22:  # the method's closing quote: no params
        if at != end:
            return None
    else:
        # The head and tail hold everything but this slice, so all is well-formed and nothing comes twice if this
        # one object fills it. A space before or after it belongs to no layout that a library writes.
        if raw[at] != 0x7B or raw[end - 1] != 0x7D:
            return None
        try:
            params = decode_object(raw[at:end])
        except (msgspec.DecodeError, RecursionError):
            return None
    if nested_deeper(raw, max_depth):
        return None
    if params and may_pollute(raw) and find_pollution(raw, at, end) is not None:
        return None
    method_text = method.decode()
    if params:
        try:
            fields = _read_params(raw, at, end, params, method_text)
        except AmbiguousParams:
            return None
    else:
        fields = _NO_FIELDS
    if id_raw is None:
        return Envelope("notification", method_text, b"", -1, *fields)
    return Envelope("request", method_text, id_raw, id_at, *fields)


def slow_path(raw: bytes, max_depth: int) -> Envelope:
    """Check a message of any layout. Raises Refusal."""
    if not is_utf8(raw):
        raise Refusal(PARSE_ERROR, "Parse error: not UTF-8", rule="utf8")
    members = _decode(raw)
    refusal = partial(Refusal, id=_own_id(members), notification=_is_notification(members))
    for key in members:
        if key not in _ENVELOPE_KEYS and key.casefold() in _ENVELOPE_KEYS:
            raise refusal(INVALID_REQUEST, "Invalid Request: a key in another spelling", rule="case-variant-key")
    try:
        spans = locate(raw, 0, len(raw), members)
    except DuplicateKey:
        raise refusal(INVALID_REQUEST, "Invalid Request: a member comes twice", rule="duplicate-key") from None
    if nested_deeper(raw, max_depth):
        raise refusal(INVALID_REQUEST, f"Invalid Request: nested deeper than {max_depth}", rule="depth")
    if "jsonrpc" not in members or text_of(members["jsonrpc"]) != "2.0":
        raise refusal(INVALID_REQUEST, 'Invalid Request: "jsonrpc" must be "2.0"', rule="version")
    if "id" in members and not is_valid_id(bytes(members["id"])):
        raise refusal(INVALID_REQUEST, "Invalid Request: the id must be a string or an integer", rule="id")
    if "method" not in members:
        return _response(members, spans, refusal)
    method = text_of(members["method"])
    if method is None:
        raise refusal(INVALID_REQUEST, "Invalid Request: the method must be a string", rule="method")
    if "result" in members or "error" in members:
        raise refusal(INVALID_REQUEST, "Invalid Request: both a request and a response", rule="shape")

    fields = _NO_FIELDS
    if "params" in members:
        at, end = spans["params"]
        if raw[at] not in b"{[":
            raise refusal(INVALID_REQUEST, "Invalid Request: params must be an object or an array", rule="params")
        pointer = find_pollution(raw, at, end) if may_pollute(raw) else None
        if pointer is not None:
            data: dict[str, object] = {"rule": "prototype-pollution", "pointer": "/params" + pointer}
            raise refusal(
                CONTENT_REFUSED, "Content refused: prototype pollution", rule="prototype-pollution", data=data
            )
        if raw[at] == 0x7B:
            try:
                fields = _read_params(raw, at, end, decode_object(members["params"]), method)
            except AmbiguousParams:
                message = "Invalid Request: a member of params comes twice, or in another spelling"
                raise refusal(INVALID_REQUEST, message, rule="duplicate-key") from None
    if "id" in members:
        return Envelope("request", method, bytes(members["id"]), spans["id"][0], *fields)
    return Envelope("notification", method, b"", -1, *fields)


def is_valid_id(value: bytes) -> bool:
    """Whether a well-formed JSON value may be a request's id: a string, or a number without fraction or exponent."""
    return value[:1] == b'"' or _INTEGER.match(value) is not None


def id_key(value: bytes) -> str | int | bytes:
    """What an id or token stands for, however it is spelt: to find one that a peer has written anew."""
    if value[:1] == b'"':
        return text_of(value) or ""
    # Longer numbers are not worth converting, and are refused by int() from 4300 digits on.
    return int(value) if len(value) <= 40 and _INTEGER.match(value) is not None else value


def _decode(raw: bytes) -> dict[str, msgspec.Raw]:
    try:
        return decode_object(raw)
    except msgspec.ValidationError:
        pass
    except msgspec.DecodeError:
        raise Refusal(PARSE_ERROR, "Parse error", rule="json") from None
    except RecursionError:
        raise _too_deep(raw) from None
    # Something other than an object: the decoder stopped at its first byte.
    try:
        msgspec.json.decode(raw, type=msgspec.Raw)
    except msgspec.DecodeError:
        raise Refusal(PARSE_ERROR, "Parse error", rule="json") from None
    except RecursionError:
        raise _too_deep(raw) from None
    if raw.lstrip()[:1] == b"[":
        raise Refusal(INVALID_REQUEST, "Invalid Request: batches are not supported", rule="batch")
    raise Refusal(INVALID_REQUEST, "Invalid Request: not an object", rule="shape")


def _too_deep(raw: bytes) -> Refusal:
    """Too deep even to be decoded: whether the rest is well-formed, nobody will know."""
    found = _ID_AT_HEAD.match(raw) or _ID_AT_TAIL.search(raw, max(0, len(raw) - _TAIL_BYTES))
    id_raw = found[1] if found is not None else b"null"
    return Refusal(
        INVALID_REQUEST,
        "Invalid Request: nested too deep",
        rule="depth",
        id=id_raw,
        notification=found is None and has_no_id(raw, raw[-_TAIL_BYTES:]),
    )


def has_no_id(head: bytes, tail: bytes) -> bool:
    """Whether the ends of a message, as far as they are known, show that it is a notification.

    A member that JSON-RPC doesn't have could stand behind its params, and an id before that: nobody writes that.
    """
    begins = _NOTIFICATION_HEAD.match(head)
    if begins is None or b'"method"' not in begins[0]:
        return False
    tail = tail[-_TAIL_BYTES:]
    return _NOTIFICATION_TAIL.search(tail) is not None and _ODD_ID.search(tail) is None


def _own_id(members: Mapping[str, msgspec.Raw]) -> bytes:
    """The id to refuse with. That of a response is no id of the client's own requests, so it is never used."""
    if "id" not in members or ("method" not in members and ("result" in members or "error" in members)):
        return b"null"
    value = bytes(members["id"])
    return value if is_valid_id(value) else b"null"


def _is_notification(members: Mapping[str, msgspec.Raw]) -> bool:
    """A method and no id, in whatever spelling: who writes "ID" waits for an answer."""
    return (
        "method" in members
        and text_of(members["method"]) is not None
        and not any(key.casefold() == "id" for key in members)
    )


def _response(
    members: Mapping[str, msgspec.Raw], spans: Mapping[str, Span], refusal: Callable[..., Refusal]
) -> Envelope:
    if ("result" in members) == ("error" in members):
        raise refusal(INVALID_REQUEST, "Invalid Request: neither a request nor a response", rule="shape")
    if "id" not in members:
        raise refusal(INVALID_REQUEST, "Invalid Request: a response without an id", rule="id")
    if "error" in members and not is_error_object(members["error"]):
        raise refusal(INVALID_REQUEST, "Invalid Request: not an error object", rule="shape")
    return Envelope("response", id=bytes(members["id"]), id_at=spans["id"][0])


def _read_params(raw: bytes, at: int, end: int, params: dict[str, msgspec.Raw], method: str) -> _Fields:
    """What the gateway needs of ``params``, which stands at ``raw[at:end]``.

    Raises:
        AmbiguousParams
    """
    if not params.keys() <= _USUAL_PARAMS:
        _check_spelling(params, _READ_KEYS, _READ_FOLDED)
    target = b""
    target_at = version_at = -1
    version = name = uri = level = ""
    uris: tuple[str, ...] = ()
    meta = params.get("_meta")
    if method in _NAMED_METHODS:
        read = "name"
    elif method.startswith("resources/"):
        read = "uri"
    elif method == "notifications/cancelled":
        read = "requestId"
    elif method == "initialize":
        read = "protocolVersion"
    elif method == "logging/setLevel":
        read = "level"
    elif method in _DEEPER:
        read = _DEEPER[method]
        _check_spelling(params, {read}, {read})
    elif meta is None:
        return _NO_FIELDS
    else:
        read = ""
    if meta is None and read not in params:
        return _NO_FIELDS
    try:
        spans = locate(raw, at, end, params)
    except DuplicateKey:
        raise AmbiguousParams from None
    if read and read in params:  # a client's own key may be ""
        value = params[read]
        if read == "requestId":
            target = bytes(value)
            target_at = spans[read][0]
        elif read == "ref":
            name, uri = _reference(raw, spans[read])
        elif read == "notifications":
            uris = _subscribed(raw, spans[read])
        else:
            text = text_of(value)
            if text is not None:
                if read == "name":
                    name = text
                elif read == "uri":
                    uri = text
                elif read == "level":
                    level = text
                else:
                    version = text
                    version_at = spans[read][0]
    if meta is None or raw[spans["_meta"][0]] != 0x7B:
        return (b"", -1, target, target_at, "", version, version_at, name, uri, level, uris)

    entries = decode_object(meta)
    if not entries:
        return (b"", -1, target, target_at, "", version, version_at, name, uri, level, uris)
    _check_spelling(entries, _META_KEYS, _META_FOLDED)
    try:
        entry_spans = locate(raw, *spans["_meta"], entries)
    except DuplicateKey:
        raise AmbiguousParams from None
    progress = b""
    progress_at = -1
    token = entries.get("progressToken")
    if token is not None:
        progress = bytes(token)
        if progress == b"null":  # asks for nothing, so there is nothing to replace
            progress = b""
        else:
            progress_at = entry_spans["progressToken"][0]
    era = _text_member(entries, META_VERSION)
    if not level:
        level = _text_member(entries, META_LOG_LEVEL)
    return (progress, progress_at, target, target_at, era, version, version_at, name, uri, level, uris)


def _reference(raw: bytes, span: Span) -> tuple[str, str]:
    """The name of the prompt, or the URI, that ``completion/complete`` is about; neither when it can't be read."""
    at, end = span
    if raw[at] != 0x7B:
        return "", ""
    members = _plain_members(raw, at, end, _REFERENCE_KEYS)
    kind = _text_member(members, "type")
    if kind == "ref/prompt":
        return _text_member(members, "name"), ""
    return "", _text_member(members, "uri") if kind == "ref/resource" else ""


def _subscribed(raw: bytes, span: Span) -> tuple[str, ...]:
    """The URIs of resources that ``subscriptions/listen`` asks for."""
    at, end = span
    if raw[at] != 0x7B:
        return () if raw[at] == 0x6E else _UNREADABLE_URIS  # null
    members = _plain_members(raw, at, end, {_SUBSCRIPTIONS})
    if _SUBSCRIPTIONS not in members:
        return ()
    try:
        uris = _URIS.decode(members[_SUBSCRIPTIONS])
    except msgspec.ValidationError:
        return _UNREADABLE_URIS
    if uris is None:
        return ()
    return uris if len(uris) <= _MAX_URIS else _UNREADABLE_URIS


def _plain_members(raw: bytes, at: int, end: int, read: Set[str]) -> dict[str, msgspec.Raw]:
    """The members of the object at ``raw[at:end]``, of which each that is read stands there in one way only.

    Raises:
        AmbiguousParams
    """
    members = decode_object(raw[at:end])
    _check_spelling(members, read, {key.casefold() for key in read})
    try:
        locate(raw, at, end, members)
    except DuplicateKey:
        raise AmbiguousParams from None
    return members


def _text_member(members: Mapping[str, msgspec.Raw], key: str) -> str:
    value = members.get(key)
    return "" if value is None else text_of(value) or ""


def _check_spelling(members: Mapping[str, msgspec.Raw], known: Set[str], folded: Set[str]) -> None:
    """Some servers match keys without regard to case: to them a variant is the key that the gateway didn't see."""
    for key in members:
        if key not in known and key.casefold() in folded:
            raise AmbiguousParams


# --- writing --------------------------------------------------------------------------------------------------------

_LINE_BREAKS = bytes.maketrans(b"\n\r", b"  ")


def flatten(raw: bytes) -> bytes:
    """A well-formed message as one line: line breaks, which can only stand between tokens, become spaces.

    The length stays the same, and so do all offsets.
    """
    if b"\n" in raw or b"\r" in raw:
        return raw.translate(_LINE_BREAKS)
    return raw


def splice(raw: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """``raw`` with each (start, end, replacement) carried out; ascending and not overlapping, offsets of ``raw``."""
    parts: list[bytes] = []
    at = 0
    for start, end, replacement in edits:
        parts.append(raw[at:start])
        parts.append(replacement)
        at = end
    parts.append(raw[at:])
    return b"".join(parts)


def error_reply(id: bytes, code: int, message: str, data: Mapping[str, object] | None = None) -> bytes:  # noqa: A002
    """A JSON-RPC error response; ``id`` is the raw JSON id to answer with."""
    error: dict[str, object] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (id, msgspec.json.encode(error))


def result_reply(id: bytes, result: object) -> bytes:  # noqa: A002
    """A JSON-RPC result response; a ``result`` of type bytes is raw JSON, anything else is encoded."""
    body = result if isinstance(result, bytes) else msgspec.json.encode(result)
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id, body)
