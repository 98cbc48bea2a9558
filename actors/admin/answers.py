"""What the health listener answers, as values: documents, problems (RFC 9457), and the headers on all of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import attrs
import msgspec

from ipc.settings import Settings

JSON = "application/json"
PROBLEM = "application/problem+json"

Headers = tuple[tuple[str, str], ...]


@attrs.frozen
class Answer:
    """One HTTP answer, without what the connection adds (length, date, connection)."""

    status: int
    body: bytes
    content_type: str
    headers: Headers = ()


class Problem(Exception):
    """A request that is refused. ``detail`` is shown to the client and holds nothing secret."""

    def __init__(self, status: int, detail: str, headers: Headers = ()) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.headers = headers

    def answer(self) -> Answer:
        document = {"type": "about:blank", "title": _title(self.status), "status": self.status, "detail": self.detail}
        return Answer(self.status, msgspec.json.encode(document), PROBLEM, self.headers)


def document(body: Mapping[str, object], status: int = 200) -> Answer:
    return Answer(status, msgspec.json.encode(body), JSON)


def text(body: str, status: int = 200) -> Answer:
    return Answer(status, body.encode(), "text/plain; charset=utf-8")


def security_headers(settings: Settings) -> Headers:
    """On every answer. Nothing here is meant to be cached, framed or taken for another type."""
    headers = [("Cache-Control", "no-store")]
    if settings.security_headers_enabled:
        headers += [
            ("X-Content-Type-Options", settings.x_content_type_options),
            ("X-Frame-Options", settings.x_frame_options),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ]
        if settings.csp_enabled:
            headers.append(("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"))
    return tuple(headers)


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
