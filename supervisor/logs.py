"""Logging to stderr that never makes a loop wait.

Records go through a bounded queue to one thread that formats and writes them: a terminal that is stopped, or a pipe
that nobody reads, blocks that thread only. What no longer fits is counted, and the count is logged when there is room.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import deque

from ipc.settings import Settings

_CAPACITY = 4096
"""Records that wait for the writer; at a few hundred bytes each, about a megabyte."""

_LONGEST = 16 * 1024
"""Characters of one record: what upstreams print can end up here."""

_GRACE_S = 1.0
"""At the end, how long the writer may take to get rid of what waits."""

_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(0x80, 0xA0)) if code not in (9, 10)} | {
    code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Terminal escapes and bidirectional marks in a record are shown, not obeyed."""


class _Queue(logging.Handler):
    def __init__(self, process: str, formatter: logging.Formatter, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.process = process
        self._descriptor = descriptor
        self._waiting: deque[logging.LogRecord] = deque()
        self._dropped = 0
        self._wake = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        record.process_label = self.process
        with self._wake:
            if len(self._waiting) >= _CAPACITY:
                self._dropped += 1
            else:
                self._waiting.append(record)
            self._wake.notify()

    def finish(self) -> None:
        """Write what waits, within the grace."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join(_GRACE_S)

    def _write_all(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._dropped and not self._ending:
                    self._wake.wait()
                if not self._waiting and not self._dropped:
                    return
                records, dropped = list(self._waiting), self._dropped
                self._waiting.clear()
                self._dropped = 0
            lines = [self._line(record) for record in records]
            if dropped:
                lines.append(self._line(_lost(dropped)))
            try:
                self._write("".join(lines).encode("utf-8", "backslashreplace"))
            except OSError:
                return  # nobody will ever read this stderr; there is no other place to say so

    def _line(self, record: logging.LogRecord) -> str:
        if not hasattr(record, "process_label"):
            record.process_label = self.process
        try:
            return self.format(record) + "\n"
        except Exception as error:  # noqa: BLE001 - a record with wrong arguments must not end the log
            return f"a log record of {record.name} can't be formatted: {error!r}\n"

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


def _lost(count: int) -> logging.LogRecord:
    message = "%d log records were dropped: stderr is too slow"
    return logging.LogRecord("log", logging.WARNING, "", 0, message, (count,), None)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "process": getattr(record, "process_label", ""),
            "logger": record.name,
            "message": record.getMessage()[:_LONGEST],
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-_LONGEST:]
        return json.dumps(line)


class _Plain(logging.Formatter):
    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()[:_LONGEST]
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)[-_LONGEST:]
        message = message.translate(_ESCAPES)
        level = f"{record.levelname.lower():8}"
        if self._coloured:
            level = f"\033[{_COLOURS.get(record.levelname, '0')}m{level}\033[0m"
        return f"{_moment(record)} {level} {getattr(record, 'process_label', '')} {record.name}: {message}"


def _moment(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"


_current: _Queue | None = None


def _standard_error() -> int:
    """Its descriptor; who started us without one gets no log, and no worker's socket may take its number."""
    if sys.stderr is not None:
        return sys.stderr.fileno()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - it is to stay open
    return 2


def set_up(process: str, level: str, *, as_json: bool) -> None:
    """Log to stderr from now on. ``process`` is what each record is marked with. Calling it again only renames."""
    global _current
    if _current is not None:
        _current.process = process
        return
    descriptor = _standard_error()
    coloured = not as_json and os.isatty(descriptor) and not os.environ.get("NO_COLOR")
    _current = _Queue(process, _JsonLines() if as_json else _Plain(coloured=coloured), descriptor)
    logging.getLogger().handlers[:] = [_current]
    set_level(level)
    logging.captureWarnings(capture=True)


def set_level(level: str) -> None:
    """Log from this level on."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    # trio and the h11 family are fine at any level; asyncio-style chatter of libraries below warning is not ours.
    for noisy in ("trio", "trio-websocket", "jwt"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def finish() -> None:
    """Flush at the end of a process; stderr is written to directly after this."""
    global _current
    if _current is not None:
        logging.getLogger().removeHandler(_current)
        _current.finish()
        _current = None


def as_json(settings: Settings) -> bool:
    return settings.security_profile == "production"
