"""``/auth/*`` over HTTP: tickets, and the issue, rotation and revocation of tokens (RFC 6749 §5, 6750, 7009).

A request's body is framed by ``Content-Length``, not longer than MAX_PREAUTH_SIZE, and has to be there within the
handshake's time. The answer ends the connection.
"""

from __future__ import annotations

import functools
import secrets
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import msgspec

from actors.policy.session_tokens import HANDLE_BYTES
from ipc.address import Reply
from ipc.messages import (
    Description,
    Done,
    IssueSession,
    IssueTicket,
    Message,
    RefreshSession,
    RevokeToken,
    ShowSession,
    Ticket,
    TokenSet,
)
from ipc.settings import Settings

from . import http, http_answers
from .connection import Connection, Stage
from .credential import ANONYMOUS, Credential, bearer, of_certificate
from .http import HttpError, Request

if TYPE_CHECKING:
    from .hub import Hub

PATHS: Final = frozenset({"/auth/ticket", "/auth/token", "/auth/refresh", "/auth/revoke", "/auth/session"})
_MOST_FIELDS: Final = 16
_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"


class _Fields(msgspec.Struct, frozen=True):
    """What a body may say; whatever else it holds is not looked at."""

    token: str = ""
    refresh_token: str = ""


_json_decoder = msgspec.json.Decoder(_Fields)


class AuthEndpoints:
    """The part of the hub that serves them. Everything here runs in the hub's turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @property
    def _settings(self) -> Settings:
        return self._hub.settings

    # --- the body ------------------------------------------------------------------------------------------------

    def begin(self, connection: Connection, request: Request) -> None:
        """The head is there; its method is one that the path takes. Raises HttpError."""
        length = request.content_length
        if length > self._settings.max_preauth_size:
            raise HttpError(413, f"a body may have {self._settings.max_preauth_size} bytes")
        if connection.body is None:  # otherwise it was begun before the hub was restarted
            connection.body = bytearray(request.rest[:length])
        if len(connection.body) >= length:
            self._complete(connection, request)
            return
        _content_type(request)  # before anybody sends what will not be read
        if request.expects_continue and not connection.body:
            connection.write(http.CONTINUE)
        self._hub.dirty[connection.fd] = connection  # it may not have been read while the limiter was asked

    def received(self, connection: Connection, request: Request, data: bytes) -> None:
        """More of the body. Raises HttpError."""
        body = connection.body
        if body is None or connection.waiting_for:
            return  # whatever follows the request is not read: its answer ends the connection
        body += data[: request.content_length - len(body)]
        if len(body) >= request.content_length:
            self._complete(connection, request)

    def _complete(self, connection: Connection, request: Request) -> None:
        fields = _fields(request, bytes(connection.body or b""))
        credential = bearer(request)
        match request.path:
            case "/auth/ticket":
                self._ticket(connection, credential)
            case "/auth/token":
                self._token(connection, credential, fields)
            case "/auth/refresh":
                if not fields.refresh_token:
                    raise HttpError(400, "refresh_token is missing")
                self._ask(connection, RefreshSession(fields.refresh_token, connection.peer_ip), self._issued)
            case "/auth/revoke":
                self._revoke(connection, credential, fields)
            case _:
                shown = credential if credential is not ANONYMOUS else of_certificate(connection)
                if shown is ANONYMOUS:
                    raise HttpError(401, "a session is shown to its bearer")
                scheme = _scheme(shown)
                self._ask(connection, ShowSession(scheme, shown.value, connection.peer_ip), self._shown)

    # --- the resources -------------------------------------------------------------------------------------------

    def _ticket(self, connection: Connection, credential: Credential) -> None:
        if credential is ANONYMOUS:
            credential = of_certificate(connection)
        if credential is ANONYMOUS and self._settings.ws_auth_enabled:
            raise HttpError(401, "a ticket is issued for a token or a client certificate")
        question = IssueTicket(credential.value, connection.peer_ip, _scheme(credential))
        self._ask(connection, question, self._ticket_issued)

    def _ticket_issued(self, connection: Connection, reply: Reply) -> None:
        if self._is_refusal(connection, reply):
            return
        assert isinstance(reply, Ticket)  # noqa: S101 - what auth answers besides a refusal
        self._answer(connection, {"ticket": reply.ticket, "expires_in": reply.expires_in})

    def _token(self, connection: Connection, credential: Credential, fields: _Fields) -> None:
        if fields.token:
            if credential is not ANONYMOUS:
                raise HttpError(400, "more than one credential")
            credential = Credential("token", fields.token)
        if credential is ANONYMOUS:
            credential = of_certificate(connection)
        if credential is ANONYMOUS:
            raise HttpError(401, "a session is issued for a token or a client certificate")
        # Kept with the connection: asked again, after a death on either side, it is the same question.
        connection.nonce = connection.nonce or secrets.token_hex(HANDLE_BYTES)
        question = IssueSession(_scheme(credential), credential.value, connection.peer_ip, connection.nonce)
        self._ask(connection, question, self._issued)

    def _issued(self, connection: Connection, reply: Reply) -> None:
        if self._is_refusal(connection, reply):
            return
        assert isinstance(reply, TokenSet)  # noqa: S101 - what auth answers besides a refusal
        self._answer(connection, answer_of(reply))

    def _revoke(self, connection: Connection, credential: Credential, fields: _Fields) -> None:
        """Whoever has a token may revoke it: no other credential is needed."""
        tokens = [token for token in (fields.token, fields.refresh_token) if token]
        if not tokens and credential is not ANONYMOUS:
            tokens = [credential.value]
        if not tokens:
            raise HttpError(400, "token or refresh_token is missing")
        self._revoke_next(connection, tokens)

    def _revoke_next(self, connection: Connection, tokens: list[str]) -> None:
        question = RevokeToken(tokens[0], connection.peer_ip)
        self._ask(connection, question, functools.partial(self._revoked, tokens=tokens[1:]))

    def _revoked(self, connection: Connection, reply: Reply, *, tokens: list[str]) -> None:
        if self._is_refusal(connection, reply):
            return
        if tokens:
            self._revoke_next(connection, tokens)
            return
        assert isinstance(reply, Done)  # noqa: S101 - what auth answers besides a refusal
        self._answer(connection, {"ok": True})

    def _shown(self, connection: Connection, reply: Reply) -> None:
        if self._is_refusal(connection, reply):
            return
        assert isinstance(reply, Description)  # noqa: S101 - what auth answers besides a refusal
        http_answers.answer(self._hub, connection, connection.request, 200, http_answers.JSON, reply.data)

    # --- auth ----------------------------------------------------------------------------------------------------

    def _ask(self, connection: Connection, question: Message, answered: _Answered) -> None:
        connection.waiting_for = "auth"
        connection.entry_deadline_ns = self._hub.now + self._settings.auth_timeout_ms * 1_000_000
        self._hub.deadlines.by(connection, connection.entry_deadline_ns)
        self._hub.entry.auth.ask(
            question, connection.entry_deadline_ns, functools.partial(self._hub.step, connection, answered)
        )

    def _is_refusal(self, connection: Connection, reply: Reply) -> bool:
        """Whether there is nothing more to be done here."""
        connection.waiting_for = ""
        if connection.stage >= Stage.CLOSING:
            return True
        if isinstance(reply, Ticket | TokenSet | Done | Description):
            return False
        self._hub.entry.not_granted(connection, reply)
        return True

    def _answer(self, connection: Connection, document: dict[str, object]) -> None:
        body = msgspec.json.encode(document)
        http_answers.answer(self._hub, connection, connection.request, 200, http_answers.JSON, body)


def answer_of(tokens: TokenSet) -> dict[str, object]:
    """As OAuth clients know it (RFC 6749 §5.1), and the session."""
    return {
        "access_token": tokens.access_token,
        "token_type": "Bearer",
        "expires_in": tokens.expires_in,
        "refresh_token": tokens.refresh_token,
        "session": tokens.session,
    }


def _scheme(credential: Credential) -> Literal["token", "certificate"]:
    return "certificate" if credential.scheme == "certificate" else "token"


def _content_type(request: Request) -> str:
    """Raises HttpError 415."""
    value = (request.get("content-type") or b"").decode("ascii").lower()
    kind, _, parameters = value.partition(";")
    charset = parameters.replace('"', "").strip()
    if kind.strip() not in (_JSON, _FORM) or charset not in ("", "charset=utf-8"):
        raise HttpError(415, f"a body is {_JSON} or {_FORM}", headers=(("Accept", f"{_JSON}, {_FORM}"),))
    return kind.strip()


def _fields(request: Request, body: bytes) -> _Fields:
    """Raises HttpError 400 or 415."""
    if not body:
        return _Fields()
    if _content_type(request) == _JSON:
        try:
            body.decode()
            return _json_decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise HttpError(400, "the body is no JSON object with texts") from None
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, encoding="utf-8", errors="strict"
        )
    except ValueError:
        raise HttpError(400, "the body is no form") from None
    found = dict(pairs)
    if len(found) < len(pairs):
        raise HttpError(400, "a field is there twice")
    return _Fields(found.get("token", ""), found.get("refresh_token", ""))


if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    _Answered = Callable[[Connection, Reply], None]
