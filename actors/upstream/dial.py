"""The way to a server over the network: what its URL says, and an open stream to it."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

import attrs
import trio

CONNECT_S: Final = 5.0  # name resolution and TCP; a server that needs longer is down for all that clients care
HANDSHAKE_S: Final = 5.0

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Unreachable(ConnectionError):
    """No stream came into being. ``str()`` is for clients and logs: it names no address."""


@attrs.frozen
class Endpoint:
    """What a ``http(s)``, ``ws(s)`` URL says. ``authority`` is the Host field's value, ``target`` path and query."""

    scheme: str
    host: str
    port: int
    authority: str
    target: str

    @property
    def is_secure(self) -> bool:
        return self.scheme in ("https", "wss")

    @property
    def origin(self) -> tuple[str, str, int]:
        """RFC 6454 §4."""
        return self.scheme, self.host, self.port


def endpoint(url: str) -> Endpoint:
    """Read a URL that the configuration has checked, or a server's absolute redirect. Raises ValueError."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        raise ValueError("no URL of a server")
    host = parts.hostname.lower()
    port = parts.port or _PORTS[scheme]
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port == _PORTS[scheme] else f"{shown}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or any(char <= " " or char == "\x7f" for char in target):
        raise ValueError("a target that can't be sent")
    return Endpoint(scheme, host, port, authority, target)


def tls_context(ca_path: str) -> ssl.SSLContext:
    """How servers are verified: by the authorities of that file and no others, or by the system's when it is empty.

    Raises OSError (ssl.SSLError is one) when the file can't be used.
    """
    context = ssl.create_default_context(cafile=ca_path or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def dial(where: Endpoint, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    """Connect, and for a secure scheme verify who answers. Raises Unreachable."""
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_tcp_stream(where.host, where.port)
    except trio.TooSlowError:
        raise Unreachable(f"no connection within {CONNECT_S:g} s") from None
    except OSError as error:
        raise Unreachable(f"cannot connect: {why(error)}") from None
    if not where.is_secure:
        return stream
    assert tls is not None  # noqa: S101 - the owner has one for every secure scheme
    secure = trio.SSLStream(stream, tls, server_hostname=where.host, https_compatible=True)
    try:
        with trio.fail_after(HANDSHAKE_S):
            await secure.do_handshake()
    except BaseException as error:
        stream.socket.close()
        if isinstance(error, trio.TooSlowError):
            raise Unreachable(f"no TLS handshake within {HANDSHAKE_S:g} s") from None
        if isinstance(error, trio.BrokenResourceError | OSError):
            raise Unreachable(f"no TLS: {_distrust(error)}") from None
        raise
    return secure


def why(error: OSError) -> str:
    """In words, without the address; trio puts the errors of all those that were tried into a group, as the cause."""
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    told = cause if isinstance(cause, OSError) else error
    if isinstance(told, socket.gaierror):
        return "its name can't be resolved"
    return os.strerror(told.errno) if told.errno else type(told).__name__


def _distrust(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted ({cause.verify_message})"
        if isinstance(cause, ssl.SSLError):
            return (cause.reason or "error").replace("_", " ").lower()
        cause = cause.__cause__
    return "the connection ended"
