"""Reads a JWK Set over HTTP, once, from an address that the operator configured. Bounded in size and in time.

No redirect is followed: whoever can make the issuer's host redirect must not be able to name the keys. Plain HTTP is
spoken with this machine only, and the peer's address is looked at to be sure of it.
"""

from __future__ import annotations

import ipaddress
import ssl
from typing import Final
from urllib.parse import urlsplit

import h11
import trio

from .policy.jwks import MAX_SET

FETCH_WITHIN_S: Final = 10.0
_MAX_HEAD: Final = 32 * 1024
_CHUNK: Final = 64 * 1024


class FetchFailed(Exception):
    """Says what went wrong, without the URL, whose query may hold a key."""


async def fetch_jwks(url: str, within_s: float = FETCH_WITHIN_S) -> bytes:
    """The body of the answer. Raises FetchFailed for everything that isn't a 200 of at most ``MAX_SET`` bytes in time.

    TLS is verified against the system's authorities (or ``SSL_CERT_FILE``).
    """
    try:
        with trio.fail_after(within_s):
            return await _fetch(url)
    except trio.TooSlowError:
        raise FetchFailed(f"no complete answer within {within_s:g} s") from None
    except ssl.SSLError as error:
        raise FetchFailed(f"TLS: {error.reason or 'handshake failed'}") from None
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        what = f"TLS: {cause.reason}" if isinstance(cause, ssl.SSLError) else "the connection broke"
        raise FetchFailed(what) from None
    except OSError as error:
        raise FetchFailed(error.strerror or str(error) or "no connection") from None
    except h11.RemoteProtocolError:
        raise FetchFailed("the answer is not HTTP/1.1") from None


async def _fetch(url: str) -> bytes:
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    tcp = await trio.open_tcp_stream(host, parts.port or (443 if secure else 80))
    async with tcp:
        if secure:
            context = ssl.create_default_context()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            tls = trio.SSLStream(tcp, context, server_hostname=host, https_compatible=True)
            return await _exchange(tls, parts.netloc, _target(url))
        if not ipaddress.ip_address(tcp.socket.getpeername()[0]).is_loopback:
            raise FetchFailed("plain HTTP, and not on this machine")
        return await _exchange(tcp, parts.netloc, _target(url))


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


async def _exchange(stream: trio.abc.Stream, authority: str, target: str) -> bytes:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    headers = [
        ("Host", authority),
        ("Accept", "application/jwk-set+json, application/json"),
        ("Accept-Encoding", "identity"),
        ("User-Agent", "portcullis"),
        ("Connection", "close"),
    ]
    for event in (h11.Request(method="GET", target=target, headers=headers), h11.EndOfMessage()):
        data = connection.send(event)
        if data:
            await stream.send_all(data)
    body = bytearray()
    informational = 0
    while True:
        received = connection.next_event()
        if received is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_CHUNK)))
        elif isinstance(received, h11.InformationalResponse):
            informational += 1
            if informational > 8:
                raise FetchFailed("too many interim answers")
        elif isinstance(received, h11.Response):
            _accept(received)
        elif isinstance(received, h11.Data):
            body += received.data
            if len(body) > MAX_SET:
                raise FetchFailed(f"more than {MAX_SET} bytes")
        elif isinstance(received, h11.EndOfMessage):
            return bytes(body)
        else:
            raise FetchFailed("closed without an answer")


def _accept(response: h11.Response) -> None:
    status = response.status_code
    if 300 <= status < 400:
        raise FetchFailed(f"answered {status}; redirects are not followed")
    if status != 200:
        raise FetchFailed(f"answered {status}")
    encodings = [value for name, value in response.headers if name == b"content-encoding"]
    if any(value.strip().lower() != b"identity" for value in encodings):
        raise FetchFailed("the answer is compressed")
