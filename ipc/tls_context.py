"""The TLS that the listeners speak: from the settings and the files that they name to contexts.

The supervisor builds contexts to judge the files, the workers build them of the same bytes to serve.

Sessions are never resumed by ticket: a ticket key of one worker is unknown to the others, and one for all of them would
have to be kept and rotated like a private key. TLS 1.2 session ids are still resumed by the one worker (and by the one
set of certificates) that issued them, from a bounded memory of its own.
"""

from __future__ import annotations

import os
import ssl
import stat
from typing import Final, Literal, NoReturn

from .settings import Settings
from .tls_material import InMemory, TlsMaterial

INTERMEDIATE: Final = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)
"""TLS 1.2 ciphers of Mozilla's "intermediate" configuration, without the finite-field ones: those need parameters that
are as hard to choose well as they are rarely asked for. TLS 1.3 has no bad ones to leave out."""

ALPN: Final = {"ws": ("http/1.1",), "tcp": ()}
"""RFC 7301. A client that insists on something else goes on without, and is told in its own language."""

_VERSIONS: Final = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY: Final = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

_MISSING: Final = {
    "ssl_cert_path": "is not set, and TLS is on (SSL_ENABLED=false is for a gateway behind a TLS proxy)",
    "ssl_key_path": "is not set, and TLS is on",
    "ssl_ca_path": "is not set, and SSL_CLIENT_AUTH needs the authority that vouches for clients",
}

Field = Literal["ssl_cert_path", "ssl_key_path", "ssl_ca_path", "ssl_ciphers"]


class TlsUnusable(ValueError):
    """A file or a setting that no listener can be served with. ``field`` is the setting's; nothing secret is said."""

    def __init__(self, field: Field, what: str) -> None:
        super().__init__(f"{field.upper()}: {what}")
        self.field = field
        self.what = what


def material(settings: Settings) -> TlsMaterial:
    """What the files hold now, and it can be served with. Raises TlsUnusable for the first thing wrong."""
    for field in ("ssl_cert_path", "ssl_key_path", *(("ssl_ca_path",) if settings.ssl_client_auth != "none" else ())):
        check_file(field, getattr(settings, field))
    try:
        found = TlsMaterial.read(settings)
    except OSError as error:
        raise TlsUnusable("ssl_cert_path", f"can't be read: {error.strerror or error}") from None
    contexts(settings, found)
    return found


def contexts(settings: Settings, found: TlsMaterial) -> dict[Literal["ws", "tcp"], ssl.SSLContext]:
    """One context a kind of listener. Raises TlsUnusable for the first thing wrong."""
    return {"ws": _context(settings, found, ALPN["ws"]), "tcp": _context(settings, found, ALPN["tcp"])}


def bare(settings: Settings) -> ssl.SSLContext:
    """Everything but the files: versions, options and ciphers. Raises TlsUnusable for the ciphers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.ssl_min_version]
    # Compression leaks what is secret beside what is chosen (CRIME); renegotiation lets one client repeat the costly
    # part of a handshake as often as it likes (and TLS 1.3 has neither).
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    # All ciphers of the list are good, so the client knows best: a phone without AES instructions wants ChaCha20.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.set_ciphers(settings.ssl_ciphers or INTERMEDIATE)
    except ssl.SSLError:
        raise TlsUnusable("ssl_ciphers", "names no cipher that this OpenSSL has for TLS 1.2") from None
    return context


def load_pair(context: ssl.SSLContext, settings: Settings) -> None:
    """Certificate chain and key, from their files. Raises TlsUnusable."""
    for field in ("ssl_cert_path", "ssl_key_path"):
        check_file(field, getattr(settings, field))
    _load_pair(context, settings.ssl_cert_path, settings.ssl_key_path)


def _load_pair(context: ssl.SSLContext, certificates: str, key: str) -> None:
    try:
        context.load_cert_chain(certificates, key, password=_no_passphrase)
    except _Encrypted:
        raise TlsUnusable("ssl_key_path", "is encrypted, and nobody is there to type its passphrase") from None
    except ssl.SSLError as error:
        _explain(certificates, error)
    except OSError as error:
        raise TlsUnusable("ssl_cert_path", f"can't be read: {error.strerror}") from None


def load_authorities(context: ssl.SSLContext, settings: Settings) -> None:
    """Who vouches for clients: nobody but the authorities of ``SSL_CA_PATH``. Raises TlsUnusable."""
    check_file("ssl_ca_path", settings.ssl_ca_path)
    _load_authorities(context, settings, settings.ssl_ca_path)


def _load_authorities(context: ssl.SSLContext, settings: Settings, authorities: str) -> None:
    try:
        context.load_verify_locations(cafile=authorities)
    except ssl.SSLError:
        raise TlsUnusable("ssl_ca_path", "holds no certificate in PEM form") from None
    except OSError as error:
        raise TlsUnusable("ssl_ca_path", f"can't be read: {error.strerror}") from None
    context.verify_mode = _VERIFY[settings.ssl_client_auth]


def _context(settings: Settings, found: TlsMaterial, protocols: tuple[str, ...]) -> ssl.SSLContext:
    context = bare(settings)
    with InMemory(found.certificates) as certificates, InMemory(found.key) as key:
        _load_pair(context, certificates, key)
    if settings.ssl_client_auth != "none":
        with InMemory(found.authorities) as authorities:
            _load_authorities(context, settings, authorities)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def check_file(field: Field, path: str) -> None:
    """A regular file that can be read: a FIFO would be waited for, for ever."""
    if not path:
        raise TlsUnusable(field, _MISSING[field])
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - pathlib does no more
            raise TlsUnusable(field, "must be a readable file: it is no regular one")
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise TlsUnusable(field, f"must be a readable file: {error.strerror}") from None


class _Encrypted(Exception):
    """The key asks for a passphrase, and nobody is there to type one."""


def _no_passphrase() -> NoReturn:
    raise _Encrypted


def _explain(certificates: str, error: ssl.SSLError) -> NoReturn:
    """Which of the two files it was. OpenSSL's own words name no path, and may quote what it has read."""
    # A key of another algorithm than the certificate's has no place where OpenSSL has put that: "none assigned".
    if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        raise TlsUnusable("ssl_key_path", "is not the key of the certificate in SSL_CERT_PATH") from None
    if error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        weakness = error.reason.replace("_", " ").lower()
        raise TlsUnusable("ssl_cert_path", f"is too weak for this OpenSSL ({weakness})") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=certificates)
    except ssl.SSLError:
        raise TlsUnusable("ssl_cert_path", "holds no certificate in PEM form") from None
    raise TlsUnusable("ssl_key_path", "holds no private key in PEM form") from None
