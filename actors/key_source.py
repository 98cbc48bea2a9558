"""Keeps the outside issuer's keys: reads them at the start, again from time to time, and when an unknown one is named.

Verification never waits for it: there are the keys of the last good reading, or none. A reading is one at a time. What
fails leaves the keys as they are, is logged and audited when it begins and when it ends, and is tried again.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import attrs
import trio

from ipc.messages import AuditEvent
from ipc.settings import Settings

from .audit_ring import AuditRing
from .jwks_fetch import FetchFailed, fetch_jwks
from .kept_keys import KeptKeys
from .policy.jwks import MAX_SET, KeySet, UnusableKeys, parse_jwks

log = logging.getLogger("portcullis.auth")

_S: Final = 1_000_000_000


@attrs.frozen
class Pace:
    """Nanoseconds. ``regular``: between good readings; ``retry``: after a bad one, doubling up to ``regular``;
    ``demand``: the least between two readings that unknown keys cause, so that a flood of them causes few."""

    regular_ns: int
    retry_ns: int
    demand_ns: int


URL_PACE: Final = Pace(regular_ns=300 * _S, retry_ns=5 * _S, demand_ns=15 * _S)
# A look at a file's modification time costs next to nothing.
FILE_PACE: Final = Pace(regular_ns=2 * _S, retry_ns=2 * _S, demand_ns=_S)

Read = Callable[[], Awaitable[bytes | None]]
"""The set's text, None if it is as it was. Raises FetchFailed, OSError."""


@attrs.frozen
class Statistics:
    keys: int
    readings: int
    failures: int
    failing: bool


class KeySource:
    """Args:
    read: one reading.
    origin: the variable that names the source.
    algorithms: what the keys may be of.
    audit: for beginnings and ends of failures, and for changes.
    changed: is given every new set.
    settled: is called after each reading, good or bad.
    kept: the last good set of earlier incarnations, and where this one's goes.
    """

    def __init__(
        self,
        read: Read,
        origin: Literal["JWT_JWKS_FILE", "JWT_JWKS_URL"],
        algorithms: tuple[str, ...],
        audit: AuditRing,
        changed: Callable[[KeySet], None],
        settled: Callable[[], None],
        pace: Pace,
        *,
        kept: KeptKeys | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._read = read
        self._origin = origin
        self._algorithms = algorithms
        self._audit = audit
        self._changed = changed
        self._settled = settled
        self._pace = pace
        self._kept = kept
        self._clock = clock
        self._text: bytes | None = None  # of the last good reading
        self._keys = 0
        self._failure = ""  # of the last reading
        self._readings = 0
        self._failures = 0
        self._wait_ns = pace.retry_ns
        self._reading = True  # the first one begins with run()
        self._on_demand = False  # whether an unknown key caused this reading
        self._on_demand_at = 0  # when an unknown key may cause a reading again
        self._wanted = trio.Event()

    @property
    def is_current(self) -> bool:
        """Whether a key that isn't among them can be said to be wrong."""
        return self._keys > 0 and not self._failure

    def want(self) -> bool:
        """A key is unknown. True: a reading is under way, after which to look again; False: none will be for now."""
        if self._reading:
            return True
        if self._clock() < self._on_demand_at:
            return False
        self._reading = self._on_demand = True
        self._wanted.set()
        return True

    def statistics(self) -> Statistics:
        return Statistics(self._keys, self._readings, self._failures, bool(self._failure))

    async def run(self) -> None:
        """Read for ever. Raises nothing that the source could cause."""
        if self._kept is not None:
            await self._remember(self._kept)
        while True:
            self._reading = True
            self._wanted = trio.Event()
            try:
                await self._renew()
            finally:
                self._reading = False
            if self._on_demand:
                self._on_demand = False
                self._on_demand_at = self._clock() + self._pace.demand_ns
            self._settled()
            with trio.move_on_after(self._wait_ns / _S):
                await self._wanted.wait()

    async def _remember(self, kept: KeptKeys) -> None:
        """Begin with the last good set; whether its source still has it, the first reading says."""
        try:
            text = await trio.to_thread.run_sync(kept.load)
            keys = await trio.to_thread.run_sync(parse_jwks, text, self._algorithms) if text is not None else KeySet()
        except (OSError, UnusableKeys) as error:
            log.warning("%s: the keys of before can't be used: %s", self._origin, error)
            return
        if text is not None:
            self._text = text
            self._keys = len(keys)
            self._changed(keys)
            self._settled()

    async def _renew(self) -> None:
        self._readings += 1
        try:
            text = await self._read()
            if text is None:
                return  # as good or bad as before
            if text == self._text:
                self._good()
                return
            # A hundred keys take milliseconds to make; other connections needn't wait for them.
            keys = await trio.to_thread.run_sync(parse_jwks, text, self._algorithms)
        except (FetchFailed, UnusableKeys) as error:
            self._bad(str(error))
        except OSError as error:
            self._bad(error.strerror or "unreadable")
        else:
            self._text = text
            self._keys = len(keys)
            self._changed(keys)
            await self._keep(text)
            skipped = ", ".join(f"{count} skipped: {why}" for why, count in keys.skipped.items())
            log.info("%s: %d keys%s", self._origin, len(keys), f" ({skipped})" if skipped else "")
            if not self._failure:
                self._record("config.reloaded", "", len(keys))
            self._good()

    async def _keep(self, text: bytes) -> None:
        if self._kept is None:
            return
        try:
            await trio.to_thread.run_sync(self._kept.save, text)
        except OSError as error:
            log.warning("%s: the keys can't be kept for a restart: %s", self._origin, error.strerror)

    def _good(self) -> None:
        if self._failure:
            log.info("%s: usable again", self._origin)
            self._record("config.reloaded", "", self._keys)
        self._failure = ""
        self._wait_ns = self._pace.regular_ns

    def _bad(self, failure: str) -> None:
        self._failures += 1
        self._wait_ns = self._pace.retry_ns if not self._failure else min(self._wait_ns * 2, self._pace.regular_ns)
        if failure != self._failure:
            kept = f"the {self._keys} keys of before stay" if self._keys else "no outside token can be verified"
            log.error("%s: %s; %s", self._origin, failure, kept)
            self._record("config.refused", failure, self._keys)
        self._failure = failure

    def _record(self, event: str, failure: str, keys: int) -> None:
        self._audit.record(
            AuditEvent(
                event=event,
                severity="error" if failure else "info",
                outcome="failure" if failure else "success",
                time_ns=time.time_ns(),
                rule=self._origin,
                reason=failure,
                detail={"keys": keys},
            )
        )


class KeyFile:
    """Reads a file when it has changed since the last reading that was taken."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()

    async def read(self) -> bytes | None:
        """Raises OSError, FetchFailed."""
        try:
            return await trio.to_thread.run_sync(self._read_now, abandon_on_cancel=True)
        except (OSError, FetchFailed):
            self._seen = ()  # what comes after a failure is news, whatever it is
            raise

    def _read_now(self) -> bytes | None:
        # O_NONBLOCK: opening must not wait for the other end of something that is no regular file.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FetchFailed("no regular file")
            state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if state == self._seen:
                return None
            data = file.read(MAX_SET + 1)
        if len(data) > MAX_SET:
            raise FetchFailed(f"more than {MAX_SET} bytes")
        self._seen = state
        return data


def key_source(
    settings: Settings, audit: AuditRing, changed: Callable[[KeySet], None], settled: Callable[[], None]
) -> KeySource | None:
    """The source that is configured, or None."""
    common = (settings.jwt_jwks_algorithms, audit, changed, settled)
    named = settings.jwt_jwks_url or settings.jwt_jwks_file
    if not named:
        return None
    kept = KeptKeys(settings.state_dir, f"{settings.jwt_jwks_issuer}\n{named}")
    if settings.jwt_jwks_url:
        fetch = functools.partial(fetch_jwks, named)
        return KeySource(fetch, "JWT_JWKS_URL", *common, URL_PACE, kept=kept)
    return KeySource(KeyFile(named).read, "JWT_JWKS_FILE", *common, FILE_PACE, kept=kept)
