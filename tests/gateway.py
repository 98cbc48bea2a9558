"""The real gateway as a process of its own, for tests: started on free ports, and stopped without a trace.

``stop`` checks what every stop of the gateway has to leave behind: exit code 0, no process (neither a descendant from
before the stop nor anybody else who carries this gateway's mark in the environment), no listening socket, no
socket file, and no temporary file.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parent.parent

# Far above what is promised: on a loaded machine a test must not fail for being slow.
READY_WITHIN = 60.0
MARK = "portcullis-test-"
STOPPED_WITHIN = 60.0

# What a test's own process may have set, and what a stdio server is allowed to inherit anyhow.
INHERITED = ("HOME", "LANG", "LOGNAME", "SHELL", "TERM", "USER")


@attrs.define
class Gateway:
    """One run of ``python -m supervisor``. All ports are free ones, all state is below ``directory``."""

    directory: Path
    process: subprocess.Popen[bytes]
    mark: str
    ws_token: str
    tcp_token: str
    ports: dict[str, int] = attrs.field(factory=dict)
    log: list[str] = attrs.field(factory=list)  # lines of stderr, so far
    out: list[str] = attrs.field(factory=list)  # lines of stdout, so far
    _readers: list[threading.Thread] = attrs.field(factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ws_port(self) -> int:
        return self.ports["ws"]

    @property
    def tcp_port(self) -> int:
        return self.ports["tcp"]

    @property
    def health_port(self) -> int:
        return self.ports["health"]

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def audit_dir(self) -> Path:
        return self.directory / "audit"

    @property
    def admin_token(self) -> str:
        return (self.state_dir / "admin.token").read_text().strip()

    def ws_url(self, server: str = "") -> str:
        return f"ws://127.0.0.1:{self.ws_port}" + (f"/ws/{server}" if server else "/")

    def client(self, transport: str) -> list[str]:
        """The arguments of ``mcp-secure-client`` that reach this gateway, credential included."""
        if transport == "tcp":
            return ["tcp", "--host", "127.0.0.1", "--port", str(self.tcp_port), "--token", self.tcp_token]
        return [transport, "--url", self.ws_url(), "--token", self.ws_token]

    def workers(self) -> list[int]:
        """Process ids of the worker processes, the warm standby included."""
        return [pid for pid in descendants(self.pid) if b"supervisor.worker" in _read(pid, "cmdline")]

    def stop(self, *, signal_number: int = signal.SIGTERM, code: int = 0) -> None:
        """Stop it in order, and check that nothing is left."""
        before = {pid: started(pid) for pid in descendants(self.pid)}
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            returned = self.process.wait(STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the gateway did not stop\n{self.tail()}") from None
        self._end_reading()
        assert returned == code, f"exit code {returned}\n{self.tail()}"
        left = {pid for pid, start in before.items() if start and started(pid) == start} | marked(self.mark)
        names = [f"{pid}: {_read(pid, 'cmdline').replace(bytes(1), b' ').decode()}" for pid in left]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"processes left behind: {names}\n{self.tail()}"
        assert not listening(set(self.ports.values())), "a listening socket was left behind"
        files = [path for path in self.directory.rglob("*") if not path.is_symlink() and path.exists()]
        sockets = [path for path in files if stat.S_ISSOCK(path.lstat().st_mode)]
        assert not sockets, f"socket files left behind: {sockets}"
        temporary = list((self.directory / "tmp").iterdir())
        assert not temporary, f"temporary files left behind: {temporary}"

    def kill(self) -> None:
        """Without any order: for a test that has already failed."""
        family = [*descendants(self.pid), self.pid]
        for pid in {*family, *marked(self.mark)}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        self._end_reading()

    def await_line(self, pattern: str) -> re.Match[str]:
        """The first match in a line of stderr, which may still have to be written."""
        deadline = time.monotonic() + READY_WITHIN
        while True:
            for line in list(self.log):
                if match := re.search(pattern, line):
                    return match
            assert time.monotonic() < deadline, f"no line with {pattern}\n{self.tail()}"
            try:
                self.process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
            self._end_reading()  # it has ended: what it wrote is all there is
            deadline = 0

    def tail(self) -> str:
        return "".join(self.log[-60:])

    def _end_reading(self) -> None:
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def start(
    directory: Path,
    *,
    servers: Mapping[str, Mapping[str, Any]] | None = None,
    arguments: tuple[str, ...] = (),
    environment: Mapping[str, str | None] | None = None,
    wait: bool = True,
    program: tuple[str, ...] = ("-m", "supervisor"),
) -> Gateway:
    """Start a gateway and wait until it is ready.

    ``servers`` is the content of ``mcpServers``; without it the embedded server is behind the gateway. With ``wait``
    false it isn't waited for: for tests of a start that fails, with ``process.wait()``. ``program`` is what the
    interpreter runs.
    """
    mark = f"{MARK}{secrets.token_hex(8)}"
    for name in ("tmp", "state", "audit", "work"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    ready_file = directory / "ready.json"
    ready_file.unlink(missing_ok=True)
    variables = {name: os.environ[name] for name in INHERITED if name in os.environ} | {
        # The mark is in a directory of PATH that does not exist, because PATH reaches the stdio servers too.
        "PATH": f"{os.environ.get('PATH', os.defpath)}:/nonexistent/{mark}",
        "TMPDIR": str(directory / "tmp"),
        "STATE_DIR": str(directory / "state"),
        "AUDIT_LOG_DIR": str(directory / "audit"),
        "READY_FILE": str(ready_file),
        "WS_PORT": "0",
        "TCP_PORT": "0",
        "HEALTH_PORT": "0",
        "WS_AUTH_TOKEN": secrets.token_hex(32),
        "TCP_AUTH_TOKEN": secrets.token_hex(32),
    }
    if servers is not None:
        config = directory / "mcp.json"
        config.write_text(json.dumps({"mcpServers": servers}))
        variables["MCP_CONFIG"] = str(config)
    for name, value in (environment or {}).items():
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value
    process = subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=directory / "work",
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    tokens = [variables.get(name, "").split(",")[0] for name in ("WS_AUTH_TOKEN", "TCP_AUTH_TOKEN")]
    gateway = Gateway(directory, process, mark, *tokens)
    for stream, lines in ((process.stdout, gateway.out), (process.stderr, gateway.log)):
        reader = threading.Thread(target=_collect, args=(stream, lines.append), daemon=True)
        reader.start()
        gateway._readers.append(reader)
    if wait:
        _await_ready(gateway, ready_file)
    return gateway


def _await_ready(gateway: Gateway, ready_file: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while not ready_file.exists():
        try:
            code = gateway.process.wait(0.01)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                continue
            gateway.kill()
            raise AssertionError(f"the gateway was not ready in time\n{gateway.tail()}") from None
        gateway._end_reading()
        raise AssertionError(f"the gateway ended with {code} before it was ready\n{gateway.tail()}")
    ready = json.loads(ready_file.read_text())
    assert ready.pop("pid") == gateway.pid
    gateway.ports.update(ready)


def _collect(stream: Any, take: Callable[[str], None]) -> None:
    for line in stream:
        take(line.decode(errors="replace"))


def _read(pid: int, name: str) -> bytes:
    """A file of ``/proc/PID``; empty for a process that has gone or is a zombie, or belongs to someone else."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _stat(pid: int) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` after the command's name: state, parent, …"""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def started(pid: int) -> bytes:
    """When this process started, so that a reused number isn't mistaken for it; empty if it doesn't live."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in (b"Z", b"X") else b""


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    parents: dict[int, list[int]] = {}
    for other in _pids():
        if fields := _stat(other):
            parents.setdefault(int(fields[1]), []).append(other)
    found: list[int] = []
    ahead = [pid]
    while ahead:
        children = parents.get(ahead.pop(), [])
        found += children
        ahead += children
    return found


def marked(mark: str) -> set[int]:
    """Every living process that has this mark in its environment, whoever its parent is by now."""
    return {pid for pid in _pids() if mark.encode() in _read(pid, "environ") and started(pid)}


def listening(ports: set[int]) -> set[int]:
    """Which of these TCP ports somebody listens on, other than a gateway of another test that runs beside this one:
    a free port is given to whoever asks next."""
    found: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == "0A" and port in ports:  # TCP_LISTEN
                found[f"socket:[{fields[9]}]"] = port
    for pid in marked(MARK) if found else ():
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                found.pop(str(link.readlink()), None)
        except OSError:  # it has ended, or closed that descriptor, in the meantime
            continue
    return set(found.values())
