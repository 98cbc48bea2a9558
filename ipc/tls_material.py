"""What the TLS settings' files held when they were judged good: the very bytes that every listener then serves with.

The supervisor reads the files, at the start and at each reload, and hands the bytes to the workers that serve TLS,
also to those that it starts later. So it does not matter what becomes of the files in between: a worker that dies
after a refused reload comes back with the certificate that the others have.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

import msgspec

from .settings import Settings

LARGEST: Final = 4_194_304
"""Bytes of one file. The certificates of all public authorities together have 220 KB."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class TlsMaterial(msgspec.Struct, frozen=True, array_like=True):
    """PEM: the certificate chain, its private key, and the authorities that vouch for clients (empty: none do)."""

    certificates: bytes
    key: bytes
    authorities: bytes = b""

    def __repr__(self) -> str:
        return "TlsMaterial(…)"

    @classmethod
    def read(cls, settings: Settings) -> TlsMaterial:
        """The files as they are now; whether they are of any use is not asked. Raises OSError."""
        authorities = _read(settings.ssl_ca_path) if settings.ssl_client_auth != "none" else b""
        return cls(_read(settings.ssl_cert_path), _read(settings.ssl_key_path), authorities)

    def sealed(self) -> int:
        """A descriptor of it, to hand to another process; nobody can change what it holds. Raises OSError."""
        return _memory(msgspec.msgpack.encode(self), "tls")

    @classmethod
    def opened(cls, descriptor: int) -> TlsMaterial:
        """What ``sealed`` was made of; the descriptor is closed."""
        try:
            data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)
        return msgspec.msgpack.decode(data, type=cls)


def _read(path: str) -> bytes:
    with Path(path).open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(f"{path} is larger than {LARGEST} bytes")
    return data


def _memory(data: bytes, name: str) -> int:
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class InMemory:
    """Bytes as a file of a name, for OpenSSL, which loads a key from nothing else. A context manager."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._descriptor = -1

    def __enter__(self) -> str:
        self._descriptor = _memory(self._data, "pem")
        return f"/proc/self/fd/{self._descriptor}"

    def __exit__(self, *_exception: object) -> None:
        os.close(self._descriptor)
