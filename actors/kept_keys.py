"""The last good key set of the outside issuer, kept in ``STATE_DIR`` for the next incarnation of auth.

What is kept holds public keys only: a set with any other is refused whole before it comes here. It counts for the
source that it came from, so that a gateway with another issuer never believes the one before it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

from .journal import state_file
from .policy.jwks import MAX_SET

FILE: Final = "jwks.last"


class KeptKeys:
    """Both methods block. Args: ``source``: what the set is read from and whom it belongs to."""

    def __init__(self, state_dir: str, source: str) -> None:
        self._path: Path = state_file(state_dir, FILE)
        self._mark = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest().encode() + b"\n"

    def load(self) -> bytes | None:
        """The set's text; None where there is none of this source. Raises OSError."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
            content = file.read(len(self._mark) + MAX_SET + 1)
        return content.removeprefix(self._mark) if content.startswith(self._mark) else None

    def save(self, text: bytes) -> None:
        """All or nothing. Raises OSError."""
        temporary = self._path.with_name(f".{FILE}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
                file.write(self._mark + text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
