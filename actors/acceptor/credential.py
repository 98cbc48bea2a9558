"""Where a WebSocket upgrade or an HTTP request carries its credential."""

from __future__ import annotations

import base64
import binascii
from typing import Final, Literal
from urllib.parse import parse_qsl

import attrs

from .connection import Connection
from .http import Handshake, HttpError, Request

MAX_CREDENTIAL: Final = 8192  # the longest token that is looked at (a JWT of 8 KiB)


@attrs.frozen
class Credential:
    """What was presented. ``anonymous`` when nothing was."""

    scheme: Literal["token", "ticket", "certificate", "anonymous"]
    value: str


ANONYMOUS: Final = Credential("anonymous", "")


def of_certificate(connection: Connection) -> Credential:
    """The verified client certificate's; it counts where no other credential is presented."""
    return Credential("certificate", connection.certificate) if connection.certificate else ANONYMOUS


def bearer(request: Request) -> Credential:
    """From ``Authorization: Bearer TOKEN`` (RFC 6750 §2.1; the scheme in any case, RFC 9110 §11.1).

    Raises HttpError 401 for another scheme or a token that is empty or too long to be one, 400 for two headers.
    """
    values = request.get_all("authorization")
    if not values:
        return ANONYMOUS
    if len(values) > 1:
        raise HttpError(400, "more than one Authorization header")
    scheme, _, token = values[0].strip().partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token or b" " in token:
        raise HttpError(401, "only 'Authorization: Bearer TOKEN' is understood")
    if len(token) > MAX_CREDENTIAL:
        raise HttpError(401, "token too long")
    return Credential("token", token.decode("ascii"))


def of_upgrade(request: Request, handshake: Handshake) -> tuple[Credential, str | None]:
    """The credential of an upgrade, and the subprotocol to agree to (``mcp`` when it is offered, else none).

    A browser can't set headers, so a token may travel as a subprotocol: ``bearer.TOKEN``, ``bearer64.`` and its
    base64url form, or ``ticket.TICKET``. A ticket, which is used up at once, may also be in the query string; a
    lasting token never. Raises HttpError 400 when there is more than one credential.
    """
    found: list[Credential] = []
    header = bearer(request)
    if header is not ANONYMOUS:
        found.append(header)
    for offered in handshake.subprotocols:
        name, dot, value = offered.partition(".")
        if not dot:
            continue
        if name == "bearer":
            found.append(Credential("token", value))
        elif name == "bearer64":
            found.append(Credential("token", _unbase64(value)))
        elif name == "ticket":
            found.append(Credential("ticket", value))
    found += [Credential("ticket", value) for value in tickets(request.query)]
    if len(found) > 1:
        raise HttpError(400, "more than one credential")
    if found and not found[0].value:
        raise HttpError(401, "empty credential")
    return (found[0] if found else ANONYMOUS), ("mcp" if "mcp" in handshake.subprotocols else None)


def tickets(query: str) -> list[str]:
    """Every ``ticket`` of a query string. Raises HttpError 400 for a query that cannot be taken apart."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32, errors="strict")
    except ValueError as error:
        raise HttpError(400, "bad query string") from error
    return [value for name, value in pairs if name == "ticket"]


def _unbase64(value: str) -> str:
    try:
        raw = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
        return raw.decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise HttpError(400, "bearer64 is not base64url of UTF-8") from error
