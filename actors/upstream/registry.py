"""All stdio servers of this process: how they are started, what belongs to them, and how everything is ended.

A server gets its own session and group, no descriptor of ours but its pipes, and of our environment only what
``INHERITED`` names. It is spawned by ``subprocess`` from the loop's own thread; nothing depends on which thread that
is, because no parent-death signal is set on it (that one fires when the spawning *thread* ends, prctl(2)).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from . import descendants
from .descendants import Process, Stat
from .process import Child, ChildEvents

INHERITED = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG")


class SpawnFailed(OSError):
    """No process came into being. ``str()`` is for clients: it names no path, argument or variable."""


def environment(own: Mapping[str, str], gateway: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A server's whole environment."""
    return {name: gateway[name] for name in INHERITED if name in gateway} | dict(own)


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
            child = Child(popen, mark, self, events, max_line=max_line, max_buffer=max_buffer)
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
        self._ending.append(child.popen)
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

    @property
    def orphans(self) -> int:
        """How many were there when it was last looked."""
        return len(self._orphans)

    def statistics(self) -> dict[str, int]:
        return {"servers": len(self._children), "orphans": len(self._orphans), "ending": len(self._ending)}


REGISTRY = Registry()
"""One a process, like the children themselves: what a crashed bridge left is found by the next one here."""


def end_all_now() -> bool:
    """For a worker that has to go at once: see ``Registry.end_all_now``."""
    return REGISTRY.end_all_now()
