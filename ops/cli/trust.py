"""Whom a command line client trusts over TLS, and how it shows who it is itself."""

from __future__ import annotations

import argparse
import ssl
from typing import Final

import trio

from .failure import UsageError

_OPTIONS: Final = (("ca_file", "--ca-file"), ("client_cert", "--client-cert"), ("client_key", "--client-key"))


def add_tls_options(parser: argparse.ArgumentParser, over: str) -> None:
    """``over``: what makes the connection one with TLS, for the help."""
    parser.add_argument("--ca-file", metavar="PATH", help=f"certificates to trust for {over} instead of the system's")
    parser.add_argument("--client-cert", metavar="PATH", help=f"certificate to authenticate with over {over}, PEM")
    parser.add_argument("--client-key", metavar="PATH", help="its private key, PEM (default: in the same file)")


def tls_context(options: argparse.Namespace, *, tls: bool) -> ssl.SSLContext | None:
    """None without TLS. Raises UsageError for files that can't be used, or that nothing would be done with."""
    if not tls:
        unused = [flag for name, flag in _OPTIONS if getattr(options, name)]
        if unused:
            raise UsageError(f"{unused[0]} is for a connection with TLS: --url wss://… or tcp --tls")
        return None
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except OSError as error:  # SSLError is one
        raise UsageError(f"--ca-file: {options.ca_file}: {error.strerror or error}") from None
    if options.client_key and not options.client_cert:
        raise UsageError("--client-key needs --client-cert")
    if options.client_cert:
        try:
            context.load_cert_chain(options.client_cert, options.client_key)
        except OSError as error:
            raise UsageError(f"--client-cert: {options.client_cert}: {error.strerror or error}") from None
    return context


async def secure(stream: trio.abc.Stream, context: ssl.SSLContext, host: str) -> trio.abc.Stream:
    """The same connection with TLS, once the peer has proved to be ``host``. Raises ConnectionError."""
    tls = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(tls)
        if not isinstance(error, trio.BrokenResourceError):
            raise
        raise ConnectionError(f"TLS: {error.__cause__ or 'the connection ended during the handshake'}") from None
    return tls


def alerted(error: BaseException) -> str:
    """What the peer's TLS has said at the end, to be put behind a message: with TLS 1.3 a client learns only after its
    handshake that its certificate was not good enough."""
    return f" (TLS: {error.__cause__.reason})" if isinstance(error.__cause__, ssl.SSLError) else ""
