"""Where the outside issuer's keys come from: fetched, refreshed, and kept when that fails."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from jwt_forge import ec_key, jwk, key_set
from key_server import KeyServer, after, endless, key_server, raw, says, then_silent

from actors.jwks_fetch import FetchFailed, fetch_jwks
from actors.key_source import FILE_PACE, URL_PACE, KeyFile, KeySource, Pace
from actors.policy.jwks import MAX_SET, KeySet

FIRST, SECOND = key_set(jwk(ec_key("a"), "a")), key_set(jwk(ec_key("b"), "b"))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SOON = 0.3


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with key_server(FIRST) as running:
        yield running


async def test_a_set_is_fetched(server: KeyServer) -> None:
    """By length, in chunks, and until the end of the connection; the path and the query arrive as configured."""
    assert await fetch_jwks(server.url) == FIRST
    server.answer = raw(CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(FIRST), FIRST))
    assert await fetch_jwks(server.url + "?tenant=1") == FIRST
    server.answer = raw(HEAD + b"\r\n" + FIRST)
    assert await fetch_jwks(f"http://localhost:{server.port}") == FIRST
    server.answer = raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}")
    assert await fetch_jwks(server.url) == b"{}"
    assert server.targets == ["/keys", "/keys?tenant=1", "/", "/keys"]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_no_redirect_is_followed(server: KeyServer, status: str) -> None:
    """Not even to the same host: the target is never asked."""
    server.answer = says(FIRST, status, f"Location: http://127.0.0.1:{server.port}/elsewhere")
    with pytest.raises(FetchFailed, match="redirects are not followed"):
        await fetch_jwks(server.url)
    assert server.targets == ["/keys"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(FIRST, "404 Not Found"), "answered 404"),
        (says(FIRST, "500 Internal Server Error"), "answered 500"),
        (says(b"", "204 No Content"), "answered 204"),
        (says(FIRST, "206 Partial Content"), "answered 206"),
        (says(FIRST, "200 OK", "Content-Encoding: gzip"), "compressed"),
        (raw(b"SSH-2.0-OpenSSH\r\n\r\n"), "not HTTP"),
        (raw(b""), "closed without|not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), "not HTTP|closed"),
        (raw(HEAD + b"Content-Length: 100\r\n\r\n{}"), "not HTTP|closed"),
        (raw(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"), "not HTTP"),
        (raw(HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n"), "not HTTP"),
        (raw(CHUNKED + b"zz\r\n"), "not HTTP"),
        (says(b" " * (MAX_SET + 1)), "more than"),
        (endless(CHUNKED, b"1000\r\n" + b" " * 4096 + b"\r\n"), "more than"),
        (endless(HEAD + b"\r\n", b" " * 4096), "more than"),
        (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "interim"),
        (then_silent(b""), "no complete answer"),
        (then_silent(HEAD), "no complete answer"),
        (then_silent(HEAD + b"Content-Length: 10\r\n\r\n{"), "no complete answer"),
    ],
)
async def test_a_bad_answer_is_a_failure(server: KeyServer, answer: Any, said: str) -> None:
    """Wrong, huge, endless or never complete: it fails in bounded time and size, and nothing else is raised."""
    server.answer = answer
    silent = "no complete" in said
    with pytest.raises(FetchFailed, match=said) as failure:
        await fetch_jwks(server.url + "?key=s3cret", SOON if silent else 20)
    assert "s3cret" not in str(failure.value)


async def test_a_server_that_is_down_is_a_failure(server: KeyServer) -> None:
    """Refused connections and names that don't resolve."""
    server.stop_listening()
    for url in (server.url, "http://[::1]:1/", "https://nowhere.invalid/"):
        with pytest.raises(FetchFailed):
            await fetch_jwks(url, 20)


class TlsServer:
    """One TLS answer after another, on loopback."""

    def __init__(self, authority: trustme.CA, name: str) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(self.context)

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_ssl_over_tcp_listeners(0, self.context, host="127.0.0.1")
        task_status.started(listeners[0].transport_listener.socket.getsockname()[1])
        await trio.serve_listeners(self._one, listeners)

    async def _one(self, stream: trio.SSLStream) -> None:
        try:
            await stream.receive_some(4096)
            await stream.send_all(HEAD + b"Content-Length: %d\r\n\r\n" % len(FIRST) + FIRST)
        except trio.BrokenResourceError:
            return


@pytest.mark.parametrize(("trusted", "name"), [(True, "localhost"), (False, "localhost"), (True, "other.example")])
async def test_tls_is_verified(trusted: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an authority that is trusted, and only for the host's name."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with trio.open_nursery() as nursery:
        port = await nursery.start(TlsServer(authority, name).run)
        url = f"https://localhost:{port}/keys"
        if trusted and name == "localhost":
            assert await fetch_jwks(url) == FIRST
        else:
            with pytest.raises(FetchFailed, match="TLS"):
                await fetch_jwks(url)
        nursery.cancel_scope.cancel()


# --- the source ------------------------------------------------------------------------------------------------------


class Recorder:
    """In the place of the audit's ring."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def record(self, event: Any) -> None:
        self.events.append((event.event, event.reason))


@attrs.define
class Rig:
    """A source that is asked by hand, in virtual time. ``next`` is what the next readings find."""

    next: Any = FIRST
    gate: trio.Event | None = None
    readings: int = 0
    settled: int = 0
    sets: list[KeySet] = attrs.Factory(list)
    audit: Recorder = attrs.Factory(Recorder)
    pace: Pace = URL_PACE
    source: KeySource = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.source = KeySource(
            self._read,
            "JWT_JWKS_URL",
            ("ES256",),
            self.audit,  # type: ignore[arg-type]
            self.sets.append,
            self._settle,
            self.pace,
            clock=lambda: int(trio.current_time() * 1e9),
        )

    async def _read(self) -> bytes | None:
        self.readings += 1
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def _settle(self) -> None:
        self.settled += 1

    async def until_settled(self, times: int) -> None:
        """The virtual clock runs on while a thread reads a set, so readings are counted, and not times."""
        while self.settled < times:
            await trio.sleep(1)

    def names(self) -> list[str]:
        return [key.key_id for key in self.sets[-1].keys]


@pytest.fixture
async def rig(autojump_clock: Any, nursery: Any) -> Rig:
    made = Rig()
    nursery.start_soon(made.source.run)
    return made


async def test_it_reads_at_the_start_and_from_time_to_time(rig: Rig, autojump_clock: Any) -> None:
    """A set that is as before changes nothing; a new one takes its place."""
    await rig.until_settled(1)
    assert rig.names() == ["a"]
    await rig.until_settled(2)
    assert len(rig.sets) == 1
    rig.next = SECOND
    await rig.until_settled(3)
    assert rig.names() == ["b"]
    assert rig.audit.events == [("config.reloaded", "")] * 2


@pytest.mark.parametrize(
    "failure", [FetchFailed("answered 500"), OSError(2, "No such file"), b"<html>", b'{"keys":[]}']
)
async def test_the_last_good_set_is_kept(rig: Rig, failure: Any, autojump_clock: Any) -> None:
    """However long the source fails; it is tried again sooner, said once, and said when it is over."""
    await rig.until_settled(1)
    assert rig.source.is_current
    rig.next = failure
    await rig.until_settled(20)
    assert rig.names() == ["a"]
    assert len(rig.sets) == 1
    assert not rig.source.is_current
    assert rig.source.statistics().failing
    assert [event for event, _ in rig.audit.events] == ["config.reloaded", "config.refused"]
    rig.next = SECOND
    await rig.until_settled(22)
    assert rig.names() == ["b"]
    assert rig.source.is_current
    assert [event for event, _ in rig.audit.events] == ["config.reloaded", "config.refused", "config.reloaded"]


async def test_a_source_that_is_as_before_again_is_current(rig: Rig, autojump_clock: Any) -> None:
    """The outage ends with the same keys: nothing changes but that."""
    await rig.until_settled(1)
    rig.next = OSError("down")
    await rig.until_settled(3)
    assert not rig.source.is_current
    rig.next = FIRST
    await rig.until_settled(5)
    assert rig.source.is_current
    assert len(rig.sets) == 1


async def test_an_unknown_key_causes_one_reading_however_many_ask(rig: Rig, autojump_clock: Any) -> None:
    """Single-flight: all who ask meanwhile wait for the same one; afterwards there is none for a while."""
    await rig.until_settled(1)
    rig.gate, rig.next = trio.Event(), SECOND
    assert all(rig.source.want() for _ in range(1000))
    await trio.testing.wait_all_tasks_blocked()
    assert rig.readings == 2
    assert all(rig.source.want() for _ in range(1000))
    rig.gate.set()
    await rig.until_settled(2)
    assert rig.names() == ["b"]
    assert not any(rig.source.want() for _ in range(1000))
    while not rig.source.want():
        assert rig.readings == 2
        await trio.sleep(1)
    await rig.until_settled(3)
    assert rig.readings == 3


async def test_the_first_reading_is_waited_for(autojump_clock: Any, nursery: Any) -> None:
    """Who comes before the keys are there waits for them; without any, none is current."""
    rig = Rig(gate=trio.Event())
    nursery.start_soon(rig.source.run)
    await trio.testing.wait_all_tasks_blocked()
    assert rig.source.want()
    assert not rig.source.is_current
    assert rig.gate is not None
    rig.gate.set()
    await rig.until_settled(1)
    assert rig.readings == 1


async def test_a_file_is_read_when_it_changes(tmp_path: Path) -> None:
    """Replaced, rewritten, gone and back; and never taken for good when it was not."""
    path = tmp_path / "keys.json"
    path.write_bytes(FIRST)
    file = KeyFile(str(path))
    assert await file.read() == FIRST
    assert await file.read() is None
    (tmp_path / "new").write_bytes(SECOND)
    (tmp_path / "new").replace(path)
    assert await file.read() == SECOND
    path.write_bytes(FIRST + b" ")
    assert await file.read() == FIRST + b" "
    path.rename(tmp_path / "away")
    with pytest.raises(OSError):
        await file.read()
    (tmp_path / "away").rename(path)
    assert await file.read() == FIRST + b" "
    path.write_bytes(b" " * (MAX_SET + 1))
    with pytest.raises(FetchFailed, match="more than"):
        await file.read()
    path.unlink()
    path.mkdir()
    with pytest.raises((FetchFailed, OSError)):
        await file.read()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(FetchFailed, match="no regular file"):
        await file.read()


async def test_a_file_of_garbage_stays_bad_until_it_changes(tmp_path: Path, autojump_clock: Any, nursery: Any) -> None:
    """That it is as before is no good news when before it was bad."""
    path = tmp_path / "keys.json"
    path.write_bytes(b"garbage")
    settled: list[None] = []
    sets: list[KeySet] = []
    source = KeySource(
        KeyFile(str(path)).read,
        "JWT_JWKS_FILE",
        ("ES256",),
        Recorder(),  # type: ignore[arg-type]
        sets.append,
        lambda: settled.append(None),
        FILE_PACE,
        clock=lambda: int(trio.current_time() * 1e9),
    )
    nursery.start_soon(source.run)
    while len(settled) < 4:
        await trio.sleep(1)
    assert source.statistics().failing
    assert not sets
    path.write_bytes(FIRST)
    while not sets:
        await trio.sleep(1)
    assert source.is_current


async def test_a_fetch_does_not_stop_the_loop(server: KeyServer) -> None:
    """While the server holds its answer back, other tasks run; then the answer is taken."""
    held = threading.Event()
    server.answer = after(held, says(FIRST))
    turns = 0
    got: list[bytes] = []

    async def fetch() -> None:
        got.append(await fetch_jwks(server.url, 30))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        while not server.requests:
            await trio.lowlevel.checkpoint()
        for _ in range(100):
            await trio.lowlevel.checkpoint()
            turns += 1
        assert not got
        held.set()
    assert got == [FIRST]
    assert turns == 100


def test_the_demand_is_bounded() -> None:
    """Of both kinds of source: unknown keys cause a reading once a second at the very most."""
    assert min(URL_PACE.demand_ns, FILE_PACE.demand_ns) >= 1_000_000_000
