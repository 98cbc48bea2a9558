"""One stdio MCP server: a child process, its three pipes, and its end.

A child gets its own session and group, no descriptor of ours but its pipes, and of our environment only what
``INHERITED`` names. It is spawned by ``subprocess`` from the loop's own thread; nothing depends on which thread that
is, because no parent-death signal is set on it (that one fires when the spawning *thread* ends, prctl(2)).

Its exit is seen through a pidfd and *looked at* (WNOWAIT) before it is reaped: until then neither its number nor its
group's can be given to another process, so both are safe to signal.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import attrs
import trio

from actors.acceptor.lines import LineReader, Oversize

from . import descendants
from .descendants import Process, Stat

INHERITED = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG")

MAX_ERROR_LINE = 4096
_ERROR_LINES_BURST = 200
_ERROR_LINES_PER_S = 20

_CHUNK = 65_536  # a pipe's capacity (pipe(7)): no read returns more
_TURN = 4 * _CHUNK  # bytes taken from one child before the other tasks run
_LAST_WORDS = 2 * 1_048_576  # what is read of a dead child's pipe: more than it can hold

GRACE_S = 2.0  # after closing stdin, and again after SIGTERM
_EXIT_AFTER_EOF_S = 0.05  # a process closes its pipes a moment before its exit can be seen
_LOOK_S = 0.02
_KILL_S = 2.0


class SpawnFailed(OSError):
    """No process came into being. ``str()`` is for clients: it names no path, argument or variable."""


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


def environment(own: Mapping[str, str], gateway: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A server's whole environment."""
    return {name: gateway[name] for name in INHERITED if name in gateway} | dict(own)


def printable(raw: bytes) -> str:
    """Text that does nothing to a terminal: controls, bidirectional marks and separators are escaped."""
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


class Child:
    """One running server. It is a pool's transport; ``run`` must be running for as long as it lives."""

    def __init__(
        self, popen: subprocess.Popen[bytes], mark: int, events: ChildEvents, *, max_line: int, max_buffer: int
    ) -> None:
        assert popen.stdin is not None and popen.stdout is not None and popen.stderr is not None  # noqa: S101, PT018
        self.pid = popen.pid
        self.mark = mark  # inherited by all that it starts
        self._popen = popen
        self._events = events
        self._stdin, self._stdout, self._stderr = popen.stdin.fileno(), popen.stdout.fileno(), popen.stderr.fileno()
        for descriptor in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(descriptor, False)
        self._pidfd = os.pidfd_open(self.pid)
        self._reader = LineReader(max_line=max_line, on_overflow="discard")
        self._max_buffer = max_buffer
        self._out = bytearray()
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

    def send(self, raw: bytes) -> bool:
        """Queue one message, which must hold no newline; ``flush`` writes. False: no room, nothing taken.

        A single message is always taken when nothing waits, so that the bound can't shut out what another bound
        allows.
        """
        if self._asked_to_end or self._why:
            return False
        if self._out and len(self._out) + len(raw) >= self._max_buffer:
            self._refused = True
            return False
        if not self._out:
            self._events.unsent()
        self._out += raw
        self._out += b"\n"
        return True

    def flush(self) -> None:
        """Write what can be written now."""
        out = self._out
        try:
            while out:
                written = os.write(self._stdin, out if len(out) <= _TURN else out[:_TURN])
                del out[:written]
        except BlockingIOError:
            self._writable.set()
        except OSError:  # EPIPE: the other end is closed
            self._stop_reading("closed its input")
            return
        if self._refused and len(out) <= self._max_buffer // 2:
            self._refused = False
            self._events.room()

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
            while self._take(_TURN):
                if self._running is not None:
                    await self._running.wait()
                await trio.lowlevel.wait_readable(self._stdout)
        if not self._asked_to_end and not self._exited.is_set():
            with trio.move_on_after(_EXIT_AFTER_EOF_S):
                await self._exited.wait()
        if self._exited.is_set():
            # Answers that it wrote before it died, paused or not: they can't wait. Where a grandchild holds the pipe
            # too, there is no end to wait for.
            self.resume()
            self._take(_LAST_WORDS, pausing=False)

    def _take(self, limit: int, *, pausing: bool = True) -> bool:
        """Read up to about ``limit`` bytes and hand their lines on. False at the end of the stream."""
        taken = 0
        alive = True
        while taken < limit and (self._running is None or not pausing):
            try:
                chunk = os.read(self._stdout, _CHUNK)
            except BlockingIOError:
                break
            if not chunk:
                alive = False
                break
            taken += len(chunk)
            for item in self._reader.receive(chunk):
                if isinstance(item, Oversize):
                    self._events.oversize(item.head, item.tail, item.length)
                elif item:
                    self._events.line(item)
        if taken:
            self._events.settle()
        return alive

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
        tokens, refilled, left_out = float(_ERROR_LINES_BURST), trio.current_time(), 0
        while True:
            await trio.lowlevel.wait_readable(self._stderr)
            try:
                chunk = os.read(self._stderr, _CHUNK)
            except BlockingIOError:
                continue
            if not chunk:
                return
            now = trio.current_time()
            tokens = min(_ERROR_LINES_BURST, tokens + (now - refilled) * _ERROR_LINES_PER_S)
            refilled = now
            for item in reader.receive(chunk):
                if tokens < 1:
                    left_out += 1
                    continue
                tokens -= 1
                if left_out:
                    self._events.errors(f"[{left_out} lines left out]")
                    left_out = 0
                if isinstance(item, Oversize):
                    self._events.errors(f"{printable(item.head[:MAX_ERROR_LINE])}… [{item.length} bytes]")
                elif item:
                    self._events.errors(printable(item))

    def _stop_reading(self, why: str) -> None:
        self._why = self._why or why
        self._out.clear()
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
        REGISTRY.look()
        self._close_stdin()
        with trio.move_on_after(self.grace_s):
            await self._exit_unhindered()
        if not self._exited.is_set() or REGISTRY.left_by(self):
            self._signal(signal.SIGTERM)
            with trio.move_on_after(self.grace_s):
                await self._gone()
        with trio.move_on_after(_KILL_S):
            while not self._exited.is_set() or REGISTRY.left_by(self):
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
        while REGISTRY.left_by(self):  # noqa: ASYNC110 - the kernel tells nobody when an orphan ends
            await trio.sleep(_LOOK_S)

    def _signal(self, number: signal.Signals) -> None:
        left = REGISTRY.left_by(self)
        descendants.signal_group(self.pid, number)
        for status in left:
            descendants.send_signal(status.process, number)

    def _close_stdin(self) -> None:
        self._out.clear()
        trio.lowlevel.notify_closing(self._stdin)
        with contextlib.suppress(OSError):
            self._popen.stdin.close()  # type: ignore[union-attr]

    def _finish(self) -> None:
        """Nothing of it is left after this, or (after a cancellation, for what forks meanwhile) after the registry."""
        if self._finished:
            return
        self._finished = True
        self._signal(signal.SIGKILL)
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        os.close(self._pidfd)
        REGISTRY.forget(self)


# A resource limit is inherited by every child and survives exec, setsid and the death of parents, and any may be read
# (prlimit(2)). RLIMIT_RTTIME bounds the CPU time of real-time scheduling in microseconds; as these marks are values
# of 35 years and more, the limit itself means as little as the usual "unlimited".
_FIRST_MARK = 1 << 50


@contextlib.contextmanager
def _marked(mark: int) -> Iterator[None]:
    """What is spawned in here carries ``mark``, and so does all that it ever starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    possible = hard == resource.RLIM_INFINITY or hard > mark
    if possible:
        resource.setrlimit(resource.RLIMIT_RTTIME, (mark, hard))
    try:
        yield
    finally:
        if possible:
            resource.setrlimit(resource.RLIMIT_RTTIME, (soft, hard))


def _mark_of(pid: int) -> int | None:
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_RTTIME)
    except (ProcessLookupError, PermissionError):
        return None
    return soft if soft >= _FIRST_MARK else None


@attrs.define(eq=False)
class Registry:
    """All children of this process that are servers, and what they left behind.

    An orphan has lost its place below the server that started it, but not the server's *mark*, see ``_marked``. One
    whose mark can't be read (it runs as another user) or was changed belongs to all servers that ran when it was
    first seen, and is ended when the last of them has gone.
    """

    _children: dict[int, Child] = attrs.field(factory=dict)  # by mark
    _ending: list[subprocess.Popen[bytes]] = attrs.field(factory=list)  # killed, not yet reaped
    _orphans: dict[Process, set[int]] = attrs.field(factory=dict)  # and the marks of the servers they belong to
    _spared: frozenset[Process] = frozenset()  # what was below this process before the first server
    _marks: Iterator[int] = attrs.field(factory=lambda: itertools.count(_FIRST_MARK))
    _closed: bool = False

    def open(self) -> None:
        """From now on, whatever appears below this process is a server's. Ends what an earlier incarnation left."""
        if self._children or self._orphans or self._ending:
            self.end_all_now()
        else:
            self._spared = frozenset(
                status.process for status in map(descendants.stat, descendants.children(os.getpid())) if status
            )
        self._closed = False

    def spawn(
        self,
        command: str,
        args: Iterable[str],
        env: Mapping[str, str],
        cwd: str,
        events: ChildEvents,
        *,
        max_line: int,
        max_buffer: int,
    ) -> Child:
        """Start a server. ``cwd`` may be empty. Raises SpawnFailed."""
        if self._closed:
            raise SpawnFailed("cannot start: the gateway is stopping")
        if cwd and not Path(cwd).is_dir():
            raise SpawnFailed("cannot start: its working directory does not exist")
        program = str(Path(cwd or ".") / command) if os.sep in command else shutil.which(command, path=env.get("PATH"))
        if not program or not Path(program).exists():
            raise SpawnFailed("cannot start: its program does not exist")
        mark = next(self._marks)
        try:
            with _marked(mark):
                popen = subprocess.Popen(  # noqa: S603 - the operator's configuration says what to run
                    [command, *args],
                    executable=Path(program).absolute(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    env=env,
                    cwd=cwd or None,
                    close_fds=True,
                    start_new_session=True,
                )
        except OSError as error:
            raise SpawnFailed(f"cannot start: {os.strerror(error.errno or 0)}") from None
        except ValueError:
            raise SpawnFailed("cannot start: its command line holds a NUL") from None
        try:
            child = Child(popen, mark, events, max_line=max_line, max_buffer=max_buffer)
        except BaseException:
            popen.kill()
            self._ending.append(popen)
            raise
        self._children[mark] = child
        return child

    def look(self) -> None:
        """Take note of new orphans, and reap those that have ended."""
        self._ending = [popen for popen in self._ending if popen.poll() is None]
        ours = {child.pid for child in self._children.values()} | {popen.pid for popen in self._ending}
        found: dict[Process, set[int]] = {}
        for status in map(descendants.stat, descendants.children(os.getpid())):
            if status is None or status.process.pid in ours or status.process in self._spared:
                continue
            if status.state == "Z":
                descendants.reap([status.process.pid])
                continue
            owners = self._orphans.get(status.process)
            found[status.process] = self._owners(status.process.pid) if owners is None else owners
        self._orphans = found

    def _owners(self, orphan: int) -> set[int]:
        mark = _mark_of(orphan)
        if mark is None:
            return set(self._children)
        return {mark} & self._children.keys()

    def left_by(self, child: Child) -> list[Stat]:
        """What runs because of this server alone, itself excepted."""
        self.look()
        left = descendants.descendants(child.pid)
        for orphan, owners in self._orphans.items():
            status = descendants.stat(orphan.pid)
            if owners <= {child.mark} and status is not None and status.process == orphan:
                left += [status, *descendants.descendants(orphan.pid)]
        return [status for status in left if status.state != "Z"]

    def forget(self, child: Child) -> None:
        """It has been killed, and is reaped as soon as it is dead."""
        self._children.pop(child.mark, None)
        for owners in self._orphans.values():
            owners.discard(child.mark)
        self._ending.append(child._popen)  # noqa: SLF001 - handed over
        self.look()

    def end_orphans(self) -> None:
        """Kill those whose servers have all gone."""
        self.look()
        for orphan, owners in self._orphans.items():
            if not owners:
                for status in descendants.descendants(orphan.pid):
                    descendants.send_signal(status.process, signal.SIGKILL)
                descendants.send_signal(orphan, signal.SIGKILL)

    def end_all_now(self) -> bool:
        """SIGKILL everything that any server started; wait until it is gone. From any thread, without trio.

        False when something could not be killed within two seconds.
        """
        self._closed = True
        spared = self._spared
        gone = descendants.kill_below(lambda status: status.process in spared)
        for popen in self._ending:
            popen.poll()  # reaped above: this only tells the object so
        self._orphans.clear()
        self._ending.clear()
        return gone

    def statistics(self) -> dict[str, int]:
        return {"servers": len(self._children), "orphans": len(self._orphans), "ending": len(self._ending)}


REGISTRY = Registry()
"""One a process, like the children themselves: what a crashed bridge left is found by the next one here."""


def end_all_now() -> bool:
    """For a worker that has to go at once: see ``Registry.end_all_now``."""
    return REGISTRY.end_all_now()
