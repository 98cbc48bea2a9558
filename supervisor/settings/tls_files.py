"""Whether TLS can be served with the files that the settings name: at the start, and again before each reload."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from ipc import tls_context
from ipc.settings import Settings
from ipc.tls_context import Field, TlsUnusable

SOON: Final = timedelta(days=14)
"""Certificates are renewed weeks before their end; one that close to it is a renewal that doesn't work."""


def errors(settings: Settings) -> Iterator[tuple[Field, str]]:
    """Everything for which TLS could not be served, one for each field at most. TLS is on."""
    try:
        context = tls_context.bare(settings)
    except TlsUnusable as error:
        yield error.field, error.what
        context = tls_context.bare(_without_ciphers(settings))
    broken: set[Field] = set()
    for field in ("ssl_cert_path", "ssl_key_path"):
        wrong = _wrong(partial(tls_context.check_file, field, getattr(settings, field)))
        if wrong is not None:
            broken.add(wrong.field)
            yield wrong.field, wrong.what
    if not broken:  # together they make sense, or one of them is to blame
        wrong = _wrong(lambda: tls_context.load_pair(context, settings))
        if wrong is not None:
            yield wrong.field, wrong.what
    if settings.ssl_client_auth != "none":
        wrong = _wrong(lambda: tls_context.load_authorities(context, settings))
        if wrong is not None:
            yield wrong.field, wrong.what


def warnings(settings: Settings, now: datetime) -> Iterator[tuple[Field, str]]:
    """What can be served and will hurt somebody. To be asked only where there are no errors. ``now`` is aware."""
    try:
        if os.stat(settings.ssl_key_path).st_mode & stat.S_IROTH:  # noqa: PTH116 - pathlib does no more
            yield "ssl_key_path", "can be read by every user of this machine: chmod o-r"
    except OSError:
        return  # gone since it was checked; whoever loads it says so
    starts, ends = _validity(settings.ssl_cert_path)
    if ends < now:
        yield "ssl_cert_path", f"has expired on {ends:%Y-%m-%d}: clients will refuse it"
    elif starts > now:
        yield "ssl_cert_path", f"is not valid before {starts:%Y-%m-%d %H:%M} UTC: clients will refuse it"
    elif ends - now < SOON:
        yield "ssl_cert_path", f"expires on {ends:%Y-%m-%d %H:%M} UTC"


def _wrong(load: Callable[[], None]) -> TlsUnusable | None:
    try:
        load()
    except TlsUnusable as error:
        return error
    return None


def _without_ciphers(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, ssl_ciphers="")


def _validity(path: str) -> tuple[datetime, datetime]:
    # A library that only a gateway with TLS needs in this process, and only to read dates.
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except (OSError, ValueError):  # what OpenSSL has loaded a moment ago
        return datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc
