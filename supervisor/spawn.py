"""Worker processes: fresh interpreters, started, spoken to, fenced and reaped.

Always a fresh interpreter, never a fork: a fork of a trio process copies its epoll and its locks. Always from the
main thread: PR_SET_PDEATHSIG in the child fires when the *thread* that started it ends. A worker gets three
descriptors besides stderr (its control socket, the lifetime pipe, /dev/null) and an environment without secrets.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from ipc.control import ControlMessage, FromWorker
from ipc.fdpass import DescriptorLink

from . import proc
from .outbox import Outbox, OutboxFull

ROOT = Path(__file__).resolve().parent.parent
"""Where the project's packages live."""

_INHERITED = (
    *("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"),
    *("NO_COLOR", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE"),
)
"""The worker's whole environment, where set. Settings come with its assignment."""

_ABORT_GRACE_S = 0.5
"""For the faulthandler's trace, after SIGABRT; it takes a millisecond or never comes."""


@attrs.define(eq=False)
class Process:
    """One interpreter. ``fault`` is why it is being ended, for the log; ``hello``: it is warm."""

    pid: int
    link: DescriptorLink
    _popen: subprocess.Popen[bytes]
    _pidfd: int
    hello: bool = False
    fault: str = ""
    said: str = ""  # the worker's own last words
    fencing: bool = False
    returncode: int | None = None
    exited: trio.Event = attrs.field(factory=trio.Event)
    _outbox: Outbox = attrs.field(init=False)

    @_outbox.default
    def _new_outbox(self) -> Outbox:
        return Outbox(self.link)

    def send(
        self, message: ControlMessage, *, lent: Sequence[int] = (), given: Sequence[socket.socket | int] = ()
    ) -> None:
        """As ``Outbox.send``. A worker that reads nothing from its control socket is ended."""
        try:
            self._outbox.send(message, lent=lent, given=given)
        except OutboxFull:
            self.kill("reads nothing from its control socket")

    async def write(self) -> None:
        """Send what did not go at once. Runs as long as the process lives."""
        await self._outbox.run()

    async def wait(self) -> int:
        """Until it is gone; the exit code, negative for a signal. Reaps it."""
        await trio.lowlevel.wait_readable(self._pidfd)
        # The pidfd is readable when it is a zombie, so this does not block. Popen yields 0 if somebody else reaped it.
        self.returncode = self._popen.wait()
        self.exited.set()
        return self.returncode

    def signal(self, number: signal.Signals) -> None:
        """To this very process; no other can have its pidfd. No-op once it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self, fault: str) -> None:
        """SIGKILL. ``fault`` is why, unless it was at fault already."""
        self.fault = self.fault or fault
        self.fencing = True
        self.signal(signal.SIGKILL)

    async def fence(self, fault: str) -> None:
        """End a process that hangs: a trace of where, then by force. Nothing of its is handed over before it is gone.

        A stopped process (state T) acts on nothing but SIGKILL.
        """
        self.fault = self.fault or fault
        self.fencing = True
        found = proc.stat(self.pid)
        if found is not None and found.state not in "Tt":
            self.signal(signal.SIGABRT)
            with trio.move_on_after(_ABORT_GRACE_S):
                await self.exited.wait()
        if not self.exited.is_set():
            self.signal(signal.SIGKILL)
            await self.exited.wait()

    def close(self) -> None:
        """After the exit."""
        self._outbox.close()
        self.link.close()
        os.close(self._pidfd)

    def ending(self) -> str:
        """How it ended, for people."""
        code = self.returncode
        if code is None:
            return "still running"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return "; ".join(dict.fromkeys(text for text in (self.fault, self.said, how) if text))


class Spawner:
    """Starts interpreters. Holds the write end of the lifetime pipe: when this process goes, however, so do they."""

    def __init__(self, *, log_level: str, as_json: bool, search_path: Sequence[str] = ()) -> None:
        self._log_level = log_level
        self._as_json = as_json
        self._environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        self._environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), *search_path))
        self._lifetime, self._alive = os.pipe2(os.O_CLOEXEC)

    def spawn(self, modules: Sequence[str]) -> Process:
        """A process that imports ``modules`` and then says Hello. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                popen = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                    self._arguments(theirs.fileno(), modules),
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), self._lifetime),
                    process_group=0,  # a terminal's Ctrl-C is for the supervisor
                )
            try:
                pidfd = os.pidfd_open(popen.pid)
            except OSError:
                popen.kill()
                popen.wait()
                raise
        except BaseException:
            ours.close()
            raise
        return Process(popen.pid, DescriptorLink(ours, FromWorker), popen, pidfd)

    def _arguments(self, control: int, modules: Sequence[str]) -> list[str]:
        return [
            *(sys.executable, "-P", "-m", "supervisor.worker"),
            *("--control", str(control), "--lifetime", str(self._lifetime), "--parent", str(os.getpid())),
            *("--log", self._log_level, "--log-format", "json" if self._as_json else "text"),
            *("--import", ",".join(modules)),
        ]

    def close(self) -> None:
        """Ends every worker that is still there."""
        os.close(self._lifetime)
        os.close(self._alive)

