"""The few calls of the Linux kernel that the standard library does not offer."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys

OLDEST = (5, 10)
"""pidfd_open, close_range and waitid on pidfds, all of them settled; also the oldest kernel that is maintained."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class UnsupportedPlatform(RuntimeError):
    """The gateway can't run here."""


def check(system: str = sys.platform, release: str | None = None) -> None:
    """Raises UnsupportedPlatform."""
    if not system.startswith("linux"):
        raise UnsupportedPlatform(f"Portcullis runs on Linux only (this is {system})")
    release = platform.release() if release is None else release
    version = re.match(r"(\d+)\.(\d+)", release)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        raise UnsupportedPlatform(f"Portcullis needs Linux {OLDEST[0]}.{OLDEST[1]} or newer (this is {release})")


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def become_subreaper() -> None:
    """Orphaned descendants become children of this process instead of init's. Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signal: int) -> None:
    """Have ``signal`` sent to this process when the *thread* that started it ends. Raises OSError."""
    _prctl(_PR_SET_PDEATHSIG, signal)
