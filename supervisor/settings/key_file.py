"""Whether the file of an outside issuer's keys holds some. The reader of key sets belongs to the actors, whose code the
supervisor never imports: it runs as a process of its own, which is over when the answer is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_MOST: Final = 1 << 20  # far more than a key set may have, which the reader says then
_WITHIN_S: Final = 30.0
_INHERITED: Final = ("LANG", "PATH")
_ROOT: Final = Path(__file__).parents[2]


def flaw(path: str, algorithms: Sequence[str]) -> str:
    """Why auth would not use the file; empty where it would."""
    try:
        # O_NONBLOCK: opening must not wait for the other end of something that is no regular file.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 - as above
            content = file.read(_MOST)
    except OSError as error:
        return f"can't be read: {error.strerror}"
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ} | {"PYTHONPATH": str(_ROOT)}
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", "actors.key_check", *algorithms],
            input=content, capture_output=True, env=environment, timeout=_WITHIN_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "can't be checked: the reader of key sets did not run"
    if done.returncode == 0:
        return ""
    return done.stdout.decode("utf-8", "replace").strip()[:300] or "can't be checked: the reader of key sets failed"
