"""One gateway a state directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

NAME = "gateway.lock"


class StateLocked(RuntimeError):
    """Another gateway uses this state directory."""


class StateLock:
    """An exclusive flock on ``STATE_DIR/gateway.lock``, which holds the holder's pid.

    The kernel drops the lock with the process, however it ends; the file itself stays, because unlinking it would
    let two processes lock two files of the same name.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._descriptor = -1

    def __enter__(self) -> StateLock:
        """Creates the directory (mode 0700) if need be. Raises StateLocked, OSError."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OSError(error.errno, f"STATE_DIR can't be used: {error.strerror}", str(self._path)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            named = f"pid {holder}" if holder.isdigit() else "another process"
            raise StateLocked(f"STATE_DIR {self._path.parent} is in use by another gateway ({named})") from None
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = -1
