"""Cross-origin requests of browsers (Fetch standard, "CORS protocol"): which fields an answer carries, and which
preflights are allowed.

Whether an origin may come in at all is ``origin.origin_allowed``'s to say, with CORS switched on or off; here it is
only said to its browser. ``Access-Control-Request-Private-Network`` (a page of a public site asks to reach a private
address) is never granted.
"""

from __future__ import annotations

import re
from typing import Final

from ipc.settings import ANY, Settings

from .origin import origin_allowed

Fields = list[tuple[str, str]]

MAX_REQUEST_HEADERS: Final = 64
"""Names in one preflight. A page sets a handful, and a head has at most 100 fields."""
EXPOSED: Final = "RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate"
"""What a page may read of an answer beyond the safelisted fields: when to come back, and with what."""
VARY: Final = ("Vary", "Origin")

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")  # RFC 9110 §5.6.2
_NOT_BY_WILDCARD: Final = "authorization"  # Fetch: "CORS non-wildcard request-header name"


def is_preflight(method: str, origin: bytes | None, requested_method: bytes | None) -> bool:
    """Fetch: OPTIONS with ``Origin`` and ``Access-Control-Request-Method``. Any other OPTIONS is no preflight."""
    return method == "OPTIONS" and origin is not None and requested_method is not None


def answer_fields(origin: bytes | None, settings: Settings) -> Fields:
    """The CORS fields of any answer that isn't a preflight's, errors included.

    ``Vary`` is always there: what an address answers depends on who asks, also where it is refused. An origin that
    isn't allowed gets nothing else, so that its page can't read the answer.
    """
    granted = _granted(origin, settings)
    return [*granted, ("Access-Control-Expose-Headers", EXPOSED), VARY] if granted else [VARY]


def preflight_fields(
    origin: bytes | None, requested_method: bytes, requested_headers: list[bytes], settings: Settings
) -> Fields | None:
    """The fields of the answer to a preflight; None: it is refused, and the refusal carries ``answer_fields(None)``.

    Args:
        origin: the request's ``Origin``.
        requested_method: ``Access-Control-Request-Method``; compared by case (RFC 9110 §9.1).
        requested_headers: each line of ``Access-Control-Request-Headers``; names are compared without case.
    """
    granted = _granted(origin, settings)
    if not granted or not _method_allowed(requested_method, settings):
        return None
    if not _headers_allowed(requested_headers, settings):
        return None
    return [
        *granted,
        ("Access-Control-Allow-Methods", ", ".join(settings.cors_allowed_methods)),
        ("Access-Control-Allow-Headers", ", ".join(settings.cors_allowed_headers)),
        ("Access-Control-Max-Age", str(settings.cors_max_age)),
        VARY,
    ]


def _granted(origin: bytes | None, settings: Settings) -> Fields:
    """The origin as it came, never ``*``; credentials only for one that is listed by its own name."""
    if origin is None or not settings.cors_enabled or not origin_allowed(origin, settings):
        return []
    name = origin.decode("ascii")
    fields = [("Access-Control-Allow-Origin", name)]
    if settings.cors_allow_credentials and name in settings.cors_allowed_origins:
        fields.append(("Access-Control-Allow-Credentials", "true"))
    return fields


def _method_allowed(method: bytes, settings: Settings) -> bool:
    """A listed one; HEAD where GET is, because it is a GET without its body and no browser asks the list for it."""
    allowed = settings.cors_allowed_methods
    if not _NAME.fullmatch(method):
        return False
    name = method.decode("ascii")
    return name in allowed or (name == "HEAD" and "GET" in allowed) or _any(allowed, settings)


def _headers_allowed(lines: list[bytes], settings: Settings) -> bool:
    allowed = settings.cors_allowed_headers
    listed = {name.lower() for name in allowed}
    wildcard = _any(allowed, settings)
    # One element more than is allowed is enough to know; empty ones don't count (RFC 9110 §5.6.1.2) but are bounded.
    elements = b",".join(lines).split(b",", 2 * MAX_REQUEST_HEADERS)
    names = [stripped for element in elements if (stripped := element.strip(b" \t"))]
    if len(elements) > 2 * MAX_REQUEST_HEADERS or len(names) > MAX_REQUEST_HEADERS:
        return False
    for raw in names:
        if not _NAME.fullmatch(raw):
            return False
        name = raw.decode("ascii").lower()
        if name not in listed and not (wildcard and name != _NOT_BY_WILDCARD):
            return False
    return True


def _any(allowed: tuple[str, ...], settings: Settings) -> bool:
    """Fetch: ``*`` is a wildcard only for requests without credentials; with them it is a name like others."""
    return ANY in allowed and not settings.cors_allow_credentials
