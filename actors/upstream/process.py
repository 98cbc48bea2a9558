"""One stdio MCP server: a child process, its three pipes, and its end.

Its exit is seen through a pidfd and *looked at* (WNOWAIT) before it is reaped: until then neither its number nor its
group's can be given to another process, so both are safe to signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Protocol

import attrs
import trio

from actors.acceptor.lines import LineReader, Oversize
from ipc.messages import Envelope

from . import descendants
from .descendants import Stat
from .pace import Pace, PacedLines
from .quota import LogQuota

MAX_ERROR_LINE = 4096

_JOINED = 65_536  # bytes from which on a message isn't copied to get its line end
_IOV_MAX = 64  # messages gathered in one write

_CHUNK = 65_536  # a pipe's capacity (pipe(7)): no read returns more
_LAST_WORDS = 2 * 1_048_576  # what is read of a dead child's pipe: more than it can hold

GRACE_S = 2.0  # after closing stdin, and again after SIGTERM
_EXIT_AFTER_EOF_S = 0.05  # a process closes its pipes a moment before its exit can be seen
_LOOK_S = 0.02
_KILL_S = 2.0


@attrs.define(eq=False)
class ChildEvents:
    """What a child tells its owner; all in the loop's thread, none may raise.

    ``closed`` comes exactly once and last, except after a cancellation. ``settle`` ends each turn.
    """

    line: Callable[[bytes], None]
    oversize: Callable[[bytes, bytes, int], None]  # head, tail, length
    room: Callable[[], None]  # ``send`` had refused and may succeed now
    closed: Callable[[str], None]
    errors: Callable[[str], None]  # a line of stderr, printable
    unsent: Callable[[], None]  # there is something to ``flush``
    settle: Callable[[], None]


def printable(raw: bytes) -> str:
    """Text that does nothing to a terminal: controls, bidirectional marks and separators are escaped."""
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


class Family(Protocol):
    """Who knows what a child has started, see ``Registry``."""

    def look(self) -> None: ...
    def left_by(self, child: Child) -> list[Stat]: ...
    def forget(self, child: Child) -> None: ...


class Child:
    """One running server. It is a pool's transport; ``run`` must be running for as long as it lives."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        mark: int,
        family: Family,
        events: ChildEvents,
        *,
        max_line: int,
        max_buffer: int,
    ) -> None:
        assert popen.stdin is not None and popen.stdout is not None and popen.stderr is not None  # noqa: S101, PT018
        self.pid = popen.pid
        self.mark = mark  # inherited by all that it starts
        self.popen = popen
        self._family = family
        self._events = events
        self._stdin, self._stdout, self._stderr = popen.stdin.fileno(), popen.stdout.fileno(), popen.stderr.fileno()
        for descriptor in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(descriptor, False)
        self._pidfd = os.pidfd_open(self.pid)
        self._pace = Pace()
        self._lines = PacedLines(
            LineReader(max_line=max_line, on_overflow="discard"), self._pace, events.line, events.oversize
        )
        self._max_buffer = max_buffer
        self._out: deque[bytes | memoryview] = deque()
        self._unsent = 0  # the sum of their lengths
        self._refused = False
        self._writable = trio.Event()
        self._running: trio.Event | None = None  # set when reading may go on; None while it does
        self._exited = trio.Event()
        self._reading = trio.CancelScope()
        self._asked_to_end = False
        self.grace_s = GRACE_S
        self._why = ""
        self._finished = False

    # --- the transport --------------------------------------------------------------------------------------

    def send(self, raw: bytes, about: Envelope | None = None) -> bool:  # noqa: ARG002 - the interface is Transport's
        """Queue one message, which must hold no newline; ``flush`` writes. False: no room, nothing taken.

        A single message is always taken when nothing waits, so that the bound can't shut out what another bound
        allows.
        """
        if self._asked_to_end or self._why:
            return False
        if self._out and self._unsent + len(raw) >= self._max_buffer:
            self._refused = True
            return False
        if not self._out:
            self._events.unsent()
        if len(raw) < _JOINED:
            self._out.append(raw + b"\n")
        else:
            self._out.append(raw)
            self._out.append(b"\n")
        self._unsent += len(raw) + 1
        return True

    @property
    def unsent(self) -> int:
        return self._unsent

    def flush(self) -> None:
        """Write what can be written now."""
        out = self._out
        try:
            while out:
                self._wrote(os.writev(self._stdin, list(islice(out, _IOV_MAX))))
        except BlockingIOError:
            self._writable.set()
        except OSError:  # EPIPE: the other end is closed
            self._stop_reading("closed its input")
            return
        if self._refused and self._unsent <= self._max_buffer // 2:
            self._refused = False
            self._events.room()

    def _wrote(self, count: int) -> None:
        out = self._out
        self._unsent -= count
        while out and count >= len(out[0]):
            count -= len(out.popleft())
        if count:
            out[0] = memoryview(out[0])[count:]

    def _drop_unsent(self) -> None:
        self._out.clear()
        self._unsent = 0

    def close(self) -> None:
        """End it: stdin first, then signals. Returns at once; ``closed`` comes when it is over."""
        if not self._asked_to_end:
            self._asked_to_end = True
            self._stop_reading("was ended")

    def pause(self) -> None:
        """Read no more of its output for now."""
        if self._running is None:
            self._running = trio.Event()

    def resume(self) -> None:
        if self._running is not None:
            self._running.set()
            self._running = None

    # --- its life ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the pipes until the server has ended, then see to it that nothing of it is left.

        When cancelled it kills instead of asking, without waiting.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_exit)
                nursery.start_soon(self._drain_errors)
                nursery.start_soon(self._write)
                await self._read()
                self._events.closed(self._reason())
                self._events.settle()
                await self._end()
                nursery.cancel_scope.cancel()
        finally:
            self._finish()

    async def _read(self) -> None:
        with self._reading:
            while True:
                await trio.lowlevel.wait_readable(self._stdout)
                await self.flow()
                self._pace.begin(time.monotonic_ns())
                if self._receive() == 0:
                    break
                await self._hand_on()
        if not self._asked_to_end and not self._exited.is_set():
            with trio.move_on_after(_EXIT_AFTER_EOF_S):
                await self._exited.wait()
        # Answers that it wrote before it died, paused or not: they can't wait. Where a grandchild holds the pipe too,
        # there is no end to wait for.
        await self._hand_on(pausing=False)
        if self._exited.is_set():
            left = _LAST_WORDS
            while left > 0 and (count := self._receive()) > 0:
                left -= count
                await self._hand_on(pausing=False)

    async def flow(self) -> None:
        """Wait while paused."""
        while self._running is not None:
            await self._running.wait()

    def _receive(self) -> int:
        """Read once. 0 at the end of the stream, -1 when there is nothing now."""
        try:
            chunk = os.read(self._stdout, _CHUNK)
        except BlockingIOError:
            return -1
        self._lines.feed(chunk)
        return len(chunk)

    async def _hand_on(self, *, pausing: bool = True) -> None:
        """What has been read, in as many turns as it takes."""
        while not self._lines.take():
            self._events.settle()
            await self._pace.rest()
            if pausing:
                await self.flow()
        self._events.settle()

    async def _write(self) -> None:
        while True:
            await self._writable.wait()
            self._writable = trio.Event()
            try:
                await trio.lowlevel.wait_writable(self._stdin)
            except trio.ClosedResourceError:
                return
            self.flush()
            self._events.settle()

    async def _watch_exit(self) -> None:
        await trio.lowlevel.wait_readable(self._pidfd)
        self._exited.set()
        self._reading.cancel()

    async def _drain_errors(self) -> None:
        """stderr is read however much there is, so that the server never blocks on it; little of it is logged."""
        reader = LineReader(max_line=MAX_ERROR_LINE, on_overflow="discard")
        quota = LogQuota()
        while True:
            await trio.lowlevel.wait_readable(self._stderr)
            try:
                chunk = os.read(self._stderr, _CHUNK)
            except BlockingIOError:
                continue
            if not chunk:
                return
            now = time.monotonic_ns()
            for item in reader.receive(chunk):
                left_out = quota.admit(now)
                if left_out < 0:
                    continue
                if left_out:
                    self._events.errors(f"[{left_out} lines left out]")
                if isinstance(item, Oversize):
                    self._events.errors(f"{printable(item.head[:MAX_ERROR_LINE])}… [{item.length} bytes]")
                elif item:
                    self._events.errors(printable(item))

    def _stop_reading(self, why: str) -> None:
        self._why = self._why or why
        self._drop_unsent()
        self._reading.cancel()

    def _status(self) -> os.waitid_result | None:
        """How it ended, without reaping it; None while it runs."""
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return None

    def _reason(self) -> str:
        status = self._status()
        if status is None or self._asked_to_end:
            return self._why or "closed its output"
        if status.si_code == os.CLD_EXITED:
            return f"exited with status {status.si_status}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(status.si_status).name}"
        return f"was killed by signal {status.si_status}"

    # --- its end -----------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Ask, wait, insist: what the MCP specification says of stdio servers, for all that this one started."""
        self._family.look()
        self._close_stdin()
        with trio.move_on_after(self.grace_s):
            await self._exit_unhindered()
        if not self._exited.is_set() or self._family.left_by(self):
            self._signal(signal.SIGTERM)
            with trio.move_on_after(self.grace_s):
                await self._gone()
        with trio.move_on_after(_KILL_S):
            while not self._exited.is_set() or self._family.left_by(self):
                self._signal(signal.SIGKILL)
                await trio.sleep(_LOOK_S)

    async def _exit_unhindered(self) -> None:
        """Wait for its exit, and throw away what it still prints, so that it can't hang on a full pipe."""
        with trio.CancelScope() as discarding:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._discard_output)
                await self._exited.wait()
                discarding.cancel()

    async def _discard_output(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._stdout)
            try:
                if not os.read(self._stdout, _CHUNK):
                    return
            except BlockingIOError:
                continue

    async def _gone(self) -> None:
        await self._exited.wait()
        while self._family.left_by(self):  # noqa: ASYNC110 - the kernel tells nobody when an orphan ends
            await trio.sleep(_LOOK_S)

    def _signal(self, number: signal.Signals) -> None:
        left = self._family.left_by(self)
        descendants.signal_group(self.pid, number)
        for status in left:
            descendants.send_signal(status.process, number)

    def _close_stdin(self) -> None:
        self._drop_unsent()
        trio.lowlevel.notify_closing(self._stdin)
        with contextlib.suppress(OSError):
            self.popen.stdin.close()  # type: ignore[union-attr]

    def _finish(self) -> None:
        """Nothing of it is left after this, or (after a cancellation, for what forks meanwhile) after the registry."""
        if self._finished:
            return
        self._finished = True
        self._signal(signal.SIGKILL)
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        os.close(self._pidfd)
        self._family.forget(self)
