"""Whom a client certificate names. It has been verified before anything here sees it.

The acceptor writes what it learnt into one line, the *credential* of the scheme ``certificate``, and auth reads it. It
is never taken from a client.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from .identity import Identity, is_reserved

MAX_NAME: Final = 256
SCOPES: Final = ("mcp:call", "mcp:read")
"""What the bearer of a certificate may do: as much as the holder of a static token."""

_CREDENTIAL = re.compile(r"(sha256:[0-9a-f]{64}) ([0-9]{1,18}) (.+)", re.DOTALL)


def principal(certificate: Mapping[str, Any], fingerprint: str) -> str:
    """The subject's common name; without one the first URI, then the first e-mail address, of its alternative names;
    without any of these the fingerprint. A name that is not fit to be one is passed over.

    ``certificate`` is as ``ssl.SSLSocket.getpeercert`` decodes it.
    """
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    others = certificate.get("subjectAltName", ())
    names = [value for kind, value in subject if kind == "commonName"]
    # Two common names are two claims; which of them an authority has checked can't be told.
    candidates = [*(names if len(names) == 1 else []), *_of("URI", others), *_of("email", others)]
    return next((name for name in candidates if _is_name(name)), fingerprint)


def credential(certificate: Mapping[str, Any], digest: bytes, expires_at_ms: int) -> str:
    """One line that holds all that matters: the fingerprint (SHA-256 of the DER), the end of its life, the name."""
    fingerprint = f"sha256:{digest.hex()}"
    return f"{fingerprint} {expires_at_ms} {principal(certificate, fingerprint)}"


def fingerprint(credential: str) -> str:
    """``sha256:…`` of a credential. Raises ValueError for what is none."""
    return _parts(credential)[0]


def identify(credential: str, now_ms: int) -> Identity | None:
    """Who it is; None: the certificate has expired. Raises ValueError for what is no credential.

    ``now_ms`` is wall time. The identity ends with the certificate (RFC 5280 §4.1.2.5: up to and including its end).
    """
    _, expires_at_ms, name = _parts(credential)
    if now_ms >= expires_at_ms:
        return None
    return Identity(
        principal=name,
        scopes=SCOPES,
        expires_at_ms=expires_at_ms,
        jti="",
        session="",
        family="",
        issuer="certificate",
    )


def _parts(credential: str) -> tuple[str, int, str]:
    match = _CREDENTIAL.fullmatch(credential)
    if match is None:
        raise ValueError("not a certificate's credential")
    return match[1], int(match[2]), match[3]


def _of(wanted: str, names: Iterable[tuple[str, str]]) -> list[str]:
    return [value for kind, value in names if kind == wanted]


def _is_name(name: str) -> bool:
    """Whether it can stand in a log line and a policy file without doubt, and is no name of another kind of identity:
    ``|`` parts an outside issuer from its subject, a fingerprint is the name of its own certificate only, and the names
    of what is issued for static tokens are nobody else's."""
    return (
        0 < len(name) <= MAX_NAME
        and name.isprintable()
        and name == name.strip()
        and "|" not in name
        and not name.lower().startswith("sha256:")
        and not is_reserved(name)
    )
