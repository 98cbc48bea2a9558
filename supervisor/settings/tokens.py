"""Tokens that the gateway makes for itself: random ones for a first run, and the admin token on disk."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from ipc.settings import Settings

from .problems import ConfigurationError, Problem

ADMIN_TOKEN_FILE = "admin.token"  # noqa: S105 - a file's name
JWT_SECRET_FILE = "jwt.secret"  # noqa: S105 - a file's name
_LISTENERS: Final[tuple[Literal["ws", "tcp"], ...]] = ("ws", "tcp")
_BYTES = 32
_LONGEST = 4096


def generate_tokens(settings: Settings) -> Settings:
    """With a random token for each listener that authenticates and has none. They are kept nowhere else.

    A token is 43 characters of base64url, so it can stand in a WebSocket subprotocol too.
    """
    fields: dict[str, object] = {}
    made_up: list[Literal["ws", "tcp"]] = []
    for listener in _LISTENERS:
        if getattr(settings, f"{listener}_auth_enabled") and not getattr(settings, f"{listener}_auth_token"):
            fields[f"{listener}_auth_token"] = (secrets.token_urlsafe(_BYTES),)
            made_up.append(listener)
    return msgspec.structs.replace(settings, **fields, made_up_tokens=tuple(made_up))


def with_admin_token(settings: Settings) -> Settings:
    """With ``admin_token`` set: as configured, else from ``STATE_DIR/admin.token``, which is made when missing.

    The state directory must exist. Raises ConfigurationError when the file is unusable, OSError when the disk is.
    """
    if settings.admin_token:
        return settings
    path = Path(settings.state_dir) / ADMIN_TOKEN_FILE
    with suppress(FileExistsError):
        _create(path, secrets.token_urlsafe(_BYTES))
    return msgspec.structs.replace(settings, admin_token=read_admin_token(path))


def with_state_secrets(settings: Settings) -> Settings:
    """With what the gateway keeps in its state directory: the admin token, and in development the key of its tokens.

    Raises as ``with_admin_token`` does.
    """
    return with_jwt_secret(with_admin_token(settings))


def with_jwt_secret(settings: Settings) -> Settings:
    """In development with ``jwt_secret`` set: as configured, else from ``STATE_DIR/jwt.secret``, made when missing.

    In production a key is configured or there is none. The state directory must exist. Raises as
    ``with_admin_token`` does.
    """
    if settings.jwt_secret or settings.security_profile == "production":
        return settings
    path = Path(settings.state_dir) / JWT_SECRET_FILE
    with suppress(FileExistsError):
        # Enough for every HMAC algorithm (RFC 7518 §3.2).
        _create(path, secrets.token_urlsafe(64))
    return msgspec.structs.replace(settings, jwt_secret=_read(path, "JWT_SECRET"))


def read_admin_token(path: Path) -> str:
    """The token in that file. Raises ConfigurationError when others can read it or it holds none, OSError."""
    return _read(path, "ADMIN_TOKEN")


def read_jwt_secret(path: Path) -> str:
    """The key in that file. Raises as ``read_admin_token`` does."""
    return _read(path, "JWT_SECRET")


def _read(path: Path, name: str) -> str:
    # O_NONBLOCK: opening must not wait for the other end of something that is no regular file.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(name, path, "is no regular file")
        if status.st_mode & 0o077:
            raise _unusable(name, path, "can be read by other users: delete it, so that a new one is made")
        content = file.read(_LONGEST)
    token = content.strip()
    if len(token) < _BYTES or not token.isascii() or not token.decode("ascii").isprintable():
        raise _unusable(name, path, "holds no token: delete it, so that a new one is made")
    return token.decode("ascii")


def _create(path: Path, token: str) -> None:
    """All or nothing: a link to a complete, synced file. Raises FileExistsError if there is a file already."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123 - of a descriptor
            file.write(f"{token}\n")
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)
    finally:
        temporary.unlink()


def _unusable(name: str, path: Path, what: str) -> ConfigurationError:
    return ConfigurationError((Problem(name, f"file {path}", what),))
