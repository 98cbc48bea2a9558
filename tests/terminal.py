"""A program on a terminal of its own: typed to, listened to, resized."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

WITHIN = 60.0  # seconds; far above what it takes


@attrs.define
class Terminal:
    """``seen`` is everything that was written to the terminal so far, escapes and all."""

    process: subprocess.Popen[bytes]
    descriptor: int
    seen: str = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def until(self, wanted: str, *, after: int = 0) -> int:
        """Until this was written behind place ``after`` of ``seen``; where it ends."""
        deadline = time.monotonic() + WITHIN
        while (place := self.seen.find(wanted, after)) < 0:
            assert time.monotonic() < deadline, f"never: {wanted!r}\n{self.seen[-4000:]}"
            assert self.read(), f"it ended without {wanted!r}\n{self.seen[-4000:]}"
        return place + len(wanted)

    def read(self) -> bool:
        """What there is, if something comes soon. False at the end."""
        if select.select([self.descriptor], [], [], 0.2)[0]:
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:  # EIO: the other side has closed it
                return False
            self.seen += data.decode(errors="replace")
            return bool(data)
        return True

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def ended(self) -> int:
        """The exit code, once it has ended; what it still wrote is in ``seen``."""
        deadline = time.monotonic() + WITHIN
        while self.read():
            assert time.monotonic() < deadline, f"it does not end\n{self.seen[-4000:]}"
        return self.process.wait(WITHIN)


@contextmanager
def on_terminal(
    arguments: Sequence[str], *, directory: Path, environment: Mapping[str, str], columns: int = 120, rows: int = 40
) -> Iterator[Terminal]:
    """The program's controlling terminal, so that Ctrl-C is a character as it is for a person."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        # setsid --ctty makes it the session's terminal.
        ["setsid", "--ctty", "--wait", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, cwd=directory,
        env=dict(environment), start_new_session=False,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
        os.close(ours)
        process.wait(WITHIN)
