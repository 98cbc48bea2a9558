"""The dashboard's own files, served as they are, and with what headers.

They hold nothing of the gateway: what is shown is asked of the admin API, with the token that is typed into the page.
The policy lets nothing run or load but these files, and no text become markup: what clients have chosen (names,
reasons) can only be shown. It is sent whatever CSP_ENABLED says, which is about answers that are no pages.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from .answers import JSON, Answer

if TYPE_CHECKING:
    from .connection import Request
    from .routes import Routes

DASHBOARD: Final = "/dashboard"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
FILES: Final = {
    DASHBOARD: ("index.html", "text/html; charset=utf-8"),
    f"{DASHBOARD}/app.js": ("app.js", "text/javascript; charset=utf-8"),
    f"{DASHBOARD}/style.css": ("style.css", "text/css; charset=utf-8"),
    f"{DASHBOARD}/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HERE: Final = Path(__file__).parent
_HEADERS: Final = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


async def file(_routes: Routes, request: Request, _segment: str) -> Answer:
    await trio.lowlevel.checkpoint()
    name, kind = FILES[request.target]
    return Answer(200, _content(f"page/{name}"), kind, _HEADERS)


async def root(_routes: Routes, _request: Request, _segment: str) -> Answer:
    """Who types the port's address wants the dashboard."""
    await trio.lowlevel.checkpoint()
    return Answer(303, b"", "text/plain; charset=utf-8", (("Location", DASHBOARD), *_HEADERS))


async def openapi(_routes: Routes, _request: Request, _segment: str) -> Answer:
    """The admin API's description. A test holds it to the route table and to what is really answered."""
    await trio.lowlevel.checkpoint()
    return Answer(200, _content("openapi.json"), JSON)


@cache
def _content(name: str) -> bytes:
    return (_HERE / name).read_bytes()
