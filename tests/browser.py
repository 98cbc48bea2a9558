"""A real browser: headless Chromium that loads a page of a server of our own, whose script reports what it found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

CHROMIUM = shutil.which("chromium")
WITHIN = 120.0  # seconds for a page to load and to report; a cold start on a busy machine is slow
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--disable-extensions", "--no-default-browser-check", "--no-proxy-server",
    # Names are never looked up: a page that isn't served by this machine doesn't exist.
    "--host-resolver-rules=MAP rebound.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)  # fmt: skip


class PageServer:
    """An origin: serves one page at ``/``, takes what the page posts to ``/report``."""

    def __init__(self) -> None:
        self.page = b""
        self.reports: Queue[Any] = Queue()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path == "/"
                body = owner.page if found else b""
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                owner.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                return  # pytest's output is not an access log

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def page_server() -> Iterator[PageServer]:
    server = PageServer()
    try:
        yield server
    finally:
        server.close()


def script_page(script: Path, config: Mapping[str, Any]) -> bytes:
    """A page that runs ``script`` with ``config`` in a variable of that name."""
    text = f"const config = {json.dumps(config)};\n{script.read_text()}"
    return f"<!doctype html><title>test</title><script>{text}</script>".encode()


def visit(server: PageServer, profile: Path) -> Any:
    """Load the server's page with a new profile and wait for what its script reports."""
    with _chromium(profile, server.origin) as process:
        try:
            return server.reports.get(timeout=WITHIN)
        except Empty:
            _end(process)
            raise AssertionError(f"the page did not report\n{_log(profile).read_text()[-4000:]}") from None


def dom_of(url: str, profile: Path) -> str:
    """The document that is shown for ``url``."""
    with _chromium(profile, "--dump-dom", url) as process:
        assert process.stdout is not None
        late = threading.Timer(WITHIN, _end, [process])
        late.start()
        try:
            return process.stdout.read().decode()
        finally:
            late.cancel()
            late.join()


def _log(profile: Path) -> Path:
    return profile.with_name(f"{profile.name}.log")


@contextmanager
def _chromium(profile: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    assert CHROMIUM is not None
    with _log(profile).open("wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)
        process.communicate()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the browser and all its processes. They form a group of their own, whose number can't have become anybody
    else's: its leader isn't waited for before."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
